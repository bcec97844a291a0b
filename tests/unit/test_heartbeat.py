"""Renewal: what each answer means, when it beats, and that nothing ends it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _support.waiting import wait_until

from once_core import _heartbeat, protocol
from once_core._heartbeat import Heartbeat, Held, heartbeat
from once_core._lease import Lease
from once_core.errors import StoreUnavailableError
from once_core.events import Event, subscribe
from once_core.guard import Guard
from once_core.protocol import Message
from once_pytest import OnceHarness, assert_task_locked

KEY = "once:shop.sync:0"
AWAY = StoreUnavailableError("away", url="redis://h", reason="refused")


class Answers:
    """A store that gives the answers it was told, again and again."""

    is_at_hand = True

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []
        self.pipelines = 0
        self.siblings = 0

    def run_many(self, steps: list[Any]) -> list[Any]:
        self.pipelines += 1
        self.sent += steps
        found = []
        for _ in steps:
            found.append(self.answers[0])
            if len(self.answers) > 1:
                self.answers.pop(0)
        return found

    def sibling(self) -> Answers:
        self.siblings += 1
        return self

    def names(self) -> list[str]:
        return [step.script.name for step in self.sent]


@pytest.fixture
def told(told: list[Event]) -> Iterator[list[Event]]:
    """Every event but ``renewed``, of which there is one for each beat."""
    others: list[Event] = []
    stop = subscribe(lambda event: event.kind == "renewed" or others.append(event))
    yield others
    stop()


@pytest.fixture
def held(clock: Any, beats: Heartbeat) -> Callable[..., Held]:
    """Adds leases to the table; each has a store of its own unless one is given."""

    def make(store: Any, *, length: float = 60.0, attempt: str = "a", **options: Any) -> Held:
        lease = Lease(KEY, 7, length)
        made = Held(
            store,
            Message("m1", 5),
            attempt,
            "h",
            lease,
            "shop.sync",
            started_at=clock.now,
            **options,
        )
        beats.add(made)
        return made

    return make


def _sleeps(beats: Heartbeat, clock: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that the thread sleeps before its next beat."""
    since = clock.now
    monkeypatch.setattr(beats._wake, "wait", clock.pass_time)
    beats._sleep()
    return float(clock.now - since)


def test_renewed(beats: Heartbeat, held: Callable[..., Held], clock: Any) -> None:
    """A renewed lease lasts its whole length from the beat that renewed it."""
    store = Answers("renewed")
    mine = held(store)
    clock.pass_time(20)
    beats.beat()
    clock.pass_time(59)

    assert (mine.lease.lost, mine.lease.remaining) == (False, 1.0)
    assert store.names() == ["renew"]


def test_renewal_says_all_that_a_restore_needs(
    beats: Heartbeat, held: Callable[..., Held], clock: Any
) -> None:
    """A renewal carries message, attempt, fence and age: Redis may have come back empty."""
    store = Answers("renewed")
    held(store)
    clock.pass_time(20)
    beats.beat()

    assert store.sent[0].key == KEY
    assert store.sent[0].args == ("m1", 5, 0, "a", "h", 60_000, 7, 20_000, 1)


def test_restored(
    beats: Heartbeat, held: Callable[..., Held], clock: Any, told: list[Event]
) -> None:
    """A lease that an empty Redis did not know any more is held again, and that is told."""
    mine = held(Answers("restored"))
    clock.pass_time(20)
    beats.beat()

    assert not mine.lease.lost
    assert [(each.kind, each.reason, each.ran) for each in told] == [
        ("lease_restored", "the lock store had lost it", 20.0)
    ]


def test_lost(beats: Heartbeat, held: Callable[..., Held], clock: Any, told: list[Event]) -> None:
    """A lost lease is told to its owner and to the log, once, and renewed no more."""
    store = Answers("lost")
    mine = held(store)
    for _ in range(3):
        clock.pass_time(20)
        beats.beat()

    assert mine.lease.lost
    assert store.names() == ["renew"]
    assert told == [
        Event(
            "lease_lost",
            task="shop.sync",
            key=KEY,
            message_id="m1",
            reason="another attempt runs, or somebody released it",
            ran=20.0,
            fence=7,
            at=told[0].at,
        )
    ]


