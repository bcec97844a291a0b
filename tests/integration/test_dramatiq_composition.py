"""Pipelines and groups on Dramatiq with messages that do not run, or later: all of them complete.

A message under test is put in every position (`_support.dramatiq_compositions`), all positions at
once. What comes after it is given its value, callbacks fire once, and nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from _support.dramatiq_compositions import INSTEAD, NOBODYS, PARTS, TESTED, Compositions, Stage
from _support.dramatiq_deployment import DramatiqDeployment
from _support.waiting import wait_until
from dramatiq.results import ResultFailure

from once_core.devserver import DevServer
from once_core.errors import DuplicateTaskError
from once_dramatiq import published

pytestmark = pytest.mark.lifecycle_dramatiq

ORDERS = ["Results, once", "once, Results"]
EVERY_ORDER = [*ORDERS, "no Results"]
THREADS = 16
"""More than there are positions, whose bodies are held at the same time."""

SetUp = Callable[..., Stage]


@pytest.fixture
def set_up() -> Iterator[SetUp]:
    """Makes stages, which end with the test."""
    made: list[Stage] = []

    def stage(*args: Any, **options: Any) -> Stage:
        made.append(Stage(*args, **options))
        return made[-1]

    yield stage
    for each in made:
        each.close()


@pytest.mark.parametrize("on_duplicate", ["skip", "raise"])
@pytest.mark.parametrize("store_results", [True, False])
@pytest.mark.parametrize("order", EVERY_ORDER)
def test_duplicates_end_with_their_value_and_all_goes_on(
    set_up: SetUp, order: str, store_results: bool, on_duplicate: str
) -> None:
    """Where each unit waits already; ``"raise"`` raises for none of them."""
    stage = set_up(order, store_results=store_results, on_duplicate=on_duplicate)
    some = Compositions(stage, INSTEAD)
    some.take(NOBODYS)
    stage.work(PARTS, TESTED)

    some.run()

    some.complete()
    assert some.ran(0)
    assert stage.broker.dead_letters == []


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_replacing_messages_run_in_the_place_of_those_that_waited(
    set_up: SetUp, order: str
) -> None:
    """They are the newest."""
    stage = set_up(order, on_duplicate="replace")
    some = Compositions(stage, payload="newest")
    some.take(TESTED, "old")
    some.run()
    stage.work(PARTS)
    wait_until(
        lambda: (
            {each.message_id for each in stage.events if each.kind == "replaced"}
            >= set(some.message_ids)
        ),
        "all have replaced another",
    )

    stage.work(TESTED)

    some.complete()
    assert {unit: ["newest"] for unit in some.units} == stage.bodies


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_replacing_messages_with_the_arguments_that_wait_end_with_their_value(
    set_up: SetUp, order: str
) -> None:
    """The waiting one will do what they would."""
    stage = set_up(order, on_duplicate="replace")
    some = Compositions(stage, INSTEAD)
    some.take(NOBODYS)
    stage.work(PARTS, TESTED)

    some.run()

    some.complete()
    assert some.ran(0)


@pytest.mark.parametrize("order", ORDERS)
def test_sharing_duplicates_end_with_the_result_of_the_one_run(set_up: SetUp, order: str) -> None:
    """In each position the value is the real one, though the body ran once for all."""
    stage = set_up(order, key=None, on_duplicate="share")
    some = Compositions(stage)
    some.take(TESTED)
    some.run()
    stage.work(PARTS)
    some.until_refused()

    stage.work(TESTED)

    some.complete()
    assert some.ran(1)


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_superseded_messages_end_with_their_value_and_all_goes_on(
    set_up: SetUp, order: str
) -> None:
    """They waited, and a newer one took their place."""
    stage = set_up(order)
    some = Compositions(stage, INSTEAD)
    some.run()
    stage.work(PARTS)
    some.until_waiting()
    newer = [
        stage.tested.send_with_options(args=(unit, "newer"), once={"on_duplicate": "replace"})
        for unit in some.units
    ]
    assert {published(each).state for each in newer} == {"replaced"}

    stage.work(TESTED)

    some.complete()
    assert {unit: ["newer"] for unit in some.units} == stage.bodies


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_deferred_messages_run_later_and_all_goes_on_with_their_results(
    set_up: SetUp, order: str
) -> None:
    """Nobody is given None in the meantime."""
    stage = set_up(order)
    some = Compositions(stage)
    stage.work(PARTS)
    stage.work(TESTED, threads=THREADS)
    some.hold()
    some.run()
    stage.has_told("deferred", some.message_ids)
    if stage.has_results:
        assert not stage.has_result(some.made["message with on_success"])

    some.let_go()

    some.complete()
    assert some.ran(2)


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_repeated_messages_go_on_with_nothing_a_second_time(set_up: SetUp, order: str) -> None:
    """Each was given out twice, as a broker does that takes a worker for dead."""
    stage = set_up(order)
    some = Compositions(stage)
    stage.work(PARTS)
    stage.work(TESTED, threads=2 * THREADS)
    some.close_gates()
    some.run()
    wait_until(lambda: some.ran(1), "all bodies run")
    for each in some.message_ids:
        stage.broker.queues[TESTED].put(stage.sent.encoded[each])
    stage.has_told("deferred", some.message_ids)

    some.let_go()

    stage.has_told("repeated", some.message_ids)
    some.complete()
    assert some.ran(1)


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_compositions_that_are_run_again_complete_again(set_up: SetUp, order: str) -> None:
    """With the ids of their first run, whose results are there."""
    stage = set_up(order)
    first = Compositions(stage)
    stage.work(PARTS, TESTED)
    first.run()
    first.complete()

    first.run()

    first.complete(times=2)
    assert first.ran(2)


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_compositions_that_are_run_again_as_duplicates_complete_again(
    set_up: SetUp, order: str
) -> None:
    """The second time all are duplicates too; their ids have the results of the first time."""
    stage = set_up(order)
    some = Compositions(stage, INSTEAD)
    some.take(NOBODYS)
    stage.work(PARTS, TESTED)
    some.run()
    some.complete()

    some.run()

    some.complete(times=2)
    assert some.ran(0)


@pytest.mark.parametrize("order", ORDERS)
def test_a_duplicate_of_a_second_run_goes_on_and_leaves_the_result_of_the_first(
    set_up: SetUp, order: str
) -> None:
    """What comes after it is given the value for duplicates, for this time it did not run."""
    stage = set_up(order)
    some = Compositions(stage, only=["pipeline, first"])
    stage.work(PARTS, TESTED)
    some.run()
    some.complete()
    some.take(NOBODYS)

    some.run()

    ((made, kit),) = zip(some.made.values(), some.kits.values(), strict=True)
    (label,) = kit.notes
    wait_until(lambda: len(stage.notes[label]) > 1, "the next step runs again")
    assert stage.notes[label] == [kit.value, INSTEAD]
    assert stage.result(made.messages[0]) == kit.value


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_on_overlap_skip_ends_messages_with_their_value_and_all_goes_on(
    set_up: SetUp, order: str
) -> None:
    """Each unit runs already, and the trigger is given up."""
    stage = set_up(order, scope="running", on_overlap="skip")
    some = Compositions(stage, INSTEAD)
    stage.work(PARTS)
    stage.work(TESTED, threads=THREADS + 4)
    some.hold()

    some.run()

    some.complete()
    assert some.ran(1)


@pytest.mark.parametrize("order", ORDERS)
def test_on_overlap_raise_fails_the_message_and_calls_on_failure_once(
    set_up: SetUp, order: str, unit: str
) -> None:
    """As a failure of the body would."""
    stage = set_up(order, scope="running", on_overlap="raise")
    some = Compositions(stage)
    stage.work(PARTS)
    stage.work(TESTED, threads=THREADS + 4)
    some.hold()
    refused = stage.tested.send_with_options(
        args=(some.units[0],), on_success="succeeded", on_failure="failed"
    )

    with pytest.raises(ResultFailure) as caught:
        stage.result(refused)

    assert caught.value.orig_exc_type == "OverlapError"
    failure = f"failure of {some.units[0]}"
    wait_until(lambda: stage.notes[failure], "on_failure is called")
    some.let_go()
    stage.broker.join(TESTED, fail_fast=False, timeout=20_000)
    stage.broker.join(PARTS, timeout=20_000)
    assert stage.notes == {failure: ["OverlapError"]}


@pytest.mark.parametrize("order", ORDERS)
def test_a_sharing_duplicate_of_a_failure_fails_and_calls_on_failure_once(
    set_up: SetUp, order: str, unit: str
) -> None:
    """Whoever waits for it learns of the failure, as of the holder's."""
    stage = set_up(order, key=None, on_duplicate="share")
    stage.tested.send(unit, fails=True)
    duplicate = stage.tested.send_with_options(
        args=(unit,), kwargs={"fails": True}, on_success="succeeded", on_failure="failed"
    )
    assert published(duplicate).is_duplicate

    stage.work(TESTED, PARTS)

    with pytest.raises(ResultFailure) as caught:
        stage.result(duplicate)
    assert caught.value.orig_exc_type == "RuntimeError"
    failure = f"failure of {unit}"
    wait_until(lambda: stage.notes[failure], "on_failure is called")
    stage.broker.join(PARTS, timeout=20_000)
    assert len(stage.notes[failure]) == 1
    assert len(stage.bodies[unit]) == 1


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_raise_never_raises_into_the_dispatch_of_a_callback(
    set_up: SetUp, order: str, unit: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The callback is a duplicate; the message whose callback it is ends as ever."""
    stage = set_up(order)
    stage.broker.enqueue(stage.guarded_callback.message(None, "first").copy(queue_name=NOBODYS))
    with pytest.raises(DuplicateTaskError):
        stage.guarded_callback.send(None, "by hand")
    message = stage.tested.send_with_options(args=(unit,), on_success="guarded_callback")

    stage.work(PARTS, TESTED)

    if stage.has_results:
        assert stage.result(message) == f"done {unit}"
    stage.broker.join(TESTED, timeout=20_000)
    stage.broker.join(PARTS, timeout=20_000)
    assert [each for each in stage.events if "guarded_callback" in each.key][-1].kind == "duplicate"
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize("on_duplicate", ["skip", "raise", "replace", "share"])
def test_a_store_that_is_away_while_workers_dispatch_loses_nothing(
    set_up: SetUp, server: DevServer, on_duplicate: str
) -> None:
    """Steps and callbacks are sent all the same, and run when the store is back."""
    key = {"key": None} if on_duplicate == "share" else {}
    stage = set_up(url=server.url, on_duplicate=on_duplicate, **key)
    some = Compositions(stage, only=["pipeline, middle", "pipeline, last", "completion callback"])
    stage.work(PARTS, TESTED, threads=THREADS)
    some.run_and_hold_what_comes_before()
    server.kill()

    some.let_go()

    stage.has_told("deferred", some.message_ids)
    server.start()
    some.complete()
    assert some.ran(1)


# Real workers


def test_on_a_real_broker_duplicates_in_a_pipeline_and_a_group_complete(
    dramatiq_scene: DramatiqDeployment, unit: str
) -> None:
    """The pipeline goes on, the completion callback fires once, `get_results` returns."""
    scene, broker = dramatiq_scene, dramatiq_scene.app
    by_unit, plain, noting = (scene.task(name) for name in ("by_unit", "unguarded", "noting"))
    scene.hold(unit, "by_unit")
    waiting = by_unit.send(unit)

    def duplicate() -> Any:
        return by_unit.message_with_options(args=(unit,), pipe_ignore=True)

    piped = dramatiq.pipeline(
        [plain.message(f"{unit}-a"), duplicate(), noting.message(f"{unit}-b")], broker=broker
    ).run()
    ended = dramatiq.pipeline([plain.message(f"{unit}-c"), duplicate()], broker=broker)
    grouped = dramatiq.group([plain.message(f"{unit}-d"), duplicate(), ended], broker=broker)
    grouped.add_completion_callback(noting.message(f"{unit}-e"))
    grouped.run()

    assert piped.get_result(block=True, timeout=20_000) is None
    results = list(grouped.get_results(block=True, timeout=20_000))
    assert results == [f"done {unit}-d", None, None]

    def noted() -> list[list[object]]:
        return sorted(
            (each["args"] for each in scene.noted() if each["args"][0].startswith(unit)), key=str
        )

    wait_until(lambda: len(noted()) >= 2, "the last step and the callback ran")
    scene.let_go(unit)
    assert scene.result(waiting) == f"done {unit}"
    assert len(scene.runs(unit)) == 2
    assert noted() == [[f"{unit}-b", None], [f"{unit}-e"]]


def test_on_a_real_broker_deferred_members_of_a_group_complete_it(
    dramatiq_scene: DramatiqDeployment, unit: str
) -> None:
    """With their results, when it was their turn."""
    scene, broker = dramatiq_scene, dramatiq_scene.app
    by_unit, noting = scene.task("by_unit"), scene.task("noting")
    scene.hold(unit, "by_unit")
    member = by_unit.message(unit)
    grouped = dramatiq.group([member, scene.task("unguarded").message(f"{unit}-a")], broker=broker)
    grouped.add_completion_callback(noting.message(f"{unit}-b"))
    grouped.run()
    log = scene.workers[0]
    wait_until(
        lambda: any(
            "deferred by_unit" in line and member.message_id in line
            for line in log.log.splitlines()
        ),
        "the member is deferred",
    )
    assert not scene.has_result(member)

    scene.let_go(unit)

    results = list(grouped.get_results(block=True, timeout=20_000))
    assert results == [f"done {unit}", f"done {unit}-a"]

    def noted() -> list[object]:
        return [each["args"] for each in scene.noted() if each["args"] == [f"{unit}-b"]]

    wait_until(noted, "the completion callback ran")
    assert len(noted()) == 1
    assert len(scene.runs(unit)) == 2
