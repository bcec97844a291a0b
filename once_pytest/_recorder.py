"""What happened in a test: the keys that were derived, and the events."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from once_core._canonical import canonical
from once_core.errors import KeyDerivationError
from once_core.events import Event, subscribe

if TYPE_CHECKING:
    from once_core.guard import Guard

__all__ = ["Derivation", "Recorder", "same"]

MOST = 20
"""Calls kept of one key: those that differ in arguments which are not part of it."""


@dataclass(frozen=True)
class Derivation:
    """A call whose key was asked for.

    Attributes:
        guard: Of its task.
        key: The key.
        arguments: All of them by name.
    """

    guard: Guard
    key: str
    arguments: Mapping[str, object]


class Recorder:
    """Keeps both, for all threads of this process, from `start` to `stop`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._derived: dict[str, list[Derivation]] = {}
        self._silent: set[int] = set()
        self._unsubscribe = _nothing

    def start(self) -> None:
        """Listen from now on."""
        self._unsubscribe = subscribe(self.events.append)

    def stop(self) -> None:
        """Listen no more; what was heard stays."""
        self._unsubscribe()
        self._unsubscribe = _nothing

    @contextmanager
    def silence(self) -> Iterator[None]:
        """While an assertion of this thread derives keys of its own."""
        me = threading.get_ident()
        self._silent.add(me)
        try:
            yield
        finally:
            self._silent.discard(me)

    def derived(
        self, guard: Guard, key: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        """Keep a derivation; arguments stay in this process."""
        if threading.get_ident() in self._silent:
            return
        found = self._derived.setdefault(key, [])
        arguments = guard.keys.bind(args, kwargs)
        if len(found) < MOST and all(not _equal(each.arguments, arguments) for each in found):
            found.append(Derivation(guard, key, arguments))

    def calls(self, key: str) -> list[Derivation]:
        """The calls of a key, the first one first; none of one that another process made."""
        return list(self._derived.get(key, ()))

    def of_task(self, task: str) -> list[Derivation]:
        """All calls of a task."""
        found = [each for some in list(self._derived.values()) for each in some]
        return [each for each in found if each.guard.task == task]


def same(one: object, other: object) -> bool:
    """Whether two values are one for a key: 1, "1", True and 1.0 are four."""
    try:
        return canonical((one,)) == canonical((other,))
    except KeyDerivationError:
        return type(one) is type(other) and repr(one) == repr(other)


def _equal(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def _nothing() -> None: ...
