"""`min_replicas=`: a claim or a lease counts only once replicas have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from _support.clusters import cut_off, replication
from _support.waiting import wait_until
from celery import Celery
from dramatiq.brokers.stub import StubBroker

import once_celery
import once_dramatiq
from once_celery import OnceTask
from once_core import Guard, OnceOptions, StoreUnavailableError, lease, once, protocol
from once_core._heartbeat import heartbeat
from once_core.aio import AsyncStore
from once_core.attempt import Attempt
from once_core.devserver import DevServer
from once_core.protocol import Message
from once_core.store import Store
from once_dramatiq import OnceMiddleware

DIGEST = "0" * 40


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[DevServer, DevServer]]:
    """A lock store and its replica."""
    with (
        DevServer(arguments=("--repl-diskless-sync-delay", "0")) as primary,
        DevServer(arguments=("--replicaof", "127.0.0.1", str(primary.port))) as replica,
    ):
        is_up = "master_link_status"
        wait_until(lambda: replication(replica).get(is_up) == "up", "the replica is in step")
        yield primary, replica


@pytest.fixture
def url(pair: tuple[DevServer, DevServer]) -> str:
    """Of the lock store, whose replica is in step."""
    primary, _ = pair
    wait_until(lambda: primary.client().execute_command("WAIT", 1, 1000) == 1, "it is in step")
    return primary.url


@pytest.fixture
def alone(pair: tuple[DevServer, DevServer], url: str) -> Iterator[str]:
    """The same, but nothing reaches the replica."""
    primary, replica = pair
    with cut_off(primary, [replica]):
        yield url


@pytest.fixture
def key(unit: str) -> str:
    """Of a unit of work."""
    return f"once:{unit}:{DIGEST}"


def claimed(key: str, message_id: str = "m1", replicas: int = 1) -> protocol.Step[protocol.Claim]:
    """The claim of a message that a replica has to have."""
    return protocol.claim(key, message_id, ttl=60, heal_after=60, replicas=replicas)


def started(key: str, message: Message) -> protocol.Step[protocol.Start]:
    """Its start."""
    return protocol.start(
        key, message, "a1", where="host:1:boot", lease=60, ttl=60, heal_after=60, replicas=1
    )


async def _async(url: str, step: protocol.Step[Any]) -> Any:
    store = AsyncStore(url)
    try:
        return await store.run(step)
    finally:
        await store.close()


RUNS: dict[str, Callable[[str, protocol.Step[Any]], Any]] = {
    "sync": lambda url, step: Store(url).run(step),
    "many": lambda url, step: _only(Store(url).run_many([step])),
    "async": lambda url, step: asyncio.run(_async(url, step)),
    "client": lambda url, step: Store(redis.Redis.from_url(url)).run(step),
}


def _only(answers: list[Any]) -> Any:
    [answer] = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.mark.parametrize("way", RUNS)
def test_the_replica_has_what_was_claimed(
    pair: tuple[DevServer, DevServer], url: str, key: str, way: str
) -> None:
    """When the call returns, and also where the server had forgotten its scripts."""
    primary, replica = pair
    primary.client().script_flush()

    assert RUNS[way](url, claimed(key)).status == "claimed"

    assert replica.client().hget(key, "wi") == b"m1"
    assert RUNS[way](url, claimed(key, "m2")).status == "waiting"
    assert RUNS[way](url, started(key, Message("m1"))).status == "started"
    assert replica.client().hget(key, "x0i") == b"m1"


@pytest.mark.parametrize("way", RUNS)
def test_a_claim_that_no_replica_has_counts_as_failed(alone: str, key: str, way: str) -> None:
    """The error says how many have it, and what to do."""
    why = "0 of min_replicas=1 replicas have it; see to the replicas"

    with pytest.raises(StoreUnavailableError, match=why):
        RUNS[way](alone, claimed(key))


def test_more_replicas_than_there_are(url: str, key: str) -> None:
    """One has it, two were asked for."""
    with pytest.raises(StoreUnavailableError, match="1 of min_replicas=2 replicas have it"):
        Store(url).run(claimed(key, replicas=2))


def test_other_tasks_of_the_same_store_go_on(alone: str, key: str) -> None:
    """Replicas that are away close no store for those that do not ask for them."""
    store = Store(alone)
    for number in range(4):
        with pytest.raises(StoreUnavailableError):
            store.run(claimed(f"{key}-{number}"))

        assert store.run(claimed(f"{key}-{number}-free", replicas=0)).status == "claimed"


def test_of_many_only_those_that_ask_for_replicas_fail(alone: str, key: str) -> None:
    """A batch waits once; who did not ask has its answer."""
    asked = [claimed(f"{key}-{number}", replicas=number % 2) for number in range(4)]

    answers = Store(alone).run_many(asked)

    assert [isinstance(each, StoreUnavailableError) for each in answers] == [False, True] * 2


def test_fakeredis_has_no_replicas_to_wait_for(key: str) -> None:
    """Programs and tests on `memory://` run with the options of production."""
    assert Store(f"memory://{key}").run(claimed(key)).status == "claimed"
    assert asyncio.run(_async(f"memory://{key}", claimed(key, "m2"))).status == "waiting"


@pytest.mark.parametrize("framework", ["celery", "dramatiq"])
def test_a_publish_that_may_be_lost_raises_and_the_next_one_is_sent(
    pair: tuple[DevServer, DevServer], url: str, unit: str, framework: str
) -> None:
    """Not refused for a minute by what the first one has left in the record."""
    send, errors = _task(framework, url, unit)
    primary, replica = pair
    with cut_off(primary, [replica]), pytest.raises(errors):
        send(unit)
    wait_until(lambda: primary.client().execute_command("WAIT", 1, 1000) == 1, "it is in step")

    told = _told(framework, send(unit))

    assert not told.is_duplicate
    assert _told(framework, send(unit)).state == "waiting"


def test_another_process_is_not_refused_by_a_claim_that_failed(
    pair: tuple[DevServer, DevServer], url: str, unit: str
) -> None:
    """Nobody sends the message of that claim, so nobody may wait for it."""
    primary, replica = pair
    send, errors = _task("celery", url, unit)
    with cut_off(primary, [replica]):
        with pytest.raises(errors):
            send(unit)
        record = primary.client().keys(f"*{unit}*")

    assert record == []


def test_replicas_that_are_away_cost_time_three_times(alone: str, key: str) -> None:
    """Then calls are refused at once for a second; those that need no replicas never are."""
    store = Store(alone)
    told = []
    for number in range(5):
        with pytest.raises(StoreUnavailableError) as caught:
            store.run(claimed(f"{key}-{number}"))
        told.append("not asked again for a second" in str(caught.value))

    assert told == [False] * 3 + [True] * 2
    assert store.run(claimed(f"{key}-free", replicas=0)).status == "claimed"


def test_short_time_outs_of_a_client_are_no_outage(alone: str, key: str) -> None:
    """The replicas are waited for half as long."""
    store = Store(f"{alone}?socket_timeout=0.2")

    with pytest.raises(StoreUnavailableError, match="0 of min_replicas=1 replicas have it"):
        store.run(claimed(key))


def test_a_message_whose_start_failed_waits_as_before(
    pair: tuple[DevServer, DevServer], url: str, unit: str
) -> None:
    """A worker asks for replicas, its producer does not: no pile while they are away."""
    primary, replica = pair
    guard = Guard(unit, _work, OnceOptions(min_replicas=1), lambda: store)
    store = Store(url)
    record = guard.key((unit,), {})
    ticket = store.run(claimed(record, replicas=0)).ticket
    with cut_off(primary, [replica]):
        with pytest.raises(StoreUnavailableError):
            Attempt(guard, record, Message("m1", ticket)).start()
        heartbeat().beat()

        assert store.run(claimed(record, "m2", replicas=0)).status == "waiting"


def _task(framework: str, url: str, unit: str) -> tuple[Callable[..., Any], type[Exception]]:
    settings: dict[str, Any] = {"url": url, "min_replicas": 1, "name": unit}
    if framework == "celery":
        app = Celery("shop", broker="memory://", set_as_current=False)
        task = app.task(base=OnceTask, once=settings, name=unit, shared=False)(_work)
        return task.delay, once_celery.StoreUnavailableError
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware())
    actor = dramatiq.actor(actor_name=unit, broker=broker, once=settings)(_work)
    return actor.send, once_dramatiq.StoreUnavailableError


def _work(order: object) -> None:
    """Of a task, which nobody runs here."""


def _told(framework: str, sent: Any) -> Any:
    return sent.once if framework == "celery" else once_dramatiq.published(sent)


def test_many_calls_that_may_be_lost(alone: str, unit: str) -> None:
    """None is sent, and the program may call them again."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    settings: Any = {"url": alone, "min_replicas": 1}
    task: Any = app.task(base=OnceTask, once=settings, name=unit, shared=False)(_work)

    with pytest.raises(once_celery.StoreUnavailableError, match="0 of min_replicas=1"):
        task.delay_many([((number,), {}) for number in range(3)])


def test_on_store_error_run_goes_on_without_the_claim(alone: str, unit: str) -> None:
    """As with any other lock store that is away."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    settings: Any = {"url": alone, "min_replicas": 1, "on_store_error": "run"}
    task: Any = app.task(base=OnceTask, once=settings, name=unit, shared=False)(_work)

    assert task.delay(1).once.state == "unguarded"


def test_a_body_does_not_begin_on_a_lease_that_may_be_lost(
    pair: tuple[DevServer, DevServer], url: str, unit: str
) -> None:
    """Nor is its unit held for a minute by the lease that was not taken."""
    primary, replica = pair
    ran: list[str] = []

    @once(name=unit, url=url, min_replicas=1)
    def body(by: str) -> None:
        ran.append(by)

    with cut_off(primary, [replica]), pytest.raises(StoreUnavailableError):
        body(unit)
    with (
        cut_off(primary, [replica]),
        pytest.raises(StoreUnavailableError),
        lease(unit, url=url, min_replicas=1),
    ):
        ran.append("lease")
    assert ran == []
    heartbeat().beat()
    wait_until(lambda: not primary.client().keys(f"*{unit}*"), "nothing of it is left")

    body(unit)

    assert ran == [unit]
