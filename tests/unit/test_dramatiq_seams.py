"""What once wraps in Dramatiq: these tests fail when Dramatiq changes there."""

from __future__ import annotations

import inspect
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, GenericActor, Message
from dramatiq.asyncio import async_to_sync
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from once_dramatiq import OnceMiddleware, published
from once_dramatiq._seams import wrap_broker
from once_pytest import OnceHarness, assert_duplicate, assert_task_locked

# what Dramatiq hands on is sent here, and never run
pytestmark = pytest.mark.once(leaks="ignore")


@pytest.fixture
def broker(once_locks: OnceHarness) -> StubBroker:
    """A broker under guard; always in memory, for it is Dramatiq's seams that count."""
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware())
    return broker


@pytest.mark.parametrize("kind", [Broker, StubBroker, RedisBroker])
def test_enqueue_takes_a_message_and_a_delay_and_returns_a_message(kind: type[Broker]) -> None:
    """The only way on which messages go out; we stand in for it."""
    parameters = inspect.signature(kind.enqueue).parameters

    assert list(parameters) == ["self", "message", "delay"]
    assert parameters["delay"].kind is inspect.Parameter.KEYWORD_ONLY


def test_send_asks_the_actors_own_send_with_options(broker: StubBroker) -> None:
    """An actor's ``send()`` is known by its ``send_with_options``, which the actor looks up."""

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> None: ...

    assert "send_with_options" in vars(work)
    first = work.send("a")
    assert work.send("a").message_id == first.message_id
    assert work.send_with_options(args=("a",)).message_id == first.message_id


def test_send_goes_through_the_brokers_enqueue(broker: StubBroker) -> None:
    """Dramatiq calls what stands on the broker itself, so that we see every message."""

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> None: ...

    seen: list[Message[Any]] = []
    ours = broker.enqueue

    def enqueue(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        seen.append(message)
        return ours(message, delay=delay)

    broker.enqueue = enqueue  # type: ignore[method-assign]
    work.send("a")
    assert [message.args for message in seen] == [("a",)]


def test_a_broker_is_wrapped_once(broker: StubBroker) -> None:
    """However many queues and actors it gets."""

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> None: ...

    wrapped = broker.enqueue
    broker.declare_queue("other")
    wrap_broker(broker, lambda send, message, delay: send(message, delay=delay))

    assert broker.enqueue is wrapped
    assert wrapped.once_original.__func__ is StubBroker.enqueue  # type: ignore[attr-defined]


def test_flush_all_of_a_stub_broker_frees_what_waited() -> None:
    """Test suites begin with it; locks of the test before would refuse what this one sends."""
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware())

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> None: ...

    work.send("a")
    broker.flush_all()

    assert published(work.send("a")).state == "claimed"
    assert broker.queues["default"].qsize() == 1


@pytest.mark.usefixtures("once_locks")
def test_middleware_that_comes_after_the_actors_guards_them_too() -> None:
    """Dramatiq tells a new middleware of the actors that are there."""
    broker = StubBroker()

    @dramatiq.actor(broker=broker)
    def work(unit: str) -> None: ...

    broker.add_middleware(OnceMiddleware(every_actor=True))
    first, second = work.send("a"), work.send("a")

    assert not published(first).is_duplicate
    assert published(second).is_duplicate
    assert_task_locked(work, "a", state="waiting", holder=first)
    assert_duplicate(work, "a", times=1)


def test_the_coroutine_of_an_async_actor_is_found(broker: StubBroker) -> None:
    """Dramatiq's own wrapper keeps it under ``__wrapped__``; other wrappers are left alone."""

    @dramatiq.actor(broker=broker, once=True)
    async def work(unit: str) -> None: ...

    async def other() -> None: ...

    def plain(unit: str) -> None: ...

    plain.__wrapped__ = other  # type: ignore[attr-defined]
    actor = dramatiq.actor(plain, broker=broker, once=True)

    assert async_to_sync(other).__code__ is work.fn.__code__
    assert work.fn.__wrapped__.__wrapped__.__name__ == "work"  # type: ignore[attr-defined]
    assert actor.fn is plain


def test_class_based_actors_are_keyed_by_the_parameters_of_perform(broker: StubBroker) -> None:
    """Their function takes anything."""

    class Work(GenericActor):
        class Meta:
            broker: Any = None
            once = {"key": ["order_id"]}  # noqa: RUF012  # as users write it

        Meta.broker = broker

        def perform(self, order_id: int, force: bool = False) -> None: ...

    first = Work.send(1)  # type: ignore[attr-defined]
    assert Work.send(order_id=1, force=True).message_id == first.message_id  # type: ignore[attr-defined]
