"""The promises of once, held to the same tests on Celery and on Dramatiq: real workers, brokers.

Each test names the promise, or what the user chose; `_support.promises` says it in the words of
either framework, and `_support.promise_tasks` has the tasks. A unit of work is the first argument.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from _support import ledger
from _support.promise_tasks import DEBOUNCE, INSTEAD, LEASE, WINDOW
from _support.promises import SCENES, Scene, Scenes
from _support.waiting import wait_until

from once_core.devserver import DevServer
from once_core.errors import DuplicateTaskError, StoreUnavailableError
from once_core.events import Event, subscribe

IN_CELLS = {"dramatiq": [pytest.mark.lifecycle_dramatiq]}

KINDS = [
    pytest.param(
        (framework, broker),
        id=f"{framework}-{broker}",
        marks=[*marks, *IN_CELLS.get(framework, ())],
    )
    for framework in SCENES
    for broker, marks in (("redis", ()), ("rabbitmq", [pytest.mark.rabbitmq]))
]

on_redis = pytest.mark.parametrize(
    "scene", [each for each in KINDS if "redis" in str(each.id)], indirect=True
)
"""For what cannot depend on the broker."""

own_on_redis = pytest.mark.parametrize(
    "own_scene", [each for each in KINDS if "redis" in str(each.id)], indirect=True
)
"""The same; starting workers takes long."""


@pytest.fixture(scope="module")
def scenes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
) -> Iterator[Scenes]:
    """Scenes of all kinds."""
    rabbitmq = partial(request.getfixturevalue, "rabbitmq")
    made = Scenes(tmp_path_factory.mktemp, shared_server, rabbitmq)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, scenes: Scenes, unit: str) -> Iterator[Scene]:
    """A framework and a broker."""
    with scenes.lent(request.param, unit) as scene:
        yield scene


@pytest.fixture(params=KINDS)
def own_scene(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: DevServer, server: DevServer
) -> Iterator[Scene]:
    """One of the test's own, without workers yet; its lock store is on a server of its own."""
    framework, broker = request.param
    if broker == "rabbitmq":
        request.getfixturevalue("rabbitmq")
    scene = SCENES[framework](tmp_path, shared_server, broker, server)
    yield scene
    scene.close()
    gc.collect()


def accepted(scene: Scene, task: str, *args: Any) -> Any:
    """Trigger until it is not refused."""

    def trigger() -> Any:
        handle = scene.send(task, *args)
        return None if scene.published(handle).is_duplicate else handle

    return wait_until(trigger, "a trigger is accepted")


# What is promised


def test_a_plain_run_leaves_nothing(scene: Scene, unit: str) -> None:
    """Whoever sees the result can trigger anew: the unit is free, and no key is left."""
    handle = scene.send("by_template", unit)

    assert scene.result(handle) == f"done {unit}"
    assert not scene.is_locked("by_template", unit)
    assert scene.locks.client().keys(f"*{unit}*") == []
    assert scene.published(handle).state == "claimed"


def test_three_round_trips_for_the_whole_life_of_a_message(scene: Scene, unit: str) -> None:
    """One to publish, one to start, one to end: one script each."""
    client = scene.locks.client()
    scene.result(scene.send("by_template", f"{unit}-before"))  # which loads the scripts
    client.config_set("slowlog-max-len", 100_000)
    client.config_set("slowlog-log-slower-than", 0)
    try:
        scene.result(scene.send("by_template", unit, once={"lease": 60}))
        wait_until(lambda: not client.keys(f"*{unit}*"), "it has ended")
        log = client.slowlog_get(100_000)
    finally:
        client.config_set("slowlog-log-slower-than", -1)
        client.slowlog_reset()

    # what a script does inside is in the log too
    commands = [each["command"].split() for each in log]
    names = [name.upper() for name, *rest in commands if f":of-{unit}:" in str(rest)]
    assert [name for name in names if name.startswith(b"EVAL")] == [b"EVALSHA"] * 3


