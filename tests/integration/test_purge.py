"""Queues that are purged: with `celery once purge`, and with Celery's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _support.celery_app import SETTINGS
from _support.deployment import Deployment
from _support.waiting import wait_until
from celery import Celery

from once_celery import Purged, purge
from once_core.devserver import DevServer

pytestmark = pytest.mark.lifecycle

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_once_purge_frees_what_waited(
    deploy: Callable[..., Deployment], unit: str, broker: str
) -> None:
    """The next call is accepted at once, and runs."""
    scene = deploy(broker=broker)
    task, foreign = scene.task("work"), f"{unit}-foreign"
    for number in range(3):
        task.delay(f"{unit}-{number}")
    scene.app.send_task("work", (foreign,))  # of a program without this library
    scene.app.send_task("plain", (foreign,))
    wait_until(lambda: scene.queued() == 5, "all are in the queue")

    assert purge(scene.app) == Purged(messages=5, released=3, left=0)

    assert scene.queued() == 0
    assert not any(task.is_locked(f"{unit}-{number}") for number in range(3))
    scene.worker()
    assert task.delay(f"{unit}-0").get(timeout=20) == f"done {unit}-0"


def test_after_a_plain_purge_the_unit_heals(deploy: Callable[..., Deployment], unit: str) -> None:
    """Nobody tells once: a call is accepted again after heal_after."""
    scene = deploy(conf={"once_heal_after": 1})
    task = scene.task("work")
    lost = task.delay(unit)
    scene.app.control.purge()
    assert task.delay(unit).once.state == "waiting"

    accepted = wait_until(
        lambda: next((one for one in [task.delay(unit)] if not one.once.is_duplicate), None),
        "a call is accepted",
        within=5,
    )

    scene.worker()
    assert accepted.get(timeout=20) == f"done {unit}"
    assert [run.message_id for run in scene.runs(unit)] == [accepted.id] != [lost.id]


def test_a_purge_without_the_store_says_what_is_left(
    deploy: Callable[..., Deployment], server: DevServer, unit: str
) -> None:
    """The messages are gone all the same; their units heal."""
    scene = deploy(conf={"once_url": server.url})
    scene.task("work").delay(unit)
    server.kill()
    assert purge(scene.app) == Purged(messages=1, released=0, left=1)


def test_a_program_that_knows_no_tasks_can_purge(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """What it needs travels with the messages."""
    scene = deploy()
    scene.task("work").delay(unit)
    stranger = Celery("stranger", broker=scene.settings["broker_url"], set_as_current=False)
    stranger.conf.once_url = scene.settings["once_url"]
    queue = str(scene.settings["task_default_queue"])
    assert purge(stranger, [queue, "no-such-queue"]) == Purged(messages=1, released=1, left=0)
    assert not scene.task("work").is_locked(unit)


@pytest.fixture
def command(
    deploy: Callable[..., Deployment], unit: str
) -> Callable[..., tuple[Deployment, str, int]]:
    """Runs ``celery once ...`` as a program of its own, with one message in the queue."""

    def run(*arguments: str, say: str = "") -> tuple[Deployment, str, int]:
        scene = deploy()
        scene.task("work").delay(unit)
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "_support.celery_app", "once", *arguments],
            env={**os.environ, SETTINGS: json.dumps(scene.settings), "PYTHONPATH": str(TESTS)},
            input=say,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return scene, done.stdout + done.stderr, done.returncode

    return run


def test_the_command_asks_before_it_purges(
    command: Callable[..., tuple[Deployment, str, int]], unit: str
) -> None:
    """No is the answer that does nothing."""
    scene, said, code = command("purge", say="n\n")
    assert "There is no undo" in said
    assert (code, scene.queued(), scene.task("work").is_locked(unit)) == (1, 1, True)


def test_the_command_purges(command: Callable[..., tuple[Deployment, str, int]], unit: str) -> None:
    """With -f it does not ask."""
    scene, said, code = command("purge", "-f")
    assert "Messages thrown away: 1. Units of work freed: 1." in said
    assert (code, scene.queued(), scene.task("work").is_locked(unit)) == (0, 0, False)


def test_the_command_leaves_other_queues_alone(
    command: Callable[..., tuple[Deployment, str, int]], unit: str
) -> None:
    """Only the queues that are named."""
    scene, said, code = command("purge", "-f", "-Q", "another")
    assert "Messages thrown away: 0." in said
    assert (code, scene.queued(), scene.task("work").is_locked(unit)) == (0, 1, True)
