"""Publishing a task under guard: send it, answer with the holder's handle, or settle its id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import uuid
from celery.utils.time import maybe_iso8601, maybe_make_aware

from once_celery._binding import check_sharing
from once_celery.errors import StoreUnavailableError
from once_core import errors
from once_core.attempt import Attempt, current_attempt
from once_core.envelope import HEADER, OFF, Envelope
from once_core.guard import Guard
from once_core.lost import LostRetry
from once_core.publish import OncePublish, Publication, Terms, claim

if TYPE_CHECKING:
    from celery import Task

__all__ = [
    "PENDING",
    "claimed_ahead",
    "deliver",
    "end_pending",
    "is_awaited",
    "publish",
    "publish_unguarded",
    "terms",
    "with_call",
]

PENDING = "once_attempt"
"""Attribute of a request that came to its body: the attempt that waits for its result to be
stored (`task_postrun`), or None."""

Send = Callable[..., Any]

claimed_ahead: dict[str, Publication] = {}
"""By message id: claims of a group's members that are about to be sent."""


def publish(
    task: Task,
    guard: Guard,
    send: Send,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    task_id: str | None,
    call: Mapping[str, object],
    options: Mapping[str, Any],
) -> Any:
    """Send one call, unless it is a duplicate of one that waits or runs.

    Args:
        task: The task.
        guard: Of the task, without the options of the call.
        send: `Task.apply_async` of the base class.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        task_id: Id that somebody knows already; None lets us choose.
        call: Options given at the call.
        options: Everything else that `apply_async` was given.
    """
    attempt = current_attempt()
    end_pending(task, options, task_id)
    if task_id is not None and attempt is not None and attempt.message.id == task_id:
        if _is_retry(task, attempt, options) and _is_same_unit(task, guard, args, kwargs):
            return _send_retry(attempt, send, args, kwargs, task_id, options)
        if _is_retry(task, attempt, options):
            call = {**attempt.envelope.call, **call}
    elif (envelope := _resent(task, task_id, options)) is not None:
        return _resend(guard, envelope, send, args, kwargs, options)
    own = task_id is not None and attempt is not None and attempt.message.id == task_id
    guard = with_call(task, guard, call)
    try:
        publication = _ahead(guard, args, kwargs, task_id)
        if publication is None:
            asked = terms(task, task_id, call, options, own=own)
            publication = claim(guard, args, kwargs, task_id or uuid(), **asked)
    except errors.StoreUnavailableError as error:
        raise StoreUnavailableError.of(error) from error
    if publication.publish.is_duplicate and (own or options.get("retries")):
        # a retry in another unit of work, or what replaces the running attempt: its task counts
        # on it, so it is sent without a ticket
        publication = publication.unclaimed()
    return deliver(task, publication, send, args, kwargs, task_id, options)


def _ahead(guard: Guard, args: Any, kwargs: Any, task_id: str | None) -> Publication | None:
    """The claim that the group of this call has made for it, if it is for these arguments."""
    found = claimed_ahead.pop(task_id, None) if task_id and claimed_ahead else None
    if found is None or found.key == guard.key(args, kwargs):
        return found
    found.failed()  # somebody has changed them on the way
    return None


def with_call(task: Task, guard: Guard, call: Mapping[str, object]) -> Guard:
    """The guard of calls that have these options."""
    guard = guard.with_call(call)
    if "on_duplicate" in call:
        check_sharing(task, task.app, guard.options)
    return guard


def terms(
    task: Task,
    task_id: str | None,
    call: Mapping[str, object],
    options: Mapping[str, Any],
    *,
    own: bool = False,
) -> Terms:
    """What a claim takes besides guard, arguments and message id."""
    expires = options.get("expires", getattr(task, "expires", None))
    return {
        "call": call,
        "delay": _delay(options),
        "expires": _seconds_until(expires),
        "own": own,
        "retries": options.get("retries") or 0,
        "dispatched": _is_dispatched_by_worker(task, options, task_id),
    }


def deliver(
    task: Task,
    publication: Publication,
    send: Send,
    args: Any,
    kwargs: Any,
    task_id: str | None,
    options: Mapping[str, Any],
) -> Any:
    """Send a call that has its claim, or answer one that was refused."""
    if not publication.publish.is_duplicate:
        return _send(publication, send, args, kwargs, options)
    return _refuse(task, publication, send, args, kwargs, task_id, options)


def publish_unguarded(
    task: Task, send: Send, args: Any, kwargs: Any, task_id: str | None, options: Mapping[str, Any]
) -> Any:
    """Send one call past all locks (``once=False``); the worker is told to run it so too."""
    task_id = task_id or uuid()
    header = Envelope("", 0, OFF, task_id, task.name).to_header()
    result = send(args, kwargs, task_id=task_id, **_with_header(options, header))
    return _handle(result, OncePublish("off", is_duplicate=False, holder_id=task_id))


def end_pending(task: Task, options: Mapping[str, Any], task_id: str | None) -> None:
    """A call from `on_success` or `after_return`: the result is stored, so its run is over.

    Not so for the dispatch of callbacks and chain steps, which come before the result.
    """
    pending = getattr(task.request, PENDING, None)
    if pending is not None and not (pending.is_over or _is_dispatch(options, task_id)):
        setattr(task.request, PENDING, None)
        pending.end_stored()


def _is_retry(task: Task, attempt: Attempt, options: Mapping[str, Any]) -> bool:
    retries = options.get("retries") or 0
    return task.name == attempt.guard.task and retries > attempt.message.retries


