"""Publishing: what is sent, what is refused, and what the caller is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from _support.deployment import Deployment
from _support.scenes import everywhere, hold, hold_and_wait, let_go
from _support.waiting import wait_until
from celery import Celery, chain, chord, group

from once_celery import DuplicateTaskError
from once_core.devserver import DevServer

pytestmark = pytest.mark.lifecycle

BROKERS = ["redis", "rabbitmq"]


# What a fresh call gives


@everywhere
def test_a_fresh_call_runs_and_its_handle_says_so(scene: Deployment, unit: str) -> None:
    """A call of an idle unit is sent, runs once, and its handle has `.once`."""
    handle = scene.task("work").delay(unit)

    assert handle.get(timeout=20) == f"done {unit}"
    assert (handle.once.state, handle.once.is_duplicate) == ("claimed", False)
    assert (handle.once.holder_id, handle.once.retry_after) == (handle.id, 0.0)
    assert [run.message_id for run in scene.runs(unit)] == [handle.id]


@everywhere
def test_nothing_is_left_behind_by_a_plain_run(scene: Deployment, unit: str) -> None:
    """Once a task has run there is no key of its unit any more."""
    handle = scene.task("work").delay(unit)

    handle.get(timeout=20)

    assert scene.store.client().exists(handle.once.key) == 0
    assert not scene.task("work").is_locked(unit)


def test_a_server_is_empty_after_many_plain_runs(
    server: DevServer, deploy: Callable[..., Deployment]
) -> None:
    """Twenty units later the lock store holds no key of ours at all."""
    scene = deploy(store=server, pool="threads")
    scene.worker()

    handles = [scene.task("work").delay(f"u{number}") for number in range(20)]
    for handle in handles:
        handle.get(timeout=20)
    scene.app.backend.result_consumer.stop()

    assert scene.keys() == []


# Duplicates


@pytest.mark.parametrize("broker", BROKERS)
def test_a_duplicate_is_not_sent(broker: str, deploy: Callable[..., Deployment], unit: str) -> None:
    """While one waits, a second call sends nothing and returns the waiting one's handle."""
    scene = deploy(broker=broker)
    first = scene.task("work").delay(unit)

    second = scene.task("work").delay(unit)

    assert scene.queued() == 1
    assert second.id == first.id
    assert (second.once.state, second.once.is_duplicate) == ("waiting", True)
    assert second.once.holder_id == first.id
    assert second.once.key == first.once.key
    assert 0 < second.once.retry_after <= 60


@everywhere
def test_the_handle_of_a_duplicate_gives_the_holders_result(scene: Deployment, unit: str) -> None:
    """`get()` on a refused call's handle returns what the waiting message returned."""
    running, waiting = hold_and_wait(scene, unit)

    duplicate = scene.task("work").delay(unit, -1)
    let_go(scene, unit)

    assert duplicate.id == waiting.id
    assert duplicate.get(timeout=20) == f"done {unit}"
    assert running.get(timeout=20) == f"done {unit}"
    assert [run.message_id for run in scene.runs(unit)] == [running.id, waiting.id]


