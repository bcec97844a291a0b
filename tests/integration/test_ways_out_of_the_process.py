"""Every way in which a process ends with its bodies: killed children, shutdowns, dead workers.

More of it in `test_crashes.py`. The leases here last for 30 s, so what is free within `AT_ONCE`
was freed because somebody noticed, and not by its lease.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import ids, let_go
from _support.waiting import wait_until
from _support.ways_out_tasks import AT_ONCE, Relay, is_free, runs_when_triggered
from _support.workers import CeleryWorker
from celery import states

from once_core.devserver import DevServer

SOON_REDELIVERED = {
    "visibility_timeout": 3,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
"""Of kombu's Redis transport: the sweep for messages of dead workers every second."""

LOST = 12.0
"""Seconds: Celery notices a lost child after up to 4.5 s; the lease is still much longer."""


@pytest.fixture(scope="module")
def crew(
    tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Iterator[Deployment]:
    """A worker whose children are killed; its main process lives on."""
    made = Deployment(tmp_path_factory.mktemp("crew"), shared_server, concurrency=8)
    made.worker()
    yield made
    made.close()
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer) -> Iterator[Relay]:
    """Workers that are ended by the tests of this file."""
    folder = tmp_path_factory.mktemp("relay")
    made = Relay(lambda **options: Deployment(folder, shared_server, **options))
    yield made
    made.close()
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []


def held(scene: Deployment, unit: str, task: str, how: str = "success", **options: Any) -> Any:
    """Have a body run until its gate is opened, and then end so."""
    handle = scene.task(task).apply_async((unit, how, -1), **options)
    wait_until(lambda: scene.runs(unit), "the body runs")
    return handle


# Killed children


class Killed(NamedTuple):
    """A body whose child was killed, and perhaps a message that waited behind it."""

    unit: str
    lost: Any
    behind: Any


ALONE = {"once": {"scope": "until_done"}}
"""Where a trigger is refused while it runs, and nothing can wait behind."""


@pytest.fixture(scope="module")
def killed(crew: Deployment) -> dict[tuple[str, bool], Killed]:
    """Bodies of four tasks, alone and with one behind, killed all at once.

    Celery takes up to five seconds to notice, so it is done once for all.
    """
    made = {}
    for task in ("leaving", "leaving_late", "leaving_requeued", "leaving_retried"):
        for alone in (True, False) if task in {"leaving", "leaving_late"} else (False,):
            unit = f"killed-{task}-{alone}-{uuid.uuid4().hex[:6]}"
            lost = held(crew, unit, task, "SIGKILL", **(ALONE if alone else {}))
            behind = None if alone else crew.task(task).delay(unit)
            made[task, alone] = Killed(unit, lost, behind)
    for each in made.values():
        let_go(crew, each.unit)
    return made


@pytest.mark.parametrize("task", ["leaving", "leaving_late"])
def test_child_killed_with_early_or_late_ack(
    crew: Deployment, killed: dict[tuple[str, bool], Killed], task: str
) -> None:
    """SIGKILL or OOM: the message has failed, and the one behind it runs."""
    unit, lost, behind = killed[task, False]

    assert behind.get(timeout=LOST) == "success"
    wait_until(lambda: lost.state == states.FAILURE, "it is known to have failed", within=10)
    assert type(lost.result).__name__ == "WorkerLostError"
    assert ids(crew, unit) == [lost.id, behind.id]
    is_free(crew.task(task), unit)
    runs_when_triggered(crew, crew.task(task), unit)


@pytest.mark.parametrize("task", ["leaving", "leaving_late"])
def test_child_killed_with_until_done(
    crew: Deployment, killed: dict[tuple[str, bool], Killed], task: str
) -> None:
    """A scope that refuses while it runs refuses no longer than the main process needs to see."""
    unit, lost, _ = killed[task, True]

    is_free(crew.task(task), unit, within=LOST)
    wait_until(lambda: lost.state == states.FAILURE, "it is known to have failed", within=10)
    runs_when_triggered(crew, crew.task(task), unit)


def test_child_killed_with_reject_on_worker_lost_and_one_behind(
    crew: Deployment, killed: dict[tuple[str, bool], Killed]
) -> None:
    """The broker gives the lost one out again at once; it and the one behind it both run."""
    unit, lost, behind = killed["leaving_requeued", False]

    assert lost.get(timeout=LOST) == "SIGKILL"
    assert behind.get(timeout=LOST) == "success"
    assert sorted(ids(crew, unit)) == sorted([lost.id, lost.id, behind.id])
    is_free(crew.task("leaving_requeued"), unit)
    runs_when_triggered(crew, crew.task("leaving_requeued"), unit)


