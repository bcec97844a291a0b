"""Triggers by the hundred: one message a unit, never two bodies at once, the last one heard."""

from __future__ import annotations

import itertools
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
    called_at = time.monotonic()
    result = app.tasks["work"].delay(unit, 0.15)
    ledger.note(path, "trigger", called_at=called_at, state=result.once.state)
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


def most_at_once(came: list[float], left: list[float]) -> int:
    """How many there were at most."""
    changes = sorted([(at, 1) for at in came] + [(at, -1) for at in left])
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_a_thousand_units_hammered_by_eight_processes_give_one_message_each(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, broker: str
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
    server: DevServer, deploy: Callable[..., Deployment], unit: str, pool: str, broker: str
) -> None:
    """No two bodies at once, a run that starts after the last trigger, two messages at most."""
    scene = deploy(store=server, broker=broker, pool=pool, concurrency=4)
    worker = scene.worker()
    redis = server.client()
    queue = str(scene.settings["task_default_queue"])
    most_in_broker = 0

    def waiting() -> int:
        """Messages in the broker, taken by a worker or not: what is in both counts twice."""
        if broker == "rabbitmq":
            return scene.queued()
        with redis.pipeline() as both:
            return sum(both.llen(queue).hlen("unacked").execute())

    def is_done() -> bool:
        nonlocal most_in_broker
        most_in_broker = max(most_in_broker, waiting())
        return all(each.poll() is not None for each in producers)

    producers = [start_producer(scene, TRIGGER, scene.ledger, unit, 50, 0.16) for _ in range(4)]
    try:
        wait_until(is_done, "the producers are done", within=60)
    finally:
        outputs(producers, within=1)

    triggers = ledger.entries(scene.ledger, "trigger")
    last_at = max(each["called_at"] for each in triggers)
    assert len(triggers) == 200
    wait_until(
        lambda: any(run.start > last_at and run.end for run in scene.runs(unit)),
        "a run that started after the last trigger has ended",
        within=45,
    )
    wait_until(
        lambda: not (scene.task("work").is_locked(unit, 0.15) or waiting()),
        "nothing waits or runs",
        within=45,
    )
    runs = scene.runs(unit)
    # when its publish returned: a slow call has not waited since it began. One more than the one
    # that waits may be counted, which has started and not yet noted it
    sent = [each["at"] for each in triggers if each["state"] == "claimed"]
    deferrals = worker.log.count(" deferred work")
    pile = most_at_once(sent, [run.start for run in runs])
    print(
        f"{pool}/{broker}: {len(sent)} of 200 triggers sent, {deferrals} starts met a running "
        f"body; at most {pile} waited, {most_in_broker} messages in the broker"
    )
    assert ledger.overlaps(runs) == []
    assert len(runs) == len(sent)
    assert 5 <= len(sent) < 100, "the test should see both triggers that run and duplicates"
    assert deferrals >= 5, "no two children ever met"
    assert pile <= 2
    # one waits; the one that starts, or is put back, is in the broker twice for a moment
    assert most_in_broker <= 3
