"""The clocks of this host behind names that say what they count."""

from __future__ import annotations

import time

__all__ = ["elapsed", "wall"]


def elapsed() -> float:
    """Seconds since some fixed moment, counting those in which the machine was suspended.

    `time.monotonic` stands still in a suspended laptop, which would hide that a lease lapsed.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def wall() -> float:
    """Unix time, for people; nothing is decided by it."""
    return time.time()
