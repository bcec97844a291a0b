"""Sending many messages of one actor; what a single one does is in `_publish`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq import Actor

from once_core import errors
from once_core._diversion import is_bypassed
from once_core.bulk import AWAY, Bulk, Call, arguments
from once_core.options import OnceOptions, OnceOptionsDict
from once_core.publish import Claiming, Publication, claiming
from once_dramatiq._binding import OPTION, is_off
from once_dramatiq._publish import deliver, terms
from once_dramatiq.errors import BrokerConnectionError, translated

if TYPE_CHECKING:
    from dramatiq import Message

    from once_dramatiq._binding import Binding

__all__ = ["send_many"]


class _Item:
    """One call, and the message that it becomes."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.message: Message[Any] | None = None


def send_many(
    binding: Binding | None,
    actor: Actor[..., Any],
    calls: Iterable[Call],
    *,
    delay: int | timedelta | None = None,
    once: OnceOptions | OnceOptionsDict | bool | None = None,
    **options: Any,
) -> list[Message[Any]]:
    """Send or refuse each call; see `once_dramatiq.send_many`.

    Args:
        binding: Of the broker; None if it has none of ours.
        actor: The actor.
        calls: Arguments of each.
        delay: In ms, or a timedelta.
        once: Options for these messages.
        options: What ``send_with_options()`` takes besides.
    """
    if once is not None:
        options[OPTION] = once
    ms = int(delay.total_seconds() * 1000) if isinstance(delay, timedelta) else delay

    def ask(item: _Item, marks: dict[str, str]) -> Claiming | Publication | None:
        args, kwargs = arguments(actor.actor_name, item.call)
        message = actor.message_with_options(args=args, kwargs=kwargs, **options)
        item.message = message
        if binding is None or not _is_claimed_here(binding, actor, once):
            return None
        guard, asked = terms(binding, actor, message, ms)
        return claiming(
            guard, message.args, message.kwargs, message.message_id, marks=marks, **asked
        )

    def send(item: _Item, publication: Publication | None) -> Message[Any]:
        message = item.message
        assert message is not None, "asked before"  # noqa: S101  # for type checkers
        if publication is None:
            return actor.send_with_options(
                args=message.args, kwargs=message.kwargs, delay=ms, **options
            )
        enqueue = actor.broker.enqueue.once_original  # type: ignore[attr-defined]  # by `_seams`
        return deliver(publication, enqueue, message, ms, is_sent=True)

    bulk = Bulk(actor.actor_name, ask, send, _is_away, _known_as)
    return bulk.publish(_Item(call) for call in calls)


def _is_claimed_here(binding: Binding, actor: Actor[..., Any], once: object) -> bool:
    """Whether its messages need a claim, and `send_with_options` does nothing besides."""
    if is_off(once) or is_bypassed() or binding.thread.is_between_bodies:
        return False
    if not (_is_theirs(actor) and hasattr(actor.broker.enqueue, "once_original")):
        return False
    return binding.is_guarded(actor) or isinstance(once, (Mapping, OnceOptions)) or once is True


def _is_theirs(actor: Actor[..., Any]) -> bool:
    """Whether it has Dramatiq's own `send_with_options`, and not that of another actor class."""
    original = getattr(actor.send_with_options, "once_original", None)
    return getattr(original, "__func__", None) is Actor.send_with_options


def _is_away(error: Exception) -> bool:
    """Whether the next one would fail as well, and only after a while."""
    # Dramatiq's RedisBroker raises what redis-py does
    is_connection = isinstance(error, (BrokerConnectionError, *AWAY))
    return is_connection and not isinstance(error, errors.OnceError)


def _known_as(error: Exception) -> Exception:
    return translated(error) if isinstance(error, errors.OnceError) else error
