"""Emptying queues, and freeing what waited in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name, q_name
from dramatiq.errors import DecodeError

from once_core import protocol
from once_core.envelope import OFF
from once_core.errors import OnceError
from once_core.options import nearest
from once_core.protocol import Message
from once_core.purging import BATCH, Purged, Withdrawal, free_all
from once_dramatiq.errors import ConfigurationError
from once_dramatiq.middleware import OnceMiddleware

if TYPE_CHECKING:
    from dramatiq import Broker, MessageProxy

    from once_dramatiq._binding import Binding

__all__ = ["purge", "queue_names"]

IDLE = 200
"""Milliseconds that one look for a message takes at most."""

LOOKS = 5
"""Looks in a row without a message after which a queue is empty. One is no proof: RabbitMQ may
need a moment, and Dramatiq answers the same for a message that cannot be read."""


def purge(broker: Broker, queues: Iterable[str] | None = None) -> Purged:
    """Throw away the messages that are in queues now, and free the units that waited in them.

    ``broker.flush()`` throws messages away, and each of their units then refuses calls for up to
    ``heal_after`` seconds, or as long again as it had waited. This does not. Delayed messages and
    retries go with their queue. What workers hold already (prefetched, or delayed, which they all
    hold) is in no queue and stays. Dead letters stay, too.

    Args:
        broker: The broker.
        queues: Names of queues; by default all that are declared.

    Raises:
        ConfigurationError: The broker has no such queue, or no `OnceMiddleware`.
        dramatiq.errors.ConnectionError: The broker is away.

    Example:
        >>> import dramatiq
        >>> from dramatiq.brokers.stub import StubBroker
        >>> from once_dramatiq import OnceMiddleware, is_locked, purge
        >>> broker = StubBroker(middleware=[])
        >>> broker.add_middleware(OnceMiddleware(url="memory://dramatiq-purge-example"))
        >>> @dramatiq.actor(broker=broker, once=True)
        ... def sync_order(order_id): ...
        >>> _ = sync_order.send(1)
        >>> purge(broker)
        Purged(messages=1, released=1, left=0)
        >>> is_locked(sync_order, 1)
        False
    """
    ours = next((each for each in broker.middleware if isinstance(each, OnceMiddleware)), None)
    if ours is None:
        raise ConfigurationError(
            "this broker has no OnceMiddleware, so nothing of it is under guard; use its flush()"
        )
    known = queue_names(broker)
    names = sorted({q_name(name) for name in queues}) if queues is not None else known
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"this broker has no queue {name!r}{nearest(name, known)}; for one whose actors "
                "are gone, call broker.declare_queue() first"
            )
    return free_all(_taken(broker, names), partial(_withdrawal, ours.binding(broker)))


def queue_names(broker: Broker) -> list[str]:
    """The queues of a broker, without those for delayed messages and dead letters."""
    return sorted({q_name(name) for name in broker.get_declared_queues()})


def _taken(broker: Broker, names: Iterable[str]) -> Iterator[MessageProxy]:
    """Take out what is there now; what comes meanwhile stays, lest it never end.

    What is delayed first: a worker moves it into the other queue when it is due.
    """
    for name in names:
        for each in (dq_name(name), name):
            count = _count(broker, each)
            rest = count % BATCH
            # a consumer fetches as many as it may hold: the last one no more than are meant
            yield from _consumed(broker, each, BATCH, count - rest)
            yield from _consumed(broker, each, rest, rest)


def _consumed(broker: Broker, name: str, prefetch: int, most: int) -> Iterator[MessageProxy]:
    if not most:
        return
    taken = misses = 0
    with closing(broker.consume(name, prefetch=prefetch, timeout=IDLE)) as consumer:
        while taken < most and misses < LOOKS:
            try:
                message = next(consumer)
            except DecodeError:
                taken += 1  # on Redis it stays with this process, as it would with a worker
                continue
            if message is None:
                misses += 1
                continue
            taken, misses = taken + 1, 0
            consumer.ack(message)
            yield message


def _count(broker: Broker, name: str) -> int:
    """How many messages a queue has; at least as many where workers hold some of them."""
    if isinstance(broker, StubBroker):
        return int(broker.queues[name].qsize())
    count: Any = getattr(broker, "get_queue_message_counts", None)  # RabbitMQ's
    if count is not None:
        ready, delayed, _ = count(q_name(name))
        return int(ready if name == q_name(name) else delayed)
    size: Any = getattr(broker, "do_qsize", None)  # Redis's, of both queues together
    return int(size(q_name(name))) if size is not None else sys.maxsize


def _withdrawal(binding: Binding, message: MessageProxy) -> Withdrawal | None:
    """The step that says of a message that it will not run, or None where nothing waits."""
    envelope = binding.read(message)
    if envelope is None or envelope.scope == OFF or envelope.duplicate_of:
        return None
    actor = binding.broker.actors.get(message.actor_name)
    try:
        store = binding.guard(actor).store if actor is not None else binding.store()
    except OnceError:
        return None  # nobody knows where its lock is: it heals
    told = Message(envelope.message_id, envelope.ticket, envelope.retries)
    return store, message.actor_name, protocol.withdraw(envelope.key, told)
