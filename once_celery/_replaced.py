"""Words of the libraries that once replaces: accepted, and said once what to write instead."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from types import CodeType, FrameType

from once_core._client import masked

__all__ = ["REPLACED", "option_of", "shown", "warn_caller", "warn_where_defined"]

REPLACED: Mapping[str, str] = {
    "redis_url": "url",
    "default_timeout": "ttl",
    "queue_lock_timeout": "ttl",
    "running_lock_timeout": "",
}
"""Settings ``once_*`` that are others', without that part, and our option for each; empty where
there is nothing to set."""

_NOT_THE_CALLER = frozenset({
    "celery",
    "django",
    "functools",
    "importlib",
    "kombu",
    "once_celery",
    "once_core",
})  # fmt: skip

_said: set[str] = set()


def option_of(setting: str, old: str, value: object) -> dict[str, object]:
    """One of the others' settings as ours; says what to write instead.

    Args:
        setting: As the user wrote it.
        old: Its name in `REPLACED`.
        value: What it is set to.
    """
    new = REPLACED[old]
    if new:
        warn_caller(
            f"the setting {setting} is another library's; write {shown({new: value}, _LINE)}",
            is_setting=True,
        )
        return {new: value}
    warn_caller(
        f"the setting {setting} is another library's; leave it out: a run holds a lease that is "
        "renewed (once_lease), so nothing limits how long it may take",
        is_setting=True,
    )
    return {}


_LINE = "once_{} = {!r}"


def shown(options: Mapping[str, object], form: str = "{!r}: {!r}") -> str:
    """Options as one would write them, without the password of a URL."""
    return ", ".join(
        form.format(name, masked(str(value)) if name == "url" else value)
        for name, value in options.items()
    )


def warn_caller(text: str, *, is_setting: bool = False) -> None:
    """Warn at the line outside of once and of Celery that this came from, once for each.

    Args:
        text: What to write instead.
        is_setting: Once for all lines: a setting is read wherever it is needed.
    """
    frame = sys._getframe(1)  # noqa: SLF001  # `warnings` wants a count, and there is none
    while frame.f_back is not None and _package(frame) in _NOT_THE_CALLER:
        frame = frame.f_back
    place = (frame.f_code.co_filename, frame.f_lineno)
    _warn(text, *place, frame.f_globals.get("__name__"), said=text if is_setting else "")


def warn_where_defined(function: Callable[..., object], text: str) -> None:
    """Warn at the first line of a function and its decorators: Celery makes tasks later."""
    code: CodeType = function.__code__
    _warn(text, code.co_filename, code.co_firstlineno, function.__module__)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _warn(text: str, file: str, line: int, module: str | None, said: str = "") -> None:
    said = said or f"{file}:{line}: {text}"
    if said not in _said:
        warnings.warn_explicit(
            f"once_celery.compat: {text}", DeprecationWarning, file, line, module
        )
        _said.add(said)  # not where a filter made it an error: that would be told once, and lost
