"""Every way out of a body and of the hooks around it: the unit is free at once, nothing is lost.

The leases here last for 30 s, so what is free within `AT_ONCE` was freed by its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import let_go
from _support.waiting import wait_until
from _support.ways_out_tasks import AT_ONCE, is_free, runs_when_triggered
from celery import states

from once_core.devserver import DevServer

PREFORK, THREADS, RABBITMQ = "prefork+redis", "threads+redis", "prefork+rabbitmq"

both_pools = pytest.mark.parametrize("scene", [PREFORK, THREADS], indirect=True)

prefork_alone = pytest.mark.parametrize("scene", [PREFORK], indirect=True)

SCOPES = [{}, {"scope": "until_done"}, {"scope": "queued"}, {"scope": "running"}]

WAYS_OUT = {
    "failure": states.FAILURE,
    "Ignore": states.PENDING,
    "Reject(requeue=False)": states.FAILURE,
    "Reject(requeue=True)": states.PENDING,
    "SystemExit": states.FAILURE,
    "max_retries": states.FAILURE,
    "unserialisable result": states.FAILURE,
    "on_success": states.SUCCESS,
    "after_return": states.SUCCESS,
}
"""Of a task with acks_early: how it ends, and the state that its caller sees then."""


def leaves(
    scene: Deployment, unit: str, how: str, state: str, task: str = "leaving", **options: Any
) -> None:
    """A run that ends so, with one behind it; then alone; then the unit is as if it had not been.

    Args:
        scene: With running workers.
        unit: Unit of work.
        how: The way out.
        state: Of the result, afterwards.
        task: Name of the task.
        options: Of the call that ends so.
    """
    leaving = scene.task(task)
    first = leaving.apply_async((unit, how, -1), **options)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    behind = leaving.delay(unit)
    assert behind.once.state == "claimed"

    let_go(scene, unit)

    assert behind.get(timeout=20) == "success"
    one, other, *_ = scene.runs(unit)
    assert (one.message_id, other.message_id) == (first.id, behind.id)
    assert other.start - one.end < AT_ONCE
    wait_until(lambda: first.state == state, f"it is {state}", within=10)
    is_free(leaving, unit)
    assert len(scene.runs(unit)) == 2

    alone = leaving.apply_async((unit, how), **options)
    assert alone.once.state == "claimed"
    wait_until(lambda: len(scene.runs(unit)) == 3, "it runs alone")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)
    assert overlaps(scene.runs(unit)) == []


@both_pools
@pytest.mark.parametrize("how", WAYS_OUT)
def test_out_of_the_body(scene: Deployment, unit: str, how: str) -> None:
    """Failure, Ignore, Reject, SystemExit, hooks that raise: the unit is free at once."""
    state = WAYS_OUT[how]
    if how == "SystemExit" and scene.pool == "threads":
        state = states.PENDING  # nobody but a prefork pool notices it

    leaves(scene, unit, how, state)


@pytest.mark.parametrize("how", [how for how in WAYS_OUT if how != "SystemExit"])
def test_out_of_the_body_in_every_scope(scene: Deployment, unit: str, how: str) -> None:
    """No scope, and no done mark that an ETA makes due, keeps a unit that has ended."""
    leaving = scene.task("leaving")
    units = [(f"{unit}-{n}-{due}", due, once) for due in (0, 0.1) for n, once in enumerate(SCOPES)]

    for one, due, once in units:
        leaving.apply_async((one, how), countdown=due, once=once)

    for one, _, once in units:
        wait_until(lambda: scene.runs(one), f"it runs with {once}")  # noqa: B023  # used at once
        is_free(leaving, one)
        assert leaving.delay(one).get(timeout=20) == "success"


@pytest.mark.parametrize("how", [how for how, state in WAYS_OUT.items() if state != "SUCCESS"])
def test_only_success_is_kept(scene: Deployment, unit: str, how: str) -> None:
    """keep_for= counts for runs that succeed, in their callers' eyes."""
    leaving = scene.task("leaving")

    leaving.apply_async((unit, how), once={"keep_for": 60})

    wait_until(lambda: scene.runs(unit), "it runs")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


@both_pools
@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("before_start", states.FAILURE),
        ("Ignore in before_start", states.PENDING),
        ("Retry in before_start", states.SUCCESS),
    ],
)
def test_exception_in_before_start(scene: Deployment, unit: str, how: str, state: str) -> None:
    """The body is never reached, and nothing waits any more: the next trigger runs at once."""
    leaving = scene.task("leaving")

    first = leaving.delay(unit, how)

    is_free(leaving, unit)
    wait_until(lambda: first.state == state, f"it is {state}")
    runs_when_triggered(scene, leaving, unit)


