"""`@once` and `lease()` with processes that die and freeze, and a server that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from _support.lease_processes import LeaseProcess, parked
from _support.waiting import wait_until

from once_core import StoreUnavailableError, lease
from once_core.devserver import DevServer

needs_signals = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL and SIGSTOP")


def run_script(code: str, *args: str, dev: bool = False) -> str:
    """Run code in a process of its own, where every warning counts; what it prints."""
    options = ["-X", "dev", "-W", "error"] if dev else []
    done = subprocess.run(
        [sys.executable, *options, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


# Holders


@needs_signals
def test_a_killed_holder_is_followed_at_once(shared_server: DevServer, unit: str) -> None:
    """A holder killed on this machine is noticed long before its lease is over."""
    with LeaseProcess(shared_server.url, unit, lease=600) as holder:
        fence = int(holder.says())
        holder.signal(signal.SIGKILL)
        holder.end()

        with lease(unit, url=shared_server.url, wait_up_to=30) as held:
            assert held.fence > fence


@needs_signals
def test_a_frozen_holder_loses_its_lease(shared_server: DevServer, unit: str) -> None:
    """A holder that stands still for longer than its lease is followed, sees it, frees nothing."""
    with LeaseProcess(shared_server.url, unit, lease=1) as holder:
        fence = int(holder.says())
        holder.signal(signal.SIGSTOP)

        with lease(unit, url=shared_server.url, wait_up_to=30) as held:
            assert held.fence > fence
            holder.signal(signal.SIGCONT)
            wait_until(lambda: holder.ask("lost") == "True", "the frozen one sees that it lost")
            assert holder.ask("end") == "out"
            assert lease(unit, url=shared_server.url).is_locked()
            assert not held.lost
    assert not lease(unit, url=shared_server.url).is_locked()


@needs_signals
def test_ctrl_c_in_a_block_and_in_the_line(server: DevServer, unit: str) -> None:
    """A real SIGINT frees what is held, and takes who waits out of the line."""
    with LeaseProcess(server.url, unit, lease=600) as holder:
        holder.says()
        with LeaseProcess(server.url, unit, wait_up_to=60) as waiter:
            wait_until(lambda: parked(server.client()) == 1, "one waits")
            waiter.signal(signal.SIGINT)
            assert waiter.says() == "interrupted"
            waiter.end()
        holder.signal(signal.SIGINT)
        assert holder.says() == "interrupted"

        with lease(unit, url=server.url, wait_up_to=10):
            pass


def test_fences_grow_from_process_to_process(shared_server: DevServer, unit: str) -> None:
    """Whoever comes later has the greater fence, in whatever process."""
    fences = []
    for _ in range(3):
        with LeaseProcess(shared_server.url, unit) as holder:
            fences.append(int(holder.says()))
            assert holder.ask("end") == "out"
        with lease(unit, url=shared_server.url, wait_up_to=10) as held:
            fences.append(held.fence)

    assert fences == sorted(set(fences))


_FORK = """
import os, sys, time
from once_core import current_lease, lease, once
url, unit = sys.argv[1:]

def child(work):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    work()
    os._exit(0)

def waits():
    try:
        with lease(unit, url=url, wait_up_to=0.3):
            os._exit(1)
    except TimeoutError:
        pass

def reenters():
    try:
        with lease(unit, url=url, reentrant=True):
            os._exit(1)
    except TimeoutError:
        pass

def has_its_own():
    with lease(unit + "-child", url=url, lease=1) as held:
        time.sleep(2)
        assert not held.lost

@once(key=[], url=url, name=unit + "-function")
def body():
    is_child = os.fork() == 0
    if is_child:
        return "child"
    os.wait()
    return body.is_locked()

with lease(unit, url=url, lease=1) as held:
    assert child(waits), "waits for its parent"
    assert child(reenters), "does not re-enter its parent's block"
    assert child(has_its_own), "renews a lease of its own"
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        assert lease(unit, url=url).is_locked(), "the parent's lease was freed by its child"
        assert not held.lost
if not pid:
    os._exit(0)
assert not lease(unit, url=url).is_locked()
locked = body()
if locked == "child":
    os._exit(0)
assert locked, "the parent's function was freed by its child"
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_has_nothing_of_its_parent_s_lease(
    shared_server: DevServer, unit: str
) -> None:
    """A child that leaves its parent's block frees nothing, and waits like anybody."""
    assert run_script(_FORK, shared_server.url, unit) == "ok"


# Waiters


@needs_signals
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_a_waiter_that_dies_or_freezes_stops_nobody_for_long(
    server: DevServer, unit: str, number: str
) -> None:
    """The first in the line is killed or frozen; the next one is in within seconds."""
    client = server.client()
    with (
        lease(unit, url=server.url, lease=600),
        LeaseProcess(server.url, unit, wait_up_to=60, lease=600) as first,
    ):
        wait_until(lambda: parked(client) == 1, "the first waits")
        second = LeaseProcess(server.url, unit, wait_up_to=60, lease=600)
        wait_until(lambda: parked(client) == 2, "the second waits")
        first.signal(getattr(signal, number))
        if number == "SIGKILL":
            first.end()

        holder = lease(unit, url=server.url)
        holder.release()
        with second:
            assert second.says().isdigit()
            assert second.ask("end") == "out"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_outage_during_a_wait_is_told(server: DevServer, unit: str, kind: str) -> None:
    """A wait whose server dies ends with `StoreUnavailableError`; the line is not left standing."""
    errors: list[BaseException] = []

    async def wait_async() -> None:
        async with lease(unit, url=server.url, wait_up_to=60):
            pass

    def wait() -> None:
        try:
            if kind == "async":
                asyncio.run(wait_async())
            else:
                with lease(unit, url=server.url, wait_up_to=60):
                    pass
        except StoreUnavailableError as error:
            errors.append(error)

    with lease(unit, url=server.url):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: parked(server.client()) == 1, "one waits")
        server.kill()
        thread.join(30)
        server.start()

    assert len(errors) == 1
    wait_until(lambda: _try(unit, server), "it can be taken again")