def test_store_away(
    beats: Heartbeat, held: Callable[..., Held], clock: Any, told: list[Event]
) -> None:
    """While the store is away the lease counts down and comes back with it: nobody slept."""
    store = Answers(*[AWAY] * 61, "restored", "renewed")
    mine = held(store, length=60.0)
    for _ in range(61):
        clock.pass_time(1)
        beats.beat()
    was_lost = mine.lease.lost
    clock.pass_time(1)
    beats.beat()

    assert was_lost
    assert not mine.lease.lost
    assert [each.kind for each in told] == ["lease_restored"]


def test_slept(beats: Heartbeat, held: Callable[..., Held], clock: Any, told: list[Event]) -> None:
    """A process that stood still for longer than its lease has lost it, even if it was free."""
    store = Answers("restored", "renewed")
    mine = held(store)
    clock.pass_time(61)
    beats.beat()
    clock.pass_time(20)
    beats.beat()

    assert mine.lease.lost
    assert store.names() == ["renew", "renew"]  # taken again all the same: nobody else is to run
    assert [(each.kind, each.reason) for each in told] == [
        ("lease_lost", "this process stood still for longer than its lease")
    ]


def test_slept_and_renewed(beats: Heartbeat, held: Callable[..., Held], clock: Any) -> None:
    """A lease that Redis never gave up is not lost, however long we slept."""
    mine = held(Answers("renewed"))
    clock.pass_time(61)
    beats.beat()

    assert not mine.lease.lost


def test_slept_while_the_store_is_away(
    beats: Heartbeat, held: Callable[..., Held], clock: Any, told: list[Event]
) -> None:
    """Asleep for longer than the lease, and nobody to ask: it is lost, and stays so."""
    mine = held(Answers(AWAY, "renewed"))
    clock.pass_time(61)
    beats.beat()
    clock.pass_time(1)
    beats.beat()

    assert mine.lease.lost
    assert [each.kind for each in told] == ["lease_lost"]


def test_closed_and_restored(beats: Heartbeat, held: Callable[..., Held], clock: Any) -> None:
    """A renewal that took the lease again behind its finish gives it up in the same beat."""
    store = Answers("restored", protocol.Reap(True))
    mine = held(store)

    def finish_meanwhile(steps: list[Any]) -> list[Any]:
        beats.remove(mine)
        store.run_many = Answers.run_many.__get__(store)  # type: ignore[method-assign]  # as it was
        return store.run_many(steps)

    store.run_many = finish_meanwhile  # type: ignore[method-assign]  # for one call
    clock.pass_time(20)
    beats.beat()

    assert store.names() == ["renew", "reap"]
    assert store.sent[1].args == ("m1", "a", 0)
    assert beats._unfinished == []


@pytest.mark.parametrize("answer", ["renewed", "lost"])
def test_closed_otherwise(
    beats: Heartbeat, held: Callable[..., Held], told: list[Event], answer: str
) -> None:
    """Whatever else is answered to a renewal that its finish overtook, nothing follows."""
    store = Answers(answer)
    mine = held(store)
    mine.is_closed = True
    beats.beat()

    assert (store.names(), told, beats._unfinished) == (["renew"], [], [])


def test_removed(beats: Heartbeat, held: Callable[..., Held]) -> None:
    """A lease that ended is renewed no more; removing it twice is harmless."""
    store = Answers("renewed")
    mine = held(store)
    beats.remove(mine)
    beats.remove(mine)
    beats.beat()

    assert store.sent == []


