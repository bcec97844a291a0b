"""The worker's side: one delivery from its start to its end."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from once_core import attempt as attempt_module
from once_core import lost, protocol
from once_core._heartbeat import Heartbeat, heartbeat
from once_core._host import whereabouts
from once_core._lease import current_lease
from once_core.attempt import Attempt, current_attempt
from once_core.delays import deferral
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.events import Event
from once_core.guard import Guard
from once_core.options import OnceOptions
from once_core.protocol import Message
from once_core.publish import claim
from once_core.store import Store
from once_pytest import (
    OnceClock,
    OnceFaults,
    OnceHarness,
    assert_task_locked,
    assert_task_not_locked,
)

pytestmark = [
    pytest.mark.usefixtures("beats"),
    # they look at one moment in the life of a message, and leave it there
    pytest.mark.once(leaks="ignore"),
]


def _claimed(guard: Guard, message_id: str = "m1", **options: Any) -> Attempt:
    """The attempt of a message that was just published."""
    made = claim(guard, (1,), {}, message_id)
    return Attempt(guard, made.key, Message(message_id, made.ticket), **options)


def _again(attempt: Attempt, **options: Any) -> Attempt:
    """Another delivery of the same message."""
    return Attempt(attempt.guard, attempt.key, attempt.message, attempt.envelope, **options)


def test_start(guarded: Callable[..., Guard], beats: Heartbeat, told: list[Event]) -> None:
    """A started attempt holds a lease that is renewed, and knows how long it had waited."""
    guard = guarded()
    attempt = _claimed(guard)
    answer = attempt.start()

    assert (answer.status, answer.found, attempt.is_running) == ("started", True, True)
    assert attempt.lease is not None
    assert (attempt.lease.key, attempt.lease.fence, attempt.lease.length) == (
        attempt.key,
        answer.fence,
        60.0,
    )
    assert [each.lease for each in beats._held.values()] == [attempt.lease]
    assert [(each.kind, each.fence) for each in told] == [
        ("claimed", None),
        ("started", answer.fence),
    ]
    holder = guard.holder((1,), {})
    assert holder is not None
    assert (holder.state, holder.message_id, holder.where) == ("running", "m1", whereabouts())


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_end(
    guarded: Callable[..., Guard],
    once_locks: OnceHarness,
    beats: Heartbeat,
    told: list[Event],
    outcome: Any,
) -> None:
    """The end of a body frees its unit at once and leaves nothing behind."""
    attempt = _claimed(guarded())
    attempt.start()
    with attempt.body():
        pass

    assert attempt.end(outcome) is True
    assert not attempt.is_running
    assert beats._held == {}
    assert once_locks.store.written() == []
    assert (told[-1].kind, told[-1].reason) == ("finished", outcome)
    assert told[-1].ran is not None


def test_overlap(guarded: Callable[..., Guard], beats: Heartbeat) -> None:
    """While one runs the next does not start; it is told who runs and where."""
    guard = guarded()
    _claimed(guard, "m1").start()
    second = _claimed(guard, "m2")
    answer = second.start()

    assert (answer.status, answer.holder_id, answer.where) == ("overlap", "m1", whereabouts())
    assert (second.lease, second.is_running) == (None, False)
    assert len(beats._held) == 1


@pytest.mark.parametrize("on_overlap", ["skip", "raise"])
def test_giving_up(guarded: Callable[..., Guard], on_overlap: str) -> None:
    """With on_overlap="skip" and "raise" a message that overlaps waits no more."""
    guard = guarded(on_overlap=on_overlap)
    _claimed(guard, "m1").start()

    assert _claimed(guard, "m2").start().status == "skipped"
    assert claim(guard, (1,), {}, "m3").publish.state == "claimed"


def test_dead_holder_is_no_hindrance(
    guarded: Callable[..., Guard], monkeypatch: pytest.MonkeyPatch, told: list[Event]
) -> None:
    """A holder whose process is gone from this very host is not waited for."""
    guard = guarded()
    _claimed(guard, "m1").start()
    second = _claimed(guard, "m2")
    for module in (attempt_module, lost):
        monkeypatch.setattr(module, "is_dead", lambda where: where == whereabouts())

    assert second.start().status == "started"
    assert [(each.kind, each.reason) for each in told if each.kind == "reaped"] == [
        ("reaped", f"its process is gone ({whereabouts()})")
    ]


def test_repeated(guarded: Callable[..., Guard]) -> None:
    """A second delivery of a message that ended, where one had to be expected, does not run."""
    guard = guarded()
    attempt = _claimed(guard, expects_copies=True)
    attempt.start()
    attempt.end("success")
    attempt.end_stored()

    assert _again(attempt).start().status == "repeated"


@pytest.mark.parametrize("outcome", ["success", "failure", "retry"])
def test_mark_waits_for_the_result(
    guarded: Callable[..., Guard], beats: Heartbeat, told: list[Event], outcome: Any
) -> None:
    """Where copies are expected the lease is kept, and renewed, until the result is stored."""
    guard = guarded()
    attempt = _claimed(guard, expects_copies=True)
    attempt.start()

    assert attempt.end(outcome) is False
    assert_task_locked(guard, 1, state="running", holder="m1")
    assert len(beats._held) == 1
    assert "finished" not in [each.kind for each in told]

    attempt.end_stored()

    assert beats._held == {}
    assert [each.reason for each in told if each.kind == "finished"] == [outcome]


def test_interrupted_leaves_no_mark(guarded: Callable[..., Guard]) -> None:
    """A message that the broker gives out again must run again: nothing marks it as done."""
    guard = guarded()
    attempt = _claimed(guard, expects_copies=True)
    attempt.start()

    assert attempt.end("interrupted") is True
    assert _again(attempt).start().status == "started"


def test_due(guarded: Callable[..., Guard], beats: Heartbeat) -> None:
    """A copy that came while it ran makes a mark due: the lease is kept until it is written."""
    guard = guarded()
    attempt = _claimed(guard)
    attempt.start()
    copy = _again(attempt).start()

    assert copy.status == "overlap"
    assert attempt.end("success") is False
    assert len(beats._held) == 1
    assert_task_locked(guard, 1, state="running", holder="m1")

    attempt.end_stored()

    assert _again(attempt).start().status == "repeated"
    assert beats._held == {}


def test_long_run_leaves_a_mark(guarded: Callable[..., Guard], once_clock: OnceClock) -> None:
    """A run of over a minute may have been given out again: its end leaves a mark."""
    attempt = _claimed(guarded())
    attempt.start()
    once_clock.advance(attempt_module.LONG_RUN + 1)

    assert attempt.end("success") is False

    attempt.end_stored()

    assert _again(attempt).start().status == "repeated"


def test_retry_waits(guarded: Callable[..., Guard]) -> None:
    """After the end of an attempt that is retried its retry waits, and refuses duplicates."""
    guard = guarded()
    attempt = _claimed(guard)
    attempt.start()
    attempt.retry_delay = 5.0
    attempt.end("retry")
    retry = Attempt(guard, attempt.key, attempt.message._replace(retries=1), attempt.envelope)

    assert claim(guard, (1,), {}, "m2").publish.holder_id == "m1"
    assert retry.start().status == "started"


@pytest.mark.parametrize("scope", ["queued", "window"])
def test_scope_that_limits_no_run(
    guarded: Callable[..., Guard], beats: Heartbeat, told: list[Event], scope: str
) -> None:
    """Where runs are not limited there is no lease, and nothing to free at the end."""
    guard = guarded(scope=scope, window=5 if scope == "window" else None)
    attempt = _claimed(guard)
    attempt.start()

    assert attempt.lease is None
    assert beats._held == {}
    assert attempt.end("success") is True
    assert [each.kind for each in told] == ["claimed", "started", "finished"]


def test_producers_scope_counts(guarded: Callable[..., Guard]) -> None:
    """A message is treated under the scope it was claimed with, not under a newer one."""
    guard = guarded(scope="queued")
    made = claim(guard, (1,), {}, "m1")
    sent = _claimed(guarded(), "m0").envelope
    running = Attempt(guard, made.key, Message("m1", made.ticket), sent)
    running.start()

    assert running.lease is not None


def test_message_without_claim(guarded: Callable[..., Guard]) -> None:
    """A message from a program without this library is guarded when it runs."""
    guard = guarded()
    key = guard.key((1,), {})
    first = Attempt(guard, key, Message("m1"))
    second = Attempt(guard, key, Message("m2"))

    assert first.start().status == "started"
    assert second.start().status == "overlap"
    assert first.envelope.ticket < 0  # a nonce: its retries and deferrals carry it


@pytest.mark.parametrize("lose", ["lose_request", "lose_reply"])
def test_store_away_at_start(
    guarded: Callable[..., Guard], once_faults: OnceFaults, beats: Heartbeat, lose: str
) -> None:
    """A start that may have been heard is given up as soon as the store answers again."""
    attempt = _claimed(guarded())
    getattr(once_faults, lose)("start")

    with pytest.raises(StoreUnavailableError):
        attempt.start()
    assert [step.script.name for _, step in beats._unfinished] == ["finish"]
    assert not attempt.is_running

    beats.beat()

    assert beats._unfinished == []
    assert _again(attempt).start().status == "started"


def test_store_away_at_the_end(
    guarded: Callable[..., Guard], once_faults: OnceFaults, beats: Heartbeat
) -> None:
    """An end that could not be told is told later; the body's result does not suffer."""
    guard = guarded()
    attempt = _claimed(guard)
    attempt.start()
    with once_faults.outage():
        assert attempt.end("success") is True

    assert [step.script.name for _, step in beats._unfinished] == ["finish"]
    assert beats._held == {}
    assert_task_locked(guard, 1, state="running")

    beats.beat()

    assert_task_not_locked(guard, 1)


