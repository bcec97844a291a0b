"""How many messages are in a queue, on every transport of kombu."""

from __future__ import annotations

from typing import Any

__all__ = ["count"]


def count(channel: Any, name: str) -> int:
    """Messages in a queue that nobody holds; 0 where there is none of this name.

    Args:
        channel: Of kombu, of its own: an error closes it.
        name: Of the queue.
    """
    size = getattr(channel, "_size", None)
    if size is not None:
        # kombu's own transports: asking for a queue of Redis ignores its global_keyprefix
        return int(size(name))
    try:
        return int(channel.queue_declare(queue=name, passive=True).message_count)
    except channel.connection.client.channel_errors:
        return 0
