"""What a person may ask of a message that was sent, or of an actor's unit of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from once_core import errors
from once_core.guard import Guard, Holder
from once_core.publish import OncePublish
from once_dramatiq._binding import OPTION
from once_dramatiq._publish import PUBLISH
from once_dramatiq.errors import ConfigurationError, translated
from once_dramatiq.middleware import OnceMiddleware

if TYPE_CHECKING:
    from dramatiq import Actor, Message

__all__ = ["holder", "is_locked", "published", "release"]

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
    with _guard(actor) as guard:
        return guard.holder(args, kwargs)


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
    with _guard(actor) as guard:
        return guard.release(args, kwargs)


@contextmanager
def _guard(actor: Actor[P, R]) -> Iterator[Guard]:
    middleware = next((m for m in actor.broker.middleware if isinstance(m, OnceMiddleware)), None)
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
    try:
        yield middleware.binding(actor.broker).guard(actor)
    except errors.OnceError as error:
        raise translated(error) from error
