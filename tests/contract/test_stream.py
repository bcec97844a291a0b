"""The stream of events: on fakeredis and on a real server alike."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from _support.waiting import wait_until

from once_core import Guard, OnceOptions, Store, protocol, stream
from once_core._host import whereabouts
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.events import emit


@pytest.fixture
def store(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A lock store, in a process of which no events are kept yet."""
    monkeypatch.setattr(stream, "_streams", {})
    monkeypatch.setattr(stream, "_process", {})
    return Store(client)


@pytest.fixture
def prefix(unit: str, client: redis.Redis) -> Iterator[str]:
    """First part of this test's keys."""
    yield unit
    client.delete(f"{unit}:events")


def keeping(store: Store, prefix: str, task: str = "shop.sync", events: int = 1000) -> Guard:
    """A guard of a task whose events are kept."""
    options = OnceOptions(events=events, prefix=prefix)
    guard = Guard(task, lambda order_id: None, options, lambda: store)
    assert guard.store is store
    return guard


def kinds(store: Store, prefix: str) -> list[str]:
    """Of the events that can be read."""
    return [entry.event.kind for entry in stream.read(store, prefix)]


def test_what_was_decided_can_be_read(store: Store, prefix: str) -> None:
    """Each event with all that it says, and which process told it; oldest first."""
    keeping(store, prefix)

    emit("claimed", task="shop.sync", key="k", message_id="m1")
    emit("finished", task="shop.sync", key="k", message_id="m1", ran=1.5, fence=7)

    wait_until(lambda: len(stream.read(store, prefix)) == 2, "both are written")
    first, second = stream.read(store, prefix)
    assert (first.event.kind, first.event.message_id) == ("claimed", "m1")
    assert (second.event.ran, second.event.fence) == (1.5, 7)
    assert second.event.at >= first.event.at > 0
    assert first.where == whereabouts()
    assert first.id < second.id


def test_it_is_off_unless_asked_for(store: Store, prefix: str, client: redis.Redis) -> None:
    """No key, no thread."""
    guard = Guard("shop.sync", lambda: None, OnceOptions(prefix=prefix), lambda: store)
    assert guard.store is store

    emit("claimed", task="shop.sync")

    assert not client.exists(f"{prefix}:events")
    assert stream.read(store, prefix) == []


def test_events_of_other_tasks_are_not_kept(store: Store, prefix: str) -> None:
    """Each task says for itself."""
    keeping(store, prefix)

    emit("claimed", task="shop.other")
    emit("claimed", task="shop.sync")

    wait_until(lambda: kinds(store, prefix), "one is written")
    assert [entry.event.task for entry in stream.read(store, prefix)] == ["shop.sync"]


def test_what_concerns_all_tasks_is_kept_once(store: Store, prefix: str) -> None:
    """An outage of the store is told where somebody looks afterwards."""
    keeping(store, prefix)
    keeping(store, prefix, "shop.other")

    emit("store_recovered", reason="it answers again")

    wait_until(lambda: kinds(store, prefix), "it is written")
    assert kinds(store, prefix) == ["store_recovered"]


def test_renewals_are_not_told(store: Store, prefix: str) -> None:
    """They come all day, and would push everything else out."""
    keeping(store, prefix)

    emit("renewed", task="shop.sync")
    emit("claimed", task="shop.sync")

    wait_until(lambda: kinds(store, prefix), "one is written")
    assert kinds(store, prefix) == ["claimed"]


def test_it_is_capped_and_ends(store: Store, prefix: str, client: redis.Redis) -> None:
    """It keeps the newest, about as many as asked for, and is gone when nobody tells any more."""
    keeping(store, prefix, events=200)

    for number in range(2000):
        emit("claimed", task="shop.sync", message_id=str(number))

    def newest() -> str:
        found = stream.read(store, prefix, count=1)
        return found[0].event.message_id if found else ""

    wait_until(lambda: newest() == "1999", "the last one is written")
    assert 200 <= client.xlen(f"{prefix}:events") < 400
    assert 0 < client.ttl(f"{prefix}:events") <= stream.LIFE


def test_a_reader_goes_on_where_it_was(store: Store, prefix: str) -> None:
    """And may wait a moment for what comes."""
    keeping(store, prefix)
    emit("claimed", task="shop.sync")
    (first,) = wait_until(lambda: stream.read(store, prefix), "one is written")

    assert stream.read(store, prefix, after=first.id) == []
    assert stream.read(store, prefix, after=first.id, wait=0.05) == []
    emit("started", task="shop.sync")
    (second,) = wait_until(lambda: stream.read(store, prefix, after=first.id, wait=0.4), "the next")
    assert second.event.kind == "started"
    assert [entry.id for entry in stream.read(store, prefix, count=1)] == [second.id]


def test_what_a_newer_version_says_besides_is_left_out(
    store: Store, prefix: str, client: redis.Redis
) -> None:
    """A dashboard may be older than the workers."""
    told = {"kind": "claimed", "task": "shop.sync", "mood": "fine"}
    client.xadd(f"{prefix}:events", {"e": json.dumps(told), "b": "host:1:", "x": "y"})

    (entry,) = stream.read(store, prefix)
    assert (entry.event.kind, entry.where) == ("claimed", "host:1:")


@pytest.mark.parametrize(
    "content", ["[1]", "no json", '{"kind": "a", "at": "soon"}', '{"task": 5}']
)
def test_an_entry_that_is_none_of_ours(
    store: Store, prefix: str, client: redis.Redis, content: str
) -> None:
    """It is shown as that, and the rest is read."""
    client.xadd(f"{prefix}:events", {"e": content})
    client.xadd(f"{prefix}:events", {"e": '{"kind": "claimed"}'})

    assert kinds(store, prefix) == ["unreadable", "claimed"]


