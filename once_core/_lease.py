"""The lease of a running attempt, as its body sees it."""

from __future__ import annotations

from contextvars import ContextVar

from once_core._clock import elapsed
from once_core.errors import LeaseLostError

__all__ = ["Lease", "current_lease"]

_current: ContextVar[Lease | None] = ContextVar("once_lease", default=None)


class Lease:
    """The right of the running attempt; renewed by a thread of this process until it ends.

    Safe to read from any thread. While Redis is away it counts down; when it comes back the
    lease is restored if nobody took it.

    Attributes:
        key: Key of the unit of work.
        fence: Number that grows with every lease of this unit: a store that remembers the
            greatest it saw can refuse the late write of an older attempt.
        length: Seconds it lasts without renewal.

    Example:
        >>> lease = Lease("once:demo", fence=7, length=60.0)
        >>> lease.lost, lease.remaining > 59
        (False, True)
        >>> lease.check()
    """

    def __init__(self, key: str, fence: int, length: float, *, since: float | None = None) -> None:
        self.key = key
        self.fence = fence
        self.length = length
        self._deadline = (elapsed() if since is None else since) + length
        self._is_taken = False

    @property
    def lost(self) -> bool:
        """Whether another attempt may run by now."""
        return self._is_taken or elapsed() > self._deadline

    @property
    def remaining(self) -> float:
        """Seconds until it lapses if it is not renewed; 0 when it is lost."""
        return 0.0 if self.lost else max(0.0, self._deadline - elapsed())

    def check(self) -> None:
        """Stop here if the lease is lost: to be called before what must not happen twice.

        Raises:
            LeaseLostError: When it is.
        """
        if self.lost:
            raise LeaseLostError(
                f"the lease of {self.key} (fence {self.fence}) is lost: this process stood still "
                f"for longer than the lease of {self.length:g} s, the lock store was away for as "
                "long, or somebody released it; another attempt may run. Undo or stop; for tasks "
                "that block the interpreter give a longer lease=",
                key=self.key,
                fence=self.fence,
            )

    def _renewed(self, sent_at: float) -> None:
        """It lasts from the moment the renewal was *sent*: the answer may have been slow."""
        self._deadline = sent_at + self.length

    def _taken(self) -> bool:
        """It is lost for good; answers whether that is news."""
        was_taken, self._is_taken = self._is_taken, True
        return not was_taken

    def __repr__(self) -> str:
        state = "lost" if self.lost else f"{self.remaining:.1f} s left"
        return f"<Lease {self.key} fence={self.fence} {state}>"


def current_lease() -> Lease | None:
    """The lease under which the calling body runs, or None where none does.

    None also where a scope limits only what waits, and where a test calls the body as a function.

    Example:
        >>> current_lease() is None
        True
    """
    return _current.get()