def test_never_two_at_once_however_long_the_body_takes(scene: Scene, unit: str) -> None:
    """A lease is renewed as long as its body runs; a trigger meanwhile waits for its end."""
    running = scene.hold("brief", unit)
    waiting = scene.send("brief", unit)

    def outlasted() -> bool:
        holder = scene.holder("brief", unit)
        assert holder is not None
        assert (holder.state, holder.message_id) == ("running", scene.message_id(running))
        return holder.age > 2 * LEASE

    wait_until(outlasted, "two leases have passed")
    assert len(scene.runs(unit)) == 1
    scene.let_go(unit)

    assert scene.result(waiting) == f"done {unit}"
    assert ledger.overlaps(scene.has_ended(unit, 2)) == []
    assert scene.ids(unit) == [scene.message_id(running), scene.message_id(waiting)]


def test_never_a_pile_one_runs_and_one_waits(scene: Scene, unit: str) -> None:
    """However often it is triggered; all but two are told who holds the unit."""
    running = scene.hold("work", unit)
    handles = [scene.send("work", unit) for _ in range(20)]
    waiting, *refused = handles

    assert not scene.published(waiting).is_duplicate
    for each in refused:
        told = scene.published(each)
        assert (told.state, told.is_duplicate) == ("waiting", True)
        assert told.holder_id == scene.message_id(waiting)
        assert told.retry_after > 0
    scene.let_go(unit)
    scene.result(waiting)
    assert scene.ids(unit) == [scene.message_id(running), scene.message_id(waiting)]
    wait_until(lambda: not scene.is_locked("work", unit), "the unit is free")


def test_never_lost_a_refused_trigger_is_followed_by_a_run_that_starts_after_it(
    scene: Scene, unit: str
) -> None:
    """It was refused because one waits, and that one is yet to start."""
    scene.hold("work", unit)
    scene.send("work", unit)
    refused = scene.send("work", unit)
    refused_at = time.monotonic()

    scene.let_go(unit)

    assert scene.published(refused).is_duplicate
    assert scene.result(refused) == f"done {unit}"
    assert scene.runs(unit)[-1].start > refused_at


def test_never_stuck_a_killed_worker_frees_its_units(scene: Scene, unit: str) -> None:
    """By their lease if nobody can know that it is dead; much sooner on the same machine."""
    near, far = f"{unit}-near", f"{unit}-far"
    scene.hold("patient", near)
    held = scene.hold("brief", far)
    victims = [*scene.runs(near), *scene.runs(far)]
    killed_at = scene.kill_workers()
    scene.locks.client().hset(scene.published(held).key, "x0b", "elsewhere:1:0123456789")
    scene.let_go(near)
    scene.let_go(far)

    handles = [scene.send("patient", near), scene.send("brief", far)]
    assert [scene.published(each).is_duplicate for each in handles] == [False, False]
    scene.worker()

    assert [scene.result(each) for each in handles] == [f"done {near}", f"done {far}"]
    dead_at = {run.pid: killed_at for run in victims}
    for each in (near, far):
        assert ledger.overlaps(scene.runs(each), dead_at) == []


@own_on_redis
def test_never_stuck_a_lost_message_does_not_refuse_triggers_for_long(
    own_scene: Scene, unit: str
) -> None:
    """Its queue was emptied behind our back: the next trigger after `heal_after` is accepted."""
    scene = own_scene
    scene.send("work", f"{unit}-slow")
    scene.send("healing", unit)
    wait_until(lambda: scene.queued() == 2, "the broker has both")
    scene.lose_messages()

    assert scene.queued() == 0
    assert scene.published(scene.send("work", f"{unit}-slow")).is_duplicate
    handle = accepted(scene, "healing", unit)
    assert scene.published(handle).state == "refreshed"
    scene.worker()
    assert scene.result(handle) == f"done {unit}"
    assert scene.ids(unit) == [scene.message_id(handle)]


def test_never_a_hang_a_duplicate_in_a_group_ends(scene: Scene, unit: str) -> None:
    """The group is complete: one member ran, the other ends with the value for duplicates."""
    scene.hold("instead", unit)
    results = scene.group("instead", (unit, -1), (unit, -1))

    scene.let_go(unit)

    assert results() == [f"done {unit}", INSTEAD]
    assert len(scene.runs(unit)) == 2


def test_never_a_hang_a_duplicate_in_a_chain_goes_on(scene: Scene, unit: str) -> None:
    """What comes after it gets the value for duplicates."""
    scene.hold("instead", unit)
    waiting = scene.send("instead", unit)

    assert scene.chained("instead", unit) == ["then", INSTEAD]
    scene.let_go(unit)
    scene.result(waiting)
    assert len(scene.runs(unit)) == 2


