"""Time, faults and contention as a test chooses them: in memory and on a real server alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from once_core import Guard, OnceOptions, Store, _clock, stream
from once_core._diversion import divert
from once_core.attempt import Attempt
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.events import emit
from once_core.protocol import Message
from once_pytest import OnceHarness, _strict

if TYPE_CHECKING:
    from conftest import Task

    from once_pytest._places import Place


@pytest.fixture
def harness(place: Place) -> Iterator[OnceHarness]:
    """A harness in memory, and one on a server."""
    with OnceHarness(place) as opened:
        yield opened


# The clock


@contextmanager
def _undiverted() -> Iterator[None]:
    """As if no test ran: what is done goes to the task's own store."""
    test = divert(None)
    try:
        yield
    finally:
        divert(test)


@pytest.mark.timeout(60)
def test_advance_moves_locks_and_the_clock_of_once(harness: OnceHarness, order: Task) -> None:
    """What is left shrinks by what has passed, without waiting, and then the lock is gone."""
    before = harness.clock.now()
    order.send(1)

    harness.clock.advance(3000)
    harness.assert_task_locked(order.task, 1, ttl=(590, 600))
    assert 3000 <= harness.clock.now() - before < 3060
    harness.clock.advance(601)
    harness.assert_task_not_locked(order.task, 1)


def test_the_clock_is_put_back(place: Place) -> None:
    """After the test the clock of this library is the host's again."""
    with OnceHarness(place) as harness:
        harness.clock.advance(10_000)
        clock = harness.clock
        assert clock.now() - time.time() > 9_000

    assert abs(clock.now() - time.time()) < 60


