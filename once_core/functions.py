"""`@once`: one run at a time of any function, sync or async, without a task queue."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from once_core._function_types import AsyncOnceFunction, OnceFunction
from once_core._guarded import Guarded, OnOverlap
from once_core.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from once_core._function_types import FunctionOptions
    from once_core.keys import KeySelect
    from once_core.options import Seconds

__all__ = ["once"]

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")


class _Strict:
    """Decorates functions whose calls run, or raise."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    @overload
    def __call__(  # type: ignore[overload-overlap]  # see `once`
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncOnceFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> OnceFunction[P, R]: ...
    def __call__(self, function: Any, /) -> Any:
        return self._make(function)


class _Skipping(Generic[D]):
    """Decorates functions whose calls may return something else."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    @overload
    def __call__(  # type: ignore[overload-overlap]  # see `once`
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncOnceFunction[P, R | D]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> OnceFunction[P, R | D]: ...
    def __call__(self, function: Any, /) -> Any:
        return self._make(function)


@overload
def once(  # type: ignore[overload-overlap]  # a coroutine function is a function, too
    function: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncOnceFunction[P, R | None]: ...
@overload
def once(function: Callable[P, R], /) -> OnceFunction[P, R | None]: ...
@overload
def once(
    *,
    key: KeySelect = None,
    on_overlap: Literal["raise", "wait"],
    wait_up_to: Seconds | None = None,
    **options: Unpack[FunctionOptions],
) -> _Strict: ...
@overload
def once(
    *, key: KeySelect = None, raise_on_locked: Literal[True], **options: Unpack[FunctionOptions]
) -> _Strict: ...
@overload
def once(
    *,
    key: KeySelect = None,
    on_overlap: Literal["skip"] = "skip",
    raise_on_locked: Literal[False] = False,
    return_on_locked: D,
    **options: Unpack[FunctionOptions],
) -> _Skipping[D]: ...
@overload
def once(
    *,
    key: KeySelect = None,
    on_overlap: Literal["skip"] = "skip",
    raise_on_locked: Literal[False] = False,
    **options: Unpack[FunctionOptions],
) -> _Skipping[None]: ...
def once(
    function: Callable[..., Any] | None = None,
    /,
    *,
    key: KeySelect = None,
    on_overlap: OnOverlap | None = None,
    wait_up_to: Seconds | None = None,
    raise_on_locked: bool | None = None,
    return_on_locked: Any = None,
    **options: Unpack[FunctionOptions],
) -> Any:
    """Let a function run once at a time for each unit of work, in all processes and machines.

    The lease is renewed while it runs, however long that is, and free within one lease after a
    crash. The function keeps its signature, and gets ``is_locked(*args)``, ``holder(*args)`` and
    ``release(*args)``, to be awaited for coroutine functions. Options of the surroundings
    (`once_core.configure`, ``ONCE_URL``) are looked up at the first call, so that modules may be
    imported before anything is configured. On methods, ``self`` and ``cls`` are no part of the
    key unless ``key=`` names them.

    Safe for threads, processes and event loops. While the store is away a call raises
    `StoreUnavailableError`; with ``on_store_error="run"`` it runs without the lock.

    Args:
        function: For ``@once`` without parentheses.
        key: Which arguments identify the unit of work: None for all, a list of parameter names,
            a template such as ``"check_order-{order_id}"``, or a function of the arguments.
        on_overlap: While another run goes on: ``"skip"`` (the default) returns
            `return_on_locked` at once, ``"raise"`` raises `OverlapError`, ``"wait"`` waits for its
            turn, first come first served as long as no more than 128 wait.
        wait_up_to: With ``"wait"``: seconds after which it raises `LeaseTimeoutError`; by
            default as long as it takes.
        raise_on_locked: True is the same as ``on_overlap="raise"``.
        return_on_locked: What a call returns that is skipped.
        options: ``name``, ``prefix``, ``lease``, ``limit`` (runs at once), ``min_replicas``,
            ``warn_after``, ``on_store_error``, ``preview``, ``secret``, ``url``, ``client``; see
            the docs' table.

    Raises:
        ConfigurationError: When the function is defined, for what can never work: a generator,
            a task or an actor (its decorator belongs above), options that contradict each other.

    Example:
        >>> @once(key="order-{order_id}", url="memory://once-example", return_on_locked="busy")
        ... def check_order(order_id: int, is_inner: bool = False) -> str:
        ...     return "checked" if is_inner else check_order(order_id, is_inner=True)
        >>> check_order(7), check_order.is_locked(7)
        ('busy', False)
    """
    given = {"key": key, **options}

    def make(decorated: Any) -> Any:  # noqa: ANN401  # whatever is decorated
        kind = type(decorated)
        if kind in (staticmethod, classmethod):
            return kind(wrapped(decorated.__func__, is_method=kind is classmethod))
        return wrapped(decorated, is_method=None)

    def wrapped(decorated: Any, *, is_method: bool | None) -> object:  # noqa: ANN401  # see above
        guarded = Guarded(
            decorated,
            given,
            is_method=is_method,
            on_overlap=on_overlap,
            wait_up_to=wait_up_to,
            raise_on_locked=raise_on_locked,
            return_on_locked=return_on_locked,
        )
        return _as_function(guarded)

    if function is not None:
        if isinstance(function, (str, list, tuple)):
            raise ConfigurationError(
                f"@once({function!r}) takes options by name only: write @once(key={function!r})",
                option="key",
            )
        return make(function)
    strict = on_overlap in ("raise", "wait") or raise_on_locked
    return _Strict(make) if strict else _Skipping[Any](make)


def _as_function(guarded: Guarded) -> object:
    """A plain function, so that frameworks see what they know: a coroutine function is one."""
    function = guarded.function
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> object:
            return await guarded.run_async(args, kwargs)

        made: Any = run_async
        made.is_locked = guarded.is_locked_async
        made.holder = guarded.holder_async
        made.release = guarded.release_async
    else:

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> object:
            return guarded.run(args, kwargs)

        made = run
        made.is_locked = guarded.is_locked
        made.holder = guarded.holder
        made.release = guarded.release
    # what follows no __wrapped__, as Celery's check of arguments, sees the parameters here
    made.__signature__ = inspect.signature(function)
    made.once_guard = guarded.guard
    return cast("object", made)
