"""The line of those who wait: first come first served, woken and not polling, sync and async."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from typing import Any

import pytest
from _support.lease_processes import LeaseProcess, parked
from _support.waiting import wait_until

from once_core import LeaseTimeoutError, lease, once
from once_core.devserver import DevServer

Order = list[str]


class Line:
    """Threads, each of which waits for one lease; they come one after the other.

    Args:
        server: Whose.
        name: Of the lease.
    """

    def __init__(self, server: DevServer, name: str) -> None:
        self.order: Order = []
        self._server = server
        self._name = name
        self._threads: list[threading.Thread] = []

    def join(self, name: str, *, is_async: bool = False) -> None:
        """One more comes, and waits."""

        async def wait_async() -> None:
            async with lease(self._name, url=self._server.url, wait_up_to=60):
                self.order.append(name)

        def wait() -> None:
            if is_async:
                asyncio.run(wait_async())
                return
            with lease(self._name, url=self._server.url, wait_up_to=60):
                self.order.append(name)

        self._threads.append(threading.Thread(target=wait))
        self._threads[-1].start()
        count = len(self._threads)
        wait_until(lambda: parked(self._server.client()) == count, f"{count} wait")

    def end(self) -> None:
        """Wait for the end of all."""
        for thread in self._threads:
            thread.join(60)


@pytest.mark.parametrize("kind", ["sync", "async", "mixed"])
def test_twenty_have_their_turns_in_the_order_in_which_they_came(
    server: DevServer, unit: str, kind: str
) -> None:
    """Threads and event loops stand in one line, first come first served."""
    line = Line(server, unit)
    names = [f"w{number}" for number in range(20)]

    with lease(unit, url=server.url):
        for number, name in enumerate(names):
            line.join(name, is_async=kind == "async" or (kind == "mixed" and number % 2 == 1))
    line.end()

    assert line.order == names
    assert server.client().keys("once:*") == []


def test_many_tasks_of_one_loop_wait_beside_each_other(server: DevServer, unit: str) -> None:
    """More tasks of one loop wait than connections listen for them, and each has its turn."""
    order: list[int] = []

    async def wait(number: int) -> None:
        async with lease(unit, url=server.url, wait_up_to=60):
            order.append(number)

    async def main() -> None:
        async with lease(unit, url=server.url):
            tasks = [asyncio.create_task(wait(number)) for number in range(72)]
            await asyncio.to_thread(
                wait_until, lambda: parked(server.client()) == 72, "all of them wait"
            )
        await asyncio.gather(*tasks)

    asyncio.run(main())

    assert sorted(order) == list(range(72))


def test_nobody_starves_who_comes_again_and_again(server: DevServer, unit: str) -> None:
    """Of twenty that come back at once when they have ended, none gets far behind the others."""
    turns: Counter[int] = Counter()
    ahead: list[int] = []
    has_all = threading.Barrier(20)

    def come(number: int) -> None:
        has_all.wait()
        for _ in range(5):
            with lease(unit, url=server.url, wait_up_to=60):
                turns[number] += 1
                if len(turns) == 20:
                    ahead.append(turns[number] - min(turns.values()))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert set(turns.values()) == {5}
    # whoever comes back has to take a place behind the nineteen others; a thread that the machine
    # lets run late comes late
    assert max(ahead) <= 3


def test_who_comes_later_without_waiting_does_not_push_in(server: DevServer, unit: str) -> None:
    """Tries without a wait, however many, never take the turn of somebody who waits."""
    line = Line(server, unit)
    pushed: list[str] = []
    is_over = threading.Event()

    def push() -> None:
        while not is_over.is_set():
            with (
                contextlib.suppress(LeaseTimeoutError),
                lease(unit, url=server.url),
            ):
                if len(line.order) < 5:
                    pushed.append(f"while {line.order} had been in")

    with lease(unit, url=server.url):
        for number in range(5):
            line.join(str(number))
        threads = [threading.Thread(target=push) for _ in range(3)]
        for thread in threads:
            thread.start()
    line.end()
    is_over.set()
    for thread in threads:
        thread.join()

    assert line.order == list("01234")
    assert pushed == []


def test_who_waits_is_woken_and_does_not_poll(server: DevServer, unit: str) -> None:
    """A wait of seconds costs a few commands, and is over when the lease is free."""
    client = server.client()
    line = Line(server, unit)

    def steps() -> int:
        found: Any = client.info("commandstats")
        return sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))

    with lease(unit, url=server.url):
        line.join("waits")
        before, since = steps(), client.time()[0]
        wait_until(lambda: client.time()[0] >= since + 4, "four seconds", within=20)
        asked = steps() - before
    line.end()

    assert asked <= 8  # one in two seconds; polling would be dozens
    assert line.order == ["waits"]


def test_what_waits_leaves_one_key_with_an_end(server: DevServer, unit: str) -> None:
    """The line is in the record itself, which ends by itself; waking needs no key at all."""
    line = Line(server, unit)
    client = server.client()

    with lease(unit, url=server.url):
        line.join("waits")
        keys = client.keys("*")
        assert len(keys) == 1  # type: ignore[arg-type]  # sync
        assert client.pttl(keys[0]) > 0  # type: ignore[index,operator]  # sync
    line.end()

    assert client.keys("*") == []


def test_a_cancelled_waiter_lets_the_next_one_in(server: DevServer, unit: str) -> None:
    """The first that waits is cancelled, the second runs out of time: the third has its turn."""
    order: list[str] = []

    async def wait(name: str) -> None:
        async with lease(unit, url=server.url, wait_up_to=60):
            order.append(name)

    async def wait_until_parked(count: int) -> None:
        await asyncio.to_thread(
            wait_until, lambda: parked(server.client()) == count, f"{count} wait"
        )

    async def main() -> None:
        async with lease(unit, url=server.url):
            first = asyncio.create_task(wait("first"))
            await wait_until_parked(1)
            second = asyncio.create_task(asyncio.wait_for(wait("second"), 1))
            await wait_until_parked(2)
            third = asyncio.create_task(wait("third"))
            await wait_until_parked(3)
            first.cancel()
            results = await asyncio.gather(first, second, return_exceptions=True)
        await third
        assert isinstance(results[0], asyncio.CancelledError)
        assert isinstance(results[1], TimeoutError | asyncio.TimeoutError)

    asyncio.run(main())

    assert order == ["third"]


def test_cancelling_at_any_moment_leaves_no_lock(server: DevServer, unit: str) -> None:
    """Cancelled after any number of the loop's turns, a task leaves neither a lock nor a place."""

    async def block() -> None:
        async with lease(unit, url=server.url, wait_up_to=60):
            pass

    async def main() -> None:
        for turns in range(0, 40, 3):
            task = asyncio.create_task(block())
            other = asyncio.create_task(block())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await other

    asyncio.run(main())

    wait_until(lambda: server.client().keys("once:*") == [], "nothing is left", within=10)


