"""Assertions that need no lock store: about keys, options and bodies."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from once_core.errors import OnceError
from once_pytest import _render
from once_pytest._bodies import body_of
from once_pytest._subject import Calls, call_of, guard_of, name_of

if TYPE_CHECKING:
    from once_core.guard import Guard
    from once_core.options import OnceOptions

__all__ = ["KeyAssertions"]

__unittest = True  # unittest shows no frames of ours


class KeyAssertions:
    """They are methods of the harness too."""

    def assert_same_key(self, task: object, /, *calls: object) -> None:
        """All these calls are one unit of work.

        Args:
            task: The task, actor or function.
            calls: Two or more, as `call` gives them.

        Raises:
            AssertionError: Two of them have different keys; shows which argument makes them so.

        Example:
            >>> from once_core import Guard, OnceOptions
            >>> from once_pytest import assert_same_key, call
            >>> sync = Guard("sync", lambda order, force=False: None, OnceOptions(), lambda: None)
            >>> assert_same_key(sync, call(1), call(order=1), call(1, force=False))
        """
        __tracebackhide__ = True
        guard, given, keys = _keys(task, calls)
        for other, key in zip(given[1:], keys[1:], strict=True):
            if key != keys[0]:
                first, second = _arguments(guard, given[0]), _arguments(guard, other)
                raise AssertionError(
                    f"{guard.task} has different keys for {_shown(guard, given[0])} and "
                    f"{_shown(guard, other)}:\n"
                    + "\n".join(_compared(first, second, guard))
                    + f"\nWhy: {_render.rule(first, second, guard)}."
                )

    def assert_different_keys(self, task: object, /, *calls: object) -> None:
        """All these calls are units of work of their own.

        Args:
            task: The task, actor or function.
            calls: Two or more, as `call` gives them.

        Raises:
            AssertionError: Two of them have one key; shows what it is made of.

        Example:
            >>> from once_core import Guard, OnceOptions
            >>> from once_pytest import assert_different_keys, call
            >>> sync = Guard("sync", lambda order, force=False: None, OnceOptions(), lambda: None)
            >>> assert_different_keys(sync, call(1), call("1"), call(True))
        """
        __tracebackhide__ = True
        guard, given, keys = _keys(task, calls)
        for index, key in enumerate(keys):
            if key in keys[:index]:
                first = given[keys.index(key)]
                one, two = _arguments(guard, first), _arguments(guard, given[index])
                raise AssertionError(
                    f"{guard.task} has one key for {_shown(guard, first)} and "
                    f"{_shown(guard, given[index])}:\n"
                    + "\n".join(_compared(one, two, guard))
                    + f"\nWhy: {_sameness(guard)}."
                )

    def assert_valid_options(self, task: object, /) -> OnceOptions:
        """The options of a task can work, and it is under guard.

        Args:
            task: The task, actor or function.

        Returns:
            The options that hold for it, of all layers.

        Raises:
            AssertionError: Saying what is wrong, and what to write.

        Example:
            >>> from once_core import Guard, OnceOptions
            >>> from once_pytest import assert_valid_options
            >>> sync = Guard("sync", lambda order: None, OnceOptions(lease=30), lambda: None)
            >>> assert_valid_options(sync).lease
            30.0
        """
        __tracebackhide__ = True
        return guard_of(task).options

    def assert_idempotent(
        self,
        task: object,
        /,
        *args: object,
        state: Callable[[], object] | None = None,
        times: int = 3,
        **kwargs: object,
    ) -> None:
        """Running the body again changes nothing: what crashes and redeliveries will do to it.

        Args:
            task: The task, actor or function; its body is called as a function, without a lock.
            args: Its arguments, or one `call`.
            state: Returns what the body changes, such as the rows of a table; compared with
                ``==`` after each run with what it was after the first. Without it, what the
                body returns is compared.
            times: How often the body runs; at least 2.
            kwargs: Its arguments by name.

        Raises:
            AssertionError: The state after a later run is another one.
            ValueError: For fewer than two runs.

        Example:
            >>> from once_pytest import assert_idempotent
            >>> paid = {}
            >>> def pay(order):
            ...     paid[order] = "done"
            >>> assert_idempotent(pay, 7, state=lambda: dict(paid))
        """
        __tracebackhide__ = True
        if times < 2:  # noqa: PLR2004  # one run shows nothing
            raise ValueError(f"times={times} shows nothing; a body has to run twice at least")
        given, body = call_of(args, kwargs), body_of(task)
        called = _render.call(given, inspect.signature(body))
        first: object = None
        for run in range(1, times + 1):
            result = body(*given.args, **given.kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            now = result if state is None else state()
            if run == 1:
                first = now
            elif now != first:
                raise AssertionError(
                    f"{name_of(task)} is not idempotent for {called}: run {run} changed "
                    f"{'the state' if state else 'what it returns'}.\n"
                    f"  after run 1: {_render.short(first)}\n"
                    f"  after run {run}: {_render.short(now)}\n"
                    "Overlaps are kept from it by its lock, but after a crash its message is "
                    "delivered again: let it look first at what is done, or write conditionally."
                )


def _keys(task: object, calls: tuple[object, ...]) -> tuple[Guard, list[Calls], list[str]]:
    __tracebackhide__ = True
    guard = guard_of(task)
    if len(calls) < 2:  # noqa: PLR2004  # to be compared
        raise TypeError(
            "it takes two calls to compare: assert_same_key(task, call(1), call(user_id=1))"
        )
    given = []
    for each in calls:
        found = call_of((each,), {})
        if found.args and found.args[0] is each:
            raise TypeError(f"{each!r} is no call; write call({each!r})")
        given.append(found)
    try:
        return guard, given, [guard.key(each.args, each.kwargs) for each in given]
    except OnceError as error:
        raise AssertionError(f"a call of {guard.task} has no key: {error}") from None


def _shown(guard: Guard, given: Calls) -> str:
    return _render.call(given, guard.keys.signature, guard)


def _arguments(guard: Guard, given: Calls) -> dict[str, object]:
    return guard.arguments(given.args, given.kwargs)


def _compared(one: Mapping[str, object], two: Mapping[str, object], guard: Guard) -> list[str]:
    return [
        line.replace("expected ", "").replace(", held ", " and ")
        for line in _render.differences(one, two, guard)
    ]


def _sameness(guard: Guard) -> str:
    key = guard.options.key
    if callable(key):
        return "key= is a function of yours, which gives one value for both"
    if key is None:
        return (
            "all their arguments mean the same: defaults are filled in, positions and names are "
            "one, and what the serializer makes equal is equal, as (1, 2) and [1, 2]"
        )
    names = ", ".join(guard.keys.parameters) or "nothing but the task"
    return f"key={key!r} makes it of {names}; name the arguments that tell them apart as well"
