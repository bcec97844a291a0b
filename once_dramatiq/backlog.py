"""How many messages a Dramatiq broker has for the guarded actors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from once_core.backlog import Queued

if TYPE_CHECKING:
    from dramatiq import Broker

__all__ = ["queued"]


def queued(broker: Broker, actors: Iterable[str]) -> dict[str, Queued]:
    """What the broker has, by name of actor; nothing where nobody can say.

    Redis tells of what workers hold, too; RabbitMQ only of what waits in the queue.

    Args:
        broker: The broker.
        actors: Names of its actors.

    Raises:
        Exception: Of the broker's client; it is away.
    """
    found: dict[str, Queued] = {}
    counts: dict[str, tuple[int, bool] | None] = {}
    for name in actors:
        queue = broker.get_actor(name).queue_name
        if queue not in counts:
            counts[queue] = _count(broker, queue)
        count = counts[queue]
        if count is not None:
            found[name] = Queued(queue, *count)
    return found


def _count(broker: Any, queue: str) -> tuple[int, bool] | None:
    if hasattr(broker, "do_qsize"):
        return int(broker.do_qsize(queue)), True
    if hasattr(broker, "get_queue_message_counts"):
        return sum(broker.get_queue_message_counts(queue)[:2]), False
    return None
