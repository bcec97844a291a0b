"""Messages with an ETA that are revoked, or expire, while a worker holds them.

Celery notices at the ETA: a message due tomorrow that is revoked now would refuse every trigger
until tomorrow. Asking each held message again and again whether it is revoked ends it at once.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from threading import Lock
from typing import Any
from weakref import WeakSet

from once_core.events import logger

__all__ = ["Scheduled"]

INTERVAL = 1.0
"""Seconds between two looks; more where a look takes long, for it stops the worker's loop."""

SHARE = 0.02
"""Of its time that a worker spends on looking, at most."""


class Scheduled:
    """The messages under guard that one worker holds until their ETA. For its timer's thread."""

    def __init__(self) -> None:
        self._requests: WeakSet[Any] = WeakSet()
        self._lock = Lock()  # some pools have a thread for their timer
        self._next_look = 0.0

    def add(self, request: Any, timer: Any) -> None:
        """Watch a message until it is due.

        Args:
            request: A `celery.worker.request.Request` with an ETA.
            timer: The consumer's; emptied when the consumer loses its broker, so that every
                message that comes starts the looking again if need be.
        """
        with self._lock:
            self._requests.add(request)
        if time.monotonic() > self._next_look + INTERVAL:
            self._look_later(timer, INTERVAL)

    def _look_later(self, timer: Any, seconds: float) -> None:
        self._next_look = time.monotonic() + seconds
        timer.call_after(seconds, self._look, (timer,))

    def _look(self, timer: Any) -> None:
        began = time.monotonic()
        # what is nearly due is left to Celery, lest it be started and revoked at the same time
        soon = datetime.now(timezone.utc) + timedelta(seconds=INTERVAL)
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            if request.eta <= soon or _is_revoked(request):
                self._requests.discard(request)
        self._next_look = 0.0
        if self._requests:
            took = time.monotonic() - began
            self._look_later(timer, max(INTERVAL, took / SHARE))


def _is_revoked(request: Any) -> bool:
    """Whether it is; ended, acknowledged and told about (`task_revoked`) if so."""
    try:
        return bool(request.revoked())
    except Exception:  # noqa: BLE001  # the result backend is away, or the broker: look again later
        logger.debug("%s cannot be revoked yet", request.id, exc_info=True)
        return False
