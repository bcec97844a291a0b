"""A function under `@once`: how its calls run, sync and async."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ContextDecorator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from once_core._clock import elapsed
from once_core._diversion import is_bypassed
from once_core._function_types import FunctionOptions
from once_core._places import async_store_of, store_of
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.guard import Guard, Holder
from once_core.options import OnceOptions, nearest
from once_core.turn import Turn

if TYPE_CHECKING:
    from once_core.aio import AsyncStore
    from once_core.protocol import Start

__all__ = ["Guarded", "OnOverlap"]

OnOverlap = Literal["skip", "raise", "wait"]

_Args = Sequence[Any]
_Kwargs = Mapping[str, Any]

_TASKS = {
    "apply_async": ("a task", "@app.task or @shared_task"),
    "kiq": ("a taskiq task", "@broker.task"),
    "send_with_options": ("a Dramatiq actor", "@dramatiq.actor"),
    "delay": ("a task", "the decorator that makes it one"),
    "enqueue": ("a task", "the decorator that makes it one"),
}
"""Attributes by which decorated functions of task queues are known."""


class Guarded:
    """One function; made when it is defined. See `once_core.once` for the arguments.

    Args:
        function: The function.
        given: Its options.
        is_method: Whether its first parameter is ``self`` or ``cls``; None: as its name says.
        on_overlap: What a call does while another run goes on.
        wait_up_to: Seconds to wait.
        raise_on_locked: Short for raising.
        return_on_locked: What a call returns that is skipped.

    Raises:
        ConfigurationError: For what can never work.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        given: Mapping[str, Any],
        *,
        is_method: bool | None,
        on_overlap: OnOverlap | None,
        wait_up_to: timedelta | float | None,
        raise_on_locked: bool | None,
        return_on_locked: object,
    ) -> None:
        self.function = function
        self.name = _name(function)
        _refuse(function, self.name)
        refuse_others(given, FunctionOptions, f"@once of {self.name}")
        self._given = {**given, "scope": "running", "on_overlap": "skip"}
        self._on_overlap = _on_overlap(self.name, on_overlap, raise_on_locked, return_on_locked)
        self._wait_up_to = _wait(self.name, self._on_overlap, wait_up_to)
        self._return_on_locked = return_on_locked
        options = OnceOptions(**self._given)
        self._is_method = _is_method(function, options) if is_method is None else is_method
        self._new_guard(options)  # refuses keys of parameters that it has not
        self._guard: Guard | None = None

    def guard(self) -> Guard:
        """What once knows of the function; options of the surroundings are read now.

        Raises:
            ConfigurationError: Options that cannot be.
        """
        if self._guard is not None:
            return self._guard
        guard = self._new_guard(OnceOptions.layered({}, self._given, self.name))
        if guard.options.url or guard.options.client:  # or it is not configured yet
            self._guard = guard
        return guard

    def _new_guard(self, options: OnceOptions) -> Guard:
        function = self.function
        bound = function.__get__(object()) if self._is_method else function
        guard = Guard(self.name, bound, options, lambda: store_of(options, self.name))
        guard.overlap = self._on_overlap
        return guard

    def _turn(self, args: _Args, kwargs: _Kwargs) -> Turn:
        guard = self.guard()
        return Turn(guard, guard.key(args[1:] if self._is_method else args, kwargs))

    # Runs

    def run(self, args: _Args, kwargs: _Kwargs) -> object:
        """Call it under guard."""
        if is_bypassed():
            return self.function(*args, **kwargs)
        turn, began = self._turn(args, kwargs), elapsed()
        store, is_success = turn.store, False
        try:
            answer = None
            try:
                answer = store.follow(turn.taking(self._wait_up_to))
            except StoreUnavailableError as error:
                self._or_raise(turn, error)
            if answer is not None:
                if answer.status != "started":
                    return self._refused(turn, answer, elapsed() - began)
                turn.enter()
            result: object = self._ended(self.function(*args, **kwargs))
            is_success = True
        finally:
            # around all of it: a time limit may strike between the start and the body
            if turn.is_running:
                turn.leave()
                store.follow(turn.giving_back(is_success=is_success))
        return result

    async def run_async(self, args: _Args, kwargs: _Kwargs) -> object:
        """The same for a coroutine function."""
        if is_bypassed():
            return await self.function(*args, **kwargs)
        turn, began = self._turn(args, kwargs), elapsed()
        store, is_success = self._async_store(), False
        try:
            answer = None
            try:
                answer = await store.follow(turn.taking(self._wait_up_to))
            except StoreUnavailableError as error:
                self._or_raise(turn, error)
            if answer is not None:
                if answer.status != "started":
                    return self._refused(turn, answer, elapsed() - began)
                turn.enter()
            result: object = await self.function(*args, **kwargs)
            is_success = True
        finally:
            if turn.is_running:
                turn.leave()
                await store.follow(turn.giving_back(is_success=is_success))
        return result

    def _ended(self, result: Any) -> object:  # noqa: ANN401  # whatever it returns
        """What a function returned whose body is over."""
        is_coroutine = inspect.iscoroutine(result)
        if not (is_coroutine or isinstance(result, ContextDecorator)):
            return result
        if is_coroutine:
            result.close()
        raise ConfigurationError(
            f"{self.name} returned {type(result).__name__}: its body has not run, and would run "
            "without the lock; put @once directly above the `async def` or the function that does "
            "the work, below other decorators"
        )

    def _or_raise(self, turn: Turn, error: StoreUnavailableError) -> None:
        if turn.guard.options.on_store_error != "run":
            raise error
        turn.unguarded(error)

    def _refused(self, turn: Turn, answer: Start, waited: float) -> object:
        if self._on_overlap == "raise":
            raise turn.overlap_error(answer)
        if self._on_overlap == "wait":
            raise turn.timeout_error(answer, waited)
        return self._return_on_locked

    # Questions

    def _async_store(self) -> AsyncStore:
        return async_store_of(self.guard().options, self.name)

    def is_locked(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a run of this call goes on; arguments without ``self``.

        Raises:
            StoreUnavailableError: When nobody can say.
        """
        return self.holder(*args, **kwargs) is not None

    def holder(self, *args: Any, **kwargs: Any) -> Holder | None:
        """Who runs it, or None."""
        return self.guard().holder(args, kwargs)

    def release(self, *args: Any, **kwargs: Any) -> bool:
        """Free it, whoever runs it; whether there was something to free."""
        return self.guard().release(args, kwargs)

    async def is_locked_async(self, *args: Any, **kwargs: Any) -> bool:
        """The same for coroutine functions."""
        return await self.holder_async(*args, **kwargs) is not None

    async def holder_async(self, *args: Any, **kwargs: Any) -> Holder | None:
        """The same for coroutine functions."""
        return await self._async_store().follow(self.guard().finding_holder(args, kwargs))

    async def release_async(self, *args: Any, **kwargs: Any) -> bool:
        """The same for coroutine functions."""
        return await self._async_store().follow(self.guard().releasing(args, kwargs))


def _name(function: object) -> str:
    module = getattr(function, "__module__", None) or "__main__"
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _refuse(function: Any, name: str) -> None:  # noqa: ANN401  # whatever was decorated
    for attribute, (kind, decorator) in _TASKS.items():
        if callable(getattr(function, attribute, None)):
            raise ConfigurationError(
                f"@once stands above {decorator}, so it got {kind} ({name}) and not the function: "
                f"its messages would not be guarded. Write {decorator} above @once; or, for Celery "
                "and Dramatiq, take base=OnceTask or once=True instead of @once"
            )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{name} is a generator: it has returned before its body begins, so a lock around the "
            "call would guard nothing; use `with lease(…)` in its body, or around the loop"
        )
    if inspect.isclass(function) or not callable(function):
        raise ConfigurationError(f"@once takes a function, and {function!r} is none")
    if not hasattr(function, "__get__"):
        raise ConfigurationError(
            f"@once takes a function, and {name} is an object that can be called; decorate the "
            "function in it, or a function that calls it"
        )


def _is_method(function: Callable[..., object], options: OnceOptions) -> bool:
    """Whether it is defined in a class, with a first parameter that is no part of the key."""
    first = next(iter(inspect.signature(function).parameters), "")
    if first not in ("self", "cls"):  # so are bound tasks of Celery called
        return False
    key = options.key
    if callable(key):
        return first not in inspect.signature(key).parameters
    is_named = f"{{{first}}}" in key if isinstance(key, str) else first in (key or ())
    return not is_named


def _on_overlap(
    name: str,
    on_overlap: OnOverlap | None,
    raise_on_locked: bool | None,  # noqa: FBT001  # as it was given
    returned: object,
) -> OnOverlap:
    if on_overlap not in (None, "skip", "raise", "wait"):
        raise ConfigurationError(
            f"on_overlap={on_overlap!r} of {name} must be one of 'skip', 'raise', 'wait'",
            option="on_overlap",
        )
    short: OnOverlap | None = {True: "raise", False: "skip", None: None}[raise_on_locked]
    is_at_odds = short == "raise" if on_overlap == "wait" else short != on_overlap
    if on_overlap and short and is_at_odds:
        raise ConfigurationError(
            f"raise_on_locked={raise_on_locked!r} of {name} says something else than "
            f"on_overlap={on_overlap!r}; give one of them",
            option="on_overlap",
        )
    found: OnOverlap = on_overlap or short or "skip"
    if returned is not None and found != "skip":
        raise ConfigurationError(
            f"return_on_locked={returned!r} of {name} is never returned with "
            f'on_overlap="{found}"; leave one of them out',
            option="on_overlap",
        )
    return found


def _wait(name: str, on_overlap: OnOverlap, wait_up_to: timedelta | float | None) -> float | None:
    if on_overlap != "wait":
        if wait_up_to is not None:
            raise ConfigurationError(
                f'wait_up_to={wait_up_to!r} of {name} needs on_overlap="wait"', option="on_overlap"
            )
        return 0.0
    return seconds_to_wait(name, wait_up_to)


def refuse_others(given: Mapping[str, object], known: type, of: str) -> None:
    """Refuse options that would mean nothing.

    Raises:
        ConfigurationError: Naming the nearest that means something.
    """
    names = [*known.__annotations__, "key", *getattr(known, "__optional_keys__", ())]
    for name in given:
        if name not in names:
            hint = nearest(name, names) or f"; there are {', '.join(sorted(set(names)))}"
            raise ConfigurationError(f"{of} has no option {name!r}{hint}", option=name)


def seconds_to_wait(name: str, wait_up_to: timedelta | float | None) -> float | None:
    """Seconds, or None for as long as it takes.

    Raises:
        ConfigurationError: It is neither.
    """
    if isinstance(wait_up_to, timedelta):
        wait_up_to = wait_up_to.total_seconds()
    if wait_up_to is None:
        return None
    number: object = wait_up_to  # whatever was given
    if not _is_number(number) or not wait_up_to >= 0:  # NaN is not
        raise ConfigurationError(
            f"wait_up_to={wait_up_to!r} of {name} must be seconds as a number or a timedelta, 0 "
            "to try once, or None to wait as long as it takes",
            option="wait_up_to",
        )
    return float(wait_up_to)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