def test_child_killed_with_retry_on_worker_lost_and_one_behind(
    crew: Deployment, killed: dict[tuple[str, bool], Killed]
) -> None:
    """The main process sends a retry: it and the one behind it both run."""
    unit, lost, behind = killed["leaving_retried", False]

    assert behind.get(timeout=LOST) == "success"
    assert lost.get(timeout=LOST) == "SIGKILL"
    ran = sorted((run.message_id, run.retries) for run in crew.runs(unit))
    assert ran == sorted([(lost.id, 0), (lost.id, 1), (behind.id, 0)])
    is_free(crew.task("leaving_retried"), unit)
    runs_when_triggered(crew, crew.task("leaving_retried"), unit)


def test_a_retry_on_worker_lost_refuses_triggers_as_other_retries_do(
    crew: Deployment, unit: str
) -> None:
    """While it waits a trigger is a duplicate; else each crash would leave one more that waits."""
    retried = crew.task("leaving_retried")
    scopes = {f"{unit}-{scope}": scope for scope in ("queued+running", "until_done", "queued")}
    lost = {
        one: held(crew, one, "leaving_retried", "SIGKILL", once={"scope": scope})
        for one, scope in scopes.items()
    }
    for one in scopes:
        let_go(crew, one)
    duplicates: dict[str, Any] = {}

    def trigger() -> bool:
        for one, scope in scopes.items():
            if one not in duplicates and lost[one].state == states.RETRY:
                duplicates[one] = retried.apply_async((one, "success"), once={"scope": scope})
        return duplicates.keys() == scopes.keys()

    wait_until(trigger, "retries were sent", within=LOST)
    for one, scope in scopes.items():
        assert duplicates[one].once.is_duplicate, scope
        assert duplicates[one].id == lost[one].id
        assert lost[one].get(timeout=LOST) == "SIGKILL"
        assert ids(crew, one) == [lost[one].id] * 2
        is_free(retried, one)


def test_child_killed_before_its_body(crew: Deployment, unit: str) -> None:
    """Its message is over all the same: the next trigger runs as soon as Celery has noticed."""
    leaving = crew.task("leaving")
    lost = leaving.delay(unit, "SIGKILL in before_start")

    wait_until(lambda: lost.state == states.FAILURE, "it is known to have failed", within=LOST)

    is_free(leaving, unit)
    runs_when_triggered(crew, leaving, unit)


@pytest.mark.parametrize("way", ["hard time limit", "revoke with terminate"])
def test_ended_before_its_body(crew: Deployment, unit: str, way: str) -> None:
    """A limit or a signal in before_start: nothing waits any more."""
    leaving = crew.task("leaving")
    limit = 1 if way == "hard time limit" else None
    handle = leaving.apply_async((unit, "hang in before_start"), time_limit=limit)
    if way == "revoke with terminate":
        wait_until(lambda: handle.id in active(crew), "it has begun")
        handle.revoke(terminate=True)

    wait_until(lambda: handle.state in {states.FAILURE, states.REVOKED}, "it ended", within=LOST)

    is_free(leaving, unit)
    runs_when_triggered(crew, leaving, unit)


@pytest.mark.parametrize("way", ["hard time limit", "revoke with terminate", "SIGKILL"])
def test_ended_while_it_is_put_back(crew: Deployment, unit: str, way: str) -> None:
    """A message meets a run, and its child ends before it is put back: it waits no more."""
    leaving = crew.task("leaving")
    running = held(crew, unit, "leaving")
    limit = 1 if way == "hard time limit" else None
    lost = leaving.apply_async((unit, "slow to defer"), time_limit=limit)
    wait_until(lambda: f"slow to defer {lost.id}" in crew.workers[0].log, "it is put back")

    if way == "revoke with terminate":
        lost.revoke(terminate=True)
    elif way == "SIGKILL":
        child = wait_until(lambda: active(crew).get(lost.id), "Celery knows its child")
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: lost.state in {states.FAILURE, states.REVOKED}, "it ended", within=LOST)

    behind = wait_until(
        lambda: not (call := leaving.delay(unit)).once.is_duplicate and call,
        "a trigger is accepted",
        within=AT_ONCE,
    )
    assert leaving.holder(unit).message_id == running.id
    let_go(crew, unit)
    assert behind.get(timeout=20) == "success"
    assert ids(crew, unit) == [running.id, behind.id]
    is_free(leaving, unit)