def test_time_limit_in_the_middle_of_the_end(
    guarded: Callable[..., Guard], once_locks: OnceHarness, beats: Heartbeat
) -> None:
    """A soft time limit that strikes while the end is sent goes on, and the end is sent later."""

    class SoftTimeLimitError(Exception):
        pass

    def strike(step: str, carry: Callable[[], object]) -> object:
        raise SoftTimeLimitError

    attempt = _claimed(guarded())
    attempt.start()
    once_locks.store.gates.append(strike)

    with pytest.raises(SoftTimeLimitError):
        attempt.end("success")
    assert [step.script.name for _, step in beats._unfinished] == ["finish"]


def test_lost_lease_is_found_out_at_the_end(
    guarded: Callable[..., Guard], told: list[Event]
) -> None:
    """A lease that somebody released is known to be lost at the end at the latest."""
    guard = guarded()
    attempt = _claimed(guard)
    attempt.start()
    guard.release((1,), {})
    attempt.end("success")

    assert attempt.lease is not None
    assert attempt.lease.lost
    assert [(each.kind, each.reason) for each in told][-2:] == [
        ("lease_lost", "found out at its end"),
        ("finished", "success"),
    ]


def test_body(guarded: Callable[..., Guard]) -> None:
    """What a body calls can ask for its lease and its attempt; afterwards there is none."""
    attempt = _claimed(guarded())
    attempt.start()
    with attempt.body():
        inside = (current_attempt(), current_lease())

    assert inside == (attempt, attempt.lease)
    assert (current_attempt(), current_lease()) == (None, None)


