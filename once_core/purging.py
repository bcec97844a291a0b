"""Emptying queues: what was taken out of one is said to the units of work that waited in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from once_core.errors import StoreUnavailableError
from once_core.events import emit
from once_core.protocol import Step

if TYPE_CHECKING:
    from once_core.store import Store

__all__ = ["BATCH", "Purged", "Purger", "Withdrawal", "free_all"]

BATCH = 100
"""Messages between two round trips to the lock store."""

T = TypeVar("T")


class Purged(NamedTuple):
    """What a purge did.

    Attributes:
        messages: How many messages were taken from the queues.
        released: How many units of work do not wait any more.
        left: How many could not be released, for the store is away; they heal (``heal_after``).
    """

    messages: int
    released: int
    left: int


Withdrawal = tuple["Store", str, Step[str]]
"""What is to be said of one message that was taken: where the record of its unit of work is, the
name of its task, and the step that says that it will not run."""


@dataclass(frozen=True)
class Purger:
    """What the command `once purge` needs of an app or a broker.

    Attributes:
        queues: Names of its queues.
        purge: Empties those that are named.
    """

    queues: Callable[[], Sequence[str]]
    purge: Callable[[Sequence[str]], Purged]


def free_all(taken: Iterable[T], withdrawal: Callable[[T], Withdrawal | None]) -> Purged:
    """Free the units of work whose messages were taken out of a queue, in batches.

    Args:
        taken: The messages; each is gone from its queue by the time the next is asked for.
        withdrawal: What is to be said of one; None where nothing waits for it.
    """
    count, freed, left = 0, set[str](), set[str]()
    messages = iter(taken)
    while batch := list(islice(messages, BATCH)):
        found = [each for message in batch if (each := withdrawal(message)) is not None]
        for store in {store for store, _, _ in found}:
            for key, answer in _withdraw(store, [each for each in found if each[0] is store]):
                if answer == "withdrawn":
                    freed.add(key)
                elif answer == "unknown":
                    left.add(key)
        count += len(batch)
    return Purged(count, len(freed), len(left - freed))


def _withdraw(store: Store, found: Sequence[Withdrawal]) -> list[tuple[str, str]]:
    """Say of messages of one store that they will not run; ``"unknown"`` while it is away."""
    steps = [step for _, _, step in found]
    answers = [
        "unknown" if isinstance(answer, StoreUnavailableError) else answer
        for answer in store.run_many(steps)
    ]
    for (_, task, step), answer in zip(found, answers, strict=True):
        if answer == "withdrawn":
            emit("withdrawn", task=task, key=step.key, reason="its queue was purged")
    return [(step.key, answer) for step, answer in zip(steps, answers, strict=True)]
