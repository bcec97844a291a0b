"""Triggers by the hundred: one message a unit, never two bodies at once, the last one heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from _support import ledger
from _support.celery_app import SETTINGS
from _support.deployment import Deployment
from _support.waiting import wait_until

from once_core.devserver import DevServer

TESTS = Path(__file__).parent.parent

HAMMER = """
import json, random, sys
from _support.celery_app import app

seed, prefix, units = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = [f"{prefix}-{number}" for number in range(units)]
random.Random(seed).shuffle(names)
told = [app.tasks["work"].delay(name).once for name in names]
print(json.dumps([sum(1 for each in told if not each.is_duplicate), len(told)]))
"""

TRIGGER = """
import random, sys, time
from _support import ledger
from _support.celery_app import app

path, unit, times, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
for _ in range(times):
    ledger.note(path, "trigger", unit=unit)
    result = app.tasks["work"].delay(unit, 0.15)
    ledger.note(path, "told", unit=unit, state=result.once.state)
    time.sleep(random.uniform(0, 2 * pause))
"""


def start_producer(scene: Deployment, code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in a process of its own that shares the scene's app."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, SETTINGS: json.dumps(scene.settings), "PYTHONPATH": str(TESTS)},
        cwd=scene.folder,
        stdout=subprocess.PIPE,
        text=True,
    )


def outputs(producers: list[subprocess.Popen[str]], within: float) -> list[str]:
    """Wait for producers and return what they printed; none survives."""
    try:
        found = [each.communicate(timeout=within)[0] for each in producers]
    finally:
        for each in producers:
            each.kill()
            each.communicate()
    assert [each.returncode for each in producers] == [0] * len(producers)
    return found


def drain(scene: Deployment) -> list[str]:
    """Take all messages out of the queue; the unit of each."""
    units = []
    with scene.app.connection_for_read() as connection:
        queue = scene.app.amqp.queues[str(scene.settings["task_default_queue"])]
        bound = queue(connection.default_channel)
        while (message := bound.get(no_ack=True)) is not None:
            units.append(message.payload[0][0])
    return units


@pytest.mark.parametrize(
    "broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
def test_a_thousand_units_hammered_by_eight_processes_give_one_message_each(
    deploy: Callable[..., Deployment], server: DevServer, unit: str, broker: str
) -> None:
    """However many processes trigger a unit, exactly one message of it is in the broker."""
    scene = deploy(store=server, broker=broker)

    producers = [start_producer(scene, HAMMER, seed, unit, 1000) for seed in range(8)]
    told = [json.loads(text) for text in outputs(producers, within=90)]

    assert sum(calls for _, calls in told) == 8000
    assert sum(sent for sent, _ in told) == 1000
    messages = Counter(drain(scene))
    assert len(messages) == 1000
    assert set(messages.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "broker"),
    [
        ("prefork", "redis"),
        pytest.param("threads", "rabbitmq", marks=pytest.mark.rabbitmq),
    ],
)
def test_two_hundred_triggers_neither_overlap_nor_pile_up_nor_get_lost(
    deploy: Callable[..., Deployment], server: DevServer, unit: str, pool: str, broker: str
) -> None:
    """No two bodies at once, a run that starts after the last trigger, two messages at most."""
    scene = deploy(store=server, broker=broker, pool=pool, concurrency=4)
    scene.worker()
    redis = server.client()
    queue = str(scene.settings["task_default_queue"])
    most = 0

    def waiting() -> int:
        """Messages in the broker, taken by a worker or not: what is in both counts twice."""
        if broker == "rabbitmq":
            return scene.queued()
        with redis.pipeline() as both:
            return sum(both.llen(queue).hlen("unacked").execute())

    def is_done() -> bool:
        nonlocal most
        most = max(most, waiting())
        return all(each.poll() is not None for each in producers)

    producers = [
        start_producer(scene, TRIGGER, scene.ledger, unit, 50, 0.08) for _ in range(4)
    ]
    try:
        wait_until(is_done, "the producers are done", within=60)
    finally:
        outputs(producers, within=1)

    triggers = [each["at"] for each in ledger.entries(scene.ledger, "trigger")]
    assert len(triggers) == 200
    wait_until(
        lambda: any(run.start > max(triggers) and run.end for run in scene.runs(unit)),
        "a run that started after the last trigger has ended",
        within=45,
    )
    wait_until(
        lambda: not (scene.task("work").is_locked(unit, 0.15) or waiting()),
        "nothing waits or runs",
        within=45,
    )
    assert ledger.overlaps(scene.runs(unit)) == []
    sent = [each for each in ledger.entries(scene.ledger, "told") if each["state"] == "claimed"]
    assert len(scene.runs(unit)) == len(sent)
    assert 5 < len(sent) < 150, "the test should see both triggers that run and duplicates"
    # one waits; the one that starts, or is put back, is in the broker twice for a moment
    assert most <= 3
    print(f"{pool}/{broker}: {len(sent)} of 200 triggers sent; at most {most} messages at a time")
