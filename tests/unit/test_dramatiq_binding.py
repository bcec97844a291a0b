"""Dramatiq's brokers and actors in our words: options, stores, refusals, handles."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import BrokerError
from dramatiq.middleware import MiddlewareError
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

import once_core
import once_dramatiq
from once_core import errors
from once_core._client import CONNECT_TIMEOUT, READ_TIMEOUT
from once_core.devserver import DevServer
from once_dramatiq import OnceMiddleware, OnceOptions, holder, is_locked, published, release
from once_pytest import (
    OnceClock,
    OnceFaults,
    OnceHarness,
    assert_no_locks,
    assert_task_locked,
)

# most send and look at the answer, and nobody runs what was sent
pytestmark = pytest.mark.once(leaks="ignore")

NOBODY = "redis://127.0.0.1:1"


def define(broker: dramatiq.Broker, name: str = "sync", **options: Any) -> Any:
    """Declare an actor."""

    def sync(order_id: object, note: object = "") -> None: ...

    return dramatiq.actor(sync, broker=broker, actor_name=name, **options)


@pytest.fixture
def make(once_locks: OnceHarness) -> Callable[..., StubBroker]:
    """Makes brokers under guard, whose locks are those of `once_locks`."""

    def make(**defaults: Any) -> StubBroker:
        broker = StubBroker()
        broker.add_middleware(OnceMiddleware(**defaults))
        return broker

    return make


def store_of(broker: dramatiq.Broker) -> Any:
    """The lock store of a broker's actors."""
    ours = next(each for each in broker.middleware if isinstance(each, OnceMiddleware))
    return ours.binding(broker).store()


# Options


@pytest.mark.parametrize(
    ("once", "guarded"),
    [(True, True), ({}, True), ({"key": []}, True), (OnceOptions(lease=5), True), (False, False)],
    ids=str,
)
def test_actors_ask_for_a_guard(make: Callable[..., StubBroker], once: Any, guarded: bool) -> None:
    """True, options in two forms, or False."""
    actor = define(make(), once=once)

    actor.send(1)

    assert published(actor.send(1)).is_duplicate is guarded


def test_actors_without_once_are_left_alone(make: Callable[..., StubBroker]) -> None:
    """Unless the middleware guards every actor."""
    plain, guarded = define(make()), define(make(every_actor=True))
    for actor in (plain, guarded):
        actor.send(1)

    assert published(plain.send(1)).state == "off"
    assert published(guarded.send(1)).state == "waiting"


def test_nearer_options_go_before_wider_ones(make: Callable[..., StubBroker]) -> None:
    """A message's before its actor's before the middleware's."""
    actor = define(make(scope="until_done", on_duplicate="raise"), once={"on_duplicate": "skip"})
    actor.send(1)

    assert published(actor.send(1)).is_duplicate
    with pytest.raises(errors.DuplicateTaskError):
        actor.send_with_options(args=(1,), once={"on_duplicate": "raise"})


def test_a_message_alone_can_ask_for_a_guard(make: Callable[..., StubBroker]) -> None:
    """Of an actor that does not."""
    actor = define(make())
    actor.send_with_options(args=(1,), once=True)

    assert published(actor.send_with_options(args=(1,), once=True)).is_duplicate
    assert published(actor.send(1)).state == "off"