def test_exception_in_before_start_behind_a_run(scene: Deployment, unit: str) -> None:
    """Only the waiting part goes: the one that runs keeps its lease."""
    leaving = scene.task("leaving")
    running = leaving.delay(unit, "success", -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")

    failed = leaving.delay(unit, "before_start")
    wait_until(lambda: failed.state == states.FAILURE, "it fails")
    wait_until(
        lambda: not (behind := leaving.delay(unit)).once.is_duplicate and behind,
        "the next one may wait",
        within=AT_ONCE,
    )
    assert leaving.holder(unit).message_id == running.id
    let_go(scene, unit)

    wait_until(lambda: len(scene.runs(unit)) == 2, "the one behind runs")
    is_free(leaving, unit)
    assert overlaps(scene.runs(unit)) == []


@pytest.mark.parametrize("scene", [PREFORK, THREADS, RABBITMQ], indirect=True)
def test_reject_with_requeue_and_acks_late_runs_again(scene: Deployment, unit: str) -> None:
    """The broker gives the message out again at once; it and the one behind it both run."""
    late = scene.task("leaving_late")
    first = late.delay(unit, "Reject(requeue=True) once", -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    behind = late.delay(unit)

    let_go(scene, unit)

    assert first.get(timeout=20) == "Reject(requeue=True) once"
    assert behind.get(timeout=20) == "success"
    ran = sorted(run.message_id for run in scene.runs(unit))
    assert ran == sorted([first.id, first.id, behind.id])
    assert overlaps(scene.runs(unit)) == []
    is_free(late, unit)
    runs_when_triggered(scene, late, unit)


@pytest.mark.parametrize("way", ["Retry", "max_retries"])
def test_retry_and_max_retries_with_one_that_waits(scene: Deployment, unit: str, way: str) -> None:
    """A retry and the one that waits both run; used up retries are a failure like others."""
    leaving = scene.task("leaving")
    first = leaving.delay(unit, way, -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    behind = leaving.delay(unit)

    let_go(scene, unit)

    assert behind.get(timeout=20) == "success"
    state = states.SUCCESS if way == "Retry" else states.FAILURE
    wait_until(lambda: first.state == state, f"it is {state}")
    ran = sorted(run.message_id for run in scene.runs(unit))
    assert ran == sorted([first.id, behind.id] + [first.id] * (way == "Retry"))
    assert overlaps(scene.runs(unit)) == []
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


# Time limits


LIMITS = {"soft_time_limit": "SoftTimeLimitExceeded", "time_limit": "TimeLimitExceeded"}


@pytest.mark.parametrize("limit", LIMITS)
def test_soft_and_hard_time_limit(scene: Deployment, unit: str, limit: str) -> None:
    """The body is unwound, or its child ended: the one behind it runs at once."""
    leaving = scene.task("leaving")
    first = leaving.apply_async((unit, "success", -1), **{limit: 1})
    wait_until(lambda: scene.runs(unit), "the first body runs")
    behind = leaving.delay(unit)

    assert behind.get(timeout=AT_ONCE) == "success"
    wait_until(lambda: first.state == states.FAILURE, "it fails")
    assert type(first.result).__name__ == LIMITS[limit]
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)
    assert overlaps(scene.runs(unit)) == []


@pytest.mark.parametrize("limit", LIMITS)
def test_soft_and_hard_time_limit_in_every_scope(scene: Deployment, unit: str, limit: str) -> None:
    """No scope keeps a unit whose body ran into a limit."""
    leaving = scene.task("leaving")
    units = {f"{unit}-{n}": once for n, once in enumerate(SCOPES)}
    calls = {
        one: leaving.apply_async((one, "success", -1), once=once, **{limit: 1})
        for one, once in units.items()
    }

    for one, call in calls.items():
        wait_until(lambda: call.state == states.FAILURE, "it fails", within=20)  # noqa: B023  # used at once
        is_free(leaving, one)
        runs_when_triggered(scene, leaving, one)


@pytest.mark.parametrize("scene", [THREADS], indirect=True)
def test_time_limits_in_threads_are_not_enforced(scene: Deployment, unit: str) -> None:
    """Celery can stop no thread: the body goes on under its lease, and nothing runs beside it."""
    leaving = scene.task("leaving")
    first = leaving.apply_async((unit, "success", 2.5), soft_time_limit=1, time_limit=2)

    assert first.get(timeout=20) == "success"
    is_free(leaving, unit)


# MemoryError


@pytest.mark.parametrize("scene", [THREADS], indirect=True)
def test_memory_error_in_threads(scene: Deployment, unit: str) -> None:
    """A failure like others."""
    leaves(scene, unit, "MemoryError", states.FAILURE)


def test_memory_error_in_prefork_ends_the_worker(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """Celery ends the whole worker; what it had taken runs on the next one."""
    scene = deploy()
    doomed = scene.worker()
    leaving = scene.task("leaving")
    first = leaving.delay(unit, "MemoryError", -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    behind = leaving.delay(unit)

    let_go(scene, unit)

    wait_until(lambda: first.state == states.FAILURE, "it fails")
    doomed.process.wait(20)
    scene.worker()
    assert behind.get(timeout=20) == "success"
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)


# The result backend


@pytest.fixture
def results() -> Iterator[DevServer]:
    """A result backend that goes away."""
    with DevServer() as server:
        yield server


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_result_backend_down_at_store(
    deploy: Callable[..., Deployment], results: DevServer, unit: str, pool: str
) -> None:
    """The body ran, its result is lost; with or without an ETA the unit is free at once."""
    retries = {"retry_policy": {"max_retries": 1, "interval_start": 0.1, "interval_max": 0.1}}
    scene = deploy(
        pool=pool,
        concurrency=3,
        conf={"result_backend": results.url, "result_backend_transport_options": retries},
    )
    scene.worker()
    leaving = scene.task("leaving")
    units = {unit: 0.0, f"{unit}-eta": 0.5}
    for one, countdown in units.items():
        leaving.apply_async((one, "success", -1), countdown=countdown)
    for one in units:
        wait_until(lambda: scene.runs(one), "the body runs")  # noqa: B023  # used at once
        assert not leaving.apply_async((one,), ignore_result=True).once.is_duplicate

    results.stop()
    for one in units:
        let_go(scene, one)

    for one in units:
        wait_until(lambda: len(scene.runs(one)) == 2, "the one behind runs", within=AT_ONCE)  # noqa: B023  # used at once
        is_free(leaving, one)
        assert not leaving.apply_async((one,), ignore_result=True).once.is_duplicate
        wait_until(lambda: len(scene.runs(one)) == 3, "the next one runs")  # noqa: B023  # used at once
        assert overlaps(scene.runs(one)) == []
