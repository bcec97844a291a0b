"""The body of whatever a test names, to be called as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["body_of", "sender_of"]


def body_of(task: Any) -> Callable[..., object]:  # noqa: ANN401  # of frameworks that need not be installed
    """What runs when the task does; a coroutine function for an async actor.

    Raises:
        TypeError: It is none that can be called.
    """
    celery, dramatiq = sys.modules.get("celery"), sys.modules.get("dramatiq")
    if celery is not None and isinstance(task, celery.Task):
        body: Callable[..., object] = task
        return body
    if dramatiq is not None and isinstance(task, dramatiq.Actor):
        # Dramatiq wraps a coroutine function in one that needs the worker's event loop
        inner: Callable[..., object] = getattr(task.fn, "__wrapped__", task.fn)
        return inner
    inner = getattr(task, "__wrapped__", task)
    if not callable(inner):
        raise TypeError(f"{task!r} is no task, actor or function whose body could run")
    return inner


def sender_of(task: Any) -> Callable[..., object]:  # noqa: ANN401  # see `body_of`
    """What sends a task or an actor; any other function as it is."""
    for name in ("delay", "send"):
        found = getattr(task, name, None)
        if callable(found):
            send: Callable[..., object] = found
            return send
    if not callable(task):
        raise TypeError(f"{task!r} is no task, actor or function that could be called")
    call: Callable[..., object] = task
    return call