def active(scene: Deployment) -> dict[str, int]:
    """Messages that the children of a scene's worker have in their hands, and whose pid it is."""
    answers = scene.app.control.broadcast("active", reply=True, limit=1, timeout=20)
    return {
        each["id"]: each["worker_pid"]
        for answer in answers  # a reply may be late
        for found in answer.values()
        for each in found
    }


# Terminated


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("task", ["leaving", "leaving_late"])
def test_revoke_with_terminate(crew: Deployment, unit: str, number: str, task: str) -> None:
    """The body is ended from outside: REVOKED, and the one behind it runs."""
    leaving = crew.task(task)
    ended = held(crew, unit, task)
    behind = leaving.delay(unit)

    ended.revoke(terminate=True, signal=number)

    assert behind.get(timeout=LOST) == "success"
    wait_until(lambda: ended.state == states.REVOKED, "it is REVOKED")
    assert ids(crew, unit) == [ended.id, behind.id]
    is_free(leaving, unit)
    runs_when_triggered(crew, leaving, unit)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_revoke_with_terminate_and_until_done(crew: Deployment, unit: str, number: str) -> None:
    """A scope that refuses while it runs refuses no longer than the body is there."""
    leaving = crew.task("leaving")
    ended = held(crew, unit, "leaving", once={"scope": "until_done"})

    ended.revoke(terminate=True, signal=number)

    is_free(leaving, unit, within=LOST)
    wait_until(lambda: ended.state == states.REVOKED, "it is REVOKED")
    runs_when_triggered(crew, leaving, unit)


@pytest.mark.parametrize("scene", ["threads+redis"], indirect=True)
def test_revoke_with_terminate_in_threads(scene: Deployment, unit: str) -> None:
    """Celery can end no thread: the body goes on under its lease, and the one behind it waits."""
    leaving = scene.task("leaving")
    running = held(scene, unit, "leaving")
    behind = leaving.delay(unit)

    running.revoke(terminate=True)
    scene.app.control.broadcast("ping", reply=True, limit=1, timeout=20)  # heard after it

    assert leaving.holder(unit).message_id == running.id
    let_go(scene, unit)
    assert behind.get(timeout=20) == "success"
    assert running.state == states.SUCCESS
    assert ids(scene, unit) == [running.id, behind.id]
    assert overlaps(scene.runs(unit)) == []
    is_free(leaving, unit)


# A hard time limit against a body that does not listen


def test_hard_time_limit_of_a_body_that_does_not_end(crew: Deployment, unit: str) -> None:
    """It is killed: the one behind it runs at once, and until_done refuses no longer."""
    leaving, other = crew.task("leaving"), f"{unit}-until-done"
    first = leaving.apply_async((unit, "deaf"), time_limit=1)
    alone = leaving.apply_async((other, "deaf"), time_limit=1, once={"scope": "until_done"})
    wait_until(lambda: crew.runs(unit) and crew.runs(other), "both run")
    behind = leaving.delay(unit)

    for handle in (first, alone):
        wait_until(lambda: handle.state == states.FAILURE, "it fails")  # noqa: B023  # used at once
    assert behind.get(timeout=LOST) == "success"
    is_free(leaving, unit)
    is_free(leaving, other)
    runs_when_triggered(crew, leaving, other)


# Shutdowns


def end(worker: CeleryWorker, number: signal.Signals) -> None:
    """Tell the main process alone, as an orchestrator does."""
    os.kill(worker.process.pid, number)


