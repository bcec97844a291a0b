"""The clocks of this host behind names that say what they count; a test can put them ahead."""

from __future__ import annotations

import time

__all__ = ["advance", "elapsed", "wall"]

_ahead = 0.0
"""Seconds that a test has put both clocks ahead; nothing else does."""


def elapsed() -> float:
    """Seconds since some fixed moment, counting those in which the machine was suspended.

    `time.monotonic` stands still in a suspended laptop, which would hide that a lease lapsed.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) + _ahead
    return time.monotonic() + _ahead


def wall() -> float:
    """Unix time, for people; nothing is decided by it."""
    return time.time() + _ahead


def advance(seconds: float) -> None:
    """Put both clocks ahead in this process, or back again where a test ends."""
    global _ahead  # noqa: PLW0603  # one clock a process, as time itself
    _ahead += seconds
