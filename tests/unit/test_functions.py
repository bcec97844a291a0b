"""`@once`: what a call does, sync and async alike, on the toolkit's locks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from _support.waiting import wait_until

from once_core import (
    LeaseTimeoutError,
    OverlapError,
    StoreUnavailableError,
    current_lease,
    once,
)
from once_pytest.faults import OnceFaults
from once_pytest.harness import OnceHarness
from once_pytest.race import OnceRace

KINDS = ["sync", "async"]


class Subject:
    """A function under `@once` of either kind, called as if it were a plain one."""

    def __init__(self, kind: str, body: Callable[..., object], **options: Any) -> None:
        if kind == "async":

            async def check(order_id: int, note: str = "") -> object:
                return body(order_id)

            self.made: Any = once(**options)(check)
        else:

            def check_now(order_id: int, note: str = "") -> object:
                return body(order_id)

            self.made = once(**options)(check_now)
        self.is_async = kind == "async"

    def _do(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        return _finished(answer) if self.is_async else answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._do(self.made, *args, **kwargs)

    def is_locked(self, *args: Any) -> bool:
        return self._do(self.made.is_locked, *args)

    def holder(self, *args: Any) -> Any:
        return self._do(self.made.holder, *args)

    def release(self, *args: Any) -> bool:
        return self._do(self.made.release, *args)


def _finished(awaitable: Any) -> Any:
    """Its result, from a loop in a thread of its own: a body that asks is inside a loop."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(asyncio.run(awaitable))
        except BaseException as error:  # noqa: BLE001  # handed to the caller
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, once_locks: OnceHarness) -> Callable[..., Subject]:
    """Makes functions under `@once`, sync and async."""

    def make(body: Callable[..., object] = lambda order_id: order_id, **options: Any) -> Subject:
        return Subject(request.param, body, **options)

    return make


Make = Callable[..., Subject]


def test_a_call_runs_and_returns_what_the_function_returns(subject: Make) -> None:
    """A free unit of work runs as if nobody guarded it, and is free again afterwards."""
    check = subject(lambda order_id: order_id * 2)

    assert check(21) == 42
    assert check.is_locked(21) is False
    assert check(21) == 42


def test_while_it_runs_its_unit_is_locked_and_no_other(subject: Make) -> None:
    """A running body holds the unit that its arguments identify, and no other."""
    seen: list[object] = []

    def body(order_id: int) -> None:
        seen.extend([check.is_locked(7), check.is_locked(8), check.holder(7).state])

    check = subject(body)
    check(7)

    assert seen == [True, False, "running"]


@pytest.mark.parametrize(
    ("options", "expected"), [({}, None), ({"return_on_locked": "busy"}, "busy")]
)
def test_a_call_is_skipped_while_another_runs(
    subject: Make, once_locks: OnceHarness, options: dict[str, Any], expected: object
) -> None:
    """By default a call that overlaps returns `return_on_locked` and does not run."""
    runs: list[int] = []
    check = subject(runs.append, **options)

    with once_locks.hold(check.made, 7):
        assert check(7) == expected

    assert runs == []
    assert [event.reason for event in once_locks.events if event.kind == "skipped"] != []


@pytest.mark.parametrize("options", [{"on_overlap": "raise"}, {"raise_on_locked": True}])
def test_a_call_raises_while_another_runs(
    subject: Make, once_locks: OnceHarness, options: dict[str, Any]
) -> None:
    """With "raise", or its equivalent, the error says whose lock it is, as text and as facts."""
    check = subject(**options)

    with once_locks.hold(check.made, 7) as hold, pytest.raises(OverlapError) as caught:
        check(7)

    assert caught.value.holder_id == hold.message_id
    assert caught.value.key == hold.key
    assert caught.value.task == check.made.once_guard().task
    assert "did not run" in str(caught.value)


@pytest.mark.parametrize("wait_up_to", [0, 0.2])
def test_waiting_has_an_end(subject: Make, once_locks: OnceHarness, wait_up_to: float) -> None:
    """A turn that does not come in time is a `LeaseTimeoutError`, and leaves no trace."""
    check = subject(on_overlap="wait", wait_up_to=wait_up_to)

    with once_locks.hold(check.made, 7) as hold, pytest.raises(LeaseTimeoutError) as caught:
        check(7)

    assert caught.value.key == hold.key
    assert caught.value.waited is not None
    assert caught.value.waited >= wait_up_to
    assert isinstance(caught.value, TimeoutError)
    assert check(7) == 7