def test_a_message_alone_can_go_past_all_locks(make: Callable[..., StubBroker]) -> None:
    """With once=False."""
    actor = define(make(), once=True)
    first = actor.send(1)

    past = actor.send_with_options(args=(1,), once=False)

    assert (published(past).state, published(past).is_duplicate) == ("off", False)
    assert past.message_id != first.message_id


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"once": {"leese": 5}}, "did you mean 'lease'?"),
        ({"once": {"lease": -1}}, "once option lease=-1 of sync must be"),
        ({"once": {"key": ["ordr_id"]}}, "'ordr_id'"),
        ({"once": 7}, "once=7 of sync must be a dict of options"),
        ({"once": {"on_duplicate": "share"}}, "it stores no results"),
        ({"once": {"return_on_duplicate": {1, 2}}}, "cannot be stored as a result"),
        ({"once": {"scope": "until_executed"}}, "until_done"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_cannot_be_is_refused_when_the_actor_is_declared(
    make: Callable[..., StubBroker], options: dict[str, Any], text: str
) -> None:
    """Dramatiq would swallow the error of a middleware: it is one of those it lets through."""
    broker = make()
    with pytest.raises(errors.ConfigurationError) as caught:
        define(broker, **options)

    assert text in str(caught.value)
    assert isinstance(caught.value, (once_dramatiq.ConfigurationError, MiddlewareError))
    assert broker.actors == {}


def test_what_cannot_be_is_refused_when_the_middleware_is_made() -> None:
    """Its defaults are checked at once."""
    with pytest.raises(errors.ConfigurationError, match="did you mean 'scope'"):
        OnceMiddleware(scop="queued")  # type: ignore[call-arg]


def test_options_of_a_message_for_an_actor_without_guard_are_refused(
    make: Callable[..., StubBroker],
) -> None:
    """They would do nothing."""
    actor = define(make(), once=False)

    with pytest.raises(errors.ConfigurationError, match="is not under guard"):
        actor.send_with_options(args=(1,), once={"key": []})


@pytest.mark.parametrize(
    ("actor", "text"),
    [
        ({"once": {"on_duplicate": "share"}}, "stores no results"),
        ({"once": {"on_duplicate": "share", "name": "x"}, "store_results": True}, "leave name="),
    ],
)
def test_sharing_what_cannot_be_found_is_refused(actor: dict[str, Any], text: str) -> None:
    """A duplicate could never end with its holder's result."""
    broker = StubBroker()
    broker.add_middleware(Results(backend=StubBackend()))  # type: ignore[no-untyped-call]
    broker.add_middleware(OnceMiddleware())

    with pytest.raises(errors.ConfigurationError, match=text):
        define(broker, **actor)
    define(broker, once={"on_duplicate": "share"}, store_results=True)


# Stores


def test_a_redis_broker_brings_its_redis_along(shared_server: DevServer) -> None:
    """With our time-outs, without redis-py's retries, over connections of our own."""
    broker = RedisBroker(url=shared_server.url, namespace=uuid.uuid4().hex)
    broker.add_middleware(OnceMiddleware())
    actor = define(broker, once={"prefix": uuid.uuid4().hex})
    actor.send(1)

    client = store_of(broker).client()
    settings = client.connection_pool.connection_kwargs
    assert published(actor.send(1)).is_duplicate
    assert (settings["socket_timeout"], settings["socket_connect_timeout"]) == (
        READ_TIMEOUT,
        CONNECT_TIMEOUT,
    )
    assert settings["retry"]._retries == 0  # redis-py 5 has no other way to ask
    assert client is not broker.client
    broker.close()


def test_a_client_that_cannot_be_copied_is_used_as_it_is() -> None:
    """Such as fakeredis."""
    import fakeredis

    client = fakeredis.FakeRedis()
    broker = RedisBroker(client=client)
    broker.add_middleware(OnceMiddleware())

    assert store_of(broker).client() is client


def test_the_environment_goes_before_the_brokers_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Celery: what is said goes before what is found."""
    monkeypatch.setenv("ONCE_URL", "redis://elsewhere:6380/3")
    broker = RedisBroker(url=NOBODY)
    broker.add_middleware(OnceMiddleware())

    assert store_of(broker).place == "redis://elsewhere:6380/3"


def test_configure_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And may come after the middleware was made."""
    monkeypatch.setenv("ONCE_URL", "redis://environment/0")
    broker = RedisBroker(url=NOBODY)
    broker.add_middleware(OnceMiddleware())
    try:
        once_core.configure(url="redis://configured/0")
        assert store_of(broker).place == "redis://configured/0"
    finally:
        once_core.configure()


def test_a_stub_broker_has_locks_of_its_own() -> None:
    """Tests with fresh brokers do not see each other."""
    one, other = StubBroker(), StubBroker()
    for broker in (one, other):
        broker.add_middleware(OnceMiddleware())
    first, second = define(one, once=True), define(other, once=True)
    first.send(1)

    assert published(first.send(1)).is_duplicate
    assert not published(second.send(1)).is_duplicate


def test_a_broker_without_a_redis_needs_to_be_told() -> None:
    """The error says in which three ways."""
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    broker = RabbitmqBroker()
    broker.add_middleware(OnceMiddleware())
    actor = define(broker, once=True)

    with pytest.raises(errors.ConfigurationError) as caught:
        actor.send(1)
    for way in ('OnceMiddleware(url="redis', "once_core.configure(url=", "ONCE_URL"):
        assert way in str(caught.value)


# Answers


def test_a_store_that_is_away_is_dramatiqs_connection_error(
    make: Callable[..., StubBroker], once_faults: OnceFaults
) -> None:
    """Callers' handlers see it; nothing is sent."""
    broker = make()
    actor = define(broker, once=True)
    once_faults.outage()

    with pytest.raises(errors.StoreUnavailableError) as caught:
        actor.send(1)
    assert isinstance(caught.value, once_dramatiq.StoreUnavailableError)
    assert isinstance(caught.value, BrokerError)
    assert caught.value.message == str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).url == caught.value.url
    assert broker.queues["default"].qsize() == 0
    with pytest.raises(once_dramatiq.StoreUnavailableError):
        is_locked(actor, 1)


