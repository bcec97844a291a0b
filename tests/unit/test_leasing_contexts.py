"""`lease()` in threads, tasks and contexts: who counts as the one that holds it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from _support.waiting import wait_until

from once_core import (
    ConfigurationError,
    LeaseTimeoutError,
    OverlapError,
    current_lease,
    lease,
    subscribe,
)
from once_pytest.harness import OnceHarness


async def _until(probe: Callable[[], object]) -> None:
    """Wait until it holds, beside the loop."""
    await asyncio.to_thread(wait_until, probe, "what the test waits for")


def parked(once_locks: OnceHarness, key: str) -> int:
    """How many wait in the line."""
    fields: Any = once_locks.client().hgetall(once_locks.opened.prefix + key)
    return sum(name.startswith(b"p") and name.endswith(b"a") for name in fields)


# Re-entry


def test_waiting_for_oneself_is_refused_at_once(once_locks: OnceHarness) -> None:
    """A block that would wait for the block around it is an error that names the way out."""
    with (
        lease("nightly"),
        pytest.raises(OverlapError, match=r"reentrant=True"),
        lease("nightly", wait_up_to=None),
    ):
        pass
    assert lease("nightly").is_locked() is False


def test_waiting_for_oneself_is_refused_at_once_under_asyncio(once_locks: OnceHarness) -> None:
    """The same for coroutines."""

    async def main() -> None:
        async with lease("nightly"):
            with pytest.raises(OverlapError, match=r"reentrant=True"):
                async with lease("nightly", wait_up_to=None):
                    pass

    asyncio.run(main())


def test_a_free_slot_is_taken_beside_ones_own(once_locks: OnceHarness) -> None:
    """With `limit=2` code that holds one slot may wait for the other; for a third it would hang."""
    with lease("nightly", limit=2, wait_up_to=5), lease("nightly", limit=2, wait_up_to=5):
        assert len(once_locks.locks) == 2
        with (
            pytest.raises(OverlapError, match=r"reentrant=True"),
            lease("nightly", limit=2, wait_up_to=None),
        ):
            pass

    once_locks.assert_no_locks()


def test_reentry_that_is_meant_goes_on_under_the_outer_lease(once_locks: OnceHarness) -> None:
    """With `reentrant=True` the inner block has the outer one's lease, and does not free it."""
    with lease("nightly") as outer:
        for _ in range(2):
            with lease("nightly", reentrant=True) as inner:
                assert inner is outer
        assert lease("nightly").is_locked() is True
    with lease("nightly", reentrant=True) as alone:
        assert alone is not outer


def test_blocks_may_end_in_another_order_than_they_began(once_locks: OnceHarness) -> None:
    """Whatever the order of their ends, nothing of an ended block is taken for held."""
    first, second = lease("first"), lease("second")
    first.__enter__()
    held = second.__enter__()

    first.__exit__(None, None, None)
    assert current_lease() is held
    second.__exit__(None, None, None)

    assert current_lease() is None
    with lease("first", reentrant=True) as again:
        assert lease("first").is_locked() is True
        assert not again.lost
    with lease("second", wait_up_to=1):
        pass


def test_reentry_is_no_right_of_other_threads(once_locks: OnceHarness) -> None:
    """`reentrant=True` in another thread is refused like anybody."""
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with lease("nightly", reentrant=True):
                pass
        except LeaseTimeoutError as error:
            errors.append(error)

    with lease("nightly"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()

    assert len(errors) == 1


def test_reentry_is_no_right_of_other_tasks(once_locks: OnceHarness) -> None:
    """A task that was started in a block has not its lease: neither beside it nor after its end."""

    async def child(ready: asyncio.Event, results: list[str]) -> None:
        try:
            async with lease("nightly", reentrant=True):
                results.append("ran beside it")
        except LeaseTimeoutError:
            results.append("refused")
        await ready.wait()
        async with lease("nightly", reentrant=True):
            results.append("locked" if lease("nightly").is_locked() else "without a lock")

    async def main() -> list[str]:
        ready, results = asyncio.Event(), list[str]()
        async with lease("nightly"):
            task = asyncio.create_task(child(ready, results))
            await _until(lambda: results)
        ready.set()
        await task
        return results

    assert asyncio.run(main()) == ["refused", "locked"]


def test_a_task_may_wait_for_the_one_that_started_it(once_locks: OnceHarness) -> None:
    """Another task waits for its turn, though it was started from within the block."""

    async def main() -> str:
        async def child() -> str:
            async with lease("nightly", wait_up_to=20):
                return "ran"

        async with lease("nightly") as held:
            task = asyncio.create_task(child())
            await _until(lambda: parked(once_locks, held.key) == 1)
        return await task

    assert asyncio.run(main()) == "ran"


def test_a_thread_may_wait_for_the_task_that_started_it(once_locks: OnceHarness) -> None:
    """`asyncio.to_thread` copies the context, and its thread is somebody else all the same."""

    def child() -> str:
        with lease("nightly", wait_up_to=20):
            return "ran"

    async def main() -> str:
        async with lease("nightly") as held:
            task = asyncio.create_task(asyncio.to_thread(child))
            await _until(lambda: parked(once_locks, held.key) == 1)
        return await task

    assert asyncio.run(main()) == "ran"


def test_a_block_object_is_for_one_block_at_a_time(once_locks: OnceHarness) -> None:
    """Entering what is in use is a mistake with an answer; one after the other is none."""
    block = lease("nightly")

    with block, pytest.raises(ConfigurationError, match="anew for each block"), block:
        pass
    with block as held:
        assert not held.lost
    assert block.is_locked() is False


# Contexts


def test_a_block_may_end_in_another_context(once_locks: OnceHarness) -> None:
    """Frameworks that run the two halves of a dependency apart free the lock all the same."""
    block = lease("nightly")

    contextvars.copy_context().run(block.__enter__)
    contextvars.copy_context().run(block.__exit__, None, None, None)

    assert block.is_locked() is False


def test_an_abandoned_asynchronous_generator_frees_its_block(once_locks: OnceHarness) -> None:
    """What a loop finalizes, in a task of its own, frees its lock."""

    async def rows() -> AsyncIterator[int]:
        async with lease("nightly"):
            yield 1
            yield 2

    async def main() -> None:
        async for _ in rows():
            break
        gc.collect()

    asyncio.run(main())

    assert lease("nightly").is_locked() is False


def test_a_cancelled_wait_leaves_the_line(once_locks: OnceHarness) -> None:
    """A task cancelled while it waits stands in nobody's way, and the next one gets its turn."""

    async def wait(results: list[str]) -> None:
        async with lease("nightly", wait_up_to=None):
            results.append("ran")

    async def main() -> list[str]:
        results: list[str] = []
        hold = once_locks.hold(lease("nightly"))
        tasks = []
        for count in (1, 2):
            tasks.append(asyncio.create_task(wait(results)))
            await _until(lambda count=count: parked(once_locks, hold.key) == count)
        tasks[0].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[0]
        hold.end()
        await tasks[1]
        return results

    assert asyncio.run(main()) == ["ran"]


def test_cancelled_in_the_moment_of_its_turn(once_locks: OnceHarness) -> None:
    """A task that is cancelled while it is given the lease does not keep it."""

    async def main() -> None:
        task = asyncio.create_task(wait())
        stop = subscribe(lambda event: event.kind == "started" and task.cancel())
        with pytest.raises(asyncio.CancelledError):
            await task
        stop()

    async def wait() -> None:
        async with lease("nightly"):
            await asyncio.sleep(60)

    asyncio.run(main())
    assert lease("nightly").is_locked() is False
