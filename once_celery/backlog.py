"""How many messages a Celery broker has for the guarded tasks of an app."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from once_celery._queues import count
from once_core.backlog import Queued

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

__all__ = ["queued"]


MOST_HELD = 10_000
"""Messages in the hands of workers that are looked at."""


def queued(app: Celery, tasks: Iterable[str]) -> dict[str, Queued]:
    """What the broker has, by name of task; nothing where nobody can say.

    Redis tells of what workers hold, too; RabbitMQ only of what waits in the queue.

    Args:
        app: The app.
        tasks: Names of its tasks.

    Raises:
        Exception: Of the broker's client; it is away.
    """
    queues = {name: _queue(app, name) for name in tasks}
    counts: dict[str, int] = {}
    held: Counter[str] | None = None
    with app.connection_for_read() as connection:
        if connection.transport.driver_type not in ("redis", "amqp"):
            return {}
        connection.ensure_connection(max_retries=1, timeout=2)
        others = sum(_count(connection, each) for each in {*app.amqp.queues} - {*queues.values()})
        for queue in set(queues.values()):
            counts[queue] = _count(connection, queue) + others  # it may have been sent there
        if connection.transport.driver_type == "redis":
            held = _held(connection.default_channel)
    return {
        name: Queued(queue, counts[queue] + (held[name] if held else 0), held is not None)
        for name, queue in queues.items()
    }


def _queue(app: Celery, name: str) -> str:
    options = app.amqp.router.route(dict(app.tasks[name]._get_exec_options() or {}), name)  # noqa: SLF001  # as `apply_async` does
    queue = options.get("queue")
    return str(getattr(queue, "name", queue) or app.conf.task_default_queue)


def _held(channel: Any) -> Counter[str] | None:
    """By task: messages that workers hold, those of killed workers too; None if too many."""
    found: Counter[str] = Counter()
    if channel.client.hlen(channel.unacked_key) > MOST_HELD:
        return None
    # kombu puts its global_keyprefix before the keys of the commands that it uses: not of HSCAN
    key = f"{getattr(channel, 'global_keyprefix', '') or ''}{channel.unacked_key}"
    for _, text in channel.client.hscan_iter(key, count=500):
        payload, *_ = json.loads(text)  # as kombu's Redis transport keeps them
        found[(payload.get("headers") or {}).get("task", "")] += 1
    return found


def _count(connection: Any, queue: str) -> int:
    with connection.channel() as channel:
        return count(channel, queue)
