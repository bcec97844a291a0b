"""How long a body ran, how long its lease was held, how late renewals come: what events say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from once_core import publish
from once_core._heartbeat import Heartbeat, Held
from once_core._lease import Lease
from once_core.attempt import Attempt
from once_core.errors import StoreUnavailableError
from once_core.events import Event
from once_core.guard import Guard
from once_core.protocol import Message

AWAY = StoreUnavailableError("away", url="redis://h", reason="refused")


class Answering:
    """A store that answers each renewal alike."""

    is_at_hand = True

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def run_many(self, steps: list[Any]) -> list[Any]:
        return [self.answer for _ in steps]

    def sibling(self) -> Answering:
        return self


def _hold(beats: Heartbeat, store: Any, name: str = "a") -> None:
    lease = Lease("once:shop.sync:0", 7, 60.0)
    beats.add(Held(store, Message("m1", 5), name, "h", lease, "shop.sync"))


def _lags(told: list[Event]) -> list[float | None]:
    return [each.lag for each in told if each.kind == "renewed"]


def _started(guard: Guard, clock: Any) -> Attempt:
    sent = publish.claim(guard, (1,), {}, "m1")
    attempt = Attempt(guard, sent.key, Message("m1", sent.ticket), sent.envelope)
    attempt.start()
    clock.pass_time(1)  # other middleware, between the start and the body
    return attempt


def test_ran_and_held(
    guarded: Callable[..., Guard], beats: Heartbeat, clock: Any, told: list[Event]
) -> None:
    """The body's time is its own; the lease's is from its start to its end."""
    attempt = _started(guarded(), clock)
    with attempt.body():
        clock.pass_time(5)
    clock.pass_time(2)
    attempt.end("success")

    assert (told[-1].kind, told[-1].ran, told[-1].held) == ("finished", 5, 8)


def test_ran_and_held_where_a_mark_is_due(
    guarded: Callable[..., Guard], beats: Heartbeat, clock: Any, told: list[Event]
) -> None:
    """The time in which the result is stored is the lease's, and not the body's."""
    attempt = _started(guarded(), clock)
    attempt.expect_copies()
    with attempt.body():
        clock.pass_time(5)
    attempt.end("success")
    clock.pass_time(2)
    attempt.end_stored()

    assert [(each.ran, each.held) for each in told if each.kind == "finished"] == [(5, 8)]


def test_no_lease_and_no_body(guarded: Callable[..., Guard], clock: Any, told: list[Event]) -> None:
    """What there was not has no duration."""
    attempt = _started(guarded(scope="queued"), clock)
    attempt.end("interrupted")

    assert (told[-1].kind, told[-1].ran, told[-1].held) == ("finished", None, None)


def test_renewed_in_time(beats: Heartbeat, clock: Any, told: list[Event]) -> None:
    """One event for each renewal of all leases, with how late it was."""
    store = Answering("renewed")
    _hold(beats, store)
    _hold(beats, store, "b")
    clock.pass_time(20)
    beats.beat()
    clock.pass_time(23.5)
    beats.beat()

    assert _lags(told) == [0, 3.5]


def test_nothing_to_renew(beats: Heartbeat, clock: Any, told: list[Event]) -> None:
    """A process that holds no lease says nothing."""
    beats.beat()

    assert told == []


def test_not_renewed(beats: Heartbeat, clock: Any, told: list[Event]) -> None:
    """Nothing was renewed while the store is away."""
    _hold(beats, Answering(AWAY))
    clock.pass_time(20)
    beats.beat()

    assert _lags(told) == []
