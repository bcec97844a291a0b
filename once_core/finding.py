"""What `once doctor` says: one finding for one thing that was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["CODES", "LEVELS", "Code", "Finding", "Level", "listed"]

Level = Literal["ok", "note", "warning", "error"]

LEVELS: tuple[Level, ...] = get_args(Level)
"""From nothing to be done to what cannot work."""

Code = Literal[
    "ok",
    "check-failed",
    # of a lock store
    "no-store",
    "store-away",
    "info-refused",
    "memory-store",
    "server-old",
    "evicts-keys",
    "memory-nearly-full",
    "replica",
    "has-replicas",
    "too-few-replicas",
    "cluster-node",
    "no-aof",
    "writes-fail",
    "clock-skew",
    "keys-never-repeat",
    "record-unreadable",
    "waits-without-message",
    # of the options of one task
    "refused-options",
    "volatile-argument",
    "default-made-at-import",
    "datetime-argument",
    "lease-short",
    "lease-long",
    "ttl-below-heal-after",
    "overlap-gives-up",
    # of a task beside the configuration of its framework
    "ttl-below-time-limit",
    "ttl-below-retry-delay",
    "ttl-below-period",
    "visibility-timeout",
    "wait-beyond-visibility-timeout",
    "consumer-timeout",
    "early-acks",
    "acked-when-worker-dies",
    "share-without-results",
    "results-expire-early",
    "max-age-below-time-limit",
    "stub-broker",
    "periodic-unguarded",
    "periodic-backs-up",
    "periodic-unknown",
    "unguarded-task",
]

CODES: tuple[Code, ...] = get_args(Code)
"""Every code there is; once published one keeps its meaning, for programs ignore it by name."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``"ok"``, ``"note"``, ``"warning"`` or ``"error"``.
        code: Says what kind of thing it is, for programs and for ``--ignore``.
        about: The store, the task or the option.
        text: What was found.
        advice: What to do; empty where nothing is to be done.
    """

    level: Level
    code: Code
    about: str
    text: str
    advice: str = ""


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names for a line of text, not more than fit there.

    Args:
        names: All of them.
        most: How many are named.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
