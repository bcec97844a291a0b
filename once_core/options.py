"""All options in one table: what users write, checked the moment it is written.

Layers, nearest first: call, task, app configuration, ``ONCE_URL`` and ``ONCE_PREFIX``, built in.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypedDict

from once_core.errors import ConfigurationError
from once_core.keys import KeySelect

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from once_core.store import ClientSource

__all__ = ["OPTIONS", "SCOPES", "OnceOptions", "OnceOptionsDict", "Option", "Scope"]

Seconds = float | int | timedelta
ScopeName = Literal["queued+running", "until_done", "queued", "running", "window"]


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

_ELSEWHERE = {
    "until_executing": "queued",
    "until_executed": "until_done",
    "while_executing": "running",
    "until_and_while_executing": "queued+running",
    "until_expired": "window",
}
"""Names that other libraries use; not accepted, but the error for them names ours."""


class OnceOptionsDict(TypedDict, total=False):
    """The options as a plain dict, for ``once={...}``."""

    scope: ScopeName
    key: KeySelect
    name: str | None
    prefix: str | Callable[[], str]
    ttl: Seconds
    lease: Seconds
    heal_after: Seconds
    window: Seconds | None
    keep_for: Seconds | None
    on_duplicate: Literal["skip", "raise", "replace"]
    debounce: Seconds | None
    debounce_max: Seconds | None
    return_on_duplicate: object
    on_overlap: Literal["defer", "skip", "raise"]
    on_store_error: Literal["raise", "run"]
    warn_after: Seconds | None
    preview: bool | Sequence[str]
    secret: str | bytes | None
    url: str | None
    client: ClientSource | None


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


def _one_of(*choices: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value in choices:
            return value
        hint = ""
        if value in _ELSEWHERE and "queued" in choices:
            hint = f"; what others call {value!r} is scope={_ELSEWHERE[str(value)]!r} here"
        raise ValueError(f"one of {', '.join(map(repr, choices))}{hint}")

    return check


def _seconds(*, least: float = 0.0, optional: bool = False) -> Callable[[object], object]:
    words = f"at least {least:g} second{'s' if least != 1 else ''}" if least else "more than 0"

    def check(value: object) -> object:
        if value is None and optional:
            return None
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("seconds as a number or a timedelta")  # noqa: TRY004  # one error for all checks
        if not math.isfinite(value) or value <= 0 or value < least:
            raise ValueError(f"seconds, finite and {words}")
        return float(value)

    return check


def _text(value: object) -> object:
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError("a non-empty text")
    return value


def _prefix(value: object) -> object:
    if callable(value):
        return value
    if not (isinstance(value, str) and value):
        raise ValueError("a non-empty text, or a function without arguments that returns one")
    return value


def _secret(value: object) -> object:
    if value is not None and not (isinstance(value, (str, bytes)) and value):
        raise ValueError("a non-empty text or bytes")
    return value


def _preview(value: object) -> object:
    if value is False:
        return value
    names = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not names or not all(isinstance(name, str) for name in value):  # type: ignore[attr-defined]  # a Sequence, just seen
        raise ValueError("False, or a list of parameter names that may be shown")
    return value


def _any(value: object) -> object:
    return value


OPTIONS: dict[str, Option] = {
    "scope": Option(
        "queued+running", _one_of(*SCOPES), "What is limited; see the table of scopes."
    ),
    "key": Option(
        None,
        _any,
        "Which arguments identify the unit of work: None (all), a list of parameter names "
        "([] = the task alone), a template such as `order-{order_id}`, or a function of the "
        "arguments.",
    ),
    "name": Option(
        None, _text, "Replaces the task's name in the key, so that two tasks share one unit."
    ),
    "prefix": Option(
        "once", _prefix, "First part of every key in Redis; a function for tenants."
    ),
    "ttl": Option(
        3600.0,
        _seconds(least=1),
        "Seconds that anything waiting is remembered after it is due, and dead messages after "
        "their end.",
    ),
    "lease": Option(
        60.0,
        _seconds(least=1),
        "Seconds after which the unit is free when its worker dies; renewed at a third of it, "
        "so it does not limit how long a task may run.",
    ),
    "heal_after": Option(
        60.0,
        _seconds(),
        "Seconds after which a message that is due but has not started may get a copy (its "
        "queue was purged, its producer died); doubles with each copy.",
    ),
    "window": Option(
        None,
        _seconds(optional=True),
        'With scope="window": seconds after the accepted publish in which others are refused.',
    ),
    "keep_for": Option(
        None,
        _seconds(optional=True),
        "Seconds after success in which publishes are still refused.",
    ),
    "on_duplicate": Option(
        "skip",
        _one_of("skip", "raise", "replace"),
        "What a refused publish does: return the holder's handle, raise DuplicateTaskError, or "
        "let the new message take the place of the waiting one.",
    ),
    "debounce": Option(
        None,
        _seconds(optional=True),
        'With on_duplicate="replace": seconds of quiet before it runs, so that the last call of '
        "a burst runs.",
    ),
    "debounce_max": Option(
        None,
        _seconds(optional=True),
        "Seconds after the first call of a burst at which it runs at the latest; 10 x debounce "
        "if not given.",
    ),
    "return_on_duplicate": Option(
        None,
        _any,
        "Value with which a duplicate ends whose id somebody waits for (group, chord, chain).",
    ),
    "on_overlap": Option(
        "defer",
        _one_of("defer", "skip", "raise"),
        "What a message does that would start while another attempt runs: come back later "
        "(nothing is lost), end without running, or fail with OverlapError.",
    ),
    "on_store_error": Option(
        "raise",
        _one_of("raise", "run"),
        "When the lock store is away: raise StoreUnavailableError at publish and come back later "
        "at start, or go on without the lock.",
    ),
    "warn_after": Option(
        None,
        _seconds(optional=True),
        "Seconds after which a run that still holds its lease is worth a WARNING.",
    ),
    "preview": Option(
        False,
        _preview,
        "Parameter names whose values may be shown in events and by commands.",
    ),
    "secret": Option(
        None, _secret, "Makes digests of guessable arguments useless to others (HMAC)."
    ),
    "url": Option(None, _text, "Where the lock store is."),
    "client": Option(
        None, _any, "A redis-py client, or a function that returns one, instead of a URL."
    ),
}

_TASK_ONLY = frozenset({"url", "client", "secret", "preview"})


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
    heal_after: float
    window: float | None
    keep_for: float | None
    on_duplicate: Literal["skip", "raise", "replace"]
    debounce: float | None
    debounce_max: float | None
    return_on_duplicate: object
    on_overlap: Literal["defer", "skip", "raise"]
    on_store_error: Literal["raise", "run"]
    warn_after: float | None
    preview: Literal[False] | Sequence[str]
    secret: str | bytes | None
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
        values = {name: option.default for name, option in OPTIONS.items()}
        values.update(outer)
        values.update(checked)
        _refuse_contradictions(values, frozenset(checked), of)
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
        outer = _checked({**_environment(), **app}, "the app's configuration")
        return _layered(outer, task, of)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"OnceOptions cannot be changed; make new ones with {name}={value!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnceOptions) and all(
            getattr(self, name) == getattr(other, name) for name in OPTIONS
        )

    __hash__ = None  # type: ignore[assignment]  # may hold lists

    def __repr__(self) -> str:
        shown = {
            name: "..." if name in ("secret", "url", "client") else value
            for name, value in self.given.items()
        }
        return f"OnceOptions({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> tuple[object, ...]:
        return _layered, (self.given, {}, "")


def _layered(outer: Mapping[str, object], inner: Mapping[str, object], of: str) -> OnceOptions:
    options = OnceOptions.__new__(OnceOptions)
    options._fill(outer, inner, of)  # noqa: SLF001  # the other constructor of the same class
    return options


def _environment() -> dict[str, object]:
    names = {"url": "ONCE_URL", "prefix": "ONCE_PREFIX"}
    return {name: os.environ[key] for name, key in names.items() if os.environ.get(key)}


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
            shown = "..." if name == "secret" else repr(value)
            raise ConfigurationError(
                f"once option {name}={shown}{_of(of)} must be {error}", option=name
            ) from None
    return values


def _refuse_contradictions(values: Mapping[str, object], given: frozenset[str], of: str) -> None:
    scope = SCOPES[str(values["scope"])]

    def refuse(option: str, why: str) -> None:
        raise ConfigurationError(
            f"once option {option}={values[option]!r}{_of(of)} {why}", option=option
        )

    is_window = values["scope"] == "window"
    if is_window and values["window"] is None:
        refuse("scope", "needs window=, the seconds in which others are refused")
    if "window" in given and values["window"] is not None and not is_window:
        refuse("window", 'needs scope="window"')
    if "keep_for" in given and values["keep_for"] and not (scope.waiting and scope.running):
        refuse("keep_for", 'needs scope="queued+running" or "until_done": others see no success')
    if "on_duplicate" in given and values["on_duplicate"] != "skip" and not scope.waiting:
        refuse("on_duplicate", f"never applies with scope={values['scope']!r}: it refuses nothing")
    if "on_overlap" in given and values["on_overlap"] != "defer" and not scope.running:
        refuse("on_overlap", f"never applies with scope={values['scope']!r}: runs may overlap")
    if "debounce" in given and values["debounce"] and values["on_duplicate"] != "replace":
        refuse("debounce", 'needs on_duplicate="replace": the last call of a burst is to run')
    if "debounce_max" in given and values["debounce_max"]:
        if not values["debounce"]:
            refuse("debounce_max", "needs debounce=")
        if values["debounce_max"] < values["debounce"]:  # type: ignore[operator]  # checked: floats
            refuse("debounce_max", f"is shorter than debounce={values['debounce']!r}")
    if "url" in given and "client" in given and values["url"] and values["client"]:
        refuse("url", "and client= are two places for one store; give one of them")
