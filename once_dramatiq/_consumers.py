"""Which queues lost their connection: RabbitMQ then gives out again all that is not acknowledged.

A copy that comes while its first delivery runs is noted in the record. One that is looked at only
afterwards, for all threads were busy, finds nothing there unless the first left a mark; and
nobody tells the first that a copy will come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from once_core._clock import elapsed

if TYPE_CHECKING:
    from dramatiq import Consumer
    from dramatiq.worker import ConsumerThread

__all__ = ["Consumers"]

BACKLOG = 300.0
"""Seconds after a lost connection in which messages may end that were received before it. Those
that run for longer than a minute leave a mark anyway, and no more are received beforehand than a
worker has threads, twice."""


class Consumers:
    """The consumers of one process, by their queues. For all of its threads."""

    def __init__(self) -> None:
        self._threads: dict[str, ConsumerThread] = {}
        self._seen: dict[str, Consumer] = {}
        self._lost_at: dict[str, float] = {}

    def add(self, thread: ConsumerThread) -> None:
        """Watch the consumer of a queue; that of an earlier worker has lost nothing."""
        self._threads[thread.queue_name] = thread
        self._seen.pop(thread.queue_name, None)

    def have_lost_connection(self, queue_name: str) -> bool:
        """Whether copies of what this process has received may be about; notes who consumes.

        Args:
            queue_name: To be asked about when a message starts, and again when it ends.
        """
        thread = self._threads.get(queue_name)
        consumer = thread.consumer if thread is not None else None
        if consumer is None:
            return False
        if self._seen.setdefault(queue_name, consumer) is not consumer or _is_closed(consumer):
            self._seen[queue_name] = consumer
            self._lost_at[queue_name] = elapsed()
        lost_at = self._lost_at.get(queue_name)
        return lost_at is not None and elapsed() - lost_at < BACKLOG


def _is_closed(consumer: Consumer) -> bool:
    """Whether its connection is gone and its thread has not made another yet (RabbitMQ's)."""
    ends = (getattr(consumer, name, None) for name in ("channel", "connection"))
    return any(getattr(end, "is_open", True) is False for end in ends)
