"""Celery signals: the end of an attempt whose mark waits for its result, and two accelerators.

The accelerators run in the worker's main process. They only make the unit free sooner than its
lease or its healing would; nothing is lost without them.
"""

from __future__ import annotations

from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals

from once_celery._binding import Binding
from once_celery._publish import PENDING
from once_celery._run import read_envelope
from once_core import protocol
from once_core._host import is_dead
from once_core.errors import OnceError
from once_core.events import emit, logger
from once_core.guard import Guard
from once_core.protocol import Message

__all__ = ["connect"]

_REAP_MARGIN = 2.0
"""Seconds on top of one renewal interval that a lease keeps whose child is about to die."""


def connect() -> None:
    """Connect once a process; called when a task is bound, so nobody has to remember it."""
    for signal, receiver in (
        (signals.task_postrun, _after_run),
        (signals.task_revoked, _on_revoked),
        (signals.task_failure, _on_failure),
    ):
        name = f"once.{receiver.__name__}"
        signal.connect(receiver, weak=False, dispatch_uid=name)


def _guard_of(task: Any) -> Guard | None:
    return Binding.of(task.app).guard(task) if hasattr(task, "queue_lock") else None


def _after_run(sender: Any = None, **_: object) -> None:
    """The result is stored; the only hook that fires for every outcome of a living child."""
    request = getattr(sender, "request", None)
    attempt = getattr(request, PENDING, None)
    if attempt is not None:
        setattr(request, PENDING, None)
        attempt.end_stored()


def _on_revoked(
    sender: Any = None, request: Any = None, *, terminated: bool = False, **_: object
) -> None:
    """A message that will not run waits no more; one that runs ends in its own process."""
    if terminated or request is None:
        return
    try:
        guard = _guard_of(sender)
        if guard is None:
            return
        envelope = read_envelope(request, sender)
        key = envelope.key if envelope else guard.key(request.args or (), request.kwargs or {})
        ticket = envelope.ticket if envelope else 0
        message = Message(request.id, ticket, request.retries or 0)
        if not key or (envelope and envelope.duplicate_of):
            return
        answer = guard.store.run(protocol.withdraw(key, message))
    except OnceError:
        logger.debug("a revoked message is left to heal", exc_info=True)
        return
    if answer == "withdrawn":
        emit(
            "withdrawn",
            task=sender.name,
            key=key,
            message_id=request.id,
            reason="revoked or expired",
        )


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
    if not isinstance(exception, (WorkerLostError, TimeLimitExceeded)):
        return
    try:
        guard = _guard_of(sender)
        if guard is None:
            return
        key, store = guard.key(args or (), kwargs or {}), guard.store
        seen = store.run(protocol.reap(key, task_id))
        if not seen.attempt:
            return
        # a body that lives on renews what is only shortened: a wrong guess does no harm
        margin = 0.0 if is_dead(seen.where) else guard.options.lease / 3 + _REAP_MARGIN
        answer = store.run(protocol.reap(key, task_id, seen.attempt, margin=margin))
    except OnceError:
        logger.debug("the lease of a lost child is left to lapse", exc_info=True)
        return
    if answer.reaped:
        emit(
            "reaped",
            task=sender.name,
            key=key,
            holder_id=task_id,
            reason=f"{type(exception).__name__} at {seen.where}",
        )