@on_redis
def test_never_a_riddle_each_decision_is_an_event_with_its_reason(scene: Scene, unit: str) -> None:
    """The producer hears of what it decided, the worker's log tells of the rest."""
    seen: list[Event] = []
    stop = subscribe(seen.append)
    try:
        running = scene.hold("by_template", unit)
        waiting = scene.send("by_template", unit)
        scene.send("by_template", unit)
    finally:
        stop()

    ids = [scene.message_id(each) for each in (running, waiting)]
    claimed, second, refused = [each for each in seen if f":of-{unit}" in each.key]
    assert [claimed.kind, claimed.message_id] == ["claimed", ids[0]]
    assert [second.kind, second.message_id] == ["claimed", ids[1]]
    assert [refused.kind, refused.holder_id] == ["duplicate", ids[1]]
    assert refused.task == "promise.by_template"
    assert "one waits" in refused.reason

    def deferred() -> list[str]:
        return [each for each in scene.log().splitlines() if "deferred " in each and ids[1] in each]

    line = wait_until(deferred, "the log tells that it was deferred")[0]
    assert f"an attempt of message {ids[0]} " in line


# Duplicates


def test_a_duplicate_answers_with_the_result_of_its_holder(scene: Scene, unit: str) -> None:
    """Its handle is the holder's, never None."""
    scene.hold("work", unit)
    waiting = scene.send("work", unit, payload="the holder's")
    refused = scene.send("work", unit, payload="its own")

    scene.let_go(unit)

    assert scene.message_id(refused) == scene.message_id(waiting)
    assert scene.result(refused) == "the holder's"


@on_redis
def test_on_duplicate_raise_raises_with_the_facts(scene: Scene, unit: str) -> None:
    """Nothing is sent, and the error says who waits."""
    scene.hold("raising", unit)
    waiting = scene.send("raising", unit)

    with pytest.raises(DuplicateTaskError) as caught:
        scene.send("raising", unit)

    error = caught.value
    assert (error.task, error.state) == ("promise.raising", "waiting")
    assert error.holder_id == scene.message_id(waiting)
    assert error.key == scene.published(waiting).key
    assert error.retry_after > 0
    scene.let_go(unit)
    scene.result(waiting)
    assert len(scene.runs(unit)) == 2


def test_on_duplicate_replace_runs_the_newest(scene: Scene, unit: str) -> None:
    """The waiting message ends without running; the last payload is the last that runs."""
    running = scene.hold("replacing", unit)
    older = scene.send("replacing", unit, payload="older")
    newer = scene.send("replacing", unit, payload="newer")

    scene.let_go(unit)

    assert scene.published(newer).state == "replaced"
    assert scene.result(newer) == "newer"
    assert scene.result(older) is None
    assert scene.ids(unit) == [scene.message_id(running), scene.message_id(newer)]


@on_redis
def test_on_duplicate_replace_publishes_nothing_for_equal_arguments(
    scene: Scene, unit: str
) -> None:
    """The waiting message is as good as the new one: its handle is the answer."""
    scene.hold("replacing", unit)
    waiting = scene.send("replacing", unit, payload="same")
    again = scene.send("replacing", unit, payload="same")

    scene.let_go(unit)

    assert scene.published(again).state == "moved"
    assert scene.message_id(again) == scene.message_id(waiting)
    assert scene.result(again) == "same"
    assert len(scene.runs(unit)) == 2


@on_redis
def test_debounce_runs_the_last_call_of_a_burst(scene: Scene, unit: str) -> None:
    """Once, when it was quiet for so long."""
    began = time.monotonic()
    handles = [scene.send("debounced", unit, payload=number) for number in range(3)]
    last_sent = time.monotonic()

    assert scene.result(handles[-1]) == 2
    runs = scene.runs(unit)
    assert runs[-1].payload == 2
    assert runs[-1].start > last_sent + DEBOUNCE - 0.1
    assert len(runs) == 1 or last_sent - began > DEBOUNCE


