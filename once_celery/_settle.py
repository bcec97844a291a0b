"""Ending a message that is not to run, so that nobody waits for it for ever."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery.canvas import maybe_signature
from celery.exceptions import Ignore

from once_celery._defer import defer, longest_delay
from once_core import protocol
from once_core.attempt import deferral
from once_core.envelope import Envelope
from once_core.errors import DuplicateTaskError, StoreUnavailableError
from once_core.events import emit
from once_core.guard import Guard
from once_core.protocol import Message

if TYPE_CHECKING:
    from celery import Task

__all__ = ["count_in_chord", "has_ended", "settle", "share"]

CLOCKS_APART = 60.0
"""Seconds by which the clocks of workers and of the lock store may differ."""

LONGEST_LOOK = 5.0
"""Seconds between two looks for the holder's result: what waits for it should not wait longer."""

LOOKS_WITHOUT_HOLDER = 5
"""Looks in a row, about 15 s, that find neither the holder nor its result. One is no proof: a
result is stored after the lease is freed."""


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


def count_in_chord(task: Task) -> None:
    """Count a member of a chord whose result is there: its worker may have died before it did.

    Only where counting twice is counting once: Redis keeps the members of a chord in a set.
    """
    request = task.request
    if not (request.chord and getattr(task.backend, "_chord_zset", False)):
        return
    body = maybe_signature(request.chord, app=task.app)
    result = _result(task, request.id)
    if result is not None and not (body.id and _result(task, body.id)):
        task.backend.on_chord_part_return(request, result.state, result.result)


def settle(task: Task, guard: Guard, kind: str, holder_id: str, key: str) -> object:
    """End it with the value that stands for "somebody else did it".

    Args:
        task: With the request of the delivery.
        guard: Of the task, with the options of the call.
        kind: ``"settled"`` (a duplicate), ``"superseded"`` or ``"skipped"``.
        holder_id: Message id of the one that runs instead.
        key: Key of the unit of work.

    Raises:
        Ignore: A result is there already, and is not overwritten.
    """
    request = task.request
    if kind != "skipped":  # that one is told where it is found out
        is_dead = kind == "superseded"
        emit(
            kind,
            task=task.name,
            key=key,
            message_id=request.id,
            holder_id=holder_id,
            reason="a newer message or a copy of it runs" if is_dead else "duplicate",
        )
    refuse_to_overwrite(task)
    return guard.options.return_on_duplicate


def refuse_to_overwrite(task: Task) -> None:
    """Leave a message alone whose result is there.

    Raises:
        Ignore: It is.
    """
    request = task.request
    if not request.ignore_result and _result(task, request.id) is not None:
        count_in_chord(task)
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
    refuse_to_overwrite(task)
    while True:
        result = _result(task, envelope.duplicate_of)
        if result is not None:
            return _end_with(task, envelope, result)
        envelope = _look(guard, envelope)
        deferrals = envelope.deferrals + looks
        is_gone = envelope.missed >= LOOKS_WITHOUT_HOLDER
        if is_gone or deferrals * LONGEST_LOOK > guard.options.ttl:
            raise _no_result(task, guard, envelope, is_gone=is_gone)
        delay = deferral(deferrals, min(LONGEST_LOOK, longest_delay(task)))
        looks += 1
        defer(task, envelope, delay, f"waits for the result of {envelope.duplicate_of}", looks)


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


def _look(guard: Guard, envelope: Envelope) -> Envelope:
    """Who holds the unit now, and how many looks in a row found neither them nor a result."""
    try:
        fields = guard.store.run(protocol.inspect(envelope.key))
    except StoreUnavailableError:
        return envelope  # nobody can say
    holder_id, ran = envelope.duplicate_of, fields.get("zi", "")
    held = {fields.get(f"{part}{letter}") for part in ("w", "n", "x0") for letter in "ij"}
    if holder_id in held:
        return envelope._replace(missed=0)
    if ran != holder_id and fields.get("zt") == str(envelope.shared_ticket):
        # the holder was one of several copies, and another of them ran with its ticket
        return envelope._replace(duplicate_of=ran, missed=0)
    if guard.options.limits.running or fields.get("qi") == holder_id:
        return envelope._replace(missed=envelope.missed + 1)
    return envelope._replace(missed=0)  # it may run: this scope keeps no account of that


def _no_result(
    task: Task, guard: Guard, envelope: Envelope, *, is_gone: bool
) -> DuplicateTaskError:
    holder_id = envelope.duplicate_of
    why = (
        "is neither waiting nor running any more and left no result"
        if is_gone
        else f"had none after {guard.options.ttl:g} s (ttl)"
    )
    return DuplicateTaskError(
        f"{task.name} was to end with the result of {holder_id}, of which it is a duplicate, but "
        f'that {why}; call it again, give it a longer ttl, or use on_duplicate="skip", which '
        "ends duplicates at once with return_on_duplicate",
        task=task.name,
        key=envelope.key,
        state="gone" if is_gone else "waiting",
        holder_id=holder_id,
    )


def _result(task: Task, message_id: str) -> Any:
    """The ready result of a message, or None."""
    try:
        result = task.AsyncResult(message_id)
        return result if result.ready() else None
    except Exception:  # noqa: BLE001  # no backend, or it is away: nothing is known
        return None
