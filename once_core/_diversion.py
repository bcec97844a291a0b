"""The seam for tests: where the locks of this process live instead, and who watches.

`once_pytest` is the only one that diverts. What is diverted is the guard, at which every step of
every binding asks for its store: programs whose tasks were defined, and even used, before the
test need no change, and nothing of redis-py is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from once_core.aio import AsyncStore
    from once_core.guard import Guard
    from once_core.store import Store

__all__ = ["Diversion", "diversion", "divert", "is_bypassed"]


class Diversion(Protocol):
    """What a test puts in the place of the lock stores of this process."""

    @property
    def is_bypassed(self) -> bool:
        """Whether tasks are to run as if they were under no guard."""

    def store(self, find: Callable[[], Store]) -> Store:
        """The store to use.

        Args:
            find: Finds the one that would be used otherwise.
        """

    def async_store(self, find: Callable[[], AsyncStore]) -> AsyncStore:
        """The same for asyncio."""

    def connecting(self, place: str) -> None:
        """A store of this process is about to make a client of a server.

        Args:
            place: Where that is; never one of ``memory://``, nor a client that was handed in.
        """

    def derived(
        self, guard: Guard, key: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        """A key was derived from these arguments."""


# a plain variable and no contextvar: the threads of workers must see it
_now: Diversion | None = None


def diversion() -> Diversion | None:
    """The one that holds now, or None as in every program that is not a test."""
    return _now


def divert(new: Diversion | None) -> Diversion | None:
    """Have another one hold from now on, or none.

    Returns:
        The one that held until now.
    """
    global _now  # see above
    before, _now = _now, new
    return before


def is_bypassed() -> bool:
    """Whether a test wants tasks to run as if they were under no guard."""
    return _now is not None and _now.is_bypassed