def test_calls_that_mean_the_same_are_duplicates(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """Defaults and keywords make no difference; other values do."""
    scene = deploy()
    work = scene.task("work")
    first = work.delay(unit)

    assert work.delay(unit=unit, seconds=0.0).id == first.id
    assert work.s(unit).apply_async().id == first.id
    assert work.delay(unit, 1.5).id != first.id
    assert scene.queued() == 2


def test_raise_raises_with_the_facts(deploy: Callable[..., Deployment], unit: str) -> None:
    """With on_duplicate="raise" a duplicate is an error that names who holds the unit."""
    scene = deploy()
    first = scene.task("raising").delay(unit)

    with pytest.raises(DuplicateTaskError) as caught:
        scene.task("raising").delay(unit)

    error = caught.value
    assert scene.queued() == 1
    assert (error.task, error.state, error.holder_id) == ("raising", "waiting", first.id)
    assert (error.key, 0 < error.retry_after <= 60) == (first.once.key, True)
    assert str(error).startswith(
        f"raising was not sent: one waits to run (held by {first.id}, a new call may be "
        "accepted in "
    )
    assert 'on_duplicate="skip"' in str(error)


@everywhere
def test_replace_runs_the_newest_payload(scene: Deployment, unit: str) -> None:
    """With on_duplicate="replace" the newest waiting payload runs, and only that."""
    replacing = scene.task("replacing")
    running = replacing.delay(unit, -1, "running")
    wait_until(lambda: scene.runs(unit), "the first body runs")

    older = replacing.delay(unit, 0, "older")
    newer = replacing.delay(unit, 0, "newer")
    let_go(scene, unit)

    assert (older.once.state, newer.once.state) == ("claimed", "replaced")
    assert newer.get(timeout=20) == "newer"
    assert running.get(timeout=20) == "running"
    assert older.get(timeout=20) is None
    assert [run.payload for run in scene.runs(unit)] == ["running", "newer"]


def test_replace_sends_nothing_for_equal_arguments(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """A call whose arguments all equal those that wait is answered with `moved`."""
    scene = deploy()
    first = scene.task("replacing").delay(unit, 0, "same")

    second = scene.task("replacing").delay(unit, 0, "same")

    assert scene.queued() == 1
    assert (second.once.state, second.once.is_duplicate) == ("moved", True)
    assert second.id == first.id


@everywhere
def test_debounce_runs_the_last_call_of_a_burst(scene: Deployment, unit: str) -> None:
    """Of a burst of calls with debounce= only the last payload runs."""
    burst = [scene.task("debounced").delay(unit, 0, number) for number in range(4)]

    results = [handle.get(timeout=20) for handle in burst]

    assert results == [None, None, None, 3]
    assert [run.payload for run in scene.runs(unit)] == [3]


def test_debounce_max_ends_a_burst_that_would_not(scene: Deployment, unit: str) -> None:
    """Calls that never pause cannot put a run off for longer than debounce_max=."""
    debounced, calls = scene.task("debounced"), iter(range(100_000))

    def press() -> list[Any]:
        call = {"debounce": 1, "debounce_max": 1}
        debounced.apply_async((unit, 0, next(calls)), once=call)
        return scene.runs(unit)

    assert wait_until(press, "one run in the middle of the burst", within=20)


def test_a_message_that_comes_before_its_moved_time_is_put_back(
    scene: Deployment, unit: str
) -> None:
    """A call with equal arguments only moves the due time; the message waits for it."""
    debounced = scene.task("debounced")
    first = debounced.apply_async((unit, 0, "same"), once={"debounce": 0.2})

    second = debounced.apply_async((unit, 0, "same"), once={"debounce": 1.5})

    assert (second.once.state, second.id) == ("moved", first.id)
    assert first.get(timeout=20) == "same"
    assert len(scene.runs(unit)) == 1
    lines = [line for line in scene.workers[0].log.splitlines() if first.id in line]
    assert any("deferred debounced: it is due later now" in line for line in lines)


# Options of one call


def test_once_false_passes_all_locks(scene: Deployment, unit: str) -> None:
    """A call with once=False is sent and runs beside the one that runs."""
    hold_and_wait(scene, unit)

    free = scene.task("work").apply_async((unit, -1), once=False)
    wait_until(lambda: free.id in [run.message_id for run in scene.runs(unit)], "it runs too")
    let_go(scene, unit)

    assert free.get(timeout=20) == f"done {unit}"
    assert (free.once.state, free.once.is_duplicate, free.once.holder_id) == (
        "off",
        False,
        free.id,
    )


def test_options_of_a_call_hold_for_that_call_alone(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """`once={...}` at a call raises for that one and not for the next."""
    scene = deploy()
    work = scene.task("work")
    first = work.delay(unit)

    with pytest.raises(DuplicateTaskError):
        work.apply_async((unit,), once={"on_duplicate": "raise"})

    assert work.delay(unit).id == first.id


def test_an_option_of_a_call_reaches_the_worker(scene: Deployment, unit: str) -> None:
    """return_on_duplicate= given at a call is what its settled message ends with."""
    hold_and_wait(scene, unit)

    settled = scene.task("work").apply_async(
        (unit, -1), task_id=f"id-{unit}", once={"return_on_duplicate": "skipped"}
    )
    result = settled.get(timeout=20)
    let_go(scene, unit)

    assert result == "skipped"


def test_options_of_a_call_may_be_set_on_a_signature(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """`work.s(...).set(once=...)` is a call with these options."""
    scene = deploy()
    signature = scene.task("work").s(unit)
    first = signature.apply_async()

    free = signature.clone().set(once=False).apply_async()
    with pytest.raises(DuplicateTaskError):
        signature.clone().set(once={"on_duplicate": "raise"}).apply_async()

    assert (free.once.state, free.id != first.id, scene.queued()) == ("off", True, 2)


def test_eager_tasks_are_not_guarded(deploy: Callable[..., Deployment], unit: str) -> None:
    """With task_always_eager the body runs in the caller, and nothing is locked."""
    scene = deploy(conf={"task_always_eager": True})

    calls = [scene.task("work").delay(unit) for _ in range(2)]

    assert [call.get() for call in calls] == [f"done {unit}"] * 2
    assert [call.once.state for call in calls] == ["off", "off"]
    assert not scene.task("work").is_locked(unit)


# Ids that somebody knows already


@everywhere
def test_an_id_given_by_the_caller_is_settled(scene: Deployment, unit: str) -> None:
    """A duplicate with an id of its own is sent, and ends with None without running."""
    running, waiting = hold_and_wait(scene, unit)

    mine = scene.task("work").apply_async((unit, -1), task_id=f"id-{unit}")
    value = mine.get(timeout=20)
    let_go(scene, unit)
    waiting.get(timeout=20)

    assert (mine.id, value) == (f"id-{unit}", None)
    assert (mine.once.is_duplicate, mine.once.holder_id) == (True, waiting.id)
    assert [run.message_id for run in scene.runs(unit)] == [running.id, waiting.id]


def test_the_same_id_twice_is_sent_once(deploy: Callable[..., Deployment], unit: str) -> None:
    """Giving one id to two calls sends one message; settling it would end the real run."""
    scene = deploy()
    first = scene.task("work").apply_async((unit,), task_id=f"id-{unit}")

    second = scene.task("work").apply_async((unit,), task_id=f"id-{unit}")

    assert scene.queued() == 1
    assert (first.id, second.id) == (f"id-{unit}", f"id-{unit}")
    assert (first.once.is_duplicate, second.once.is_duplicate) == (False, True)


@everywhere
def test_a_group_with_duplicates_completes(scene: Deployment, unit: str) -> None:
    """Members that are duplicates end with None, the others with their values."""
    hold_and_wait(scene, unit)
    work, plain = scene.task("work"), scene.task("plain")

    result = group(work.s(unit, -1), plain.s("other"), work.s(unit, -1)).apply_async()
    values = result.get(timeout=20)
    let_go(scene, unit)

    assert values == [None, "done other", None]


@everywhere
def test_a_group_of_equal_members_completes(scene: Deployment, unit: str) -> None:
    """Three equal members of one group leave nobody waiting, and one runs at least."""
    result = group(*[scene.task("work").s(unit)] * 3).apply_async()

    values = result.get(timeout=20)

    assert set(values) <= {None, f"done {unit}"}
    assert values.count(f"done {unit}") == len(scene.runs(unit)) >= 1


@everywhere
def test_a_chord_with_duplicates_completes(scene: Deployment, unit: str) -> None:
    """The body of a chord runs although members of its header are duplicates."""
    hold_and_wait(scene, unit)
    header = [scene.task("work").s(unit, -1), scene.task("plain").s("other")]

    result = chord(header)(scene.task("plain").s())
    value = result.get(timeout=20)
    let_go(scene, unit)

    assert value == "done [None, 'done other']"


@everywhere
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_chain_with_a_duplicate_completes(scene: Deployment, unit: str, position: int) -> None:
    """A step that is a duplicate ends with None and the chain goes on."""
    hold_and_wait(scene, unit)
    steps = [scene.task("plain").si(f"{unit}-{number}") for number in range(3)]
    steps[position] = scene.task("work").si(unit, -1)

    value = chain(*steps).apply_async().get(timeout=20)
    let_go(scene, unit)

    assert value == (None if position == 2 else f"done {unit}-2")


def test_a_duplicate_step_that_would_raise_does_not_hurt_its_chain(
    scene: Deployment, unit: str
) -> None:
    """on_duplicate="raise" never raises into the dispatch of a chain: the step settles."""
    hold_and_wait(scene, unit, "raising")
    steps = [scene.task("plain").si(f"{unit}-0"), scene.task("raising").si(unit, -1)]

    result = chain(*steps).apply_async()
    value = result.get(timeout=20)
    let_go(scene, unit)

    assert value is None
    assert result.parent.get(timeout=20) == f"done {unit}-0"


def test_callbacks_of_a_duplicate_are_called(scene: Deployment, unit: str) -> None:
    """A duplicate with link= is sent and settled, so that its callback runs."""
    hold_and_wait(scene, unit)

    scene.task("work").apply_async((unit, -1), link=scene.task("plain").si(f"{unit}-link"))

    wait_until(lambda: scene.runs(f"{unit}-link"), "the callback runs")
    let_go(scene, unit)


# Asking and freeing


def test_a_unit_can_be_asked_about_and_freed(deploy: Callable[..., Deployment], unit: str) -> None:
    """is_locked, holder and release take the arguments of the call."""
    scene = deploy()
    work = scene.task("work")
    assert (work.is_locked(unit), work.holder(unit), work.release(unit)) == (False, None, False)

    first = work.delay(unit)
    work.delay(unit)

    assert work.is_locked(unit=unit)
    assert not work.is_locked("another")
    holder = work.holder(unit)
    assert (holder.state, holder.message_id, holder.suppressed) == ("waiting", first.id, 1)
    assert work.release(unit)
    assert not work.is_locked(unit)
    assert not work.delay(unit).once.is_duplicate


def test_the_holder_of_a_running_unit_is_named(scene: Deployment, unit: str) -> None:
    """holder() tells which message runs, and under which fence."""
    running = hold(scene, unit)

    holder = scene.task("work").holder(unit, -1)
    let_go(scene, unit)
    running.get(timeout=20)

    assert (holder.state, holder.message_id) == ("running", running.id)
    assert [holder.fence] == [run.fence for run in scene.runs(unit)]
    assert str(scene.runs(unit)[0].pid) in holder.where.split(":")


def test_a_released_message_still_runs(scene: Deployment, unit: str) -> None:
    """release() frees the unit; the message that waited is not lost."""
    _, waiting = hold_and_wait(scene, unit)

    scene.task("work").release(unit, -1)
    again = scene.task("work").delay(unit, -1)
    let_go(scene, unit)

    assert not again.once.is_duplicate
    assert again.get(timeout=20) == waiting.get(timeout=20) == f"done {unit}"


# Programs without this library


def foreign(scene: Deployment) -> Celery:
    """A program that knows the broker and the tasks' names, and nothing else."""
    names = ("broker_url", "result_backend", "task_default_queue")
    app = Celery("foreign", set_as_current=False)
    app.conf.update({name: scene.settings[name] for name in names})
    return app


@everywhere
def test_foreign_messages_are_guarded_when_they_run(scene: Deployment, unit: str) -> None:
    """Of three messages by send_task one runs, one waits its turn, and one ends with None."""
    app = foreign(scene)
    first = app.send_task("work", (unit, -1))
    wait_until(lambda: scene.runs(unit), "the first body runs")

    second = app.send_task("work", (unit, -1))
    wait_until(lambda: is_logged(scene, "deferred", second.id), "the second is put back")
    third = app.send_task("work", (unit, -1))
    value = third.get(timeout=20)
    let_go(scene, unit)

    assert value is None
    assert first.get(timeout=20) == second.get(timeout=20) == f"done {unit}"
    assert [run.message_id for run in scene.runs(unit)] == [first.id, second.id]
    app.backend.result_consumer.stop()
    app.close()


def test_a_call_after_a_foreign_message_that_waits_is_a_duplicate(
    scene: Deployment, unit: str
) -> None:
    """A foreign message that waits for its turn counts as the one that waits."""
    app = foreign(scene)
    hold(scene, unit)
    second = app.send_task("work", (unit, -1))
    wait_until(lambda: is_logged(scene, "deferred", second.id), "the second is put back")

    ours = scene.task("work").delay(unit, -1)
    let_go(scene, unit)

    assert (ours.once.state, ours.id) == ("waiting", second.id)
    assert ours.get(timeout=20) == f"done {unit}"
    app.backend.result_consumer.stop()
    app.close()


def is_logged(scene: Deployment, kind: str, message_id: str) -> bool:
    """Whether a worker of this scene told of such a decision about this message."""
    logs = "\n".join(worker.log for worker in scene.workers)
    return any(kind in line and f"message_id={message_id}" in line for line in logs.splitlines())