@on_redis
def test_debounce_max_bounds_the_delay_of_a_burst_that_never_ends(scene: Scene, unit: str) -> None:
    """It runs although the calls go on."""

    def triggered_once_more() -> list[ledger.Run]:
        scene.send("debounced", unit)
        return scene.runs(unit)

    (run,) = wait_until(triggered_once_more, "it runs")
    assert run.payload is None


def test_on_duplicate_share_ends_duplicates_with_the_result_of_the_holder(
    scene: Scene, unit: str
) -> None:
    """Ids that somebody waits for: all members of the group have the value of the one run."""
    scene.hold("sharing", unit)
    results = scene.group("sharing", (unit, -1), (unit, -1), (unit, -1))

    scene.let_go(unit)

    assert results() == [f"done {unit}"] * 3
    assert len(scene.runs(unit)) == 2


# Scopes


def test_scope_until_done_refuses_triggers_while_one_runs(scene: Scene, unit: str) -> None:
    """Until it is done; then the next is accepted."""
    running = scene.hold("until_done", unit)
    refused = scene.send("until_done", unit)

    told = scene.published(refused)
    assert (told.state, told.holder_id) == ("running", scene.message_id(running))
    scene.let_go(unit)
    assert scene.result(refused) == f"done {unit}"
    again = scene.send("until_done", unit)
    assert not scene.published(again).is_duplicate
    assert scene.result(again) == f"done {unit}"
    assert len(scene.runs(unit)) == 2


@on_redis
def test_scope_queued_limits_what_waits_and_not_what_runs(scene: Scene, unit: str) -> None:
    """Two run at the same time; of two that are not due yet the second is refused."""
    scene.hold("queued", unit)
    scene.hold("queued", unit)
    waiting = scene.send("queued", unit, delay=60)
    refused = scene.send("queued", unit)

    told = scene.published(refused)
    assert (told.state, told.holder_id) == ("waiting", scene.message_id(waiting))
    scene.let_go(unit)
    assert len(ledger.overlaps(scene.has_ended(unit, 2))) == 1
    assert len(scene.runs(unit)) == 2


def test_scope_running_limits_what_runs_and_not_what_waits(scene: Scene, unit: str) -> None:
    """All are accepted, and all run, one after the other."""
    scene.hold("running", unit)
    handles = [scene.send("running", unit) for _ in range(2)]

    scene.let_go(unit)

    assert [scene.published(each).is_duplicate for each in handles] == [False, False]
    assert [scene.result(each) for each in handles] == [f"done {unit}"] * 2
    assert ledger.overlaps(scene.has_ended(unit, 3)) == []
    assert len(scene.runs(unit)) == 3


@on_redis
def test_scope_window_refuses_finished_or_not_until_it_is_over(scene: Scene, unit: str) -> None:
    """It is counted from the accepted publish."""
    long = scene.send("window", f"{unit}-long", once={"window": 600})
    scene.result(long)
    told = scene.published(scene.send("window", f"{unit}-long"))
    assert (told.state, told.holder_id) == ("kept", scene.message_id(long))
    assert told.retry_after > WINDOW

    published_at = time.monotonic()
    scene.result(scene.send("window", unit))
    again = accepted(scene, "window", unit)
    assert time.monotonic() - published_at > WINDOW - 0.1
    scene.result(again)
    assert len(scene.runs(unit)) == 2


@on_redis
def test_keep_for_refuses_after_success(scene: Scene, unit: str) -> None:
    """So that what was done just now is not done again."""
    long = scene.send("kept", f"{unit}-long", once={"keep_for": 600})
    scene.result(long)
    told = scene.published(scene.send("kept", f"{unit}-long"))
    assert (told.state, told.holder_id) == ("kept", scene.message_id(long))

    scene.result(scene.send("kept", unit))
    again = accepted(scene, "kept", unit)
    scene.result(again)
    first, second = scene.runs(unit)
    assert second.start - first.end > WINDOW - 0.1


@on_redis
def test_keep_for_does_not_keep_a_failure(scene: Scene, unit: str) -> None:
    """It may be tried again at once."""
    failed = scene.send("kept", unit, fails=1, once={"keep_for": 600})
    assert scene.failure(failed) == "RuntimeError"

    # the failure is known a moment before its record is written, in both frameworks
    scene.result(accepted(scene, "kept", unit))
    assert len(scene.runs(unit)) == 2


# Overlaps


