"""Emptying queues, and freeing what waited in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.message import Message

from once_celery._binding import Binding
from once_celery._queues import count
from once_core import protocol
from once_core.envelope import HEADER, OFF, Envelope
from once_core.errors import OnceError
from once_core.options import OnceOptions
from once_core.purging import Purged, Withdrawal, free_all

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Purged", "purge"]


def purge(app: Celery, queues: Iterable[str] | None = None) -> Purged:
    """Throw away the messages that are in queues now, and free the units that waited in them.

    `celery purge` throws messages away, and each of their units then refuses calls for up to
    ``heal_after`` seconds, or as long again as it had waited. This does not. What workers hold
    already (prefetched, or waiting for its ETA) is in no queue and stays.

    Args:
        app: The app whose queues and broker these are.
        queues: Names of queues; by default all that the app consumes from.

    Example:
        >>> from celery import Celery
        >>> from once_celery import OnceTask, purge
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> app.conf.once_url = "memory://purge-example"
        >>> app.conf.task_default_queue = "purge-example"
        >>> @app.task(base=OnceTask)
        ... def sync_order(order_id): ...
        >>> _ = sync_order.delay(1)
        >>> purge(app)
        Purged(messages=1, released=1, left=0)
        >>> sync_order.is_locked(1)
        False
    """
    names = sorted(queues) if queues is not None else sorted(app.amqp.queues.keys())
    with app.connection_for_write() as connection:
        messages = _taken(connection, names, app.conf.accept_content)
        return free_all(messages, partial(_withdrawal, app))


def _taken(connection: Any, names: Iterable[str], accept: Any) -> Iterator[Any]:
    """Take out what is there now; what comes meanwhile stays, lest it never end."""
    for name in names:
        with connection.channel() as channel:  # of its own: an error closes it
            queue: Any = Queue(name, channel=channel)  # type: ignore[no-untyped-call]  # kombu's own
            try:
                for _ in range(count(channel, name)):
                    try:
                        message = queue.get(no_ack=True, accept=accept)
                    except KombuError:
                        message = Message(body=None)  # type: ignore[no-untyped-call]  # taken, but it cannot be read: it heals
                    if message is None:
                        break
                    yield message
            except connection.channel_errors:
                continue  # there is no such queue: Redis forgets an empty one


def _withdrawal(app: Celery, message: Any) -> Withdrawal | None:
    """The step that says of a message that it will not run, or None where nothing waits."""
    headers = message.headers or {}
    name, message_id = str(headers.get("task", "")), str(headers.get("id", ""))
    binding, task = Binding.of(app), app.tasks.get(name)
    envelope = Envelope.read(headers.get(HEADER), message_id, name)
    if envelope is not None and (envelope.scope == OFF or envelope.duplicate_of):
        return None
    try:
        guard = binding.guard(task) if hasattr(task, "queue_lock") else None
        if guard is not None:
            store = guard.store
        elif envelope is not None:  # of a task that this program does not know
            store = binding.store(OnceOptions.layered(binding.options(), {}, name))
        else:
            return None
        key, ticket = envelope[:2] if envelope else ("", 0)
        if guard is not None and not key:
            args, kwargs, _ = message.decode()
            key = guard.key(args, kwargs)
        told = protocol.Message(message_id, ticket, int(headers.get("retries") or 0))
    except (OnceError, KombuError, ValueError, TypeError):
        return None  # undecodable, or of another protocol: it heals
    return store, name, protocol.withdraw(key, told)
