"""Ending a message that is not to run, so that nobody waits for it for ever."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery.canvas import maybe_signature
from celery.exceptions import Ignore

from once_celery._defer import defer, longest_delay
from once_core.envelope import Envelope
from once_core.events import emit
from once_core.guard import Guard
from once_core.protocol import Message
from once_core.sharing import Search

if TYPE_CHECKING:
    from celery import Task

__all__ = ["count_in_chord", "has_ended", "settle", "share"]

CLOCKS_APART = 60.0
"""Seconds by which the clocks of workers and of the lock store may differ."""


def has_ended(task: Task, message: Message) -> bool:
    """Whether a copy is known by its result to have ended, where the record knows nothing of it.

    So it is where the broker gave a message out again, and the copy is looked at only after the
    first delivery has ended: nobody knew that a mark would be needed. In doubt it has not: the
    result of a retry may be that of the attempt before it (``throw=False``), and that of a
    message from another program the result of an earlier one with the same id.

    Args:
        task: With the request of the delivery.
        message: The delivery.
    """
    if message.retries or not message.ticket or task.request.ignore_result:
        return False
    result = _result(task, message.id)
    done = result.date_done if result is not None else None
    if not isinstance(done, datetime):
        return False
    # the id may be one that its caller gave before: then the result is older than the call
    aware = done if done.tzinfo else done.replace(tzinfo=timezone.utc)
    return aware.timestamp() >= abs(message.ticket) / 1e6 - CLOCKS_APART


def count_in_chord(task: Task, envelope: Envelope) -> None:
    """Count a member of a chord whose result is there: its worker may have died before it did.

    Only where counting twice is counting once: Redis keeps the members of a chord in a set.

    Args:
        task: With the request of the delivery.
        envelope: Of the message.

    Raises:
        Ignore: The message was put back, to look again whether the chord went on.
    """
    request = task.request
    if not (request.chord and getattr(task.backend, "_chord_zset", False)):
        return
    body = maybe_signature(request.chord, app=task.app)
    looks = 0
    while True:
        result = _result(task, request.id)
        if result is None or (body.id and _result(task, body.id)):
            return
        task.backend.on_chord_part_return(request, result.state, result.result)
        left = _claimed_for(task.backend, request.group)
        if not left:
            return
        looks += 1
        reason = "another worker sends the last task of its chord, or has died in the middle of it"
        delay = min(left, longest_delay(task))
        defer(
            task, envelope.put_back()._replace(is_copy=True), delay, reason, looks, cause="result"
        )


def _claimed_for(backend: Any, group: str) -> float:
    """Seconds for which a worker has the last task of a chord to itself; 0 if none has, or did.

    Since Celery 5.7 whoever counts the last member claims the chord, and nobody else sends its
    last task until that claim is over: a copy that comes sooner would be the last to look.
    """
    key, client = backend.get_key_for_group(group, ".c"), backend.client
    if client.get(key) in (None, b"done", "done"):
        return 0.0
    return max(0.0, float(client.pttl(key)) / 1000)


def settle(task: Task, guard: Guard, kind: str, holder_id: str, envelope: Envelope) -> object:
    """End it with the value that stands for "somebody else did it".

    Args:
        task: With the request of the delivery.
        guard: Of the task, with the options of the call.
        kind: ``"settled"`` (a duplicate), ``"superseded"`` or ``"skipped"``.
        holder_id: Message id of the one that runs instead.
        envelope: Of the message.

    Raises:
        Ignore: A result is there already, and is not overwritten.
    """
    request = task.request
    refuse_to_overwrite(task, envelope)
    if kind != "skipped":  # that one is told where it is found out
        is_dead = kind == "superseded"
        emit(
            kind,
            task=task.name,
            key=envelope.key,
            message_id=request.id,
            holder_id=holder_id,
            reason="a newer message or a copy of it runs" if is_dead else "duplicate",
        )
    return guard.options.return_on_duplicate


def refuse_to_overwrite(task: Task, envelope: Envelope) -> None:
    """Leave a message alone whose result is there.

    Raises:
        Ignore: It is.
    """
    request = task.request
    if not request.ignore_result and _result(task, request.id) is not None:
        count_in_chord(task, envelope)
        raise Ignore("its result is there already")


def share(task: Task, guard: Guard, envelope: Envelope) -> object:
    """End a duplicate with the result of its holder; put it back until that is there.

    Args:
        task: With the request of the delivery.
        guard: Of the task, with the options of the call.
        envelope: Of the duplicate.

    Returns:
        The holder's result.

    Raises:
        Exception: The holder's failure.
        DuplicateTaskError: The holder left no result, or none within ``ttl`` seconds.
        Ignore: A result is there already, or the message was put back.
    """
    looks = 0
    refuse_to_overwrite(task, envelope)
    search = Search(guard, envelope, longest_delay(task))
    while True:
        result = _result(task, search.envelope.duplicate_of)
        if result is not None:
            return _end_with(task, search.envelope, result)
        delay = search.look(looks)
        looks += 1
        reason = f"waits for the result of {search.envelope.duplicate_of}"
        defer(task, search.envelope.put_back(), delay, reason, looks, cause="result")


def _end_with(task: Task, envelope: Envelope, result: Any) -> object:
    value = result.result
    emit(
        "settled",
        task=task.name,
        key=envelope.key,
        message_id=task.request.id,
        holder_id=envelope.duplicate_of,
        reason=f"duplicate; ends as its holder did: {result.state}",
    )
    if isinstance(value, BaseException) and not result.successful():
        raise value
    return value


def _result(task: Task, message_id: str) -> Any:
    """The ready result of a message, or None."""
    try:
        result = task.AsyncResult(message_id)
        return result if result.ready() else None
    except Exception:  # noqa: BLE001  # no backend, or it is away: nothing is known
        return None