def put_back(worker: CeleryWorker, handle: Any) -> None:
    """A message met a run, was put back, and is in the worker's hands again until it is due.

    On its way there it can be lost with the worker: Redis may have given it to a connection
    that nobody reads any more.
    """
    line = f"[{handle.id}] received"
    wait_until(lambda: worker.log.count(line) > 1, "it is put back and received again")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_warm_shutdown(relay: Relay, unit: str, pool: str) -> None:
    """TERM: bodies finish, and what was not started runs on the next worker."""
    scene, worker = relay.scene(pool)
    leaving = scene.task("leaving")
    running = held(scene, unit, "leaving")
    behind = leaving.delay(unit)
    others = [leaving.apply_async((f"{unit}-{n}",), countdown=n % 2) for n in range(1, 9)]
    put_back(worker, behind)

    end(worker, signal.SIGTERM)
    scene.worker()
    let_go(scene, unit)
    worker.process.wait(20)

    assert running.state == states.SUCCESS
    for handle in (behind, *others):
        assert handle.get(timeout=20) == "success"
    assert ids(scene, unit) == [running.id, behind.id]
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)
    assert overlaps(scene.runs(unit)) == []


def test_cold_shutdown(relay: Relay, unit: str) -> None:
    """QUIT: bodies are unwound; with acks_late they run again, else the next trigger does."""
    scene, worker = relay.scene("prefork")
    tasks = ("leaving", "leaving_late")
    running = {task: held(scene, f"{unit}-{task}", task) for task in tasks}
    alone = {task: held(scene, f"{unit}-{task}-alone", task, **ALONE) for task in tasks}
    behind = {task: scene.task(task).delay(f"{unit}-{task}") for task in tasks}
    for handle in behind.values():
        put_back(worker, handle)

    end(worker, signal.SIGQUIT)
    worker.process.wait(20)

    assert not scene.task("leaving").is_locked(f"{unit}-leaving-alone")
    assert (running["leaving"].state, alone["leaving"].state) == (states.RETRY, states.RETRY)
    for task in tasks:
        let_go(scene, f"{unit}-{task}")
        let_go(scene, f"{unit}-{task}-alone")
    scene.worker()
    for task in tasks:
        assert behind[task].get(timeout=20) == "success"
    for again in (running, alone):
        assert again["leaving_late"].get(timeout=20) == "success"
    for task in tasks:
        expected = [running[task].id, behind[task].id]
        expected += [running[task].id] * (task == "leaving_late")
        assert sorted(ids(scene, f"{unit}-{task}")) == sorted(expected)
        for one in (f"{unit}-{task}", f"{unit}-{task}-alone"):
            is_free(scene.task(task), one)
            runs_when_triggered(scene, scene.task(task), one)


def test_soft_shutdown(relay: Relay, unit: str) -> None:
    """Bodies have some seconds to finish; then it is a cold shutdown."""
    scene, worker = relay.scene("prefork", worker_soft_shutdown_timeout=2)
    leaving, slow = scene.task("leaving_late"), f"{unit}-slow"
    quick_one, slow_one = (held(scene, one, "leaving_late") for one in (unit, slow))

    end(worker, signal.SIGQUIT)
    let_go(scene, unit)
    assert quick_one.get(timeout=10) == "success"
    assert not leaving.is_locked(unit)
    scene.worker()
    worker.process.wait(20)
    let_go(scene, slow)

    assert slow_one.get(timeout=20) == "success"
    assert (len(ids(scene, unit)), ids(scene, slow)) == (1, [slow_one.id] * 2)
    for one in (unit, slow):
        is_free(leaving, one)
        runs_when_triggered(scene, leaving, one)


def test_cold_shutdown_in_threads(relay: Relay, unit: str) -> None:
    """Celery can end no thread: the body finishes, and the unit is free with it."""
    scene, worker = relay.scene("threads")
    leaving = scene.task("leaving")
    running = held(scene, unit, "leaving")
    behind = leaving.delay(unit)
    put_back(worker, behind)

    end(worker, signal.SIGQUIT)
    scene.worker()
    let_go(scene, unit)
    worker.process.wait(20)

    assert running.state == states.SUCCESS
    assert behind.get(timeout=20) == "success"
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


# Worker SIGKILL


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_worker_killed_with_one_behind_in_its_hands(
    deploy: Callable[..., Deployment], unit: str, broker: str
) -> None:
    """The message that waited for its turn in the dead worker's memory runs on the next one."""
    transport = {"broker_transport_options": SOON_REDELIVERED} if broker == "redis" else {}
    scene = deploy(broker=broker, conf=transport)
    worker, leaving = scene.worker(), scene.task("leaving")
    running = held(scene, unit, "leaving")
    behind = leaving.delay(unit)
    put_back(worker, behind)

    worker.kill()
    scene.worker()

    assert behind.get(timeout=20) == "success"
    assert ids(scene, unit) == [running.id, behind.id]
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)
