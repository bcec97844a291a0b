"""Every way in which a Dramatiq message ends: the unit is free at once, and nothing is lost.

The leases here last for 30 s, so what is free within `AT_ONCE` was freed by its end. On all
brokers: a `StubBroker` in this process, Redis and RabbitMQ with real workers.
"""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import dramatiq
import pytest
from _support import ledger
from _support.dramatiq_deployment import DramatiqDeployment
from _support.dramatiq_ways_actors import AT_ONCE, ids, is_free, runs_when_triggered
from _support.ledger import overlaps
from _support.waiting import wait_until
from dramatiq import Message
from dramatiq.common import current_millis, xq_name
from dramatiq.results import ResultFailure

from once_dramatiq import holder, is_locked, published

pytestmark = pytest.mark.lifecycle_dramatiq

SCOPES = ["queued+running", "until_done", "queued", "running"]

PLACES = ["before", "after", "at last"]
"""Where other middleware stands: before once, after it, or brought when the worker had started."""


class WayOut(NamedTuple):
    """How a body ends.

    Attributes:
        how: What the body does.
        options: Of the message.
        end: Its result, the name of the error that its caller sees, or None for neither.
        runs: How often it runs.
    """

    how: str
    options: dict[str, Any]
    end: str | None
    runs: int = 1


WAYS_OUT = {
    "success": WayOut("success", {}, "success"),
    "failure": WayOut("failure", {"max_retries": 0}, "RuntimeError"),
    "retries exhausted": WayOut("failure", {"max_retries": 1}, "RuntimeError", 2),
    "retry": WayOut("failure once", {}, "failure once", 2),
    "Retry(delay=)": WayOut("Retry", {}, "Retry", 2),
    "RateLimitExceeded": WayOut("RateLimitExceeded", {}, "RateLimitExceeded", 2),
    "throws": WayOut("throws", {}, "ExpectedError"),
    "fail()": WayOut("fail()", {}, "Exception"),
    "SystemExit": WayOut("SystemExit", {"max_retries": 0}, "SystemExit"),
    "unserialisable result": WayOut("unserialisable result", {}, None),
    "TimeLimit": WayOut("success", {"time_limit": 1500, "max_retries": 0}, "TimeLimitExceeded"),
}

ways_out = pytest.mark.parametrize("name", WAYS_OUT)


class Ended(NamedTuple):
    """A message that ends so, with one behind it and a third that was refused."""

    unit: str
    first: Any
    behind: Any
    refused: Any


@pytest.fixture(scope="module")
def deaf(dramatiq_crew: DramatiqDeployment) -> Ended:
    """A coroutine that goes on for long after its time limit; begun early, for it takes long."""
    stubborn, unit = dramatiq_crew.task("stubborn"), f"u-{uuid.uuid4().hex[:8]}"
    first = stubborn.send_with_options(args=(unit, 4), time_limit=100)
    wait_until(lambda: dramatiq_crew.runs(unit), "the body runs")
    return Ended(unit, first, stubborn.send(unit), stubborn.send(unit))


@pytest.fixture(scope="module")
def ended(dramatiq_crew: DramatiqDeployment, deaf: Ended) -> dict[str, Ended]:
    """Bodies that end in each way; all at once, for retries and time limits take their time."""
    leaving, made = dramatiq_crew.task("leaving"), {}
    for name, way in WAYS_OUT.items():
        unit = f"u-{uuid.uuid4().hex[:8]}"
        first = leaving.send_with_options(args=(unit, way.how, -1), **way.options)
        wait_until(lambda unit=unit: dramatiq_crew.runs(unit), "the first body runs")
        made[name] = Ended(unit, first, leaving.send(unit), leaving.send(unit))
        assert not dramatiq_crew.has_result(made[name].behind)
        if name != "TimeLimit":
            dramatiq_crew.let_go(unit)
    return made


def end(scene: DramatiqDeployment, message: Any) -> str:
    """The result of a message, or the name of its error."""
    try:
        return scene.result(message)
    except ResultFailure as failure:
        return failure.orig_exc_type


@ways_out
def test_however_a_body_ends_the_one_behind_it_runs(
    dramatiq_crew: DramatiqDeployment, ended: dict[str, Ended], name: str
) -> None:
    """It runs after it and alone, its result is real, and then the unit is free."""
    unit, first, behind, refused = ended[name]

    assert refused.message_id == behind.message_id
    assert dramatiq_crew.result(refused) == "success"
    if WAYS_OUT[name].end is not None:
        assert end(dramatiq_crew, first) == WAYS_OUT[name].end
    is_free(dramatiq_crew.task("leaving"), unit)
    ran = ids(dramatiq_crew, unit)
    assert sorted(ran) == sorted([first.message_id] * WAYS_OUT[name].runs + [behind.message_id])
    one, other, *_ = dramatiq_crew.runs(unit)
    assert other.start - one.end < AT_ONCE
    assert overlaps(dramatiq_crew.runs(unit)) == []


