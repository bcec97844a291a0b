"""All options in one table, and what each scope limits; the docs' tables are made from these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from once_core import _checks as checks

__all__ = ["OPTIONS", "SCOPES", "Option", "Scope"]


@dataclass(frozen=True)
class Scope:
    """What one value of ``scope=`` limits.

    Attributes:
        waiting: At most one message waits.
        while_running: Publishing is refused while an attempt runs.
        running: At most one attempt runs.
    """

    waiting: bool
    while_running: bool
    running: bool


SCOPES: dict[str, Scope] = {
    "queued+running": Scope(waiting=True, while_running=False, running=True),
    "until_done": Scope(waiting=True, while_running=True, running=True),
    "queued": Scope(waiting=True, while_running=False, running=False),
    "running": Scope(waiting=False, while_running=False, running=True),
    "window": Scope(waiting=True, while_running=False, running=False),
}


@dataclass(frozen=True)
class Option:
    """One row of the table of options, from which the docs' table is made.

    Attributes:
        default: Value where no layer gives one.
        check: Returns the value to use, or raises `ValueError` with what is allowed.
        text: What it does, for the docs.
    """

    default: object
    check: Callable[[object], object]
    text: str


OPTIONS: dict[str, Option] = {
    "scope": Option(
        "queued+running", checks.one_of(*SCOPES), "What is limited; see the table of scopes."
    ),
    "key": Option(
        None,
        checks.anything,
        "Which arguments identify the unit of work: None (all), a list of parameter names "
        "([] = the task alone), a template such as `order-{order_id}`, or a function of the "
        "arguments.",
    ),
    "name": Option(
        None, checks.text, "Replaces the task's name in the key, so that two tasks share one unit."
    ),
    "prefix": Option(
        "once", checks.prefix, "First part of every key in Redis; a function for tenants."
    ),
    "ttl": Option(
        3600.0,
        checks.seconds(least=1),
        "Seconds that anything waiting is remembered after it is due, and dead messages after "
        "their end.",
    ),
    "lease": Option(
        60.0,
        checks.seconds(least=1),
        "Seconds after which the unit is free when its worker dies; renewed at a third of it, "
        "so it does not limit how long a task may run.",
    ),
    "limit": Option(
        1,
        checks.whole(least=1, most=checks.MOST_SLOTS),
        "How many attempts of one unit may run at once, each with a lease of its own.",
    ),
    "min_replicas": Option(
        0,
        checks.whole(least=0, most=checks.MOST_REPLICAS),
        "How many replicas of the lock store must have a claim or a lease before it counts, so "
        "that a failover does not lose it; too few count as a lock store that is away.",
    ),
    "heal_after": Option(
        60.0,
        checks.seconds(),
        "Seconds after which a message that is due but has not started may get a copy (its "
        "queue was purged, its producer died); doubles with each copy.",
    ),
    "window": Option(
        None,
        checks.seconds(optional=True),
        'With scope="window": seconds after the accepted publish in which others are refused.',
    ),
    "keep_for": Option(
        None,
        checks.seconds(optional=True),
        "Seconds after success in which publishes are still refused.",
    ),
    "on_duplicate": Option(
        "skip",
        checks.one_of("skip", "raise", "replace", "share"),
        "What a refused publish does: return the holder's handle, raise DuplicateTaskError, let "
        "the new message take the place of the waiting one, or, where somebody waits for an id "
        "of its own (group, chord, chain), end that with the holder's result.",
    ),
    "debounce": Option(
        None,
        checks.seconds(optional=True),
        'With on_duplicate="replace": seconds of quiet before it runs, so that the last call of '
        "a burst runs.",
    ),
    "debounce_max": Option(
        None,
        checks.seconds(optional=True),
        "Seconds after the first call of a burst at which it runs at the latest; 10 x debounce "
        "if not given.",
    ),
    "return_on_duplicate": Option(
        None,
        checks.anything,
        "Value with which a duplicate ends whose id somebody waits for (group, chord, chain), "
        'unless on_duplicate="share".',
    ),
    "on_overlap": Option(
        "defer",
        checks.one_of("defer", "skip", "raise"),
        "What a message does that would start while another attempt runs: come back later "
        "(nothing is lost), end without running, or fail with OverlapError.",
    ),
    "on_store_error": Option(
        "raise",
        checks.one_of("raise", "run"),
        "When the lock store is away: raise StoreUnavailableError at publish and come back later "
        "at start, or go on without the lock.",
    ),
    "warn_after": Option(
        None,
        checks.seconds(optional=True),
        "Seconds after which a run that still holds its lease is worth a WARNING.",
    ),
    "preview": Option(
        False,  # noqa: FBT003  # a default like the others
        checks.preview,
        "Parameter names whose values may be shown in events and by commands.",
    ),
    "secret": Option(
        None, checks.secret, "Makes digests of guessable arguments useless to others (HMAC)."
    ),
    "events": Option(
        0,
        checks.whole(least=0, most=10_000_000),
        "How many events the lock store keeps for `once watch` and the dashboard, of all tasks "
        "together; 0 for none. 10000 take about 3 MB.",
    ),
    "url": Option(None, checks.text, "Where the lock store is."),
    "client": Option(
        None,
        checks.anything,
        "A redis-py client, or a function that returns one, instead of a URL.",
    ),
}
