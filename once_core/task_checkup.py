"""What is wrong with the options of a task, alone and beside its framework's, before it hurts."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from inspect import Parameter, formatannotation
from typing import TYPE_CHECKING

from once_core.finding import Finding, listed

if TYPE_CHECKING:
    from once_core.guard import Guard

__all__ = [
    "of_guard",
    "of_periodic",
    "of_results",
    "of_retries",
    "of_time_limit",
    "of_unguarded",
]

SHORT_LEASE = 5.0
"""Seconds: a shorter lease is lost by a pause of the interpreter or of the network."""

LONG_LEASE = 600.0
"""Seconds: a longer lease was most likely meant to be as long as the longest run."""

_VOLATILE = re.compile(
    r"(^|_)(now|nonce)$|^(current_time(stamp)?|uuid|request_id|trace_id|correlation_id|random\w*)$"
)
"""Whole names, for ``order_uuid`` and ``start_time`` are what work is about."""

_MOMENT = re.compile(r"(?<![\w.])(\w+\.)?datetime(?![\w.])")
_WORK = re.compile(r"(sync|refresh|import|rebuild|reindex|recalculate|update|cleanup)(_|$)")


def of_guard(guard: Guard) -> Iterator[Finding]:
    """What looks wrong with the options of a task.

    Args:
        guard: Of the task.

    Example:
        >>> from once_core import Guard, OnceOptions
        >>> def sync(order_id, requested_now): ...
        >>> guard = Guard("shop.sync", sync, OnceOptions(), lambda: None)
        >>> [finding.code for finding in of_guard(guard)]
        ['volatile-argument']
    """
    found = [*_arguments(guard), *_durations(guard)]
    yield from found or [Finding("ok", "ok", guard.task, f'scope="{guard.options.scope}"')]


def _arguments(guard: Guard) -> Iterator[Finding]:
    """Arguments of the key that have another value at each call."""
    signature = guard.keys.signature.parameters
    own = {name: signature[name] for name in guard.keys.parameters if name in signature}
    named = [name for name in guard.keys.parameters if _VOLATILE.search(name)]
    made = [name for name in own if name not in named and _is_made_now(own[name].default)]
    moments = [name for name in own if name not in (*named, *made) and _is_moment(own[name])]

    def advice(names: list[str]) -> str:
        rest = [name for name in guard.keys.parameters if name not in names]
        return f"leave it out: once={{'key': {rest!r}}}"

    if named:
        yield Finding(
            "warning",
            "volatile-argument",
            guard.task,
            f"{', '.join(named)} is part of the key, and looks as if each call had another "
            "value: no call would ever be a duplicate",
            advice(named),
        )
    for name in made:
        yield Finding(
            "warning",
            "default-made-at-import",
            guard.task,
            f"the default of {name} was made when its module was imported: each process has "
            "another, and the same call has another key in each",
            f"write {name}=None, and make the value in the body; or {advice([name])}",
        )
    if moments:
        yield Finding(
            "note",
            "datetime-argument",
            guard.task,
            f"{', '.join(moments)} is a datetime and part of the key: where that is the moment of "
            "the call, no call would ever be a duplicate",
            f"if so, {advice(moments)}",
        )


def _is_made_now(default: object) -> bool:
    """Whether a default looks like ``=datetime.now()`` or ``=uuid4()``, and not like a constant."""
    if isinstance(default, uuid.UUID):
        return default.version in (4, 7)  # those of namespaces are of version 1
    if isinstance(default, datetime):
        return abs(datetime.now(default.tzinfo) - default) < timedelta(days=1)
    return False


def _is_moment(parameter: Parameter) -> bool:
    note = parameter.annotation
    shown = note if isinstance(note, str) else formatannotation(note)
    return note is not Parameter.empty and _MOMENT.search(shown) is not None


def _durations(guard: Guard) -> Iterator[Finding]:
    options, task = guard.options, guard.task
    if options.limits.running and options.lease < SHORT_LEASE:
        yield Finding(
            "warning",
            "lease-short",
            task,
            f"lease={options.lease:g} s is lost by any pause of {options.lease:g} s (a garbage "
            "collection, a busy machine), and then two may run",
            "leave lease= out: it does not limit how long a task may run",
        )
    if options.limits.running and options.lease > LONG_LEASE:
        yield Finding(
            "note",
            "lease-long",
            task,
            f"lease={options.lease:g} s: when its worker dies, no other may run it for that long",
            "leave lease= out: it is renewed, and does not limit how long a task may run",
        )
    if options.limits.waiting and options.ttl < options.heal_after:
        yield Finding(
            "warning",
            "ttl-below-heal-after",
            task,
            f"ttl={options.ttl:g} s is shorter than heal_after={options.heal_after:g} s: a message "
            "that waits is forgotten, and copies of it pile up",
            "give ttl= the longest time that a message may wait in its queue",
        )
    if options.on_overlap != "defer" and options.limits.waiting:
        yield Finding(
            "note",
            "overlap-gives-up",
            task,
            f'on_overlap="{options.on_overlap}" gives up triggers that meet a run: what changed '
            "after that run began is not seen",
            'leave on_overlap= out ("defer"), where each trigger counts',
        )


def of_unguarded(names: Iterable[str], advice: str) -> Iterator[Finding]:
    """Tasks under no guard whose names say that two of them at once are one too many.

    Args:
        names: Of all tasks under no guard.
        advice: How one is put under guard.
    """
    found = sorted(name for name in names if _WORK.match(name.rpartition(".")[2]))
    if found:
        yield Finding(
            "note",
            "unguarded-task",
            listed(found),
            "under no guard, and by the name the same work may be asked for while it waits or runs",
            advice,
        )


# Beside the framework's own settings


def of_time_limit(guard: Guard, limit: float | None) -> Iterator[Finding]:
    """A message that waits behind a long run is forgotten before that run ends.

    Args:
        guard: Of the task.
        limit: Seconds that a run may take; None where nothing limits it.
    """
    options = guard.options
    if options.limits.waiting and limit is not None and options.ttl < limit:
        yield Finding(
            "warning",
            "ttl-below-time-limit",
            guard.task,
            f"ttl={options.ttl:g} s is shorter than its time limit of {limit:g} s: what waits in a "
            "busy queue behind one such run is forgotten, and each further call adds a message",
            f"once={{'ttl': {limit * 2:g}}}",
        )


def of_retries(guard: Guard, first: float, longest: float) -> Iterator[Finding]:
    """A retry that waits for longer than ``ttl`` is forgotten before it runs.

    Args:
        guard: Of the task.
        first: Seconds before the first retry.
        longest: Seconds before the last one.
    """
    options = guard.options
    if options.limits.waiting and options.ttl < max(first, longest):
        delay = first if options.ttl < first else longest
        yield Finding(
            "warning" if options.ttl < first else "note",
            "ttl-below-retry-delay",
            guard.task,
            f"a retry may wait for {delay:g} s, and is forgotten after ttl={options.ttl:g} s: then "
            "calls are accepted beside it, and each of them that fails leaves one more retry",
            f"once={{'ttl': {delay:g}}}, or shorter delays",
        )


def of_results(guard: Guard, life: float | None, advice: str) -> Iterator[Finding]:
    """Results that are gone before those who were given their handle can read them.

    Args:
        guard: Of the task.
        life: Seconds that results are kept; None for ever.
        advice: The setting of the framework, without its value.
    """
    options = guard.options
    if life is None:
        return
    if guard.is_sharing and life < options.ttl:
        needed = options.ttl
        why = (
            'on_duplicate="share" looks for the result of the holder, and a duplicate that waits '
            "in its queue for longer than that fails"
        )
    elif options.keep_for is not None and life < options.keep_for:
        needed = options.keep_for
        why = (
            f"calls are refused for keep_for={options.keep_for:g} s, and the handle that they get "
            "has no result any more"
        )
    else:
        return
    yield Finding(
        "note",
        "results-expire-early",
        guard.task,
        f"its results are kept for {life:g} s; {why}",
        f"{advice} of at least {needed:g} s",
    )


def of_periodic(about: str, task: str, guard: Guard | None, period: float | None) -> Finding | None:
    """A task that a clock triggers, whether or not it is done.

    Args:
        about: The entry of the schedule.
        task: Its name.
        guard: Of the task; None where it is under none.
        period: Seconds between two triggers; None where nobody can say.
    """
    if guard is None:
        return Finding(
            "note",
            "periodic-unguarded",
            about,
            f"{task} is under no guard: when it is slower than its period, it piles up",
            'once={"scope": "until_done"}',
        )
    options = guard.options
    if period is None or not options.limits.waiting:
        return None
    if options.ttl < period:
        return Finding(
            "note",
            "ttl-below-period",
            about,
            f"ttl={options.ttl:g} s is shorter than the period of {task}, {period:g} s: while no "
            "worker takes them, each trigger adds a message",
            f"once={{'ttl': {period * 2:g}}}",
        )
    if options.scope == "queued+running":
        return Finding(
            "note",
            "periodic-backs-up",
            about,
            f"one run of {task} and one message behind it: when it is slower than its period of "
            f"{period:g} s, it runs back to back",
            'once={"scope": "until_done"}, unless each trigger must be followed by a run',
        )
    return None
