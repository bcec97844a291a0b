"""The actors of a broker that are under guard, for commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import dramatiq
from dramatiq import Broker

from once_core.purging import Purger
from once_dramatiq.backlog import queued
from once_dramatiq.checkup import findings
from once_dramatiq.middleware import OnceMiddleware
from once_dramatiq.purging import purge, queue_names

if TYPE_CHECKING:
    from once_core.backlog import Queued
    from once_core.finding import Finding
    from once_core.guard import Guard

__all__ = ["backlogs", "checks", "guards", "purgers"]


def guards(
    module: ModuleType,  # noqa: ARG001  # as for Celery
    things: Iterable[object],
) -> Iterator[tuple[str, Callable[[], Guard]]]:
    """Names and guards of the actors of the brokers that a module holds, and of the global one.

    Args:
        module: The one that ``-A`` names.
        things: What it holds.
    """
    for broker, ours in _brokers(things):
        binding = ours.binding(broker)
        for name, actor in sorted(broker.actors.items()):
            if binding.is_guarded(actor):
                yield name, partial(binding.guard, actor)


def checks(
    module: ModuleType,  # noqa: ARG001  # as for Celery
    things: Iterable[object],
) -> list[Callable[[], Iterator[Finding]]]:
    """What `once doctor` asks of the brokers that a module holds."""
    return [partial(findings, broker, ours) for broker, ours in _brokers(things)]


def purgers(
    module: ModuleType,  # noqa: ARG001  # as for Celery
    things: Iterable[object],
) -> list[Purger]:
    """What `once purge` may empty: the queues of the brokers that a module holds."""
    return [
        Purger(partial(queue_names, broker), partial(purge, broker))
        for broker, _ in _brokers(things)
    ]


def backlogs(
    module: ModuleType,  # noqa: ARG001  # as for Celery
    things: Iterable[object],
) -> list[Callable[[], Mapping[str, Queued]]]:
    """What the brokers that a module holds have for each guarded actor."""
    return [partial(_queued, broker, ours) for broker, ours in _brokers(things)]


def _queued(broker: Broker, ours: OnceMiddleware) -> dict[str, Queued]:
    binding = ours.binding(broker)
    return queued(
        broker, [name for name, each in broker.actors.items() if binding.is_guarded(each)]
    )


def _brokers(things: Iterable[object]) -> Iterator[tuple[Broker, OnceMiddleware]]:
    """Those with our middleware."""
    found = [each for each in things if isinstance(each, Broker)]
    if dramatiq.broker.global_broker is not None:  # `get_broker()` would make one
        found.append(dramatiq.broker.global_broker)
    for broker in {id(each): each for each in found}.values():
        ours = next((each for each in broker.middleware if isinstance(each, OnceMiddleware)), None)
        if ours is not None:
            yield broker, ours
