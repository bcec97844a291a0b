"""What differs between ``once demo`` and ``once demo --dramatiq``.

The story, its numbers and its judge are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from once_core.demo import scenario

__all__ = ["CELERY", "DRAMATIQ", "App", "Binding"]


class App(Protocol):
    """What a producer can do: the two that a user would call ``delay()`` or ``send()`` for."""

    def trigger(self, unit: str) -> tuple[str, bool]:
        """Trigger the slow task; answers the message's id and whether one was sent."""

    def pile_up(self, unit: str) -> None:
        """Trigger the same task without once, `scenario.PLAIN` times."""


@dataclass(frozen=True)
class Binding:
    """One task queue, as the story has to know it. Imports nothing of it.

    Attributes:
        needs: Packages without which it cannot be shown.
        app: Module whose ``open_app`` gives producers an `App`.
        worker: Arguments of ``python -m`` that start a worker; ``{name}`` is its name.
        processes: Of a worker, each of which says when it is ready.
        hands: What each of these has to run bodies with.
        family: What a worker's first process takes along when all of it is killed.
        kind: What the workers are, in words.
        redelivery: When the broker gives out a message again, in words.
        waiting: Keys of the lists and hashes of messages that are not acknowledged.
        pile: Key of the list of messages that nobody consumes.
    """

    needs: tuple[str, ...]
    app: str
    worker: tuple[str, ...]
    processes: int
    hands: str
    family: str
    kind: str
    redelivery: str
    waiting: tuple[tuple[str, str], ...]
    pile: str


CELERY = Binding(
    needs=("celery", "kombu.transport.redis", "rich"),
    app="once_core.demo.app_celery",
    worker=(
        *("celery", "-A", "once_core.demo.worker_celery", "worker", "--hostname", "{name}@%h"),
        *("--loglevel", "INFO", "--concurrency", str(scenario.CHILDREN), "--pool", "prefork"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    processes=1,
    hands=f"{scenario.CHILDREN} children",
    family=f"{scenario.CHILDREN} children",
    kind=f"Celery, prefork, {scenario.CHILDREN} children each",
    redelivery=f"broker redelivers after {scenario.REDELIVERY} s (default: 3600)",
    waiting=(("llen", scenario.QUEUE), ("hlen", "unacked")),
    pile=scenario.PLAIN_QUEUE,
)
"""Celery with its prefork pool; the worker's main process speaks for its children."""

_PROCESSES = 2

DRAMATIQ = Binding(
    needs=("dramatiq", "rich"),
    app="once_core.demo.app_dramatiq",
    worker=(
        *("dramatiq", "once_core.demo.worker_dramatiq", "--queues", scenario.QUEUE),
        *("--processes", str(_PROCESSES), "--threads", str(scenario.CHILDREN)),
    ),
    processes=_PROCESSES,
    hands=f"{scenario.CHILDREN} threads",
    family=f"{_PROCESSES} processes",
    kind=f"Dramatiq, {_PROCESSES} processes with {scenario.CHILDREN} threads each",
    redelivery=f"broker redelivers after {scenario.REDELIVERY} s without a sign of life "
    "(default: 60)",
    # both hashes keep a message until it is acknowledged; one that was put back is in the second
    waiting=(
        ("hlen", f"dramatiq:{scenario.QUEUE}.msgs"),
        ("hlen", f"dramatiq:{scenario.QUEUE}.DQ.msgs"),
    ),
    pile=f"dramatiq:{scenario.PLAIN_QUEUE}",
)
"""Dramatiq's command; its processes know nothing of each other."""
