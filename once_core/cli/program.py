"""The user's program: what of it is under guard, and where its locks are."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from once_core._surroundings import surroundings
from once_core.configuration import configure
from once_core.errors import ConfigurationError, OnceError
from once_core.guard import Guard
from once_core.options import nearest
from once_core.store import Store

if TYPE_CHECKING:
    from once_core.backlog import Queued
    from once_core.finding import Finding
    from once_core.purging import Purger

__all__ = ["Program", "load"]


@dataclass
class Program:
    """What ``-A`` names, or nothing but a lock store.

    Attributes:
        name: What was given.
        guards: Finds the guard of each task by its name.
        find_store: Finds the lock store.
        prefix: First part of the keys.
        checks: What `doctor` asks of its frameworks.
        backlogs: Sequence[Callable[[], Mapping[str, Queued]]] = ()
    purgers: What `purge` may empty.
    """

    name: str
    guards: Mapping[str, Callable[[], Guard]] = field(default_factory=dict)
    find_store: Callable[[], Store] | None = None
    prefix: str = "once"
    checks: Sequence[Callable[[], Iterator[Finding]]] = ()
    backlogs: Sequence[Callable[[], Mapping[str, Queued]]] = ()
    purgers: Sequence[Purger] = ()
    _by_key_name: dict[str, str] = field(default_factory=dict, init=False)
    _named: int = field(default=0, init=False)
    unlisted: set[str] = field(default_factory=set)
    """Tasks whose keys cannot be listed: a function gives their prefix."""

    def guard(self, task: str) -> Guard:
        """The guard of a task.

        Raises:
            ConfigurationError: There is no such task, it is under no guard, or several end so.
        """
        if not self.guards:
            raise ConfigurationError(
                f"no task is known: name the module of your program, once -A proj … {task}"
            )
        if task in self.guards:
            return self.guards[task]()
        found = [name for name in self.guards if name.rpartition(".")[2] == task]
        if not found:
            hint = nearest(task, self.guards) or f"; there are {', '.join(sorted(self.guards))}"
            raise ConfigurationError(f"{self.name} has no task {task!r} under guard{hint}")
        if len(found) > 1:
            raise ConfigurationError(
                f"{task!r} may be {' or '.join(sorted(found))}; give the whole name"
            )
        return self.guards[found[0]]()

    def places(self) -> list[tuple[Store, str]]:
        """The lock stores of all that is under guard, with the first part of their keys.

        Tasks may have stores and prefixes of their own; of those that a function gives, none.

        Raises:
            ConfigurationError: There is none.
        """
        found: dict[tuple[str, str], tuple[Store, str]] = {}
        if self.find_store is not None and not self.guards:
            store = self.find_store()
            found[store.place, self.prefix] = store, self.prefix
        for find in self.guards.values():
            try:
                guard = find()
                prefix = guard.options.prefix
                store = guard.store
            except OnceError:
                continue  # `doctor` says what is wrong with it
            if callable(prefix):
                self.unlisted.add(guard.task)
            else:
                found.setdefault((store.place, prefix), (store, prefix))
        if not found:
            raise ConfigurationError(
                "there is no lock store to look at: give --url, set ONCE_URL, or name your "
                "program with -A",
                option="url",
            )
        return list(found.values())

    def keeps_events(self) -> bool:
        """Whether a task says that its events are to be kept."""
        for find in self.guards.values():
            try:
                if find().options.events:
                    return True
            except OnceError:
                continue  # `doctor` says what is wrong with it
        return False

    def queued(self) -> dict[str, Queued]:
        """What the brokers have for the tasks, by the names that these have in keys."""
        found: dict[str, Queued] = {}
        for backlog in self.backlogs:
            for name, queued in backlog().items():
                try:
                    key_name = _in_key(self.guards[name]().options.name or name)
                except (KeyError, OnceError):
                    continue
                found[key_name] = queued.beside(found.get(key_name))
        return found

    def task_of(self, key_name: str) -> str:
        """The full name of a task from that in a key."""
        if self._named != len(self.guards):
            self._named = len(self.guards)
            self._by_key_name = {_in_key(name): name for name in reversed(list(self.guards))}
        return self._by_key_name.get(key_name, key_name)


def _in_key(name: str) -> str:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "_.:-" else "_" for c in name[:128])


def load(name: str, url: str = "") -> Program:
    """The program that a module holds.

    Args:
        name: Of the module, or ``module:attribute``; empty for none.
        url: Of the lock store, in the place of what the program says.

    Raises:
        ConfigurationError: It cannot be imported, or holds nothing of ours.
    """
    if url:
        configure(url=url)  # for tasks and functions that say nothing else
    options = surroundings({})
    place = url or str(options.get("url") or "")
    program = Program(name, prefix=_prefix(options.get("prefix")))
    if place:
        program.find_store = lambda: _one_store(place)
    if not name:
        return program
    sys.path.insert(0, str(Path.cwd()))  # as `celery` and `dramatiq` do
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no answer of ours
            module, found = _module(name)
    except Exception as error:
        kind = (
            "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        )
        raise ConfigurationError(
            f"-A {name} cannot be loaded: {kind}{error}; give the module as you give it to your "
            "worker, and run this where you run that"
        ) from error
    guards = dict(_guards(module, found))
    if not guards:
        raise ConfigurationError(
            f"-A {name} holds nothing under guard: neither a Celery app with OnceTask, a Dramatiq "
            "broker with OnceMiddleware, nor a function under @once"
        )
    program.guards = guards
    things = _things(module, found)
    inventories = list(_inventories())
    program.checks = [check for each in inventories for check in each.checks(module, things)]
    program.backlogs = [
        backlog for each in inventories for backlog in each.backlogs(module, things)
    ]
    program.purgers = [purger for each in inventories for purger in each.purgers(module, things)]
    return program


def _module(name: str) -> tuple[ModuleType, Any]:
    """A module, and what of it is meant: ``module:attribute``, ``module.attribute`` or all."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        module_name, _, attribute = name.rpartition(".")
        if not module_name or ":" in name or error.name != name:
            raise  # not of `module.attribute`: something that it imports is missing
        module = importlib.import_module(module_name)
    return module, getattr(module, attribute) if attribute else None


_stores: dict[str, Store] = {}


def _one_store(url: str) -> Store:
    return _stores.setdefault(url, Store(url))


def _prefix(prefix: object) -> str:
    return prefix if isinstance(prefix, str) else "once"


def _guards(module: ModuleType, found: Any) -> Iterator[tuple[str, Callable[[], Guard]]]:  # noqa: ANN401  # whatever it holds
    """All that is under guard, in the frameworks that the module has imported."""
    things = _things(module, found)
    for inventory in _inventories():
        yield from inventory.guards(module, things)
    for thing in things:
        own = getattr(thing, "once_guard", None)
        if callable(own) and inspect.isfunction(thing):  # tasks and actors are known by now
            guard: Callable[[], Guard] = own
            yield f"{thing.__module__}.{thing.__qualname__}", guard


def _things(module: ModuleType, found: Any) -> list[Any]:  # noqa: ANN401  # see above
    return [found] if found is not None else list(vars(module).values())


def _inventories() -> Iterator[Any]:
    """What knows the programs of each framework that the module has imported."""
    for framework, inventory in (
        ("celery", "once_celery.inventory"),
        ("dramatiq", "once_dramatiq.inventory"),
    ):
        if framework in sys.modules:
            yield importlib.import_module(inventory)