def _try(unit: str, server: DevServer) -> bool:
    try:
        with lease(unit, url=server.url, wait_up_to=10):
            return True
    except StoreUnavailableError:
        return False  # the breaker is open still


def test_a_lease_survives_a_server_that_comes_back_empty(server: DevServer, unit: str) -> None:
    """Killed and restarted without data, the server hears of the lease again; it was not lost."""
    with lease(unit, url=server.url, lease=3) as held:
        server.kill()
        server.start()
        wait_until(lambda: _keys(server), "the lease is there again")
        assert not held.lost
        assert lease(unit, url=server.url).is_locked()
    wait_until(lambda: not _keys(server), "it is free")


def _keys(server: DevServer) -> list[object]:
    found: list[object] = server.client().keys("once:*")  # type: ignore[assignment]  # sync
    return found


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_permission_to_subscribe_it_polls(server: DevServer, unit: str, kind: str) -> None:
    """An ACL user without channels, the default since Redis 7, waits all the same, and frees."""
    client = server.client()
    client.execute_command(  # type: ignore[no-untyped-call]  # redis-py
        "ACL", "SETUSER", "app", "on", ">pw", "~once:*", "+@all", "resetchannels"
    )
    url = server.url.replace("redis://", "redis://app:pw@")
    order: list[str] = []

    async def wait_async(name: str) -> None:
        async with lease(unit, url=url, wait_up_to=30):
            order.append(name)

    def wait(name: str) -> None:
        if kind == "async":
            asyncio.run(wait_async(name))
        else:
            with lease(unit, url=url, wait_up_to=30):
                order.append(name)

    threads = []
    with lease(unit, url=url, lease=600):
        for count, name in enumerate("abc", 1):
            threads.append(threading.Thread(target=wait, args=(name,)))
            threads[-1].start()
            wait_until(lambda count=count: parked(client) == count, "one more waits")  # type: ignore[misc]  # mypy and defaults
    for thread in threads:
        thread.join()

    assert order == ["a", "b", "c"]
    assert _keys(server) == []


# limit=


@needs_signals
def test_a_crashed_holder_s_slot_frees_under_constant_traffic(
    shared_server: DevServer, unit: str
) -> None:
    """Of three slots one is held by a process that froze: others get it, and never four are in."""
    inside: list[object] = []
    most: list[int] = []
    is_over = threading.Event()

    def traffic() -> None:
        while not is_over.is_set():
            with lease(unit, url=shared_server.url, limit=3, lease=2, wait_up_to=30) as held:
                inside.append(held)
                most.append(len(inside))
                is_over.wait(0.02)  # what it does takes a while
                inside.remove(held)

    with LeaseProcess(shared_server.url, unit, limit=3, lease=2, wait_up_to=30) as holder:
        holder.says()
        threads = [threading.Thread(target=traffic) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(most) > 20, "there is traffic")
            assert max(most) == 2
            holder.signal(signal.SIGSTOP)
            wait_until(lambda: max(most) == 3, "the third slot is used again", within=30)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

    assert max(most) == 3


# Loops that end


_RUNS = """
import asyncio, gc, os, sys
from once_core import lease, once
url = sys.argv[1]

@once(url=url, key=[])
async def check():
    return await check.is_locked()

async def block():
    async with lease("block", url=url, wait_up_to=5):
        return True

async def both():
    waiting = asyncio.create_task(block())
    async with lease("block", url=url, wait_up_to=5):
        pass
    return await waiting and await check()

assert asyncio.run(both())
gc.collect()
before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
for _ in range(10):
    assert asyncio.run(both())
gc.collect()
after = len(os.listdir("/proc/self/fd")) if before else 0
assert after <= before, f"{before} files were open, then {after}"
print("ok")
"""


def test_many_loops_one_after_the_other_leave_nothing_open(shared_server: DevServer) -> None:
    """`asyncio.run` again and again: no ResourceWarning, no socket left, locks work in each."""
    assert run_script(_RUNS, shared_server.url, dev=True) == "ok"


_GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from once_core import lease, once
url, unit = sys.argv[1:]
order, ticks = [], []

def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.01)

def wait(number):
    with lease(unit, url=url, wait_up_to=30, lease=1):
        order.append(number)
        gevent.sleep(0.01)

@once(url=url, key=[], name=unit + "-function", return_on_locked="busy")
def check():
    gevent.sleep(0.2)
    return "ran"

ticker = gevent.spawn(tick)
with lease(unit, url=url, lease=1) as held:
    waiters = []
    for number in range(10):
        waiters.append(gevent.spawn(wait, number))
        gevent.sleep(0.05)
    calls = [gevent.spawn(check) for _ in range(3)]
    gevent.joinall(calls)
    gevent.sleep(2)
    assert not held.lost
gevent.joinall(waiters, raise_error=True)
ticker.kill()
assert order == list(range(10)), order
assert sorted(each.value for each in calls) == ["busy", "busy", "ran"], [c.value for c in calls]
assert len(ticks) > 50, "the hub was blocked"
print("ok")
"""


def test_greenlets_wait_in_line(shared_server: DevServer, unit: str) -> None:
    """Under gevent greenlets wait without blocking the hub, and leases are renewed."""
    pytest.importorskip("gevent", reason="needs gevent: pip install gevent")

    assert run_script(_GEVENT, shared_server.url, unit) == "ok"
