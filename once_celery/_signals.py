"""Celery signals: the end of an attempt whose mark waits for its result, and accelerators.

The accelerators run in the worker's main process. They only make the unit free sooner than its
lease or its healing would; nothing is lost without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Timer
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals

from once_celery._binding import Binding
from once_celery._publish import PENDING
from once_celery._run import read_envelope
from once_core import protocol, stream
from once_core.checkup import warn_at_start
from once_core.errors import OnceError
from once_core.events import emit, logger
from once_core.guard import Guard
from once_core.lost import reap, withdraw
from once_core.protocol import Message
from once_core.store import Store

__all__ = ["connect"]

_DYING = 1.0
"""Seconds after which a child that is being killed is dead (Celery gives it 0.1)."""


def connect() -> None:
    """Connect once a process; called when a task is bound, so nobody has to remember it."""
    for signal, receiver in (
        (signals.task_postrun, _after_run),
        (signals.task_received, _on_received),
        (signals.task_revoked, _on_revoked),
        (signals.task_failure, _on_failure),
        (signals.worker_ready, _on_ready),
        (signals.worker_process_shutdown, _on_child_end),
    ):
        name = f"once.{receiver.__name__}"
        signal.connect(receiver, weak=False, dispatch_uid=name)


def _on_child_end(**_: object) -> None:
    """A pool's child ends by itself, and no `atexit` of its runs."""
    stream.flush()


def _on_ready(sender: Any = None, **_: object) -> None:
    """The worker takes messages: once in its main process, whatever its pool."""
    app = getattr(sender, "app", None)
    if app is not None:
        warn_at_start(lambda: _stores(app))


def _stores(app: Any) -> Iterator[Store]:
    for task in list(app.tasks.values()):
        guard = _guard_of(task)
        if guard is not None:
            yield guard.store


def _guard_of(task: Any) -> Guard | None:
    return Binding.of(task.app).guard(task) if hasattr(task, "queue_lock") else None


def _after_run(
    sender: Any = None, state: str | None = None, retval: object = None, **_: object
) -> None:
    """The result is stored; the only hook that fires for every outcome of a living child."""
    request = getattr(sender, "request", None)
    if request is None or not hasattr(sender, "queue_lock") or request.is_eager:
        return
    if not hasattr(request, PENDING):
        # it never came to its body: `before_start` raised
        comes_again = state in ("RETRY", None) or getattr(retval, "requeue", False)
        if not comes_again:
            _withdraw(sender, request, "before_start raised")
        return
    attempt = getattr(request, PENDING)
    if attempt is not None:
        setattr(request, PENDING, None)
        attempt.end_stored(is_success=state == "SUCCESS")


def _on_received(sender: Any = None, request: Any = None, **_: object) -> None:
    """A message that is to wait in this worker's hands until its ETA."""
    if request is not None and request.eta is not None and hasattr(request.task, "queue_lock"):
        Binding.of(request.task.app).scheduled.add(request, sender.timer)


def _on_revoked(
    sender: Any = None, request: Any = None, *, terminated: bool = False, **_: object
) -> None:
    """A message that will not run waits no more; one that runs ends in its own process."""
    if request is None:
        return
    if terminated:
        _reap_child(sender, request.id, request.args, request.kwargs, "revoked with terminate")
    _withdraw(sender, request, "revoked or expired")


def _withdraw(task: Any, request: Any, reason: str) -> None:
    try:
        guard = _guard_of(task)
        if guard is None:
            return
        envelope = read_envelope(request, task)
        key = envelope.key if envelope else guard.key(request.args or (), request.kwargs or {})
        ticket = envelope.ticket if envelope else 0
        message = Message(request.id, ticket, request.retries or 0)
        if not key or (envelope and envelope.duplicate_of):
            return
        answer = guard.store.run(protocol.withdraw(key, message))
    except OnceError:
        logger.debug("a message that will not run is left to heal", exc_info=True)
        return
    if answer == "withdrawn":
        emit("withdrawn", task=task.name, key=key, message_id=request.id, reason=reason)


def _on_failure(
    sender: Any = None,
    task_id: str = "",
    exception: object = None,
    args: Any = None,
    kwargs: Any = None,
    **_: object,
) -> None:
    """The pool child that ran this message died, or is about to be killed for its time limit.

    Ordinary failures come by here too, in the child: they end where they run.
    """
    if isinstance(exception, (WorkerLostError, TimeLimitExceeded)):
        _reap_child(sender, task_id, args, kwargs, type(exception).__name__)


def _reap_child(task: Any, message_id: str, args: Any, kwargs: Any, why: str) -> None:
    try:
        guard = _guard_of(task)
        if guard is None:
            return
        key = guard.key(args or (), kwargs or {})
        withdraw(guard, key, message_id)  # it died before its start, or while it was put back
        if not reap(guard, key, message_id, why):
            # SIGTERM, then SIGKILL: it dies in a moment
            again = Timer(_DYING, reap, (guard, key, message_id, why))
            again.daemon = True
            again.start()
    except OnceError:
        logger.debug("the lease of a lost child is left to lapse", exc_info=True)
