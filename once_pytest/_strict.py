"""The strict guard: a test does not reach a real lock server by accident."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from once_core.store import GIVEN

if TYPE_CHECKING:
    from once_core.aio import AsyncStore
    from once_core.guard import Guard
    from once_core.store import Store

__all__ = ["Strict", "refusals", "refuse"]

refusals: list[str] = []
"""What was refused in this test: the code under test may have swallowed it."""

_OURS = ("once_core", "once_celery", "once_dramatiq", "once_pytest")


class _Refused(BaseException):
    """No `Exception`: an ``except Exception`` of the code under test must not swallow it."""


_error: type[BaseException] = _Refused


def raise_as(error: type[BaseException]) -> None:
    """Have refusals be errors of this type: pytest's own, where it runs."""
    global _error  # noqa: PLW0603  # one test runner a process
    _error = error


def refuse(place: str) -> None:
    """Refuse to connect to a lock server.

    Args:
        place: Where it is, without its password.
    """
    text = (
        f"this test would have reached the lock server at {place} (from {_caller()}); use the "
        "fixture once_locks, which gives it locks of its own, or allow it with "
        "@pytest.mark.once(strict=False)"
    )
    refusals.append(text)
    raise _error(text)


class Strict:
    """Holds where no harness does: stores are found as usual, and may only be in memory."""

    is_bypassed = False

    def store(self, find: Callable[[], Store]) -> Store:
        """The store that would be used otherwise, if it is none of a real server."""
        store = find()
        if not _is_harmless(store.place):
            refuse(store.place)
        return store

    def async_store(self, find: Callable[[], AsyncStore]) -> AsyncStore:
        """The same for asyncio."""
        store = find()
        if not _is_harmless(store.place):
            refuse(store.place)
        return store

    def connecting(self, place: str) -> None:
        """A store was made by hand."""
        refuse(place)

    def derived(
        self, guard: Guard, key: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        """Of no interest here."""


def _is_harmless(place: str) -> bool:
    """In memory, or a client that somebody has handed in and knows."""
    return place.startswith("memory:") or place == GIVEN


def _caller() -> str:
    """File and line of the nearest code that is none of ours and no framework's."""
    frame = sys._getframe(1)  # noqa: SLF001  # as `warnings` does
    while frame.f_back is not None:
        frame = frame.f_back
        name = str(frame.f_globals.get("__name__", ""))
        path = Path(frame.f_code.co_filename)
        if name.partition(".")[0] not in _OURS and "site-packages" not in path.parts:
            return f"{path.name}:{frame.f_lineno}"
    return "an unknown place"
