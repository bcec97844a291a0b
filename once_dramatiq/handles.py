"""What a person may ask of a message that was sent, or of an actor's unit of work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from once_core import errors
from once_core.bulk import Call
from once_core.guard import Guard, Holder
from once_core.options import OnceOptions, OnceOptionsDict
from once_core.publish import OncePublish
from once_dramatiq import _many
from once_dramatiq._binding import OPTION
from once_dramatiq._publish import PUBLISH
from once_dramatiq.errors import ConfigurationError, translated
from once_dramatiq.middleware import OnceMiddleware

if TYPE_CHECKING:
    from dramatiq import Actor, Message

__all__ = ["guard_of", "holder", "is_locked", "published", "release", "send_many"]

P = ParamSpec("P")
R = TypeVar("R")


def published(message: Message[R]) -> OncePublish:
    """What became of a message that ``send()`` returned; as ``.once`` on Celery's handles.

    Args:
        message: As it was returned by ``send()``, ``send_with_options()`` or ``broker.enqueue()``.

    Returns:
        The answer; its state is ``"off"`` for a message that is not under guard.

    Example:
        >>> from dramatiq import Message
        >>> published(Message("default", "work", (), {}, {}, message_id="m1")).state
        'off'
    """
    told: OncePublish | None = getattr(message, PUBLISH, None)
    return told or OncePublish("off", is_duplicate=False, holder_id=message.message_id)


def is_locked(actor: Actor[P, R], /, *args: P.args, **kwargs: P.kwargs) -> bool:
    """Whether the unit of work of this call waits, runs, or is kept by a window.

    Args:
        actor: The actor.
        args: Its arguments, as for ``send()``.
        kwargs: The same.

    Raises:
        StoreUnavailableError: When nobody can say.
    """
    return holder(actor, *args, **kwargs) is not None


def holder(actor: Actor[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Holder | None:
    """Who holds the unit of work of this call, or None.

    Args:
        actor: The actor.
        args: Its arguments, as for ``send()``.
        kwargs: The same.

    Raises:
        StoreUnavailableError: When nobody can say.
    """
    with _translated():
        return guard_of(actor).holder(args, kwargs)


def release(actor: Actor[P, R], /, *args: P.args, **kwargs: P.kwargs) -> bool:
    """Free the unit of work of this call, whoever holds it.

    A message that waits is not lost, and a live run loses its lease: only do this when you know
    that it may overlap.

    Args:
        actor: The actor.
        args: Its arguments, as for ``send()``.
        kwargs: The same.

    Returns:
        Whether there was something to free.

    Raises:
        StoreUnavailableError: When the store is away.
    """
    with _translated():
        return guard_of(actor).release(args, kwargs)


def send_many(
    actor: Actor[P, R],
    calls: Iterable[Call],
    *,
    delay: int | timedelta | None = None,
    once: OnceOptions | OnceOptionsDict | bool | None = None,
    **options: Any,
) -> list[Message[R]]:
    """Send many messages of an actor, and pay for the locks of 500 with one round trip.

    Each is sent or refused as by ``send()``; of equal calls the first is sent. Messages go out one
    after the other. If the broker goes away in the middle, no further one is tried. The same as
    ``actor.send_many(calls)``, which type checkers do not know.

    Args:
        actor: The actor.
        calls: Arguments of each call: ``(args, kwargs)``.
        delay: In ms, or a timedelta, as Dramatiq has it; before which none of them starts.
        once: Options for these messages.
        options: What ``send_with_options()`` takes besides, for all of them.

    Returns:
        The messages, in the order of the calls; those of duplicates carry their holder's id.

    Raises:
        BulkPublishError: Some were not sent. Its ``results`` has the message or the error of each;
            nothing of those that were not sent is left claimed.
        Exception: Nothing was sent, and for one reason: as ``send()`` raises it.

    Example:
        >>> import dramatiq
        >>> from dramatiq.brokers.stub import StubBroker
        >>> from once_dramatiq import OnceMiddleware, published
        >>> broker = StubBroker(middleware=[])
        >>> broker.add_middleware(OnceMiddleware(url="memory://send-many-example"))
        >>> @dramatiq.actor(broker=broker, once=True)
        ... def sync_order(order_id): ...
        >>> messages = send_many(sync_order, [((1,), {}), ((2,), {}), ((1,), {})])
        >>> [published(message).state for message in messages]
        ['claimed', 'claimed', 'waiting']
    """
    middleware = _middleware(actor)
    binding = middleware.binding(actor.broker) if middleware is not None else None
    return _many.send_many(binding, actor, calls, delay=delay, once=once, **options)


def guard_of(actor: Actor[P, R]) -> Guard:
    """What once knows of an actor.

    Raises:
        ConfigurationError: It is not under guard.
    """
    middleware = _middleware(actor)
    if middleware is None:
        raise ConfigurationError(
            f"the broker of {actor.actor_name} has no OnceMiddleware, so nothing of it is locked; "
            "call broker.add_middleware(OnceMiddleware()) before its actors are declared"
        )
    if actor.options.get(OPTION) is False:
        raise ConfigurationError(
            f"{actor.actor_name} is not under guard (once=False), so asking for its lock would do "
            "nothing; take once=False from the actor, and give it to the messages that need it"
        )
    return middleware.binding(actor.broker).guard(actor)


def _middleware(actor: Actor[P, R]) -> OnceMiddleware | None:
    return next((m for m in actor.broker.middleware if isinstance(m, OnceMiddleware)), None)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except errors.OnceError as error:
        raise translated(error) from error
