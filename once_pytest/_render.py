"""How locks, calls and events look in the text of a failure."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from once_pytest._recorder import same

if TYPE_CHECKING:
    from inspect import Signature

    from once_core.events import Event
    from once_core.guard import Guard
    from once_pytest._subject import Calls
    from once_pytest.harness import HeldLock

__all__ = [
    "arguments",
    "call",
    "count",
    "differences",
    "events",
    "locks",
    "remedy",
    "rule",
    "said",
    "short",
    "shown",
    "times",
]

_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|api_?key|credential|authori[sz]ation|cookie|"
    r"private|(^|_)(pin|cvv|cvc|ssn|iban|card)($|_)",
    re.IGNORECASE,
)
_WIDTH = 60
_LAST_EVENTS = 12

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _WIDTH
_repr.maxdict = _repr.maxlist = _repr.maxtuple = 6


def shown(name: str, value: object, guard: Guard | None) -> str:
    """A value as text; three stars where it may be a secret.

    Args:
        name: Of its parameter.
        value: The value.
        guard: Of the task; one with ``secret=`` shows only what ``preview=`` names.
    """
    if value is ...:
        return "..."
    options = guard.options if guard is not None else None
    is_hidden = bool(options and options.secret) and name not in (options.preview or ())  # type: ignore[union-attr]  # asked before
    if is_hidden or _SECRET.search(name):
        return "***"
    return _repr.repr(value)


def short(value: object) -> str:
    """A value as text of bounded length."""
    return _repr.repr(value)


def arguments(given: Mapping[str, object], guard: Guard | None) -> str:
    """Arguments as in a call."""
    return ", ".join(f"{name}={shown(name, value, guard)}" for name, value in given.items())


def call(given: Calls, signature: Signature | None, guard: Guard | None = None) -> str:
    """A call as it was written, without what may be a secret.

    Args:
        given: The call.
        signature: Of the task, for the names of its positional arguments; None where they are
            not known: then only their types are shown.
        guard: Of the task.
    """
    try:
        names = list(signature.bind(*given.args).arguments) if signature else []
    except TypeError:
        names = []
    if len(names) == len(given.args):
        shown_args = [
            shown(name, value, guard) for name, value in zip(names, given.args, strict=True)
        ]
    else:
        shown_args = [f"<{type(value).__name__}>" for value in given.args]
    shown_args += [f"{name}={shown(name, value, guard)}" for name, value in given.kwargs.items()]
    return f"call({', '.join(shown_args)})"


def differences(
    expected: Mapping[str, object], held: Mapping[str, object], guard: Guard, was: str = "held"
) -> list[str]:
    """Lines that set two calls of one task side by side, the differing arguments marked.

    Args:
        expected: Arguments of the one by name.
        held: Of the other.
        guard: Of the task.
        was: What the other one was.
    """
    lines = []
    for name, value in expected.items():
        other = held.get(name)
        if value is ... or same(value, other):
            lines.append(f"    {name}: {_typed(name, value if value is not ... else other, guard)}")
            continue
        text = f"{name}: expected {_typed(name, value, guard)}, {was} {_typed(name, other, guard)}"
        is_key = _is_key(name, guard)
        lines.append(f"  ! {text}" if is_key else f"    {text}   (not part of the key)")
    return lines


def _is_key(name: str, guard: Guard) -> bool:
    return callable(guard.options.key) or name in guard.keys.parameters


def _typed(name: str, value: object, guard: Guard) -> str:
    return f"{shown(name, value, guard)} ({type(value).__name__})"


def rule(expected: Mapping[str, object], held: Mapping[str, object], guard: Guard) -> str:
    """Which rule made two keys differ, and what to do about it."""
    key = guard.options.key
    if callable(key):
        return (
            "key= is a function of yours, which gave two values for these calls; print what it "
            "returns for each of them"
        )
    wrong = [
        name
        for name, value in expected.items()
        if value is not ... and _is_key(name, guard) and not same(value, held.get(name))
    ]
    if not wrong:
        return (
            "all arguments of the key are equal, so something else of it differs: the prefix, "
            "secret=, or options given at the call"
        )
    types = [name for name in wrong if _differs_in_type(expected[name], held.get(name))]
    if types:
        name, other = types[0], type(held.get(types[0])).__name__
        return (
            f"{name} differs in its type only, and a key tells 42, '42', 42.0 and True apart; "
            f"pass {name} as {other} here too, or convert it where the task is called"
        )
    part = f"key={key!r}" if key is not None else "every argument, for key= is not given"
    advice = "call it with equal values"
    if len(guard.keys.parameters) > len(wrong) and not isinstance(key, str):
        rest = [name for name in guard.keys.parameters if name not in wrong]
        advice += f", or leave it out of the key: once={{'key': {rest!r}}}"
    return f"{' and '.join(wrong)} is part of the key ({part}) and differs; {advice}"


def _differs_in_type(one: object, other: object) -> bool:
    if type(one) is type(other):
        return False
    try:
        return str(one) == str(other) or bool(one == other)
    except Exception:  # noqa: BLE001  # whatever the comparison of two values may raise
        return False


def locks(held: Iterable[HeldLock]) -> list[str]:
    """A table of what is held."""
    rows = [
        (
            f"{each.task}({arguments(each.arguments, each.guard)})"
            if each.arguments is not None
            else f"{each.task}  (sent by another process; key {each.key})",
            each.state,
            f"by {each.message_id}" + (f" at {each.where}" if each.where else ""),
            f"{each.remaining:.1f} s left",
        )
        for each in held
    ]
    if not rows:
        return ["  none"]
    widths = [min(_WIDTH, max(len(row[column]) for row in rows)) for column in range(3)]
    return [
        "  " + "   ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows
    ]


def events(seen: Sequence[Event], most: int = _LAST_EVENTS) -> list[str]:
    """The last events, with the seconds between each and the last one."""
    if not seen:
        return ["  none: nothing was sent or run under guard"]
    now = seen[-1].at
    return [f"  {each.at - now:+8.2f} s  {_event(each)}" for each in seen[-most:]]


def _event(event: Event) -> str:
    facts = [f"message {event.message_id}"] if event.message_id else []
    if event.holder_id and event.holder_id != event.message_id:
        facts.append(f"holder {event.holder_id}")
    why = f": {event.reason}" if event.reason else ""
    about = f" ({', '.join(facts)})" if facts else ""
    return f"{event.kind} {event.task}{why}{about}"


def times(least: float, most: float) -> str:
    """How often, in words."""
    if least == most:
        return {0: "never", 1: "once", 2: "twice"}.get(int(least), f"{least:g} times")
    if most == float("inf"):
        return "at least once" if least == 1 else f"at least {least:g} times"
    return f"{least:g} to {most:g} times"


def said(verb: str, number: int) -> str:
    """That something happened so often."""
    return (
        f"{verb} {times(number, number)}"
        if number
        else f"never {verb}".replace("never was", "was never")
    )


def count(number: int, one: str, more: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else more}"


def remedy(lock: HeldLock) -> str:
    """How a lock that should not be there comes to its end."""
    if lock.state == "waiting":
        return "Its message was sent and has not run: run it with once_drain() or a worker."
    if lock.state == "running":
        return (
            "An attempt holds it: let its body end; where its worker is dead, "
            "once_clock.advance_to_expiry(task, ...) shows when it is free."
        )
    return "It is kept by window= or keep_for=: once_clock.advance() ends that."
