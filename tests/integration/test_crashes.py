"""Processes that die or outlast their lease: the unit is free again in time, and never early."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from _support import ledger
from _support.deployment import Deployment
from _support.ledger import Run
from _support.redelivery import sweeping
from _support.waiting import wait_until
from _support.workers import CeleryWorker

from once_core.devserver import DevServer

pytestmark = pytest.mark.lifecycle

LEASE = 3.0

SLACK = 2.5
"""Seconds for a machine that is busy; less than the deferral that would follow a lapse."""

SOON_REDELIVERED = {
    "visibility_timeout": 4,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
"""Of kombu's Redis transport: the sweep for messages of dead workers every second."""

BROKERS = ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]


def first_run(scene: Deployment, unit: str) -> Run:
    """Wait for the first body of a unit."""
    return wait_until(lambda: scene.runs(unit), "the body has started", within=20)[0]


def worker_of(scene: Deployment, run: Run) -> CeleryWorker:
    """Workers lead a process group each."""
    group = os.getpgid(run.pid)
    return next(each for each in scene.workers if each.process.pid == group)


def move_holder_to_another_host(scene: Deployment) -> None:
    """Make the holder one of which nobody on this machine can know that it is dead."""
    (key,) = scene.keys()
    scene.store.client().hset(key, "x0b", "elsewhere:1:0123456789")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["this host", "another host"])
@pytest.mark.parametrize("broker", BROKERS)
def test_a_message_of_a_killed_worker_runs_again_under_acks_late(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, broker: str, host: str
) -> None:
    """SIGKILL of the whole worker: the same message runs on another within lease and redelivery."""
    transport = {"broker_transport_options": SOON_REDELIVERED} if broker == "redis" else {}
    scene = deploy(store=server, broker=broker, concurrency=1, conf=transport)
    scene.worker()
    scene.worker()

    result = scene.task("work_late").delay(unit, 2.0)
    first = first_run(scene, unit)
    if host == "another host":
        move_holder_to_another_host(scene)
    killed_at = worker_of(scene, first).kill()

    redelivery = 4 + 2 if broker == "redis" else 1
    lapse = LEASE if host == "another host" else 0
    with sweeping(scene):
        second = wait_until(
            lambda: scene.runs(unit)[1:],
            "the message runs again",
            within=redelivery + lapse + SLACK,
        )[0]
    assert (second.message_id, second.retries) == (result.id, 0)
    assert second.pid != first.pid
    assert second.fence > first.fence
    assert result.get(timeout=20) == f"done {unit}"
    wait_until(lambda: scene.queued() == 0, "the queue is empty")
    assert len(scene.runs(unit)) == 2
    assert ledger.overlaps(scene.runs(unit), {first.pid: killed_at}) == []
    print(f"{broker}, {host}: ran again {second.start - killed_at:.2f} s after the kill")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["this host", "another host"])
@pytest.mark.parametrize("broker", BROKERS)
def test_the_next_trigger_after_a_killed_worker_runs(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, broker: str, host: str
) -> None:
    """Without acks_late the message is gone with its worker, and the next trigger runs in time."""
    scene = deploy(store=server, broker=broker, concurrency=1)
    scene.worker()
    scene.worker()

    scene.task("work").delay(unit, 0.5)
    first = first_run(scene, unit)
    if host == "another host":
        move_holder_to_another_host(scene)
    killed_at = worker_of(scene, first).kill()
    assert scene.task("work").is_locked(unit, 0.5)
    result = scene.task("work").delay(unit, 0.5)

    assert not result.once.is_duplicate
    second = wait_until(
        lambda: scene.runs(unit)[1:],
        "it runs",
        within=SLACK + (LEASE if host == "another host" else 0),
    )[0]
    assert result.get(timeout=20) == f"done {unit}"
    assert second.message_id == result.id
    assert ledger.overlaps(scene.runs(unit), {first.pid: killed_at}) == []
    wait_until(lambda: not scene.task("work").is_locked(unit, 0.5), "the unit is free")
    print(f"{broker}, {host}: next trigger ran {second.start - killed_at:.2f} s after the kill")


