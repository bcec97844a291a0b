"""What Dramatiq has no hook for, all of it here: its brokers and actors are wrapped, one by one.

Dramatiq cannot refuse a message without losing others (a veto in ``before_enqueue`` loses retries
and stops groups half way), cannot answer ``send()`` with another message, and tells nobody when
publishing failed (upstream: dramatiq #276, #890). ``tests/unit/test_dramatiq_seams.py`` fails when
what is wrapped changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from dramatiq.asyncio import async_to_sync
from dramatiq.brokers.stub import StubBroker

from once_dramatiq._binding import is_async
from once_dramatiq._delivery import Delivery

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message

    from once_dramatiq._thread import ThreadState

__all__ = ["wrap_actor", "wrap_broker", "wrap_stub"]

Enqueue = Callable[..., "Message[Any]"]


def wrap_broker(
    broker: Broker, enqueue: Callable[[Enqueue, Message[Any], int | None], Message[Any]]
) -> None:
    """Have a broker's ``enqueue`` ask us; every path of every message goes through it.

    Args:
        broker: The broker; wrapped once, however often this is called.
        enqueue: Gets the broker's own, the message and the delay in ms; returns the message.
    """
    original: Enqueue = broker.enqueue
    if hasattr(original, "once_original"):
        return

    @wraps(original)
    def wrapper(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        return enqueue(original, message, delay)

    wrapper.once_original = original  # type: ignore[attr-defined]  # says that it is wrapped
    broker.enqueue = wrapper  # type: ignore[method-assign]  # see above


def wrap_stub(broker: Broker, forget: Callable[[], None]) -> None:
    """Have ``flush_all()`` of a `StubBroker`, with which tests begin, free what it throws away.

    Args:
        broker: Any broker; others keep their locks, which heal: other processes may hold them.
        forget: Empties its lock store.
    """
    if not isinstance(broker, StubBroker) or hasattr(broker.flush_all, "once_original"):
        return
    original = broker.flush_all

    @wraps(original)
    def flush_all() -> None:
        original()
        forget()

    flush_all.once_original = original  # type: ignore[attr-defined]  # says that it is wrapped
    broker.flush_all = flush_all  # type: ignore[method-assign]  # see above


def wrap_actor(
    actor: Actor[..., Any], thread: ThreadState, send_many: Callable[..., list[Message[Any]]]
) -> None:
    """Note when a message is that of a ``send()``, and when a coroutine has really ended.

    Args:
        actor: The actor; wrapped once, however often this is called.
        thread: Where it is noted.
        send_many: What its ``send_many()`` does, which Dramatiq does not have.
    """
    send = actor.send_with_options
    if hasattr(send, "once_original"):
        return

    @wraps(send)
    def send_with_options(**options: Any) -> Message[Any]:
        before = thread.begin_sending(actor.actor_name)
        try:
            return send(**options)
        finally:
            thread.end_sending(before)

    send_with_options.once_original = send  # type: ignore[attr-defined]  # says that it is wrapped
    actor.send_with_options = send_with_options  # type: ignore[method-assign]  # see above
    vars(actor).setdefault("send_many", partial(send_many, actor))
    if is_async(actor):
        actor.fn = async_to_sync(_tracked(actor.fn.__wrapped__))  # type: ignore[attr-defined]  # theirs


def _tracked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the lease of a coroutine that ignores its cancellation until it really ends.

    Dramatiq stops waiting for it after a second.
    """

    @wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        delivery = Delivery.current()
        if delivery is None:
            return await function(*args, **kwargs)
        with delivery.coroutine():
            return await function(*args, **kwargs)

    return run
