"""The tasks of an app that are under guard, for commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from celery import Celery

from once_celery._binding import Binding, task_options
from once_celery.backlog import queued
from once_celery.checkup import findings
from once_celery.purging import purge
from once_core.purging import Purger

if TYPE_CHECKING:
    from once_core.backlog import Queued
    from once_core.finding import Finding
    from once_core.guard import Guard

__all__ = ["backlogs", "checks", "guards", "guards_of", "purgers", "queued_for"]


def guards(
    module: ModuleType, things: Iterable[object]
) -> Iterator[tuple[str, Callable[[], Guard]]]:
    """Names and guards of the tasks of the apps that a module holds.

    Args:
        module: The one that ``-A`` names; of a package, ``celery`` in it is looked at, too.
        things: What it holds.
    """
    for app in _apps(module, things):
        yield from guards_of(app)


def checks(module: ModuleType, things: Iterable[object]) -> list[Callable[[], Iterator[Finding]]]:
    """What `once doctor` asks of the apps that a module holds."""
    return [partial(findings, app) for app in _apps(module, things)]


def purgers(module: ModuleType, things: Iterable[object]) -> list[Purger]:
    """What `once purge` may empty: the queues of the apps that a module holds."""
    return [
        Purger(partial(sorted, app.amqp.queues), partial(purge, app))
        for app in _apps(module, things)
    ]


def backlogs(
    module: ModuleType, things: Iterable[object]
) -> list[Callable[[], Mapping[str, Queued]]]:
    """What the brokers of the apps that a module holds have for each guarded task."""
    return [partial(queued_for, app) for app in _apps(module, things)]


def queued_for(app: Celery) -> dict[str, Queued]:
    """What the broker of an app has for each guarded task."""
    return queued(app, [name for name, _ in guards_of(app)])


def _apps(module: ModuleType, things: Iterable[object]) -> list[Celery]:
    inner = None
    if hasattr(module, "__path__") and find_spec(f"{module.__name__}.celery"):
        inner = import_module(f"{module.__name__}.celery")  # as `celery -A` looks for it
    found = [*things, *(vars(inner).values() if inner is not None else ())]
    return list({id(each): each for each in found if isinstance(each, Celery)}.values())


def guards_of(app: Celery) -> Iterator[tuple[str, Callable[[], Guard]]]:
    """Names and guards of the tasks of an app."""
    app.loader.import_default_modules()
    app.finalize()
    for name, task in sorted(app.tasks.items()):
        if hasattr(task, "queue_lock") and task_options(task) is not None:
            yield name, partial(_guard, app, task)


def _guard(app: Celery, task: Any) -> Guard:  # Celery has no types
    guard = Binding.of(app).guard(task)
    assert guard is not None, "asked before"  # noqa: S101  # for type checkers
    return guard