def test_a_killed_child_frees_its_unit_at_once(
    server: DevServer, deploy: Callable[..., Deployment], unit: str
) -> None:
    """The main process sees its pool child die, and frees a lease that would last a minute."""
    scene = deploy(store=server, conf={"once_lease": 60})
    worker = scene.worker()

    lost = scene.task("dying").delay(unit)
    ended = wait_until(lambda: (runs := scene.runs(unit)) and runs[0].end, "it died", within=20)
    wait_until(lambda: not scene.task("dying").is_locked(unit), "the unit is free", within=15)
    freed_after = time.monotonic() - ended
    wait_until(lambda: " reaped dying: WorkerLostError" in worker.log, "it is in the log")

    assert wait_until(lambda: lost.state == "FAILURE", "the lost one is known to have failed")
    next_one = scene.task("dying").delay(unit)
    next_one.get(timeout=20)
    assert next_one.state == "SUCCESS"
    assert len(scene.runs(unit)) == 2
    assert not scene.keys()
    print(f"freed {freed_after:.2f} s after the death of the child")


@pytest.mark.parametrize("broker", BROKERS)
def test_a_message_of_a_killed_child_runs_again_with_reject_on_worker_lost(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, broker: str
) -> None:
    """The broker gives it out at once, and a lease of a minute of the dead child is no obstacle."""
    scene = deploy(store=server, broker=broker, conf={"once_lease": 60})
    scene.worker()

    result = scene.task("dying_requeued").delay(unit)

    result.get(timeout=25)
    assert result.state == "SUCCESS"
    first, second = scene.runs(unit)
    assert (first.message_id, second.message_id) == (result.id, result.id)
    assert second.pid != first.pid
    assert second.fence > first.fence
    assert ledger.overlaps([first, second]) == []
    print(f"{broker}: ran again {second.start - first.end:.2f} s after the death of the child")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_body_ten_leases_long_never_overlaps(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, pool: str
) -> None:
    """A lease is renewed as long as its body runs; triggers meanwhile wait for its end."""
    scene = deploy(store=server, pool=pool, concurrency=3, conf={"once_lease": 1})
    worker = scene.worker()
    task = scene.task("keyed")

    task.delay(unit, 10.5)
    first_run(scene, unit)
    sent = 0
    triggered_at = 0.0

    def trigger() -> float | None:
        nonlocal sent, triggered_at
        triggered_at = time.monotonic()
        sent += not task.delay(unit, 0.1).once.is_duplicate
        return scene.runs(unit)[0].end

    wait_until(trigger, "the long body has ended", within=30)
    wait_until(
        lambda: any(run.end and run.start > triggered_at for run in scene.runs(unit)),
        "the last trigger was heard",
        within=30,
    )

    first, *others = scene.runs(unit)
    assert first.end - first.start > 10
    assert not ledger.entries(scene.ledger, "end")[0]["lost"]
    assert ledger.overlaps([first, *others]) == []
    assert len(others) == sent <= 2
    assert "lease_lost" not in worker.log


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_redelivery_of_a_message_whose_body_still_runs_runs_no_second_body(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, pool: str
) -> None:
    """With a visibility_timeout shorter than the body the message comes twice, its body once."""
    scene = deploy(
        store=server,
        pool=pool,
        concurrency=2,
        conf={"broker_transport_options": {**SOON_REDELIVERED, "visibility_timeout": 2}},
    )
    workers = [scene.worker(), scene.worker()]

    with sweeping(scene):
        result = scene.task("work_late").delay(unit, 8.0)

        assert result.get(timeout=40) == f"done {unit}"
    wait_until(
        lambda: any(" repeated work_late" in each.log for each in workers),
        "the copy has been recognised",
        within=20,
    )
    redis = server.client()
    wait_until(lambda: not (scene.queued() or redis.hlen("unacked")), "the broker is empty")
    assert any(" deferred work_late" in each.log for each in workers), "it was never redelivered"
    assert len(scene.runs(unit)) == 1
    assert result.state == "SUCCESS"
