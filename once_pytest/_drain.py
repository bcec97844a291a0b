"""What the queues of all frameworks have in common when they are drained."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

__all__ = ["Clock", "DrainError", "Ending", "Queues", "Taken", "ahead"]


class Clock(Protocol):
    """The clock of a test."""

    def now(self) -> float:
        """Unix time, with what was advanced."""
        ...

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        ...


class DrainError(AssertionError):
    """The queues cannot be drained as the test asks."""


class Taken(NamedTuple):
    """A message that was taken from its queue and is due.

    Attributes:
        task: Name of its task or actor.
        message_id: Its id.
        handle: The message, for the queues that it comes from.
    """

    task: str
    message_id: str
    handle: object


class Ending(NamedTuple):
    """How a message ended.

    Attributes:
        error: With which its task has failed for good.
        reason: Why it did not simply succeed, in words.
        is_fatal: Whether the error was meant for the whole program, such as `KeyboardInterrupt`.
    """

    error: BaseException | None = None
    reason: str = ""
    is_fatal: bool = False


class Queues(Protocol):
    """The queues of one app or broker, with a worker of their own. For one thread."""

    @property
    def left(self) -> int:
        """How many messages were received that are not due."""
        ...

    def take(self) -> Taken | None:
        """The next message that is due; None once all that is left is due later."""
        ...

    def put_back(self, taken: Taken) -> None:
        """Leave it in its queue after all."""
        ...

    def deliver(self, taken: Taken) -> Ending:
        """Hand it to the worker's code."""
        ...

    def next_due(self) -> float | None:
        """Unix time by the test's clock; None if nothing is left."""
        ...


def ahead(clock: Clock) -> float:
    """Seconds by which a test's clock is ahead of the host's."""
    return round(clock.now() - time.time(), 3)
