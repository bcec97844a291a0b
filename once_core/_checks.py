"""What each option may be, and which options contradict each other.

A check returns the value to use, or raises `ValueError` with what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

MOST_SLOTS = 1000
"""Attempts at once: a record lists them all, and every step reads it."""

MOST_REPLICAS = 100
"""A number beyond any deployment: one that is meant for another option is found out."""

LONGEST = 1e10
"""Seconds, some 300 years: Redis counts milliseconds in 64 bits, Lua exactly in 53."""

__all__ = [
    "anything",
    "contradictions",
    "one_of",
    "prefix",
    "preview",
    "seconds",
    "secret",
    "text",
    "whole",
]

_ELSEWHERE = {
    "until_executing": "queued",
    "until_executed": "until_done",
    "while_executing": "running",
    "until_and_while_executing": "queued+running",
    "until_expired": "window",
}
"""Names that other libraries use; not accepted, but the error for them names ours."""


def one_of(*choices: str) -> Callable[[object], object]:
    """A check that the value is one of these."""

    def check(value: object) -> object:
        if value in choices:
            return value
        hint = ""
        if isinstance(value, str) and value in _ELSEWHERE and "queued" in choices:
            hint = f"; what others call {value!r} is scope={_ELSEWHERE[value]!r} here"
        raise ValueError(f"one of {', '.join(map(repr, choices))}{hint}")

    return check


def seconds(*, least: float = 0.0, optional: bool = False) -> Callable[[object], object]:
    """A check for seconds, as a number or a timedelta; gives a float."""
    words = f"at least {least:g} second{'s' if least != 1 else ''}" if least else "more than 0"

    def check(value: object) -> object:
        if value is None and optional:
            return None
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("seconds as a number or a timedelta")  # noqa: TRY004  # one error for all checks
        if not least <= value <= LONGEST or not value:  # NaN is neither
            raise ValueError(f"seconds, finite and {words}")
        return float(value)

    return check


def whole(*, least: int, most: int) -> Callable[[object], object]:
    """A check for a whole number."""

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return check


def text(value: object) -> object:
    """A non-empty text, or None."""
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError("a non-empty text")
    return value


def prefix(value: object) -> object:
    """A non-empty text, or a function that returns one."""
    if callable(value):
        return value
    if not (isinstance(value, str) and value):
        raise ValueError("a non-empty text, or a function without arguments that returns one")
    if not value.isprintable() or {*value} & {*"{} "}:
        raise ValueError("printable, without spaces, and without the braces of hash tags")
    return value


def secret(value: object) -> object:
    """Non-empty text or bytes, or None."""
    if value is not None and not (isinstance(value, (str, bytes)) and value):
        raise ValueError("a non-empty text or bytes")
    return value


def preview(value: object) -> object:
    """False, or parameter names."""
    if value is False:
        return value
    names = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not names or not all(isinstance(name, str) for name in value):  # type: ignore[attr-defined]  # a Sequence, just seen
        raise ValueError("False, or a list of parameter names that may be shown")
    return value


def anything(value: object) -> object:
    """No check: what it is good for shows where it is used."""
    return value


def contradictions(
    values: Mapping[str, object], *, waiting: bool, running: bool
) -> list[tuple[str, str]]:
    """Options that make no sense beside the others, each with the reason.

    Args:
        values: All options, checked.
        waiting: Whether the scope limits what waits.
        running: Whether it limits what runs.
    """
    scope, debounce, longest = values["scope"], values["debounce"], values["debounce_max"]
    shorter = (
        isinstance(debounce, float) and isinstance(longest, float) and longest < debounce
    )  # fmt: skip
    found = {
        "window": (values["window"] and scope != "window", 'needs scope="window"'),
        "keep_for": (
            values["keep_for"] and not (waiting and running),
            'needs scope="queued+running" or "until_done": others see no success',
        ),
        "on_duplicate": (
            values["on_duplicate"] != "skip" and not waiting,
            f"never applies with scope={scope!r}: it refuses nothing",
        ),
        "on_overlap": (
            values["on_overlap"] != "defer" and not running,
            f"never applies with scope={scope!r}: runs may overlap",
        ),
        "limit": (
            values["limit"] != 1 and not running,
            f"never applies with scope={scope!r}: runs may overlap",
        ),
        "debounce": (
            debounce and values["on_duplicate"] != "replace",
            'needs on_duplicate="replace": the last call of a burst is to run',
        ),
        "debounce_max": (
            longest and (not debounce or shorter),
            f"is shorter than debounce={debounce!r}" if shorter else "needs debounce=",
        ),
        "url": (
            values["url"] and values["client"],
            "and client= are two places for one store; give one of them",
        ),
    }
    return [(option, why) for option, (is_so, why) in found.items() if is_so]