def test_on_overlap_defer_runs_the_same_message_later(scene: Scene, unit: str) -> None:
    """With its own id, and none of its retries used up; its task has none."""
    scene.hold("work", unit)
    waiting = scene.send("work", unit)
    wait_until(lambda: f"message_id={scene.message_id(waiting)}" in scene.log(), "it is deferred")

    scene.let_go(unit)

    assert scene.result(waiting) == f"done {unit}"
    run = scene.runs(unit)[-1]
    assert (run.message_id, run.retries) == (scene.message_id(waiting), 0)


@on_redis
def test_on_overlap_skip_ends_the_message_without_running(scene: Scene, unit: str) -> None:
    """Its trigger is given up."""
    scene.hold("skipping", unit)
    skipped = scene.send("skipping", unit)

    assert scene.result(skipped) is None
    assert len(scene.runs(unit)) == 1


@on_redis
def test_on_overlap_raise_fails_the_message(scene: Scene, unit: str) -> None:
    """Without its body, and without retries."""
    scene.hold("strict", unit)
    failed = scene.send("strict", unit)

    assert scene.failure(failed) == "OverlapError"
    assert len(scene.runs(unit)) == 1


# Retries


def test_a_retry_keeps_its_unit_and_duplicates_meanwhile_are_refused(
    scene: Scene, unit: str
) -> None:
    """The retry is what waits; whoever is refused gets its result."""
    handle = scene.send("retrying", unit, fails=1)

    def waits() -> bool:
        holder = scene.holder("retrying", unit)
        return holder is not None and (holder.state, holder.retries) == ("waiting", 1)

    wait_until(waits, "the retry waits")
    refused = scene.send("retrying", unit)

    assert scene.published(refused).state == "waiting"
    assert scene.message_id(refused) == scene.message_id(handle)
    assert scene.result(refused) == f"done {unit}"
    assert [run.retries for run in scene.runs(unit)] == [0, 1]
    wait_until(lambda: not scene.is_locked("retrying", unit), "the unit is free")


def test_at_most_one_message_waits_beside_a_retry(scene: Scene, unit: str) -> None:
    """It was triggered while the first attempt ran; all three run, one after the other."""
    first = scene.send("retrying", unit, -1, fails=1)
    wait_until(lambda: scene.runs(unit), "the first attempt runs")
    waiting, refused = scene.send("retrying", unit), scene.send("retrying", unit)
    assert not scene.published(waiting).is_duplicate
    scene.let_go(unit)
    wait_until(lambda: scene.runs(unit)[0].end, "the first attempt has failed")
    refused_later = scene.send("retrying", unit)

    assert scene.published(refused).is_duplicate
    assert scene.result(first) == scene.result(waiting) == f"done {unit}"
    scene.result(refused_later)
    runs = scene.has_ended(unit, 3)
    assert ledger.overlaps(runs) == []
    assert len(runs) <= 3 + (not scene.published(refused_later).is_duplicate)


# The lock store is away


def test_a_publish_while_the_store_is_away_raises_and_sends_nothing(
    own_scene: Scene, unit: str
) -> None:
    """As the error that the framework's users catch when their broker is away."""
    scene = own_scene
    scene.send("work", unit)
    wait_until(lambda: scene.queued() == 1, "the broker has it")
    scene.locks.kill()

    with pytest.raises(scene.unavailable) as caught:
        scene.send("work", f"{unit}-other")

    assert isinstance(caught.value, StoreUnavailableError)
    assert isinstance(caught.value, scene.connection_error)
    assert str(scene.locks.port) in str(caught.value)
    assert scene.queued() == 1


@own_on_redis
def test_while_the_store_is_away_messages_are_deferred_or_run_as_they_were_told(
    own_scene: Scene, unit: str
) -> None:
    """Neither lost nor run unguarded, unless `on_store_error="run"`; no restart of anything."""
    scene, careless = own_scene, f"{unit}-careless"
    guarded = scene.send("work", unit)
    scene.locks.kill()
    unguarded = scene.send("work", careless, once={"on_store_error": "run"})
    scene.worker()

    assert scene.published(unguarded).state == "unguarded"
    assert scene.result(unguarded) == f"done {careless}"
    assert [run.fence for run in scene.runs(careless)] == [None]
    wait_until(lambda: "deferred promise.work" in scene.log(), "the other one is deferred")
    assert scene.runs(unit) == []

    scene.locks.start()
    assert scene.result(guarded) == f"done {unit}"
    (run,) = scene.runs(unit)
    assert run.message_id == scene.message_id(guarded)
    assert run.fence is not None