@ways_out
def test_however_a_body_ends_the_unit_is_free(
    dramatiq_crew: DramatiqDeployment, alone: dict[str, list[Any]], name: str
) -> None:
    """Whatever its scope, and with nothing behind it: the next trigger is accepted and runs."""
    leaving, again = dramatiq_crew.task("leaving"), []
    for scope, message in zip(SCOPES, alone[name], strict=True):
        unit = message.args[0]
        wait_until(lambda unit=unit: len(dramatiq_crew.runs(unit)) == WAYS_OUT[name].runs, "it ran")
        is_free(leaving, unit)
        again.append(leaving.send_with_options(args=(unit,), once={"scope": scope}))

    assert [published(each).state for each in again] == ["claimed"] * 4
    assert [dramatiq_crew.result(each) for each in again] == ["success"] * 4
    for message in alone[name]:
        is_free(leaving, message.args[0])
        ran = ids(dramatiq_crew, message.args[0])
        assert ran.count(message.message_id) == WAYS_OUT[name].runs


@pytest.fixture(scope="module")
def alone(dramatiq_crew: DramatiqDeployment, ended: dict[str, Ended]) -> dict[str, list[Any]]:
    """A message of each scope that ends in each way."""
    leaving = dramatiq_crew.task("leaving")
    return {
        name: [
            leaving.send_with_options(
                args=(f"u-{uuid.uuid4().hex[:8]}", way.how),
                once={"scope": scope},
                **{**way.options, "time_limit": None},
            )
            for scope in SCOPES
        ]
        for name, way in WAYS_OUT.items()
    }


def test_a_coroutine_that_ignores_its_time_limit(
    dramatiq_crew: DramatiqDeployment, deaf: Ended
) -> None:
    """Its message has failed, but the unit is held until the coroutine really ends."""
    stubborn = dramatiq_crew.task("stubborn")

    assert end(dramatiq_crew, deaf.first) == "RuntimeError"
    is_held, first_end = is_locked(stubborn, deaf.unit), dramatiq_crew.runs(deaf.unit)[0].end

    assert is_held or first_end is not None
    assert dramatiq_crew.result(deaf.refused) == "success"
    assert ids(dramatiq_crew, deaf.unit) == [deaf.first.message_id, deaf.behind.message_id]
    assert overlaps(dramatiq_crew.runs(deaf.unit)) == []
    is_free(stubborn, deaf.unit)


def state(actor: Any, unit: str) -> tuple[str, int]:
    """Of whoever holds the unit, and how often that was retried."""
    found = holder(actor, unit)
    return (found.state, found.retries) if found else ("free", 0)


def test_a_message_that_other_middleware_skips(dramatiq_crew: DramatiqDeployment) -> None:
    """Wherever that stands, failed or not: no body runs, and the unit is free at once."""
    leaving, units = dramatiq_crew.task("leaving"), []
    for wish in (f"{how} {place}" for how in ("skip", "fail") for place in PLACES):
        units.append(uuid.uuid4().hex)
        skipped = leaving.send_with_options(args=(units[-1],), delay=800, strict=wish)
        assert leaving.send(units[-1]).message_id == skipped.message_id

    for unit in units:
        is_free(leaving, unit)
        assert dramatiq_crew.runs(unit) == []
        runs_when_triggered(dramatiq_crew, leaving, unit)


def test_a_message_that_other_middleware_lets_fail(dramatiq_crew: DramatiqDeployment) -> None:
    """Its error before the body is retried as one of the body; duplicates are refused meanwhile."""
    leaving, units = dramatiq_crew.task("leaving"), {place: uuid.uuid4().hex for place in PLACES}
    sent = {
        unit: leaving.send_with_options(args=(unit,), strict=f"raise {place}", min_backoff=1500)
        for place, unit in units.items()
    }
    for unit, message in sent.items():
        wait_until(lambda unit=unit: state(leaving, unit) == ("waiting", 1), "its retry waits")
        assert leaving.send(unit).message_id == message.message_id

    for unit, message in sent.items():
        assert dramatiq_crew.result(message) == "success"
        assert ids(dramatiq_crew, unit) == [message.message_id]
        is_free(leaving, unit)


