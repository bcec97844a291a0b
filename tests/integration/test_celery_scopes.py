"""Scopes: what is limited, from the publish to the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import everywhere, hold, ids, let_go
from _support.waiting import wait_until

pytestmark = pytest.mark.lifecycle

# queued+running, the default


@everywhere
def test_by_default_one_runs_and_one_waits(scene: Deployment, unit: str) -> None:
    """While one runs the next call is accepted, all others are refused, and both run in turn."""
    running = hold(scene, unit)

    calls = [scene.task("work").delay(unit, -1) for _ in range(5)]
    let_go(scene, unit)
    calls[0].get(timeout=20)

    assert [call.once.state for call in calls] == ["claimed"] + ["waiting"] * 4
    assert {call.id for call in calls} == {calls[0].id}
    assert ids(scene, unit) == [running.id, calls[0].id]
    assert overlaps(scene.runs(unit)) == []


def test_a_call_after_the_run_is_fresh(scene: Deployment, unit: str) -> None:
    """A unit that has run is free again at once."""
    first = scene.task("work").delay(unit)
    first.get(timeout=20)

    second = scene.task("work").delay(unit)

    assert (second.once.state, second.id != first.id) == ("claimed", True)
    assert second.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [first.id, second.id]


# until_done


@everywhere
def test_until_done_refuses_while_it_runs(scene: Deployment, unit: str) -> None:
    """With scope="until_done" a call during the run is a duplicate of the run."""
    running = hold(scene, unit, "until_done")

    duplicate = scene.task("until_done").delay(unit, -1)
    let_go(scene, unit)

    assert (duplicate.once.state, duplicate.id) == ("running", running.id)
    assert duplicate.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [running.id]
    assert not scene.task("until_done").delay(unit, -1).once.is_duplicate


def test_until_done_refuses_while_it_waits(deploy: Callable[..., Deployment], unit: str) -> None:
    """With scope="until_done" a call before the start is a duplicate too."""
    scene = deploy()
    first = scene.task("until_done").delay(unit)

    second = scene.task("until_done").delay(unit)

    assert (second.once.state, second.id, scene.queued()) == ("waiting", first.id, 1)


# queued


@pytest.mark.parametrize("task", ["queued", "only_queue_lock"])
def test_queued_limits_what_waits(deploy: Callable[..., Deployment], unit: str, task: str) -> None:
    """With scope="queued", or running_lock=False, a call is refused while one waits."""
    scene = deploy()
    first = scene.task(task).delay(unit)

    second = scene.task(task).delay(unit)

    assert (second.once.state, second.id, scene.queued()) == ("waiting", first.id, 1)


@everywhere
@pytest.mark.parametrize("task", ["queued", "only_queue_lock"])
def test_queued_does_not_limit_what_runs(scene: Deployment, unit: str, task: str) -> None:
    """With scope="queued", or running_lock=False, the next one runs beside the first."""
    first = hold(scene, unit, task)

    second = scene.task(task).delay(unit, -1)
    wait_until(lambda: len(scene.runs(unit)) == 2, "both run")
    let_go(scene, unit)

    assert {first.get(timeout=20), second.get(timeout=20)} == {f"done {unit}"}
    assert len(overlaps(scene.runs(unit))) == 1
    assert scene.store.client().exists(first.once.key) == 0


# running


@pytest.mark.parametrize("task", ["running", "only_running_lock"])
def test_running_refuses_no_call(deploy: Callable[..., Deployment], unit: str, task: str) -> None:
    """With scope="running", or queue_lock=False, every call is sent."""
    scene = deploy()

    calls = [scene.task(task).delay(unit) for _ in range(3)]

    assert [call.once.is_duplicate for call in calls] == [False] * 3
    assert (len({call.id for call in calls}), scene.queued()) == (3, 3)


@everywhere
@pytest.mark.parametrize("task", ["running", "only_running_lock"])
def test_running_runs_all_in_turn(scene: Deployment, unit: str, task: str) -> None:
    """With scope="running", or queue_lock=False, all messages run, never two at once."""
    running = hold(scene, unit, task)

    others = [scene.task(task).delay(unit, -1) for _ in range(2)]
    wait_until(lambda: is_logged(scene, "deferred", others[0].id), "one met the first")
    let_go(scene, unit)
    for handle in (running, *others):
        handle.get(timeout=20)

    assert set(ids(scene, unit)) == {running.id, *(other.id for other in others)}
    assert (len(scene.runs(unit)), overlaps(scene.runs(unit))) == (3, [])


# window and keep_for


@everywhere
def test_window_refuses_until_it_is_over(scene: Deployment, unit: str) -> None:
    """With scope="window" calls are refused for the window, finished or not; then not."""
    task = scene.task("window")
    first = task.delay(unit)
    assert first.get(timeout=20) == f"done {unit}"

    refused = task.delay(unit)
    wait_until(lambda: not task.is_locked(unit), "the window is over")
    fresh = task.delay(unit)

    assert (refused.once.state, refused.id) == ("kept", first.id)
    assert 0 < refused.once.retry_after <= 2
    assert fresh.once.state == "claimed"
    assert fresh.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [first.id, fresh.id]


@everywhere
def test_keep_for_refuses_after_success(scene: Deployment, unit: str) -> None:
    """With keep_for= calls are refused for that long after a success; then not."""
    task = scene.task("kept")
    first = task.delay(unit)
    assert first.get(timeout=20) == f"done {unit}"

    refused = task.delay(unit)
    wait_until(lambda: not task.is_locked(unit), "it is kept no longer")
    fresh = task.delay(unit)

    assert (refused.once.state, refused.id) == ("kept", first.id)
    assert 0 < refused.once.retry_after <= 2
    assert fresh.once.state == "claimed"
    assert fresh.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [first.id, fresh.id]


def test_keep_for_keeps_nothing_after_a_failure(scene: Deployment, unit: str) -> None:
    """A failed run is not kept: the next call is accepted at once."""
    failing = scene.task("failing")
    first = failing.apply_async((unit,), once={"keep_for": 60})
    with pytest.raises(RuntimeError):
        first.get(timeout=20)

    second = failing.apply_async((unit,), once={"keep_for": 60})

    assert second.once.state == "claimed"


# No scope, and options in other clothes


def test_both_switches_off_limit_nothing(scene: Deployment, unit: str) -> None:
    """queue_lock=False with running_lock=False is a plain task with a handle that says so."""
    first = hold(scene, unit, "no_locks")

    second = scene.task("no_locks").delay(unit, -1)
    wait_until(lambda: len(scene.runs(unit)) == 2, "both run")
    let_go(scene, unit)

    assert (first.once.state, second.once.state) == ("off", "off")
    assert [run.fence for run in scene.runs(unit)] == [None, None]


def test_options_may_be_an_instance(scene: Deployment, unit: str) -> None:
    """once=OnceOptions(...) does what the same dict does."""
    running = scene.task("by_instance").delay(unit, -1)
    wait_until(lambda: scene.runs(unit), "it runs")

    duplicate = scene.task("by_instance").delay(unit, 5)
    let_go(scene, unit)

    assert (duplicate.once.state, duplicate.id) == ("running", running.id)


def test_a_scope_given_at_a_call_holds_in_the_worker(scene: Deployment, unit: str) -> None:
    """A window that only one call asks for is kept after its run as that of a task would be."""
    once = {"scope": "window", "window": 60}
    first = scene.task("work").apply_async((unit,), once=once)
    assert first.get(timeout=20) == f"done {unit}"

    second = scene.task("work").apply_async((unit,), once=once)

    assert (second.once.state, second.id) == ("kept", first.id)


def test_a_scope_at_a_call_brings_its_own_options(scene: Deployment, unit: str) -> None:
    """on_overlap= counts for a call that asks for a scope in which runs may not overlap."""
    once = {"scope": "queued+running", "on_overlap": "skip"}
    running = scene.task("queued").apply_async((unit, -1), once=once)
    wait_until(lambda: scene.runs(unit), "the first body runs")

    met = scene.task("queued").apply_async((unit, -1), once=once)
    wait_until(lambda: is_logged(scene, "message_id", met.id), "its start was decided")
    let_go(scene, unit)

    assert met.get(timeout=20) is None
    assert ids(scene, unit) == [running.id]


# Ends


@everywhere
def test_a_failure_frees_the_unit(scene: Deployment, unit: str) -> None:
    """A body that raises fails its message with that error and leaves no key."""
    handle = scene.task("failing").delay(unit)

    with pytest.raises(RuntimeError, match=f"on purpose: {unit}"):
        handle.get(timeout=20)

    assert scene.store.client().exists(handle.once.key) == 0
    assert not scene.task("failing").delay(unit).once.is_duplicate


@everywhere
def test_a_failure_lets_the_waiting_one_run(scene: Deployment, unit: str) -> None:
    """What waits behind a run that fails runs after it."""
    failing = scene.task("gated_failing")
    first = failing.delay(unit)
    wait_until(lambda: scene.runs(unit), "the first body runs")

    second = failing.delay(unit)
    let_go(scene, unit)

    for handle in (first, second):
        with pytest.raises(RuntimeError):
            handle.get(timeout=20)
    assert ids(scene, unit) == [first.id, second.id]
    assert overlaps(scene.runs(unit)) == []


def is_logged(scene: Deployment, kind: str, message_id: str) -> bool:
    """Whether a worker of this scene told of such a decision about this message."""
    logs = "\n".join(worker.log for worker in scene.workers)
    return any(kind in line and f"message_id={message_id}" in line for line in logs.splitlines())
