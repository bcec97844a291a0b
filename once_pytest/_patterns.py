"""Calls of which some arguments may be anything: ``...`` in the place of a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from once_core.errors import KeyDerivationError
from once_pytest import _render
from once_pytest._recorder import Derivation, same
from once_pytest._subject import Calls

if TYPE_CHECKING:
    from once_core.guard import Guard

__all__ = ["is_pattern", "likeness", "matches", "no_call", "pattern"]

__unittest = True  # unittest shows no frames of ours


def is_pattern(given: Calls) -> bool:
    """Whether any argument may be anything."""
    return any(each is ... for each in (*given.args, *given.kwargs.values()))


def pattern(guard: Guard, given: Calls) -> dict[str, Any] | None:
    """The arguments by name, with ``...`` in them; None for any call."""
    if not is_pattern(given):
        return guard.arguments(given.args, given.kwargs)
    if given.args == (...,) and not given.kwargs:
        return None
    try:
        return guard.keys.bind(given.args, given.kwargs)
    except KeyDerivationError as error:
        raise AssertionError(
            f"{_render.call(given, None)} is no call of {guard.task}: {error}"
        ) from None


def no_call(guard: Guard, given: Calls, error: KeyDerivationError) -> str:
    """What to say of arguments that the task does not take."""
    return f"{_render.call(given, None)} is no call of {guard.task}: {error}"


def likeness(expected: Mapping[str, object], other: Mapping[str, object]) -> int:
    """How near two calls are: equal arguments count most, those equal but for their type next."""
    return sum(
        3 if value is ... or same(value, other.get(name)) else str(value) == str(other.get(name))
        for name, value in expected.items()
    )


def matches(guard: Guard, given: Calls, made: Iterable[Derivation]) -> bool:
    """Whether one of the calls that were made fits a pattern, in what identifies the work."""
    __tracebackhide__ = True
    expected = pattern(guard, given)
    if expected is None:
        return True
    names = [name for name in guard.keys.parameters or expected if name in expected]
    return any(
        all(
            expected[name] is ... or same(expected[name], call.arguments.get(name))
            for name in names
        )
        for call in made
    )