# What people do by hand, and at a call


@on_redis
def test_release_frees_the_unit_by_hand(scene: Scene, unit: str) -> None:
    """Whoever holds it: the next trigger runs at once, beside the one that has lost its lease."""
    assert not scene.is_locked("work", unit)
    assert not scene.release("work", unit)
    running = scene.hold("work", unit)
    holder = scene.holder("work", unit)
    assert holder is not None
    assert (holder.state, holder.message_id) == ("running", scene.message_id(running))

    assert scene.release("work", unit)

    assert not scene.is_locked("work", unit)
    scene.hold("work", unit)
    assert len(scene.runs(unit)) == 2


@on_redis
def test_once_false_sends_one_call_past_all_locks(scene: Scene, unit: str) -> None:
    """It runs beside the others, and the lock knows nothing of it."""
    scene.hold("work", unit)
    waiting = scene.send("work", unit)
    past = scene.send("work", unit, once=False)

    told = scene.published(past)
    assert (told.state, told.is_duplicate) == ("off", False)
    wait_until(lambda: scene.message_id(past) in scene.ids(unit), "it runs")
    scene.let_go(unit)
    assert scene.result(waiting) == scene.result(past) == f"done {unit}"
    assert len(scene.runs(unit)) == 3


@on_redis
def test_a_scope_can_be_given_for_one_call(scene: Scene, unit: str) -> None:
    """The same trigger is accepted without it."""
    scene.hold("work", unit)

    refused = scene.send("work", unit, once={"scope": "until_done"})
    waiting = scene.send("work", unit)

    assert scene.published(refused).state == "running"
    assert scene.published(waiting).state == "claimed"
    scene.let_go(unit)
    assert scene.result(waiting) == f"done {unit}"


# Keys


@on_redis
@pytest.mark.parametrize("task", ["work", "by_template", "by_function"])
def test_a_key_selects_the_arguments_that_identify_the_unit(
    scene: Scene, unit: str, task: str
) -> None:
    """By a list of names, a template or a function; whatever else differs."""
    first = scene.send(task, unit, -1)
    wait_until(lambda: scene.runs(unit), "the body runs")
    waiting = scene.send(task, unit, payload="a")
    refused = scene.send(task, unit, payload="b")
    other = scene.send(task, f"{unit}-other")

    assert scene.published(refused).is_duplicate
    assert not scene.published(other).is_duplicate
    assert scene.published(first).key == scene.published(refused).key
    assert scene.published(first).key != scene.published(other).key
    assert (unit in scene.published(first).key) == (task == "by_template")
    assert scene.result(other) == f"done {unit}-other"
    scene.let_go(unit)
    scene.result(waiting)


@on_redis
def test_equal_calls_are_one_unit_however_they_are_written(scene: Scene, unit: str) -> None:
    """By position, by name, or left to the default."""
    handles = [
        scene.send("all_arguments", unit, delay=60),
        scene.send("all_arguments", unit=unit),
        scene.send("all_arguments", unit, 0.0, payload=None),
    ]
    other = scene.send("all_arguments", unit, payload="other")

    assert [scene.published(each).is_duplicate for each in handles] == [False, True, True]
    assert len({scene.published(each).key for each in handles}) == 1
    assert not scene.published(other).is_duplicate
    assert scene.is_locked("all_arguments", unit=unit)
    assert scene.result(other) == "other"


@on_redis
def test_tasks_share_a_unit_by_name(scene: Scene, unit: str) -> None:
    """Import and update of one account never run at the same time."""
    scene.hold("importing", unit)
    waiting = scene.send("updating", unit)
    refused = scene.send("importing", unit)

    assert not scene.published(waiting).is_duplicate
    assert scene.published(refused).holder_id == scene.message_id(waiting)
    assert scene.is_locked("updating", unit)
    scene.let_go(unit)
    assert scene.result(waiting) == f"done {unit}"
    assert ledger.overlaps(scene.has_ended(unit, 2)) == []
    assert len(scene.runs(unit)) == 2
