"""Putting a message back, the same one, to come again later."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from celery.exceptions import Ignore, SoftTimeLimitExceeded

from once_celery._binding import Binding
from once_core.delays import deferral
from once_core.envelope import HEADER, Envelope
from once_core.events import emit

if TYPE_CHECKING:
    from celery import Task

__all__ = ["defer", "is_put_back", "longest_delay"]

_KEPT = ("argsrepr", "kwargsrepr", "parent_id", "root_id")
"""Of Celery's own headers: what it does not carry over by itself."""

_put_back: ContextVar[str] = ContextVar("once_put_back", default="")


def is_put_back(task_id: str | None) -> bool:
    """Whether this publish puts a deferred message back: it is to go out as it is."""
    return task_id is not None and _put_back.get() == task_id


def longest_delay(task: Task) -> float:
    """Seconds; a message that is held for longer than the broker's time-out is given out again."""
    return Binding.of(task.app).given_out_again / 4


def defer(
    task: Task, envelope: Envelope, delay: float, reason: str, waits: int, *, cause: str
) -> None:
    """Put the running message back; returns, after a while, only if the broker is away as well.

    Same id, headers, arguments and retries.

    Args:
        task: With the request of the delivery.
        envelope: That the message gets.
        delay: Seconds after which it comes again.
        reason: Why, in words.
        waits: How often the broker was asked in vain; this process is all that has the message.
        cause: What it waits for, in one word for counting.

    Raises:
        Ignore: It was put back.
    """
    request = task.request

    def tell(reason: str, delay: float | None = None) -> None:
        emit(
            "deferred",
            task=task.name,
            key=envelope.key,
            message_id=request.id,
            reason=reason,
            cause=cause,
            delay=delay,
        )

    try:
        _send_again(task, envelope, delay)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a broker refuses it with: it is not lost
        tell(f"{reason}; it stays with this worker, for it cannot be put back: {error}")
        time.sleep(deferral(waits))
        return
    tell(reason, delay)
    raise Ignore(f"deferred by once: {reason}")


def _send_again(task: Task, envelope: Envelope, delay: float) -> None:
    request = task.request
    carried = {}
    if "ignore_result" in vars(request):
        carried["ignore_result"] = request.ignore_result  # before 5.7 Celery forgets it
    headers = {**(request.headers or {}), HEADER: envelope.to_header()}
    # Celery would show arguments that the caller hid, and make the message a child of itself
    headers.update({name: getattr(request, name, None) for name in _KEPT})
    signature = task.signature_from_request(
        request,
        countdown=delay,
        retries=request.retries,
        headers=headers,
        add_to_parent=False,
        **carried,
    )
    token = _put_back.set(request.id)
    try:
        signature.apply_async()
    finally:
        _put_back.reset(token)