def _is_same_unit(task: Task, guard: Guard, args: Any, kwargs: Any) -> bool:
    """Whether a retry kept what identifies its unit of work; both sides came off the wire."""
    request = task.request
    try:
        return guard.key(args, kwargs) == guard.key(request.args or (), request.kwargs or {})
    except errors.KeyDerivationError:
        return True


def _resent(task: Task, task_id: str | None, options: Mapping[str, Any]) -> Envelope | None:
    """The envelope of a retry that does not come from a body: it is no new call."""
    header = (options.get("headers") or {}).get(HEADER)
    return Envelope.read(header, task_id or "", task.name) if options.get("retries") else None


def _resend(
    guard: Guard, envelope: Envelope, send: Send, args: Any, kwargs: Any, options: Mapping[str, Any]
) -> Any:
    """A retry out of `before_start`, or of a message whose child was lost (`retry_on_worker_lost`).

    Its part is written before it is published, lest it be written after it has run.
    """
    told = OncePublish(
        "claimed", is_duplicate=False, holder_id=envelope.message_id, key=envelope.key
    )
    if envelope.scope == OFF or envelope.duplicate_of:  # nothing of it is in the record
        return _handle(send(args, kwargs, task_id=envelope.message_id, **options), told)
    retry = LostRetry(guard.as_called(envelope), envelope, options["retries"] - 1)
    retry.announce(_delay(options))
    try:
        result = send(args, kwargs, task_id=envelope.message_id, **options)
    except BaseException:
        retry.take_back()
        raise
    return _handle(result, told)


def _send_retry(
    attempt: Attempt,
    send: Send,
    args: Any,
    kwargs: Any,
    task_id: str,
    options: Mapping[str, Any],
) -> Any:
    """A retry is never refused; it is noted where it is published, for `throw=False` hides it."""
    header = {**attempt.envelope.to_header(), "n": 0}
    attempt.announce_retry(_delay(options))
    try:
        result = send(args, kwargs, task_id=task_id, **_with_header(options, header))
    except BaseException:
        attempt.take_back_retry()
        raise
    return _handle(
        result, OncePublish("claimed", is_duplicate=False, holder_id=task_id, key=attempt.key)
    )


def _send(
    publication: Publication,
    send: Send,
    args: Any,
    kwargs: Any,
    options: Mapping[str, Any],
) -> Any:
    try:
        sending = _with_header(options, publication.header)
        if publication.claim is not None and publication.is_replacing:
            # debounced, or no later than the burst may be delayed
            sending["countdown"] = publication.claim.delay or None
            sending.pop("eta", None)
        result = send(args, kwargs, task_id=publication.message_id, **sending)
    except BaseException:
        publication.failed()
        raise
    publication.sent()
    return _handle(result, publication.publish)


def _refuse(
    task: Task,
    publication: Publication,
    send: Send,
    args: Any,
    kwargs: Any,
    task_id: str | None,
    options: Mapping[str, Any],
) -> Any:
    """A duplicate. An id that somebody waits for is settled by a message; else none is sent."""
    told = publication.publish
    if task_id is not None and told.holder_id == task_id:
        # the same id given twice: settling it would end it before its real run
        return _handle(task.AsyncResult(task_id), told)
    is_in_worker = task.app.current_worker_task is not None
    if publication.guard.options.on_duplicate == "raise" and not (
        _is_dispatch(options, task_id) or (is_in_worker and task_id)
    ):
        raise publication.error()
    if not (task_id or is_awaited(options)):
        return _handle(task.AsyncResult(told.holder_id), told)
    sending = _with_header(options, publication.header)
    result = send(args, kwargs, task_id=publication.message_id, **sending)
    return _handle(result, told)


def _is_dispatched_by_worker(task: Task, options: Mapping[str, Any], task_id: str | None) -> bool:
    """Whether a worker sends it for a task whose body is done, not a body that lives."""
    is_in_worker = task.app.current_worker_task is not None
    return is_in_worker and current_attempt() is None and _is_dispatch(options, task_id)


def _is_dispatch(options: Mapping[str, Any], task_id: str | None) -> bool:
    """Whether a canvas makes this call: an error would hurt tasks that are not concerned.

    Only the dispatch of canvases and callbacks gives a parent_id (facts/celery.md 10.3), and
    add_to_parent together with an id to the first step of a chain in a group.
    """
    is_part = task_id is not None and options.get("add_to_parent") is False
    return is_part or any(options.get(name) for name in ("parent_id", "group_id", "chord"))


def is_awaited(options: Mapping[str, Any]) -> bool:
    """Whether somebody counts on the id of this very message."""
    names = ("link", "link_error", "chain", "chord", "group_id")
    return any(options.get(name) for name in names)


def _with_header(options: Mapping[str, Any], header: Mapping[str, object]) -> dict[str, Any]:
    return {**options, "headers": {**(options.get("headers") or {}), HEADER: header}}


def _handle(result: Any, told: OncePublish) -> Any:
    result.once = told
    return result


def _delay(options: Mapping[str, Any]) -> float:
    """Seconds until the message is due."""
    countdown = options.get("countdown")
    if countdown:
        return max(0.0, float(countdown))
    return max(0.0, _seconds_until(options.get("eta")) or 0.0)


def _seconds_until(moment: object) -> float | None:
    """Seconds until an ``eta`` or ``expires``, in any of the forms that Celery takes."""
    if moment is None:
        return None
    if isinstance(moment, (int, float)):
        return float(moment)
    if isinstance(moment, str):
        moment = maybe_iso8601(moment)
    if isinstance(moment, datetime):
        aware = maybe_make_aware(moment, timezone.utc)
        return float((aware - datetime.now(timezone.utc)).total_seconds())
    return None