def test_finish_later(
    beats: Heartbeat, held: Callable[..., Held], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that could not be sent is sent at once, and then each second until it is heard."""
    store = Answers(AWAY, AWAY, protocol.Finish("finished"))
    mine = held(store)
    beats.remove(mine)
    beats.finish_later(mine, mine.giving_up())
    pauses = []
    for _ in range(3):
        pauses.append(_sleeps(beats, clock, monkeypatch))
        beats.beat()

    assert pauses == [0.0, 1.0, 1.0]
    assert store.names() == ["reap"] * 3
    assert beats._unfinished == []


def test_finish_later_ends_with_the_lease(
    beats: Heartbeat, held: Callable[..., Held], clock: Any
) -> None:
    """After the lease is over nothing has to be freed any more: it is given up."""
    store = Answers(AWAY)
    mine = held(store, length=10.0)
    beats.remove(mine)
    beats.finish_later(mine, mine.giving_up())
    for _ in range(20):
        clock.pass_time(1)
        beats.beat()

    assert beats._unfinished == []
    assert len(store.sent) == 11


def test_finish_later_without_any_lease(beats: Heartbeat, clock: Any) -> None:
    """The first thing a process has to renew may be an end; the thread starts for it too."""
    lease = Lease(KEY, 0, 60.0)
    store: Any = Answers(AWAY)
    ghost = Held(store, Message("m1"), "a", "h", lease, "shop.sync", started_at=clock.now)
    beats.finish_later(ghost, ghost.giving_up())

    assert beats._runs


def test_outage_beats_each_second(
    beats: Heartbeat, held: Callable[..., Held], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a store is away renewal is tried each second, then at its usual pace again."""
    held(Answers(AWAY, AWAY, "renewed"))
    pauses = []
    for _ in range(4):
        pauses.append(_sleeps(beats, clock, monkeypatch))
        beats.beat()

    assert pauses == [20.0, 1.0, 1.0, 20.0]


def test_third_of_the_shortest_lease(
    beats: Heartbeat, held: Callable[..., Held], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest lease sets the pace: two beats may fail before it lapses."""
    long, short = Answers("renewed"), Answers("renewed")
    held(long, length=60.0, attempt="long")
    first = held(short, length=6.0, attempt="short")
    pauses = []
    for _ in range(3):
        pauses.append(_sleeps(beats, clock, monkeypatch))
        beats.beat()
    beats.remove(first)
    for _ in range(2):
        pauses.append(_sleeps(beats, clock, monkeypatch))
        beats.beat()

    assert pauses == [2.0, 2.0, 2.0, 2.0, 20.0]
    assert (len(long.sent), len(short.sent)) == (5, 3)


def test_short_lease_wakes_a_long_sleep(
    beats: Heartbeat, held: Callable[..., Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short lease that comes while the thread sleeps for long ones wakes it."""
    woken: list[str] = []
    monkeypatch.setattr(beats._wake, "set", lambda: woken.append("woken"))
    held(Answers("renewed"), length=60.0, attempt="long")
    held(Answers("renewed"), length=60.0, attempt="as long")
    before = list(woken)
    held(Answers("renewed"), length=3.0, attempt="short")

    assert (before, woken) == ([], ["woken"])


def test_one_pipeline_a_store(beats: Heartbeat, held: Callable[..., Held]) -> None:
    """All leases in one store are renewed in one round trip, over connections of its own."""
    one, other = Answers("renewed"), Answers("renewed")
    for number in range(5):
        held(one, attempt=f"one{number}")
    held(other, attempt="other")
    beats.beat()
    beats.beat()

    assert (one.pipelines, len(one.sent), one.siblings) == (2, 10, 1)
    assert (other.pipelines, len(other.sent), other.siblings) == (2, 2, 1)


def test_one_store_away_does_not_hinder_another(
    beats: Heartbeat, held: Callable[..., Held], clock: Any
) -> None:
    """Leases in a store that answers are renewed while another one is away."""
    held(Answers(AWAY), attempt="away")
    mine = held(Answers("renewed"), attempt="there")
    clock.pass_time(20)
    beats.beat()

    assert mine.lease.remaining == 60.0


def test_slow_run_is_told_once(
    beats: Heartbeat,
    held: Callable[..., Held],
    clock: Any,
    told: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that holds its lease for longer than warn_after= is a WARNING, once, and in time."""
    held(Answers("renewed"), warn_after=5.0)
    for _ in range(4):
        _sleeps(beats, clock, monkeypatch)
        clock.pass_time(0.001)
        beats.beat()

    assert [(each.kind, each.reason) for each in told] == [
        ("slow", "it runs for longer than warn_after=5 s")
    ]
    assert told[0].ran is not None
    assert 5.0 < told[0].ran < 6.0


def test_no_thread_before_the_first_lease(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    """The thread starts with the first lease, and there is one for all of them."""
    started: list[object] = []
    monkeypatch.setattr(_heartbeat, "start_thread", started.append)
    table = Heartbeat()
    before = list(started)
    store: Any = Answers("renewed")
    for number in range(3):
        lease = Lease(KEY, 7, 60.0)
        table.add(Held(store, Message("m"), str(number), "h", lease, "t", started_at=clock.now))

    assert (before, len(started)) == ([], 1)


def test_no_thread_to_be_had(
    monkeypatch: pytest.MonkeyPatch, clock: Any, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """Where no thread can be started that is CRITICAL, the body runs, and the next lease tries."""

    def refuse(function: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_heartbeat, "start_thread", refuse)
    table = Heartbeat()
    store: Any = Answers("renewed")
    for number in range(2):
        lease = Lease(KEY, 7, 60.0)
        table.add(Held(store, Message("m"), str(number), "h", lease, "t", started_at=clock.now))

    assert [(each.kind, each.reason) for each in told] == [
        ("heartbeat_failed", "can't start new thread")
    ] * 2
    assert "leases are not renewed: no thread can be started: can't start new thread" in (
        [each.getMessage() for each in caplog.records if each.levelno == logging.CRITICAL]
    )


class Stop(BaseException):
    """Ends the endless loop of the thread under test."""


def _stop_at_second(told: list[Event]) -> Callable[..., None]:
    """An `emit` that lets the loop of the thread end at its second failure, our own."""

    def emit(kind: str, *, reason: str = "", **facts: Any) -> None:
        if told:
            raise Stop
        told.append(Event(kind, reason=reason))

    return emit


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(1), KeyboardInterrupt()])
def test_failing_beat_does_not_end_it(
    beats: Heartbeat,
    held: Callable[..., Held],
    clock: Any,
    told: list[Event],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """Whatever a beat raises is CRITICAL, with its traceback; the next comes in a second."""
    mine = held(Answers("renewed"))
    beat, at = beats.beat, []

    def fail_renew_stop() -> None:
        at.append(clock.now)
        if len(at) == 1:
            raise error
        beat()
        raise Stop

    monkeypatch.setattr(beats._wake, "wait", clock.pass_time)
    monkeypatch.setattr(beats, "beat", fail_renew_stop)
    monkeypatch.setattr(_heartbeat, "emit", _stop_at_second(told))
    with pytest.raises(Stop):
        beats._run()

    assert at[1] - at[0] == 1.0
    assert mine.lease.remaining > 0
    assert [each.reason for each in told] == [f"{type(error).__name__}: {error}"]
    first = next(each for each in caplog.records if each.levelno == logging.CRITICAL)
    assert first.getMessage() == "the renewal of leases failed; it goes on"
    assert first.exc_info is not None


def test_real_thread(
    guarded: Callable[..., Guard], once_locks: OnceHarness, told: list[Event]
) -> None:
    """In its thread, over a real store, a lease of a second outlives its length."""
    guard, store, message = guarded(lease=1.0), once_locks.store, Message("m1")
    key = guard.key((1,), {})
    store.run(protocol.start(key, message, "a", where="h", lease=1.0, ttl=60.0, heal_after=60.0))
    table = Heartbeat()
    lease = Lease(key, 7, 1.0)
    mine = Held(store, message, "a", "h", lease, "shop.sync")
    table.add(mine)
    first = lease._deadline

    wait_until(lambda: lease._deadline > first, "a renewal", within=10)
    table.remove(mine)

    assert not lease.lost
    assert_task_locked(guard, 1, state="running", holder="m1")
    assert [each for each in told if each.kind != "store_unavailable"] == []


FORK = """
    import os, sys, threading
    from once_core._heartbeat import Held, heartbeat
    from once_core._lease import Lease
    from once_core.protocol import Message
    from once_core.store import Store

    store = Store("memory://fork")
    mine = heartbeat()
    mine.add(Held(store, Message("m"), "a", "h", Lease("k", 1, 60.0), "t"))
    child = os.fork()
    if not child:
        fresh = heartbeat()
        is_fine = fresh is not mine and not fresh._held and not fresh._runs
        fresh.add(Held(store, Message("m"), "b", "h", Lease("k", 1, 60.0), "t"))
        os._exit(0 if is_fine and fresh._runs and list(fresh._held) == ["b"] else 1)
    assert heartbeat() is mine and list(mine._held) == ["a"]
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_fork() -> None:
    """A forked child renews none of its parent's leases, and starts a thread of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "0\n", done.stderr


def test_one_a_process() -> None:
    """A process has one heartbeat."""
    assert heartbeat() is heartbeat()
    assert _heartbeat._process[os.getpid()] is heartbeat()