def test_handles_bind_arguments_as_send_does(make: Callable[..., StubBroker]) -> None:
    """is_locked, holder and release take the actor and its arguments."""
    actor = define(make(), once=True)
    message = actor.send(1)

    found = holder(actor, order_id=1)
    assert found is not None
    assert (found.state, found.message_id) == ("waiting", message.message_id)
    assert is_locked(actor, 1, note="")
    assert not is_locked(actor, 2)
    assert_task_locked(actor, 1, note="", state="waiting", holder=message)
    assert release(actor, 1)
    assert not is_locked(actor, 1)
    assert_no_locks()
    assert not release(actor, 1)


def test_handles_of_a_broker_without_us_say_what_is_missing() -> None:
    """Instead of "not locked"."""
    actor = define(StubBroker())

    with pytest.raises(errors.ConfigurationError, match="has no OnceMiddleware"):
        is_locked(actor, 1)


def test_a_duplicates_message_carries_what_became_of_it(make: Callable[..., StubBroker]) -> None:
    """The holder's id, and nothing of the holder's envelope."""
    actor = define(make(), once=True)
    first, second = actor.send(1), actor.send(1)

    told = published(second)
    assert second.message_id == first.message_id == told.holder_id
    assert (told.state, told.is_duplicate) == ("waiting", True)
    assert told.retry_after > 0
    assert "once" not in second.options
    assert published(pickle.loads(pickle.dumps(second))) == told
    assert published(Message("default", "other", (), {}, {})).state == "off"


def test_the_message_of_a_caller_stays_as_it_is(make: Callable[..., StubBroker]) -> None:
    """One message, enqueued twice: the second time it is still its own call."""
    broker = make()
    actor = define(broker, once=True)
    message = actor.message(1)
    broker.enqueue(message)

    again = broker.enqueue(message)

    assert message.options == {}
    assert again.message_id == message.message_id
    assert published(again).is_duplicate
    assert broker.queues["default"].qsize() == 1


def test_arguments_without_a_key_are_refused_where_they_are_sent(
    make: Callable[..., StubBroker],
) -> None:
    """Naming the actor and the parameter."""
    actor = define(make(), once=True)

    with pytest.raises(errors.KeyDerivationError, match="sync"):
        actor.send(object())
    with pytest.raises(errors.KeyDerivationError, match="sync"):
        actor.send(1, 2, 3)


def test_what_cannot_be_published_waits_for_nobody(make: Callable[..., StubBroker]) -> None:
    """An argument that JSON refuses: the unit is free at once."""
    import decimal

    actor = define(make(), once=True)

    with pytest.raises(TypeError):
        actor.send(decimal.Decimal(1))
    assert not is_locked(actor, decimal.Decimal(1))


def test_a_redis_client_can_be_handed_in(shared_server: DevServer) -> None:
    """Or a function that returns one."""
    client = redis.Redis.from_url(shared_server.url)
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware(client=client))

    assert store_of(broker).client() is client


def test_a_message_sent_twice_is_not_settled_when_a_copy_of_it_waits(
    make: Callable[..., StubBroker], once_clock: OnceClock
) -> None:
    """Its first message still waits, and would find a result under its id."""
    broker = make(heal_after=60)
    actor = define(broker, once=True)
    message = actor.send(1)
    once_clock.advance(60)
    assert published(actor.send(1)).state == "refreshed"

    again = broker.enqueue(message)

    assert published(again).is_duplicate
    assert broker.queues["default"].qsize() == 2


def test_a_second_worker_of_a_process_has_lost_no_connection(
    make: Callable[..., StubBroker], once_locks: OnceHarness
) -> None:
    """Test suites start one for each test; its messages leave no marks behind."""
    broker = make()
    actor = define(broker, once=True)
    for _ in range(2):
        worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
        worker.start()
        message = actor.send(1)
        broker.join("default", timeout=10_000)
        worker.stop()
        assert not published(message).is_duplicate

    assert once_locks.store.written() == []