@pytest.mark.parametrize("is_async", [False, True])
def test_functions_stand_in_the_same_line(server: DevServer, unit: str, is_async: bool) -> None:
    """With `on_overlap="wait"` calls of a function have their turns in order."""
    order: list[int] = []
    is_free = threading.Event()

    def work(number: int) -> None:
        order.append(number)
        if not number:
            is_free.wait(30)

    options: dict[str, Any] = {"key": [], "name": unit, "on_overlap": "wait", "url": server.url}

    @once(**options)
    def check(number: int) -> None:
        work(number)

    @once(**options)
    async def check_later(number: int) -> None:
        await asyncio.to_thread(work, number)

    def call(number: int) -> None:
        if is_async and number % 2:
            asyncio.run(check_later(number))
        else:
            check(number)

    threads = []
    for number in range(6):
        threads.append(threading.Thread(target=call, args=(number,)))
        threads[-1].start()
        wait_until(lambda count=number: _are_there(server, count), "one more is there")  # type: ignore[misc]  # mypy and defaults
    is_free.set()
    for thread in threads:
        thread.join(30)

    assert order == list(range(6))


def _are_there(server: DevServer, waiting: int) -> bool:
    client = server.client()
    keys: Any = client.keys("once:*")
    if not keys:
        return False
    fields: Any = client.hkeys(keys[0])
    return sum(name.startswith(b"p") and name.endswith(b"a") for name in fields) == waiting


def test_processes_threads_and_tasks_stand_in_one_line(server: DevServer, unit: str) -> None:
    """Whoever waits in another process has its place among all others."""
    line = Line(server, unit)
    with LeaseProcess(server.url, unit) as holder:
        holder.says()
        line.join("thread")
        with LeaseProcess(server.url, unit, wait_up_to=60) as other:
            wait_until(lambda: parked(server.client()) == 2, "the other process waits")

            holder.ask("end")
            assert int(other.says())
            assert line.order == ["thread"]
            other.ask("end")
    line.end()