def put_back(scene: DramatiqDeployment) -> set[str]:
    """Ids of the messages that other middleware has enqueued again."""
    return {each["id"] for each in ledger.entries(scene.ledger, "put back")}


def test_a_message_that_other_middleware_puts_back(dramatiq_crew: DramatiqDeployment) -> None:
    """It enqueues the message again and skips it: one run, and nobody is let in meanwhile."""
    leaving, sent, late = dramatiq_crew.task("leaving"), {}, set()
    for place, delay in ((place, delay) for place in PLACES for delay in (None, 1500)):
        unit = uuid.uuid4().hex
        sent[unit] = leaving.send_with_options(
            args=(unit,), delay=600, strict=f"requeue {place}", requeue_delay=delay
        )
        assert leaving.send(unit).message_id == sent[unit].message_id
        late |= {sent[unit].message_id} if delay else set()

    wait_until(lambda: late <= put_back(dramatiq_crew), "they are put back")
    for unit, message in sent.items():
        if message.message_id in late:
            assert leaving.send(unit).message_id == message.message_id

    for unit, message in sent.items():
        assert dramatiq_crew.result(message) == "success"
        assert ids(dramatiq_crew, unit) == [message.message_id]
        is_free(leaving, unit)


def test_a_message_that_is_too_old(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """AgeLimit drops it before once sees it; from its age on triggers are accepted."""
    leaving = dramatiq_crew.task("leaving")
    old = leaving.send_with_options(args=(unit,), delay=1200, max_age=1000)
    assert leaving.send(unit).message_id == old.message_id

    is_free(leaving, unit)

    runs_when_triggered(dramatiq_crew, leaving, unit)
    assert end(dramatiq_crew, old) == "SkipMessage"
    assert old.message_id not in ids(dramatiq_crew, unit)


def test_a_message_that_was_old_when_it_was_sent(
    dramatiq_crew: DramatiqDeployment, unit: str
) -> None:
    """It holds nothing after its end."""
    leaving = dramatiq_crew.task("leaving")
    message = leaving.message_with_options(args=(unit,), max_age=1000)
    old = dramatiq_crew.app.enqueue(message.copy(message_timestamp=current_millis() - 5000))

    assert end(dramatiq_crew, old) == "SkipMessage"
    is_free(leaving, unit)
    runs_when_triggered(dramatiq_crew, leaving, unit)
    assert old.message_id not in ids(dramatiq_crew, unit)


def test_an_actor_that_no_worker_knows(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """Its message is dead, and refuses nobody."""
    name = f"unknown-{unit}"

    @dramatiq.actor(
        broker=dramatiq_crew.app, queue_name=dramatiq_crew.queue, actor_name=name, once=True
    )
    def unknown(unit: str) -> None: ...

    message = unknown.send_with_options(args=(unit,), delay=800)
    assert unknown.send(unit).message_id == message.message_id
    del dramatiq_crew.app.actors[name]  # of the worker too, where that is in this process

    is_free(unknown, unit)
    assert dramatiq_crew.runs(unit) == []


def dead_letter(scene: DramatiqDeployment, message: Any) -> Message[Any] | None:
    """A message in the queue of dead letters."""
    if scene.broker == "stub":
        found = [Message.decode(each.encode()) for each in scene.app.dead_letters]
    elif scene.broker == "redis":
        raw = scene.store.client().hvals(f"dramatiq:{xq_name(scene.queue)}.msgs")
        found = [Message.decode(each) for each in raw]
    else:
        _, _, body = scene.app.channel.basic_get(xq_name(scene.queue), auto_ack=True)
        found = [Message.decode(body)] if body else []
    return next((each for each in found if each.message_id == message.message_id), None)


def test_a_dead_letter_that_is_sent_again_by_hand(
    dramatiq_crew: DramatiqDeployment, unit: str
) -> None:
    """It is a trigger like any other: it runs, and duplicates of it are refused."""
    leaving = dramatiq_crew.task("leaving")
    dead = leaving.send_with_options(
        args=(unit, "failure at its first run"), max_retries=0, store_results=False
    )
    letter = wait_until(lambda: dead_letter(dramatiq_crew, dead), "it is dead")
    is_free(leaving, unit)

    again = dramatiq_crew.app.enqueue(letter, delay=500)
    refused = leaving.send(unit)

    assert published(again).state == "claimed"
    assert refused.message_id == dead.message_id
    wait_until(lambda: len(dramatiq_crew.runs(unit)) == 2, "it runs again")
    assert ids(dramatiq_crew, unit) == [dead.message_id] * 2
    is_free(leaving, unit)
    runs_when_triggered(dramatiq_crew, leaving, unit)
