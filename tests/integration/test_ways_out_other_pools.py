"""The main ways out on solo, gevent and eventlet, and where these pools differ."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import ids, let_go
from _support.waiting import wait_until
from _support.ways_out_tasks import AT_ONCE, Relay, is_free, runs_when_triggered
from celery import states

from once_core.devserver import DevServer

POOLS = ["solo", "gevent", "eventlet"]

GREEN = ["gevent", "eventlet"]


def on(*pools: str) -> Any:
    """Parametrize with the shared scenes of these pools."""
    return pytest.mark.parametrize("scene", [f"{pool}+redis" for pool in pools], indirect=True)


def held(scene: Deployment, unit: str, how: str = "success", **options: Any) -> Any:
    """Have a body run until its gate is opened, and then end so."""
    handle = scene.task("leaving").apply_async((unit, how, -1), **options)
    wait_until(lambda: scene.runs(unit), "the body runs")
    return handle


ENDS = {
    "success": states.SUCCESS,
    "failure": states.FAILURE,
    "Retry": states.SUCCESS,
}


@on(*POOLS)
@pytest.mark.parametrize("how", ENDS)
def test_success_failure_retry_and_defer(scene: Deployment, unit: str, how: str) -> None:
    """One ends so, one is deferred behind it and runs; then the unit is free."""
    leaving = scene.task("leaving")
    first = held(scene, unit, how)
    behind = leaving.delay(unit)

    let_go(scene, unit)

    ran = sorted([first.id, behind.id] + [first.id] * (how == "Retry"))
    assert behind.get(timeout=20) == "success"
    wait_until(lambda: len(ids(scene, unit)) == len(ran), "both have run")
    is_free(leaving, unit)
    wait_until(lambda: first.state == ENDS[how], f"it is {ENDS[how]}")
    assert sorted(ids(scene, unit)) == ran
    runs_when_triggered(scene, leaving, unit)
    assert overlaps(scene.runs(unit)) == []


@on(*POOLS)
@pytest.mark.parametrize("how", ["before_start", "unserialisable result", "on_success"])
def test_hooks_and_results_that_fail(scene: Deployment, unit: str, how: str) -> None:
    """The unit is free at once."""
    leaving = scene.task("leaving")

    handle = leaving.delay(unit, how)

    wait_until(handle.ready, "it ended")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


@on(*POOLS)
@pytest.mark.parametrize("way", ["revoked", "expired"])
def test_revoke_and_expires_with_an_eta(scene: Deployment, unit: str, way: str) -> None:
    """A message that will not run refuses nobody, long before its ETA."""
    leaving = scene.task("leaving")
    handle = leaving.apply_async((unit,), countdown=600, expires=1 if way == "expired" else None)
    wait_until(
        lambda: any(f"[{handle.id}] received" in each.log for each in scene.workers),
        "a worker has taken it",
    )

    if way == "revoked":
        handle.revoke()

    is_free(leaving, unit, within=1 + AT_ONCE)
    wait_until(lambda: handle.state == states.REVOKED, "it is REVOKED")
    runs_when_triggered(scene, leaving, unit)
    assert handle.id not in ids(scene, unit)


@on(*GREEN)
@pytest.mark.parametrize("once", [{}, {"scope": "until_done"}], ids=str)
def test_revoke_with_terminate_on_green_threads(scene: Deployment, unit: str, once: dict) -> None:
    """GreenletExit unwinds the body: the unit is free at once."""
    leaving = scene.task("leaving")
    ended = held(scene, unit, once=once)

    ended.revoke(terminate=True)

    is_free(leaving, unit)
    wait_until(lambda: ended.state == states.REVOKED, "it is REVOKED")
    runs_when_triggered(scene, leaving, unit)


@on("solo")
def test_revoke_with_terminate_in_solo(scene: Deployment, unit: str) -> None:
    """The worker reads no command before the body has ended: it ends as if nothing had been."""
    leaving = scene.task("leaving")
    running = held(scene, unit)

    running.revoke(terminate=True)  # the other worker stores REVOKED, which proves nothing
    let_go(scene, unit)

    wait_until(lambda: scene.runs(unit)[0].end, "it ends")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


@on("gevent")
def test_hard_time_limit_in_gevent(scene: Deployment, unit: str) -> None:
    """Enforced: a timeout unwinds the body, and the one behind it runs."""
    leaving = scene.task("leaving")
    ended = held(scene, unit, time_limit=1)
    behind = leaving.delay(unit)

    assert behind.get(timeout=AT_ONCE) == "success"
    wait_until(lambda: ended.state == states.FAILURE, "it fails")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


@on("solo", "eventlet")
def test_hard_time_limit_where_it_is_not_enforced(scene: Deployment, unit: str) -> None:
    """The body goes on under its lease."""
    leaving = scene.task("leaving")
    handle = leaving.apply_async((unit, "success", 1.5), time_limit=1)

    assert handle.get(timeout=20) == "success"
    is_free(leaving, unit)


@on(*GREEN)
@pytest.mark.parametrize("how", ["SystemExit", "MemoryError"])
def test_system_exit_and_memory_error_on_green_threads(
    scene: Deployment, unit: str, how: str
) -> None:
    """The worker lives on, and the unit is free at once."""
    leaving = scene.task("leaving")
    first = held(scene, unit, how)
    behind = leaving.delay(unit)

    let_go(scene, unit)

    assert behind.get(timeout=AT_ONCE) == "success"
    state = states.FAILURE if how == "MemoryError" else states.PENDING
    wait_until(lambda: first.state == state, f"it is {state}")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer) -> Iterator[Relay]:
    """Workers that are ended by the tests of this file."""
    folder = tmp_path_factory.mktemp("relay")
    made = Relay(lambda **options: Deployment(folder, shared_server, **options))
    yield made
    made.close()
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []


@pytest.mark.parametrize("how", ["SystemExit", "MemoryError", "SIGQUIT"])
def test_what_ends_a_solo_worker(relay: Relay, unit: str, how: str) -> None:
    """SystemExit, MemoryError and a cold shutdown: the body is unwound, and frees its unit."""
    scene, worker = relay.scene("solo")
    leaving = scene.task("leaving")
    ended = held(scene, unit, how, once={"scope": "until_done"})

    if how == "SIGQUIT":
        os.kill(worker.process.pid, signal.SIGQUIT)
    else:
        let_go(scene, unit)

    is_free(leaving, unit)
    if how != "SystemExit":
        wait_until(lambda: ended.state == states.FAILURE, "it fails")
    if how == "SIGQUIT":
        worker.kill()
    worker.process.wait(20)
    scene.worker()
    runs_when_triggered(scene, leaving, unit)


@pytest.mark.parametrize("pool", POOLS)
def test_worker_killed(relay: Relay, unit: str, pool: str) -> None:
    """SIGKILL: the next worker sees that the old one is dead, and runs the next trigger at once."""
    scene, worker = relay.scene(pool)
    leaving = scene.task("leaving")
    lost = held(scene, unit)

    worker.kill()
    scene.worker()

    assert leaving.holder(unit).message_id == lost.id
    runs_when_triggered(scene, leaving, unit)
    assert len(ids(scene, unit)) == 2


@pytest.mark.parametrize("pool", GREEN)
def test_cold_shutdown_on_green_threads(relay: Relay, unit: str, pool: str) -> None:
    """The body is killed and its message is gone, even with acks_late: the next trigger runs."""
    scene, worker = relay.scene(pool)
    leaving = scene.task("leaving_late")
    leaving.apply_async((unit, "success", -1), once={"scope": "until_done"})
    wait_until(lambda: scene.runs(unit), "the body runs")

    os.kill(worker.process.pid, signal.SIGQUIT)
    worker.process.wait(20)

    is_free(leaving, unit)
    scene.worker()
    runs_when_triggered(scene, leaving, unit)
    assert len(ids(scene, unit)) == 2
