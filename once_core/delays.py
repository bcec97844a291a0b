"""How long a message that could not start stays away."""

from __future__ import annotations

import random

from once_core import protocol
from once_core.protocol import Start

__all__ = ["deferral", "deferral_cause", "delay_after"]

LAPSE_MARGIN = 0.1
"""Seconds after the end of a lease at which a message that waits for it comes back."""


def deferral(deferrals: int, longest: float = protocol.LONGEST_DEFERRAL) -> float:
    """Seconds to put a message back for: 1 doubling to 30, jittered so that many spread out.

    Args:
        deferrals: How often it was put back already.
        longest: No longer than this; brokers give long-held messages out again.
    """
    most = min(float(2 ** min(deferrals, 10)), longest, protocol.LONGEST_DEFERRAL)
    return most * random.uniform(0.75, 1.0)  # noqa: S311  # spreads load, hides nothing


def delay_after(answer: Start | None, deferrals: int, longest: float) -> float:
    """Seconds after which a message that could not start is to come again.

    Args:
        answer: Why it did not start; None while the store is away.
        deferrals: How often it was put back.
        longest: No longer than this; brokers give long-held messages out again.
    """
    if answer is not None and answer.status == "early":
        return min(answer.remaining, longest)
    delay = deferral(deferrals, longest)
    if answer is None:
        return delay
    if answer.turn:
        delay = min(answer.turn, longest)  # turns are apart from each other as they are
    # a dead holder's lease is waited for no longer than it lasts; a live one has renewed it
    return min(delay, answer.remaining + LAPSE_MARGIN)


def deferral_cause(answer: Start | None) -> str:
    """What a message that could not start waits for, in one word for counting.

    Args:
        answer: Why it did not start; None while the store is away.
    """
    return "store" if answer is None else answer.status