def test_a_lease_that_another_test_left_takes_no_time(
    harness: OnceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten hours took 76 s, in beats for a lease of which this test knows nothing.

    As seen in CI: by then the locks that were looked at were over.
    """
    left = Guard("left", lambda: None, OnceOptions(lease=3), lambda: Store("memory://left"))
    steps: list[float] = []
    advance = _clock.advance
    with _undiverted():
        attempt = Attempt(left, "once:left:" + "0" * 40, Message("m1", -1))
        attempt.start()
        monkeypatch.setattr(_clock, "advance", lambda by: (steps.append(by), advance(by)))

    harness.clock.advance(36_000)

    with _undiverted():
        attempt.end("success")
    assert steps == [36_000]


def test_advance_to_expiry(harness: OnceHarness, order: Task) -> None:
    """It goes just past the end of a lock, of this call alone, whoever holds it."""
    order.send(1)
    harness.clock.advance(10)
    order.send(2)

    harness.clock.advance_to_expiry(order.task, 1)

    harness.assert_task_not_locked(order.task, 1)
    harness.assert_task_locked(order.task, 2, ttl=(5, 10.1))
    with harness.hold(order.task, 3):
        harness.clock.advance_to_expiry(order.task, 3)
        harness.assert_task_not_locked(order.task, 3)


def test_what_is_not_locked_does_not_expire(harness: OnceHarness, order: Task) -> None:
    """It says so, with what is locked."""
    order.send(42)

    with pytest.raises(AssertionError, match=r"is not locked, so nothing of it expires.*'42'"):
        harness.clock.advance_to_expiry(order.task, "42")


def test_a_body_in_this_process_keeps_its_lease(harness: OnceHarness, order: Task) -> None:
    """Time that passes while a body runs renews its lease, as a worker does; the hour goes by."""
    said: list[str] = []

    def body(number: int) -> None:
        harness.clock.advance(3600)
        harness.assert_task_locked(order.task, number, state="running", ttl=(30, 60))
        with pytest.raises(AssertionError, match="still locked: its body runs in this process"):
            harness.clock.advance_to_expiry(order.task, number)
        said.append("ran")

    order.bodies.append(body)
    order.send(1)
    order.drain(harness)

    assert said == ["ran"]
    harness.assert_no_locks()


def test_a_healed_message_is_sent_again(harness: OnceHarness, order: Task) -> None:
    """After ``heal_after`` a publish is let through: the waiting message may be lost."""
    order.send(1)
    order.send(1)
    harness.assert_duplicate(order.task, 1, times=1)

    harness.clock.advance(61)
    order.send(1)

    harness.assert_duplicate(order.task, 1, times=1)
    assert [each.kind for each in harness.events] == ["claimed", "duplicate", "refreshed"]


def test_time_does_not_go_back(harness: OnceHarness) -> None:
    """A negative number is refused."""
    with pytest.raises(ValueError, match="time cannot go back by 1 s"):
        harness.clock.advance(-1)


# Faults


def test_an_outage(harness: OnceHarness, order: Task) -> None:
    """Publishing raises at once, with where it was injected; at its end all is as before."""
    order.send(1)
    with harness.faults.outage() as fault:
        with pytest.raises(StoreUnavailableError, match=r"outage\(\) at test_faults_clock_race"):
            order.send(2)
        harness.assert_task_locked(order.task, 1)
        harness.assert_task_not_locked(order.task, 2)

    order.send(2)

    assert fault.hits >= 1
    assert "outage() at test_faults" in repr(fault)
    harness.assert_task_locked(order.task, 2)


def test_an_outage_defers_what_starts(harness: OnceHarness, order: Task) -> None:
    """A message whose lock cannot be asked for is put back, and runs once it can."""
    order.send(1)
    with harness.faults.outage():
        order.drain(harness, until_idle=False)
    harness.assert_ran(order.task, 1, times=0)
    harness.assert_deferred(order.task, 1)

    order.drain(harness)

    harness.assert_ran(order.task, 1)


def test_a_lost_request(harness: OnceHarness, order: Task) -> None:
    """The caller sees an error, and the server never heard of it."""
    harness.faults.lose_request("claim")

    with pytest.raises(StoreUnavailableError, match="lose_request"):
        order.send(1)

    harness.assert_task_not_locked(order.task, 1)


def test_a_lost_reply_leaves_a_ghost_that_is_survived(harness: OnceHarness, order: Task) -> None:
    """The caller sees an error although the lock is there; its next publish takes it over."""
    harness.faults.lose_reply("claim")

    with pytest.raises(StoreUnavailableError, match="lose_reply"):
        order.send(1)
    harness.assert_task_locked(order.task, 1, state="waiting")
    order.send(1)
    order.drain(harness)

    harness.assert_ran(order.task, 1)
    harness.assert_no_locks()


def test_faults_strike_as_often_as_said(harness: OnceHarness) -> None:
    """``times=`` bounds them, and other steps pass."""
    guard = guard_of_test()
    fault = harness.faults.lose_request("inspect", times=2)

    seen = [is_away(guard) for _ in range(4)]

    assert (seen, fault.hits) == ([True, True, False, False], 2)


def test_the_circuit_breaker_is_below_the_product(harness: OnceHarness) -> None:
    """Faults end with their block also where the breaker has opened meanwhile."""
    guard = guard_of_test()
    with harness.faults.outage():
        assert [is_away(guard) for _ in range(10)] == [True] * 10

    assert not is_away(guard)


def test_latency(harness: OnceHarness) -> None:
    """A slow answer is an answer; one slower than the time-out was heard and lost."""
    guard = guard_of_test()
    with harness.faults.latency(0.01) as fault:
        assert not is_away(guard)
    with harness.faults.latency(60):
        assert is_away(guard)

    assert fault.hits == 1


def test_a_refusal_of_the_server(harness: OnceHarness, order: Task) -> None:
    """A full server is unavailable to who publishes, in the server's own words."""
    with harness.faults.refuse() as fault, pytest.raises(StoreUnavailableError, match="OOM"):
        order.send(1)
    with (
        harness.faults.refuse("READONLY You can't write"),
        pytest.raises(StoreUnavailableError, match="READONLY"),
    ):
        order.send(1)

    assert fault.hits >= 1
    order.send(1)
    harness.assert_task_locked(order.task, 1)


def test_forgotten_scripts_are_sent_again(harness: OnceHarness, order: Task) -> None:
    """After NOSCRIPT nobody notices anything."""
    order.send(1)
    harness.faults.noscript()
    order.send(1)
    harness.faults.noscript()
    order.drain(harness)

    harness.assert_ran(order.task, 1)
    harness.assert_duplicate(order.task, 1, times=1)


def test_a_failover_loses_what_was_written_meanwhile(harness: OnceHarness, order: Task) -> None:
    """Records are as they were, aged; the first step finds its connection broken."""
    guard = guard_of_test()
    order.send(1)
    with harness.faults.failover():
        order.send(2)
        harness.clock.advance(100)
        harness.assert_task_locked(order.task, 2)

    harness.assert_task_not_locked(order.task, 2)
    harness.assert_task_locked(order.task, 1, ttl=(3490, 3500))
    assert [is_away(guard), is_away(guard)] == [True, False]


def test_a_failover_in_a_body_is_seen_and_the_next_attempt_runs(
    harness: OnceHarness, order: Task
) -> None:
    """A lease that a failover lost is taken back by its renewal: nobody else starts meanwhile."""

    def body(number: int) -> None:
        harness.faults.failover().end()
        harness.clock.advance(61)
        harness.assert_task_locked(order.task, number, state="running")

    order.bodies.append(body)
    order.send(1)
    order.drain(harness)

    harness.assert_ran(order.task, 1)
    harness.assert_no_locks()


def test_faults_end_with_the_test(place: Place) -> None:
    """One that nobody ended strikes no later test."""
    guard = guard_of_test()
    with OnceHarness(place) as first:
        first.faults.outage()
        assert is_away(guard)

    with OnceHarness(place):
        assert not is_away(guard)


@pytest.mark.parametrize("name", ["lose_request", "lose_reply"])
def test_a_step_that_there_is_not_is_refused(harness: OnceHarness, name: str) -> None:
    """A fault that would never strike is a mistake of the test."""
    with pytest.raises(ValueError, match=r"no step 'acquire'; there are .*claim.*start"):
        getattr(harness.faults, name)("acquire")


# Contention


def test_contenders_meet(harness: OnceHarness, order: Task) -> None:
    """Of n calls at once exactly one is sent."""
    told = harness.race.run(order.task, 1, n=8)

    assert [each.name for each in told] == list("ABCDEFGH")
    assert [each.error for each in told] == [None] * 8
    harness.assert_duplicate(order.task, 1, times=7)
    order.drain(harness)
    harness.assert_ran(order.task, 1)


def test_many_contenders_have_names(harness: OnceHarness) -> None:
    """More than the alphabet has letters."""
    told = harness.race.run(lambda: None, n=28)

    assert [each.name for each in told][25:] == ["Z", "C26", "C27"]


def test_what_contenders_raise_is_theirs(harness: OnceHarness) -> None:
    """An error is kept for the test to see."""
    told = harness.race.run(lambda: 1 / 0, n=2)

    assert all(isinstance(each.error, ZeroDivisionError) for each in told)


def test_a_chosen_order(harness: OnceHarness) -> None:
    """Steps happen in the order of the schedule."""
    calls = {"A": take(harness, "a"), "B": take(harness, "b")}

    told = harness.race.steps("B B A A", calls)
    assert (told["A"].result, told["B"].result) == (True, True)
    harness.forget()
    told = harness.race.steps("B A", calls)

    assert (told["A"].result, told["B"].result) == (False, True)
    assert told["B"].steps == ["start", "finish"]


def test_every_order_is_tried(harness: OnceHarness) -> None:
    """Two that start and finish have all their orders explored, and a lock holds in each."""
    orders: set[str] = set()
    running: list[str] = []

    def body(name: str) -> None:
        running.append(name)

    def check(told: Any) -> None:
        orders.add(" ".join(f"{n}:{each.result}" for n, each in told.items()))
        assert any(each.result for each in told.values())

    count = harness.race.explore(
        {"A": take(harness, "a", body), "B": take(harness, "b", body)}, check
    )

    # each makes two steps, or one where it is refused: AABB, ABA, BAB, BBAA
    assert count == 4
    assert orders == {"A:True B:True", "A:True B:False", "A:False B:True"}
    harness.assert_no_locks()


def test_a_wrong_order_is_found_and_can_be_replayed(harness: OnceHarness) -> None:
    """A look and then a step is no lock: the schedule that shows it is printed, and replays."""
    guard = guard_of_test()

    def looks_first(name: str) -> Callable[[], bool]:
        def call() -> bool:
            if guard.is_locked((1,), {}):
                return False
            take(harness, name, begins=True)()  # whatever it answers
            return True

        return call

    def check(told: Any) -> None:
        assert not all(each.result for each in told.values()), "both run"

    calls = {"A": looks_first("A"), "B": looks_first("B")}
    with pytest.raises(AssertionError, match="both run") as caught:
        harness.race.explore(calls, check)

    schedule = str(caught.value).partition('--once-schedule="')[2].partition('"')[0]
    assert schedule.split()[:2] in (["A", "B"], ["B", "A"])
    harness.race.replay(schedule)
    with pytest.raises(AssertionError, match=f'in the schedule "{schedule}"'):
        harness.race.explore(calls, check)
    harness.forget()
    told = harness.race.steps(schedule, calls)
    assert all(each.result for each in told.values())
    harness.forget()
    told = harness.race.steps("A A B B", calls)
    assert not told["B"].result
    assert harness.release_all() == 1


def test_too_many_orders_are_said(harness: OnceHarness) -> None:
    """What was not tried is no proof."""
    calls = {name: take(harness, name) for name in "ABC"}

    with pytest.raises(AssertionError, match="more than 5 orders, and not all were tried"):
        harness.race.explore(calls, lambda told: None, most=5)


def test_setup_runs_before_each_order(harness: OnceHarness) -> None:
    """What else has to be as it was is made so before each."""
    made: list[int] = []

    count = harness.race.explore(
        {"A": take(harness, "a"), "B": take(harness, "b")},
        lambda told: None,
        setup=lambda: made.append(1),
    )

    assert len(made) == count


def test_a_schedule_names_who_takes_part(harness: OnceHarness) -> None:
    """Another name is a mistake of the test."""
    with pytest.raises(ValueError, match=r"names \['C'\], the calls are \['A'\]"):
        harness.race.steps("A C", {"A": lambda: None})


def test_a_stuck_contender_is_said(harness: OnceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for another that may not go on is named, after a while."""
    import threading

    monkeypatch.setattr("once_pytest.race.PATIENCE", 0.2)
    end = threading.Event()
    try:
        with pytest.raises(AssertionError, match=r"A neither made a step nor ended in 0\.2 s"):
            harness.race.run(end.wait, n=1)
    finally:
        end.set()


def test_a_replay_by_the_command_line(run: Callable[..., Any]) -> None:
    """``--once-schedule`` makes explore try that order alone."""
    text = (
        "from shop import *\n"
        "def test_it(once_locks, once_race):\n"
        "    calls = {n: lambda: sync_order.delay(1) for n in 'AB'}\n"
        "    seen = []\n"
        "    check = lambda told: seen.append(told['A'].result.once.is_duplicate)\n"
        "    count = once_race.explore(calls, check)\n"
        "    print('orders:', count, *seen)\n"
        "    once_locks.release_all()\n"
    )

    all_of_them = run({"test_it.py": text}, "-s", "--once-redis=fake")
    one = run({"test_it.py": text}, "-s", "--once-schedule=B A")

    all_of_them.lines.fnmatch_lines(["*orders: 2 False True*"])
    one.lines.fnmatch_lines(["*orders: 1 True*"])


# Under all of them


def guard_of_test() -> Guard:
    """A function under guard, whose own store would be none that is there."""
    return Guard("raced", lambda number: None, OnceOptions(), lambda: Store("redis://127.0.0.1:1"))


def is_away(guard: Guard) -> bool:
    """Whether nobody can say who holds a lock."""
    try:
        guard.is_locked((1,), {})
    except StoreUnavailableError:
        return True
    return False


def take(
    harness: OnceHarness,
    name: str,
    body: Callable[[str], object] = lambda name: None,
    *,
    begins: bool = False,
) -> Callable[[], bool]:
    """A call that runs under the lock of one unit, if it is free; or only begins to."""
    from once_core import protocol

    guard = guard_of_test()

    def call() -> bool:
        key = guard.key((1,), {})
        message = protocol.Message(f"m-{name}")
        life = {"ttl": 3600.0, "heal_after": 60.0, "queued": False}
        started = guard.store.run(
            protocol.start(key, message, f"attempt-{name}", where="", lease=60.0, **life)
        )
        if started.status != "started":
            return False
        if begins:
            return True
        body(name)
        guard.store.run(protocol.finish(key, message, f"attempt-{name}", "success", **life))
        return True

    return call


def test_what_another_test_left_in_the_background_is_none_of_this_one(
    shared_server: DevServer, place: Place
) -> None:
    """Events to be written, a lease to be freed: no connection of ours in the middle of a test."""
    url = shared_server.url.replace("redis://", "redis://:left@")
    guard = Guard("left", lambda: None, OnceOptions(events=100, url=url), lambda: Store(url))
    assert guard.store is not None
    emit("claimed", task="left")  # its writer cannot log in, and goes on trying
    with OnceHarness(place):
        refused = len(_strict.refusals)
        emit("claimed", task="left")
        stream.flush()

        assert _strict.refusals[refused:] == []
    stream._streams.pop("left")
    writer = stream._writer(guard.store)
    writer._waiting.clear()
    writer._batch.clear()
