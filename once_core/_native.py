"""Threads of the operating system, also where gevent or eventlet replaced Python's.

A green thread cannot renew a lease while a body keeps the hub busy: every lease of the process
would lapse at once (measured: a 4.2 s gap for 4 s of CPU).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Wake", "make_lock", "start_thread"]


def _original(name: str) -> Any:  # noqa: ANN401  # of _thread, whatever it is
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("_thread"):
        return gevent.get_original("_thread", name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return getattr(eventlet.original("_thread"), name)
    import _thread

    return getattr(_thread, name)


def start_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread that does not keep the process from ending."""
    _original("start_new_thread")(function, ())


def make_lock() -> Any:  # noqa: ANN401  # of _thread, which has no public type for it
    """A lock of the operating system's threads; a context manager."""
    return _original("allocate_lock")()


class Wake:
    """A sleep that another thread can end: `threading.Event` without its patched parts."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()
        self._lock.acquire()

    def wait(self, seconds: float) -> None:
        """Return after so long, or when somebody calls `set`."""
        self._lock.acquire(timeout=max(seconds, 0.0))

    def set(self) -> None:
        """End the sleep, the present one or the next."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is awake, or about to be