def test_an_id_that_is_no_text(store: Store, prefix: str) -> None:
    """Celery takes a UUID as a task_id; nothing was ever written again after one."""
    keeping(store, prefix)
    message_id: Any = uuid.UUID(int=7)

    emit("claimed", task="shop.sync", message_id=message_id)
    emit("started", task="shop.sync", message_id="m1")

    wait_until(lambda: len(kinds(store, prefix)) == 2, "both are written")
    assert stream.read(store, prefix)[0].event.message_id == str(message_id)


def test_a_process_that_ends_writes_what_it_knows(store: Store, prefix: str) -> None:
    """A script that calls `delay()` and ends is seen, too."""
    keeping(store, prefix)
    emit("claimed", task="shop.sync")

    stream._writer(store).flush()

    assert kinds(store, prefix) == ["claimed"]


def test_arguments_are_not_in_it(store: Store, prefix: str, client: redis.Redis) -> None:
    """Only what ``preview=`` names."""
    guard = keeping(store, prefix)
    key = guard.key(("hunter2",), {})
    store.run(protocol.claim(key, "m1", ttl=60, heal_after=60))
    guard.release(("hunter2",), {})

    wait_until(lambda: kinds(store, prefix), "the release is written")
    assert b"hunter2" not in b"".join(client.xrange(f"{prefix}:events")[0][1].values())
    client.delete(key)


# A store that does not answer


@pytest.fixture
def own(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on a server of the test's own."""
    monkeypatch.setattr(stream, "_streams", {})
    monkeypatch.setattr(stream, "_process", {})
    return Store(server.url)


def test_what_was_told_during_an_outage_comes_afterwards(
    own: Store, server: DevServer, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage is what people want to read about."""
    monkeypatch.setattr(stream, "PAUSE", 0.05)
    keeping(own, unit)
    emit("claimed", task="shop.sync")
    wait_until(lambda: kinds(own, unit), "one is written")

    server.kill()
    emit("started", task="shop.sync")
    wait_until(lambda: stream._writer(own)._batch, "one could not be written")
    server.restart(empty=True)
    emit("finished", task="shop.sync")

    wait_until(lambda: len(stream.read(own, unit)) == 2, "they are written")
    assert kinds(own, unit) == ["started", "finished"]


def test_memory_is_bounded_while_nothing_can_be_written(
    own: Store, server: DevServer, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first, and it is said how many."""
    monkeypatch.setattr(stream, "MOST_WAITING", 100)
    monkeypatch.setattr(stream, "BATCH", 10)
    keeping(own, unit)
    server.pause()
    for number in range(1000):
        emit("claimed", task="shop.sync", message_id=str(number))
    assert len(stream._writer(own)._waiting) <= 100
    server.resume()

    def newest() -> str:
        found = stream.read(own, unit, count=1)
        return found[0].event.message_id if found else ""

    wait_until(lambda: newest() == "999", "they are written")
    first = stream.read(own, unit, count=1000)[0].event
    assert first.kind == "dropped"
    assert first.reason.endswith("events of this process were not written: the lock store was slow")


def test_one_store_that_is_away_keeps_no_other_from_its_events(
    own: Store, server: DevServer, shared_server: DevServer, unit: str
) -> None:
    """Each store has a writer of its own."""
    other = Store(shared_server.url)
    keeping(own, unit)
    keeping(other, unit, "shop.other")
    server.kill()

    emit("claimed", task="shop.sync")
    emit("claimed", task="shop.other")

    wait_until(lambda: kinds(other, unit), "the other store has its event")


def test_a_user_that_may_not_expire_writes_each_event_once(
    own: Store, server: DevServer, unit: str
) -> None:
    """It is the end of the stream that is refused, not the event."""
    server.client().execute_command(
        "ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-expire"
    )
    poor = Store(server.url.replace("redis://", "redis://poor:pw@"))
    keeping(poor, unit)

    emit("claimed", task="shop.sync")
    wait_until(lambda: kinds(own, unit), "it is written")
    emit("started", task="shop.sync")
    wait_until(lambda: "started" in kinds(own, unit), "so is the next one")

    assert kinds(own, unit) == ["claimed", "started"]


def test_a_reader_is_told_when_the_store_is_away(own: Store, server: DevServer, unit: str) -> None:
    """With the errors of this library, as everywhere."""
    server.kill()

    with pytest.raises(StoreUnavailableError, match=r"events at redis://.* cannot be read"):
        stream.read(own, unit)


def test_a_forked_child_writes_its_own(own: Store, unit: str) -> None:
    """As children of a prefork worker do."""
    keeping(own, unit)
    emit("claimed", task="shop.sync")
    wait_until(lambda: kinds(own, unit) == ["claimed"], "the parent's is written")

    pid = os.fork()
    if not pid:
        try:
            emit("started", task="shop.sync")
            wait_until(lambda: "started" in kinds(own, unit), "the child's is written")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    assert kinds(own, unit) == ["claimed", "started"]
    assert len({entry.where for entry in stream.read(own, unit)}) == 2


def test_an_end_in_the_middle_of_a_write_tells_nothing_twice(
    own: Store, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread and `flush` take turns."""
    monkeypatch.setattr(stream, "BATCH_AFTER", 0.0)
    keeping(own, unit, events=100_000)
    for number in range(5000):
        emit("claimed", task="shop.sync", message_id=str(number))
        if number % 50 == 0:
            stream.flush()
    stream.flush()

    told = [entry.event.message_id for entry in stream.read(own, unit, count=100_000)]
    assert told == [str(number) for number in range(5000)]