def test_a_call_that_waits_runs_when_the_other_has_ended(
    subject: Make, once_locks: OnceHarness
) -> None:
    """With "wait" a call takes its turn after the end of the one before."""
    check = subject(on_overlap="wait", wait_up_to=20)
    results: list[object] = []

    hold = once_locks.hold(check.made, 7)
    thread = threading.Thread(target=lambda: results.append(check(7)))
    thread.start()
    wait_until(lambda: _is_parked(once_locks, hold.key), "somebody waits")
    hold.end()
    thread.join()

    assert results == [7]


def _is_parked(once_locks: OnceHarness, key: str) -> bool:
    fields: Any = once_locks.client().hgetall(once_locks.opened.prefix + key)
    return any(name.startswith(b"p") for name in fields)


@pytest.mark.parametrize("on_overlap", ["skip", "raise", "wait"])
def test_an_overlap_error_of_the_body_is_the_body_s(subject: Make, on_overlap: str) -> None:
    """What a body raises comes out as it is, an `OverlapError` too: it is no answer of the lock."""

    def body(order_id: int) -> None:
        raise OverlapError("of something inside")

    check = subject(body, on_overlap=on_overlap)

    with pytest.raises(OverlapError, match="of something inside"):
        check(7)
    assert check.is_locked(7) is False


@pytest.mark.parametrize(
    "error", [ValueError, StoreUnavailableError, LeaseTimeoutError, asyncio.CancelledError]
)
def test_errors_of_the_body_free_the_lock(subject: Make, error: type[BaseException]) -> None:
    """However a body ends, its unit is free afterwards and the error is the caller's."""

    def body(order_id: int) -> None:
        raise error("of the body")

    check = subject(body, on_store_error="run")

    with pytest.raises(error):
        check(7)
    assert check.is_locked(7) is False


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exit_from_the_body_frees_the_lock(
    once_locks: OnceHarness, error: type[BaseException]
) -> None:
    """Ctrl-C and exits in a body are no reason to keep the lock."""

    @once
    def check(order_id: int) -> None:
        raise error

    with pytest.raises(error):
        check(7)
    assert check.is_locked(7) is False


def test_ctrl_c_while_it_waits_leaves_the_line(once_locks: OnceHarness) -> None:
    """Ctrl-C ends a wait, and whoever comes next does not wait for who has gone."""

    @once(on_overlap="wait")
    def check(order_id: int) -> int:
        return order_id

    def interrupt(step: str, carry: Callable[[], object]) -> object:
        answer = carry()
        if step == "start" and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return answer

    hold = once_locks.hold(check, 7)
    once_locks.store.gates.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        check(7)
    once_locks.store.gates.remove(interrupt)

    wait_until(lambda: not _is_parked(once_locks, hold.key), "it has left the line")
    hold.end()
    assert check.is_locked(7) is False


def test_of_many_at_once_one_runs(once_race: OnceRace, subject: Make) -> None:
    """Of calls that meet, one runs and the others are skipped."""
    runs: list[int] = []

    def body(order_id: int) -> str:
        runs.append(order_id)
        return "ran"

    check = subject(body, return_on_locked="busy")
    if check.is_async:
        told = once_race.run(lambda: asyncio.run(check.made(7)), n=5)
    else:
        told = once_race.run(check.made, 7, n=5)

    assert sorted(str(each.result) for each in told) == ["busy"] * 4 + ["ran"]
    assert runs == [7]


def test_in_no_order_of_steps_two_run_at_once(once_race: OnceRace) -> None:
    """In every order in which two calls can meet, bodies do not overlap and nothing is left."""
    inside: list[str] = []
    most: list[int] = []

    @once(return_on_locked="busy")
    def check(order_id: int) -> str:
        inside.append("one")
        most.append(len(inside))
        check.is_locked(8)  # a step, so that others can come between
        inside.pop()
        return "ran"

    def judge(told: Any) -> None:
        assert "ran" in {each.result for each in told.values()}
        assert {each.error for each in told.values()} == {None}
        assert check.is_locked(7) is False

    count = once_race.explore({"A": lambda: check(7), "B": lambda: check(7)}, judge)

    assert count > 5
    assert max(most) == 1


