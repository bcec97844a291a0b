from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from once_core import protocol, publish
from once_core.aio import AsyncStore
from once_core.devserver import DevServer
from once_core.guard import Guard
from once_core.options import OnceOptions
from once_core.protocol import Message
from once_core.store import Store
from once_pytest import OnceFaults, OnceHarness, assert_no_locks, assert_task_locked

LIFE = {"ttl": 60.0, "heal_after": 60.0}
START = {**LIFE, "where": "h:1:n", "lease": 60.0}


@pytest.fixture
def store(once_locks: OnceHarness) -> Store:
    """The lock store of the test, for single steps."""
    return once_locks.store


@pytest.fixture
def guard(guarded: Callable[..., Guard]) -> Guard:
    """A task with the options that are built in."""
    return guarded()


@pytest.fixture
def key(guard: Guard) -> str:
    """The key of a call with 1."""
    return guard.key((1,), {})


def test_a_retry_whose_end_is_told_twice_leaves_no_phantom(
    store: Store, guard: Guard, key: str
) -> None:
    """The first telling was heard and the retry has run: the second adds nothing that waits."""
    ticket = store.run(protocol.claim(key, "m", **LIFE)).ticket
    host, retry = Message("m", ticket), Message("m", ticket, 1)
    store.run(protocol.start(key, host, "a1", **START))
    store.run(protocol.finish(key, host, "a1", "retry", **LIFE))
    store.run(protocol.start(key, retry, "a2", **START))

    again = store.run(protocol.finish(key, host, "a1", "retry", again=True, **LIFE))

    assert again.status == "lost"
    store.run(protocol.finish(key, retry, "a2", "success", **LIFE))
    assert_no_locks()
    assert store.run(protocol.claim(key, "next", **LIFE)).status == "claimed"
    assert_task_locked(guard, 1, state="waiting", holder="next")


def test_a_retry_whose_end_was_not_heard_waits_after_the_second_telling(
    store: Store, guard: Guard, key: str
) -> None:
    """Nobody heard the first telling: the second is the one that counts."""
    ticket = store.run(protocol.claim(key, "m", **LIFE)).ticket
    store.run(protocol.start(key, Message("m", ticket), "a1", **START))

    store.run(protocol.finish(key, Message("m", ticket), "a1", "retry", again=True, **LIFE))

    assert store.run(protocol.claim(key, "next", **LIFE)).status == "waiting"
    assert_task_locked(guard, 1, state="waiting", holder="m")


def test_an_end_told_again_leaves_the_mark_that_is_due(store: Store, key: str) -> None:
    """A copy met the run: after the outage its late delivery is known as repeated."""
    message = Message("m", store.run(protocol.claim(key, "m", **LIFE)).ticket)
    store.run(protocol.start(key, message, "a1", **START))
    store.run(protocol.start(key, message, "a2", **START))

    ended = store.run(protocol.finish(key, message, "a1", "success", again=True, **LIFE))

    assert ended.status == "finished"
    assert store.run(protocol.start(key, message, "a3", **START)).status == "repeated"


def test_a_retry_of_other_work_is_sent_while_the_store_is_away(
    guard: Guard, once_faults: OnceFaults
) -> None:
    """Celery would lose it: a retry that cannot be published ends as a failure."""
    once_faults.outage()

    told = publish.claim(guard, (1,), {}, "m", retries=1).publish

    assert (told.state, told.is_duplicate) == ("unguarded", False)


@pytest.mark.parametrize("option", [{"window": 30}, {"keep_for": 30}, {"on_overlap": "skip"}])
def test_an_option_of_the_app_does_not_act_where_it_cannot_apply(
    option: dict[str, object],
) -> None:
    """A window set for the app refuses nothing of tasks whose scope is another."""
    scope = "queued+running" if "window" in option else "queued"
    if "keep_for" in option:
        scope = "running"
    (name,) = option

    options = OnceOptions.layered(option, {"scope": scope}, "t")

    assert getattr(options, name) == getattr(OnceOptions(), name)


def test_two_event_loops_share_one_async_store() -> None:
    """Each loop has a client of its own: neither waits on the other's sockets."""
    counts = []

    async def claims(store: AsyncStore, name: str) -> None:
        for number in range(50):
            await store.run(protocol.claim(f"{name}-{number}", "m", **LIFE))
        counts.append(number + 1)
        await store.close()

    with DevServer() as server:
        store = AsyncStore(server.url)
        threads = [
            threading.Thread(target=lambda n=n: asyncio.run(claims(store, n)), daemon=True)
            for n in "ab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert counts == [50, 50]
