"""Logic that is written once and carried by sync and async stores alike.

A flow is a generator that yields what it wants done, a step or a pause, gets the answer sent, and
meets its error as an exception at the ``yield``. It does no I/O of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from once_core.protocol import Step

__all__ = ["Flow", "Pause"]

R = TypeVar("R")


class Pause(NamedTuple):
    """Wait until something is published on a channel, or for so long.

    Attributes:
        channel: Its name; the answer tells whether something came.
        seconds: At most.
    """

    channel: str
    seconds: float


Flow = Generator[Step[Any] | Pause, Any, R]
