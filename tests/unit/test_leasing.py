"""`lease()`: blocks of code, sync and async alike, on the toolkit's locks."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from _support.waiting import wait_until

from once_core import (
    ConfigurationError,
    Lease,
    LeaseTimeoutError,
    OverlapError,
    StoreUnavailableError,
    configure,
    current_lease,
    lease,
    once,
)
from once_pytest.clock import OnceClock
from once_pytest.faults import OnceFaults
from once_pytest.harness import OnceHarness
from once_pytest.race import OnceRace

Around = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def around(request: pytest.FixtureRequest, once_locks: OnceHarness) -> Around:
    """Runs a function in a block, of either kind, in a thread of its own."""

    def take(body: Callable[[Lease], object], name: str, **options: Any) -> object:
        with lease(name, **options) as held:
            return body(held)

    async def take_async(body: Callable[[Lease], object], name: str, **options: Any) -> object:
        async with lease(name, **options) as held:
            return body(held)

    def run(
        body: Callable[[Lease], object] = lambda held: "ran", name: str = "nightly", **options: Any
    ) -> object:
        found: list[object] = []

        def do() -> None:
            try:
                if request.param == "sync":
                    found.append(take(body, name, **options))
                else:
                    found.append(asyncio.run(take_async(body, name, **options)))
            except BaseException as error:  # noqa: BLE001  # handed to the caller
                found.append(error)

        thread = threading.Thread(target=do)
        thread.start()
        thread.join()
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    return run


def parked(once_locks: OnceHarness, key: str) -> int:
    """How many wait in the line."""
    fields: Any = once_locks.client().hgetall(once_locks.opened.prefix + key)
    return sum(name.startswith(b"p") and name.endswith(b"a") for name in fields)


# One at a time


def test_a_block_holds_its_name_and_no_other(around: Around) -> None:
    """In a block its name is locked, with a holder, and afterwards it is free."""
    seen: list[object] = []

    def body(held: Lease) -> str:
        holder = lease("nightly").holder()
        assert holder is not None
        seen.extend([lease("nightly").is_locked(), lease("other").is_locked()])
        seen.extend([holder.state, holder.fence == held.fence, held.lost, current_lease() is held])
        return "ran"

    assert around(body) == "ran"
    assert seen == [True, False, "running", True, False, True]
    assert lease("nightly").holder() is None
    assert current_lease() is None


@pytest.mark.parametrize("wait_up_to", [0, 0.2, dt.timedelta(milliseconds=200)])
def test_a_block_that_is_not_free_in_time_is_not_run(
    around: Around, once_locks: OnceHarness, wait_up_to: Any
) -> None:
    """Out of time it raises, naming the key and the holder, and stands in no line afterwards."""
    runs: list[object] = []

    with once_locks.hold(lease("nightly")) as hold, pytest.raises(LeaseTimeoutError) as caught:
        around(runs.append, wait_up_to=wait_up_to)

    assert runs == []
    assert caught.value.key == hold.key
    assert caught.value.waited is not None
    assert "was not free within" in str(caught.value)
    assert parked(once_locks, hold.key) == 0


def test_by_default_a_block_tries_once(around: Around, once_locks: OnceHarness) -> None:
    """Without `wait_up_to` nobody waits."""
    with once_locks.hold(lease("nightly")), pytest.raises(LeaseTimeoutError):
        around()


def test_a_block_that_waits_is_next(around: Around, once_locks: OnceHarness) -> None:
    """Whoever waits goes on when the one before has ended, before anybody who comes later."""
    results: list[object] = []
    hold = once_locks.hold(lease("nightly"))
    thread = threading.Thread(target=lambda: results.append(around(wait_up_to=None)))
    thread.start()
    wait_until(lambda: parked(once_locks, hold.key) == 1, "one waits")

    with pytest.raises(LeaseTimeoutError), lease("nightly"):
        pass
    hold.end()
    thread.join()

    assert results == ["ran"]


@pytest.mark.parametrize(
    "error", [ValueError, OverlapError, StoreUnavailableError, asyncio.CancelledError]
)
def test_an_error_in_a_block_frees_it(around: Around, error: type[BaseException]) -> None:
    """However a block ends, its name is free and the error comes out as it is."""

    def body(held: Lease) -> None:
        raise error("of the body")

    # asyncio.run of Python 3.10 forgets the words of a cancellation
    words = None if error is asyncio.CancelledError else "of the body"
    with pytest.raises(error, match=words):
        around(body, on_store_error="run")
    assert lease("nightly").is_locked() is False


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exit_from_a_block_frees_it(once_locks: OnceHarness, error: type[BaseException]) -> None:
    """Ctrl-C and exits in a block are no reason to keep the lock."""
    with pytest.raises(error), lease("nightly"):
        raise error
    assert lease("nightly").is_locked() is False


def test_in_no_order_of_steps_two_are_inside(once_race: OnceRace) -> None:
    """In every order of their steps blocks exclude each other, and nothing is left behind."""
    inside: list[int] = []
    most: list[int] = []

    def block() -> str:
        try:
            with lease("nightly"):
                inside.append(1)
                most.append(len(inside))
                lease("other").is_locked()  # a step, so that others can come between
                inside.pop()
        except LeaseTimeoutError:
            return "refused"
        return "ran"

    def judge(told: Any) -> None:
        assert "ran" in {each.result for each in told.values()}
        assert lease("nightly").is_locked() is False

    assert once_race.explore({"A": block, "B": block}, judge) > 5
    assert max(most) == 1


def test_fences_grow(around: Around) -> None:
    """Each block has a greater fence than any before it."""
    fences = [around(lambda held: held.fence) for _ in range(4)]

    assert fences == sorted(set(fences))  # type: ignore[type-var]  # numbers


# limit=


def test_with_a_limit_so_many_are_inside(around: Around, once_locks: OnceHarness) -> None:
    """Three hold it, a fourth is refused, and it is locked until the last one has gone."""
    holds = [lease("nightly", limit=3) for _ in range(3)]
    for block in holds:
        block.__enter__()

    with pytest.raises(LeaseTimeoutError):
        around(limit=3)
    for block in holds[:2]:
        block.__exit__(None, None, None)

    assert lease("nightly").is_locked() is True
    assert around(limit=3) == "ran"
    holds[2].__exit__(None, None, None)
    assert lease("nightly").is_locked() is False


def test_a_crashed_holder_s_slot_frees_on_its_own(
    around: Around, once_locks: OnceHarness, once_clock: OnceClock
) -> None:
    """The slot of one that stopped renewing is free after one lease, though others come and go."""
    once_locks.hold(lease("nightly", limit=2, lease=600))
    living = lease("nightly", limit=2, lease=600)
    living.__enter__()

    with pytest.raises(LeaseTimeoutError):
        around(limit=2)
    once_clock.advance(400)
    with pytest.raises(LeaseTimeoutError):
        around(limit=2)
    once_clock.advance(400)

    assert around(limit=2) == "ran"
    living.__exit__(None, None, None)


# Options, store


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("", {}, "needs a name"),
        (7, {}, "needs a name"),
        ("x", {"wait_up_to": -1}, "must be seconds"),
        ("x", {"wait_up_to": "5"}, "must be seconds"),
        ("x", {"leese": 5}, "did you mean 'lease'"),
        ("x", {"limit": 0}, "limit=0"),
        ("x", {"lease": 0.1}, "lease=0.1"),
        ("x", {"scope": "queued"}, "scope"),
        ("x", {"key": ["a"]}, "key"),
        ("x", {"ttl": 5}, "ttl"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_where_it_is_written(
    name: Any, options: dict[str, Any], text: str
) -> None:
    """Names and options that cannot be, or mean nothing here, are refused by `lease()` itself."""
    with pytest.raises(ConfigurationError, match=text):
        lease(name, **options)


def test_while_the_store_is_away_a_block_is_not_entered(
    around: Around, once_faults: OnceFaults
) -> None:
    """By default nothing runs without its lock; with `on_store_error="run"` nothing stops it."""
    with once_faults.outage():
        with pytest.raises(StoreUnavailableError):
            around()
        assert around(lambda held: held.lost, on_store_error="run") is False

    assert around() == "ran"


def test_an_outage_while_it_waits_ends_the_wait(
    around: Around, once_locks: OnceHarness, once_faults: OnceFaults
) -> None:
    """A wait during which the store goes away says so, and its place in the line is given up."""
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            around(wait_up_to=60)
        except StoreUnavailableError as error:
            errors.append(error)

    hold = once_locks.hold(lease("nightly"))
    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: parked(once_locks, hold.key) == 1, "one waits")
    with once_faults.outage():
        thread.join(20)

    assert len(errors) == 1
    wait_until(lambda: parked(once_locks, hold.key) == 0, "it has left the line")
    hold.end()


def test_a_block_without_a_store_can_be_entered_once_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a store the error says how to give one, and the block works when it has one."""
    monkeypatch.delenv("ONCE_URL", raising=False)
    block = lease("nightly")
    with pytest.raises(ConfigurationError, match=r"configure\(url="), block:
        pass

    configure(url=f"memory://{uuid.uuid4().hex}")
    try:
        with block as held:
            assert not held.lost
    finally:
        configure()


@pytest.mark.once(bypass=True)
def test_a_bypassed_test_enters_every_block(around: Around, once_locks: OnceHarness) -> None:
    """Where a test asks for no guard, blocks exclude nobody."""
    with lease("nightly"):
        assert around() == "ran"
    assert once_locks.locks == []


def test_blocks_and_functions_are_apart(once_locks: OnceHarness) -> None:
    """A function of the same name as a block is another unit of work, and so is another prefix."""

    @once(name="nightly", key=[])
    def check() -> str:
        with lease("nightly"), lease("nightly", prefix="tenant"):
            return "ran"

    assert check() == "ran"