def test_with_a_limit_so_many_run_at_once(once_locks: OnceHarness, subject: Make) -> None:
    """With `limit=2` a third call overlaps, and the lock is one as long as anybody runs."""
    check = subject(limit=2, on_overlap="raise")
    first = once_locks.hold(check.made, 7)
    seen: list[object] = []

    def body(order_id: int) -> None:
        with pytest.raises(OverlapError):
            check(7)
        first.end()
        seen.append(check.is_locked(7))

    outer = Subject("async" if check.is_async else "sync", body, limit=2, name=_name(check))
    outer(7)

    assert seen == [True]
    assert check(7) == 7


def _name(subject: Subject) -> str:
    name: str = subject.made.once_guard().task
    return name


# What a body can see


def test_a_body_sees_its_lease_and_fences_grow(subject: Make) -> None:
    """In the body `current_lease` is its lease, whose fence is greater than any before."""
    fences: list[int] = []

    def body(order_id: int) -> None:
        held = current_lease()
        assert held is not None
        held.check()
        fences.append(held.fence)

    check = subject(body)
    for _ in range(3):
        check(7)

    assert fences == sorted(set(fences))
    assert current_lease() is None


def test_a_long_body_keeps_its_lease(once_clock: Any, subject: Make) -> None:
    """Leases are renewed for as long as the body runs, many times their length."""
    seen: list[object] = []

    def body(order_id: int) -> None:
        once_clock.advance(600)
        held = current_lease()
        seen.extend([held and held.lost, check.is_locked(7)])

    check = subject(body, lease=5)
    check(7)

    assert seen == [False, True]


def test_release_takes_the_lease_from_a_body(once_clock: Any, subject: Make) -> None:
    """`release` frees the unit for others, and the body that had it can see that."""
    seen: list[object] = []

    def body(order_id: int) -> None:
        held = current_lease()
        assert held is not None
        seen.append(check.release(7))
        seen.append(check.release(7))
        once_clock.advance(30)
        seen.append(held.lost)

    check = subject(body)
    check(7)

    assert seen == [True, False, True]


def test_recursion_under_wait_is_refused(once_locks: OnceHarness) -> None:
    """A body that would wait for itself gets an error that says so, at once."""

    @once(on_overlap="wait", key=[])
    def check(depth: int) -> None:
        if depth:
            check(depth - 1)

    with pytest.raises(OverlapError, match="would wait for itself"):
        check(1)
    assert check.is_locked(0) is False


# The store goes away


def test_while_the_store_is_away_a_call_raises(subject: Make, once_faults: OnceFaults) -> None:
    """By default nothing runs without its lock."""
    runs: list[int] = []
    check = subject(runs.append)

    with once_faults.outage(), pytest.raises(StoreUnavailableError, match="outage"):
        check(7)

    assert runs == []
    check(7)
    assert runs == [7]


def test_while_the_store_is_away_a_call_may_run(
    subject: Make, once_faults: OnceFaults, once_locks: OnceHarness
) -> None:
    """With `on_store_error="run"` it runs without the lock, and an event says so."""
    check = subject(lambda order_id: current_lease(), on_store_error="run")

    with once_faults.outage():
        assert check(7) is None

    assert [event.kind for event in once_locks.events][-1] in ("unguarded", "store_recovered")
    assert "unguarded" in [event.kind for event in once_locks.events]


def test_the_error_of_an_unguarded_body_is_shown_alone(
    once_faults: OnceFaults, once_locks: OnceHarness
) -> None:
    """A traceback of an unguarded body does not begin with that of the store."""

    @once(on_store_error="run")
    def check(order_id: int) -> None:
        raise KeyError(order_id)

    with once_faults.outage(), pytest.raises(KeyError) as caught:
        check(7)

    assert caught.value.__context__ is None


@pytest.mark.parametrize("step", ["start", "finish"])
def test_a_lost_answer_leaves_no_lock_behind(
    subject: Make, once_faults: OnceFaults, once_locks: OnceHarness, step: str
) -> None:
    """A start or an end whose answer is lost is cleaned up within seconds, not within a lease."""
    check = subject(lease=600)

    with once_faults.lose_reply(step):
        if step == "start":
            with pytest.raises(StoreUnavailableError):
                check(7)
        else:
            assert check(7) == 7

    wait_until(lambda: not check.is_locked(7), "the ghost has gone", within=10)


def test_an_end_that_is_not_heard_is_told_later(subject: Make, once_locks: OnceHarness) -> None:
    """A body that ends while the store is away returns its result, and is freed after that."""
    check = subject(lambda order_id: once_locks.faults.outage() and "done", lease=600)

    assert check(7) == "done"

    once_locks.faults.stop()
    once_locks.store.ask_again()
    wait_until(lambda: not check.is_locked(7), "the lease is freed", within=10)
