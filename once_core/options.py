"""The options of a task: what users write, checked the moment it is written.

Layers, nearest first: call, task, app configuration, `configure`, ``ONCE_URL``, ``ONCE_PREFIX``
and ``ONCE_EVENTS``, built in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypedDict

from once_core import _checks as checks
from once_core._option_table import OPTIONS, SCOPES, Option, Scope
from once_core._surroundings import PLACES, surroundings
from once_core.errors import ConfigurationError
from once_core.keys import KeySelect

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from once_core.store import ClientSource

__all__ = ["OPTIONS", "SCOPES", "OnceOptions", "OnceOptionsDict", "Option", "Scope"]

Seconds = float | int | timedelta
ScopeName = Literal["queued+running", "until_done", "queued", "running", "window"]


class OnceOptionsDict(TypedDict, total=False):
    """The options as a plain dict, for ``once={...}``."""

    scope: ScopeName
    key: KeySelect
    name: str | None
    prefix: str | Callable[[], str]
    ttl: Seconds
    lease: Seconds
    limit: int
    min_replicas: int
    heal_after: Seconds
    window: Seconds | None
    keep_for: Seconds | None
    on_duplicate: Literal["skip", "raise", "replace", "share"]
    debounce: Seconds | None
    debounce_max: Seconds | None
    return_on_duplicate: object
    on_overlap: Literal["defer", "skip", "raise"]
    on_store_error: Literal["raise", "run"]
    warn_after: Seconds | None
    preview: bool | Sequence[str]
    secret: str | bytes | None
    events: int
    url: str | None
    client: ClientSource | None


_HIDDEN = frozenset({"url", "client", "secret"})
"""Never shown: they hold passwords."""

_TASK_ONLY = frozenset({"url", "client", "secret", "preview", "events"})


class OnceOptions:
    """The options of a task, checked, with defaults for what is not given. Immutable.

    Args:
        given: Any of the options; see the table in the docs (`OPTIONS`).

    Raises:
        ConfigurationError: For an unknown option (naming the nearest one), a value that cannot
            be, or options that contradict each other.

    Example:
        >>> OnceOptions(scope="until_done", key=["order_id"]).lease
        60.0
        >>> OnceOptions(leese=5)
        Traceback (most recent call last):
        ...
        once_core.errors.ConfigurationError: once has no option 'leese'; did you mean 'lease'?
    """

    scope: ScopeName
    key: KeySelect
    name: str | None
    prefix: str | Callable[[], str]
    ttl: float
    lease: float
    limit: int
    min_replicas: int
    heal_after: float
    window: float | None
    keep_for: float | None
    on_duplicate: Literal["skip", "raise", "replace", "share"]
    debounce: float | None
    debounce_max: float | None
    return_on_duplicate: object
    on_overlap: Literal["defer", "skip", "raise"]
    on_store_error: Literal["raise", "run"]
    warn_after: float | None
    preview: Literal[False] | Sequence[str]
    secret: str | bytes | None
    events: int
    url: str | None
    client: ClientSource | None

    limits: Scope
    """What the scope limits."""

    given: Mapping[str, object]
    """The options that were given, checked; the rest are defaults."""

    def __init__(self, **given: Unpack[OnceOptionsDict]) -> None:
        self._fill({}, given, "")

    def _fill(self, outer: Mapping[str, object], inner: Mapping[str, object], of: str) -> None:
        """Take defaults, then `outer`, then `inner`; only `inner` can contradict itself."""
        checked = _checked(inner, of)
        if checked.get("url") or checked.get("client"):
            # two names for one thing: the nearer layer says where the store is
            outer = {name: value for name, value in outer.items() if name not in PLACES}
        values = {name: option.default for name, option in OPTIONS.items()}
        values.update(outer)
        values.update(checked)
        for option in _inapplicable(values, checked, of):
            values[option] = OPTIONS[option].default
        if values["debounce"] and not values["debounce_max"]:
            values["debounce_max"] = 10 * values["debounce"]  # type: ignore[operator]  # checked: a float
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "limits", SCOPES[str(values["scope"])])
        object.__setattr__(self, "given", {**outer, **checked})

    def with_call(self, call: Mapping[str, object], of: str = "") -> OnceOptions:
        """These options with those of one call laid over them.

        Args:
            call: What was given as ``once={...}`` at the call.
            of: Name of the task, for messages.

        Raises:
            ConfigurationError: As for the class, and for options that only a task can have.
        """
        for name in _TASK_ONLY.intersection(call):
            raise ConfigurationError(
                f"once option {name!r}{_of(of)} cannot be given at a call, for the worker would "
                "not see it; give it where the task is defined",
                option=name,
            )
        return _layered(self.given, call, of)

    @classmethod
    def layered(
        cls, app: Mapping[str, object], task: Mapping[str, object], of: str = ""
    ) -> OnceOptions:
        """A task's options over those of its app, over the environment, over the built-in ones.

        Args:
            app: From the app's configuration.
            task: Given with the task.
            of: Name of the task, for messages.

        Raises:
            ConfigurationError: As for the class.
        """
        outer = _checked(surroundings(app), "the app's configuration")
        return _layered(outer, task, of)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"OnceOptions cannot be changed; make new ones with {name}={value!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("OnceOptions cannot be changed; make new ones")

    def __copy__(self) -> OnceOptions:
        return self

    def __deepcopy__(self, memo: object) -> OnceOptions:
        return self  # never changed, and clients cannot be copied

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnceOptions) and all(
            getattr(self, name) == getattr(other, name) for name in OPTIONS
        )

    __hash__ = None  # type: ignore[assignment]  # may hold lists

    def __repr__(self) -> str:
        shown = {name: "..." if name in _HIDDEN else value for name, value in self.given.items()}
        return f"OnceOptions({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> tuple[object, ...]:
        return _layered, (self.given, {}, "")


def _layered(outer: Mapping[str, object], inner: Mapping[str, object], of: str) -> OnceOptions:
    options = OnceOptions.__new__(OnceOptions)
    options._fill(outer, inner, of)  # noqa: SLF001  # the other constructor of the same class
    return options


def _of(of: str) -> str:
    return f" of {of}" if of else ""


def nearest(word: str, words: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for a misspelt word, or ``""``."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _checked(given: Mapping[str, object], of: str) -> dict[str, object]:
    values = {}
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None:
            hint = nearest(name, OPTIONS) or f"; there are {', '.join(OPTIONS)}"
            text = f"once has no option {name!r}{hint}"
            raise ConfigurationError(text + (f" (given for {of})" if of else ""), option=name)
        try:
            values[name] = option.check(value)
        except ValueError as error:
            shown = "..." if name in _HIDDEN else repr(value)
            raise ConfigurationError(
                f"once option {name}={shown}{_of(of)} must be {error}", option=name
            ) from None
    return values


def _inapplicable(values: Mapping[str, object], given: Mapping[str, object], of: str) -> list[str]:
    """Options of wider layers that cannot apply beside the nearer ones.

    Raises:
        ConfigurationError: Where `given` itself contradicts the rest.
    """
    scope = SCOPES[str(values["scope"])]
    found = checks.contradictions(values, waiting=scope.waiting, running=scope.running)
    if values["scope"] == "window" and values["window"] is None:
        found.insert(0, ("scope", "needs window=, the seconds in which others are refused"))
    for option, why in found:
        is_nearer = option == "debounce_max" and "debounce" in given
        if option in given or option == "scope" or is_nearer:
            raise ConfigurationError(
                f"once option {option}={'...' if option in _HIDDEN else repr(values[option])}"
                f"{_of(of)} {why}",
                option=option,
            )
    return [option for option, _ in found]