def test_body_that_raises(guarded: Callable[..., Guard]) -> None:
    """A body that raises leaves no lease behind in the thread."""
    attempt = _claimed(guarded())
    attempt.start()
    with pytest.raises(ZeroDivisionError), attempt.body():
        raise ZeroDivisionError

    assert (current_attempt(), current_lease()) == (None, None)


def test_other_store(
    guarded: Callable[..., Guard], told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that locks elsewhere than its producer says so, once, with the way out."""
    guard = guarded()
    monkeypatch.setattr(guard.store, "_identity", lambda: ("bbbb", 0.0))
    for number in range(2):
        attempt = Attempt(
            guard,
            guard.key((number,), {}),
            Message(f"m{number}", 5),
            _elsewhere(guard, f"m{number}", guard.key((number,), {})),
        )
        attempt.start()

    assert [(each.kind, each.reason) for each in told if each.kind == "other_store"] == [
        (
            "other_store",
            (
                "its producer locks in another Redis (run id aaaa…) than this worker (bbbb… at "
                f"{guard.store.place}), so nothing is guarded between them; give both the same "
                "once_url"
            ),
        )
    ]


def _elsewhere(guard: Guard, message_id: str, key: str) -> Any:
    return attempt_module.Envelope(key, 5, "queued+running", message_id, guard.task, store="aaaa")


@pytest.mark.parametrize(
    ("deferrals", "most"), [(0, 1.0), (1, 2.0), (4, 16.0), (5, 30.0), (9, 30.0), (10_000, 30.0)]
)
def test_deferral(deferrals: int, most: float) -> None:
    """A deferred message comes back after 1 s, doubling to 30, a quarter less at the least."""
    drawn = [deferral(deferrals) for _ in range(200)]

    assert min(drawn) >= most * 0.75
    assert max(drawn) <= most
    assert statistics.pstdev(drawn) > 0


def test_deferral_is_bounded_by_the_broker() -> None:
    """No message is put back for longer than its broker allows."""
    assert max(deferral(10, 2.5) for _ in range(100)) <= 2.5
    assert max(deferral(10, 900.0) for _ in range(100)) <= protocol.LONGEST_DEFERRAL


def test_a_url_that_is_none_leaves_nothing_to_be_finished() -> None:
    """It is refused, call after call, and the thread that renews leases hears nothing of it."""
    guard = Guard("shop.pay", lambda: None, OnceOptions(), lambda: Store("nowhere://x"))
    attempt = Attempt(guard, "once:shop.pay:" + "0" * 40, Message("m1", -1))
    attempt.store = Store("nowhere://x")  # and not the one of this test

    with pytest.raises(ConfigurationError):
        attempt.start()

    assert not heartbeat()._unfinished
