"""Running a task under guard, in the worker: start, body, end; or defer, settle, ignore."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject
from kombu.exceptions import EncodeError, OperationalError

from once_celery._publish import PENDING
from once_core.attempt import Attempt, deferral
from once_core.envelope import HEADER, OFF, Envelope
from once_core.errors import ConfigurationError, OverlapError, StoreUnavailableError
from once_core.events import emit, logger
from once_core.guard import Guard
from once_core.protocol import Message, Outcome, Start

if TYPE_CHECKING:
    from celery import Task

__all__ = ["is_put_back", "read_envelope", "run"]

LAPSE_MARGIN = 0.1
"""Seconds after the end of a lease at which a message that waits for it comes back."""

_put_back: ContextVar[str] = ContextVar("once_put_back", default="")


def is_put_back(task_id: str | None) -> bool:
    """Whether this publish puts a deferred message back: it is to go out as it is."""
    return task_id is not None and _put_back.get() == task_id


def read_envelope(request: Any, task: Task) -> Envelope | None:
    """The envelope of a message, on both sides of the pool."""
    header = (request.headers or {}).get(HEADER) or request.get(HEADER)
    return Envelope.read(header, request.id, task.name)


def run(task: Task, guard: Guard, body: Callable[[], object]) -> object:
    """Run one delivery under guard.

    Args:
        task: With the request of the delivery.
        guard: Of the task.
        body: The task's own, with its arguments.

    Raises:
        Ignore: The message was put back, or its first delivery has ended already.
        OverlapError: Another attempt runs, and ``on_overlap`` says to raise.
    """
    request = task.request
    envelope = read_envelope(request, task)
    if envelope is not None and envelope.scope == OFF:
        return body()
    if envelope is not None:
        guard = _with_call(guard, envelope)
        if envelope.duplicate_of:
            return _settle(task, guard, "settled", envelope.duplicate_of)
    key = envelope.key if envelope else guard.key(request.args or (), request.kwargs or {})
    ticket = envelope.ticket if envelope else 0
    message = Message(request.id, ticket, request.retries or 0)
    expects_copies = _expects_copies(request, envelope)
    waits = 0
    while True:
        attempt = Attempt(guard, key, message, envelope, expects_copies=expects_copies)
        try:
            answer, reason = _start(attempt)
            if answer is None and guard.options.on_store_error == "run":
                emit("unguarded", task=task.name, key=key, message_id=message.id, reason=reason)
                return body()
            if answer is not None and answer.status == "started":
                return _execute(request, attempt, body)
        finally:
            if attempt.is_running:
                # a soft time limit struck between the start and the body
                _end(request, attempt, "failure")
        if answer is not None and answer.status not in ("overlap", "early"):
            return _end_without_run(task, attempt, answer)
        deferrals = attempt.envelope.deferrals + waits
        delay = _delay(task, answer, deferrals)
        if _defer(task, attempt, delay, reason):
            raise Ignore(f"deferred by once: {reason}")
        waits += 1
        # the broker is away as well: this process is all that still has the message
        time.sleep(deferral(waits))


def _with_call(guard: Guard, envelope: Envelope) -> Guard:
    """A producer of another version may know options that this one does not: run all the same."""
    try:
        return guard.with_call(envelope.call)
    except ConfigurationError as error:
        logger.warning("options of the call are left out: %s", error)
        return guard


def _start(attempt: Attempt) -> tuple[Start | None, str]:
    """The answer, None while the store is away, and the reason in words."""
    try:
        answer = attempt.start()
    except StoreUnavailableError as error:
        return None, str(error)
    if answer.status == "early":
        return answer, "it is due later now"
    return answer, f"an attempt of message {answer.holder_id} runs"


def _execute(request: Any, attempt: Attempt, body: Callable[[], object]) -> object:
    outcome: Outcome = "interrupted"  # by SystemExit and its like: the broker may send it again
    try:
        with attempt.body():
            result = body()
        outcome = "success"
    except Reject as reject:
        outcome = "interrupted" if reject.requeue else "failure"
        raise
    except Exception:
        outcome = "failure"
        raise
    finally:
        if attempt.retry_delay is not None:
            outcome = "retry"
        _end(request, attempt, outcome)
    return result


def _end(request: Any, attempt: Attempt, outcome: Outcome) -> None:
    """Free the lease now, or once the result is stored where a mark has to be left."""
    if not attempt.end(outcome):
        setattr(request, PENDING, attempt)


def _end_without_run(task: Task, attempt: Attempt, answer: Start) -> object:
    guard = attempt.guard
    if answer.status == "repeated":
        # its first delivery has stored its result and settled its canvas
        _tell(attempt, "repeated", answer, "it ended before")
        raise Ignore("repeated: an earlier delivery of this message has ended")
    if answer.status == "skipped":
        _tell(attempt, "skipped", answer, "another attempt runs")
        if guard.options.on_overlap == "raise":
            raise OverlapError(
                f"{task.name} did not start: message {answer.holder_id} runs the same unit of "
                f"work ({attempt.key}) at {answer.where}; retry later, or use "
                'on_overlap="defer" to have the message wait for its turn',
                task=task.name,
                key=attempt.key,
                holder_id=answer.holder_id,
            )
    return _settle(task, guard, answer.status, answer.holder_id, attempt)


def _settle(
    task: Task, guard: Guard, kind: str, holder_id: str, attempt: Attempt | None = None
) -> object:
    """End a message that is not to run with a value, so that nobody waits for it for ever."""
    request = task.request
    if kind != "skipped":
        emit(
            "superseded" if kind == "superseded" else "settled",
            task=task.name,
            key=attempt.key if attempt else "",
            message_id=request.id,
            holder_id=holder_id,
            reason="a newer message or a copy of it runs" if kind == "superseded" else "duplicate",
        )
    if _has_result(task, request):
        raise Ignore("its result is there already")
    return guard.options.return_on_duplicate


def _has_result(task: Task, request: Any) -> bool:
    if request.ignore_result:
        return False
    try:
        return bool(task.AsyncResult(request.id).ready())
    except Exception:  # noqa: BLE001  # no backend, or it is away: then nothing is overwritten either
        return False


def _defer(task: Task, attempt: Attempt, delay: float, reason: str) -> bool:
    """Put the same message back: same id, headers, arguments and retries. False if it cannot be."""
    request = task.request
    envelope = attempt.envelope
    header = {**envelope.to_header(), "n": envelope.deferrals + 1}
    carried = {}
    if "ignore_result" in vars(request):
        carried["ignore_result"] = request.ignore_result  # before 5.7 Celery forgets it
    signature = task.signature_from_request(
        request,
        countdown=delay,
        retries=request.retries,
        headers={**(request.headers or {}), HEADER: header},
        add_to_parent=False,
        **carried,
    )
    token = _put_back.set(request.id)
    try:
        signature.apply_async()
    except (OperationalError, EncodeError, OSError) as error:
        emit(
            "deferred",
            task=task.name,
            key=attempt.key,
            message_id=request.id,
            reason=f"{reason}; it stays with this worker, for it cannot be put back: {error}",
        )
        return False
    finally:
        _put_back.reset(token)
    emit(
        "deferred",
        task=task.name,
        key=attempt.key,
        message_id=request.id,
        reason=reason,
        delay=delay,
    )
    return True


def _delay(task: Task, answer: Start | None, deferrals: int) -> float:
    options: Mapping[str, Any] = task.app.conf.broker_transport_options or {}
    # a quarter: a message that is held for longer than that timeout is given out again
    longest = float(options.get("visibility_timeout") or 3600.0) / 4
    if answer is not None and answer.status == "early":
        return min(answer.remaining, longest)
    delay = deferral(deferrals, longest)
    # a dead holder's lease is waited for no longer than it lasts; a live one has renewed it
    return min(delay, answer.remaining + LAPSE_MARGIN) if answer is not None else delay


def _expects_copies(request: Any, envelope: Envelope | None) -> bool:
    redelivered = (request.delivery_info or {}).get("redelivered", False)
    return bool(redelivered or request.eta or (envelope and envelope.deferrals))


def _tell(attempt: Attempt, kind: str, answer: Start, reason: str) -> None:
    emit(
        kind,
        task=attempt.guard.task,
        key=attempt.key,
        message_id=attempt.message.id,
        holder_id=answer.holder_id,
        reason=reason,
    )
