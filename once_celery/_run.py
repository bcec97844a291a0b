"""Running a task under guard, in the worker: start, body, end; or defer, settle, ignore."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject

from once_celery._binding import Binding
from once_celery._defer import defer, longest_delay
from once_celery._publish import PENDING
from once_celery._settle import count_in_chord, has_ended, settle, share
from once_core.attempt import Attempt
from once_core.delays import deferral_cause, delay_after
from once_core.envelope import HEADER, OFF, Envelope
from once_core.errors import StoreUnavailableError
from once_core.guard import Guard
from once_core.protocol import Message, Outcome, Start

if TYPE_CHECKING:
    from celery import Task

__all__ = ["read_envelope", "run"]


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
    setattr(request, PENDING, None)  # it came to its body, which `_signals` has to know
    envelope = read_envelope(request, task)
    if envelope is not None and envelope.scope == OFF:
        return body()
    if envelope is not None:
        guard = guard.as_called(envelope)
        if envelope.duplicate_of:
            return _end_duplicate(task, guard, envelope)
    key = envelope.key if envelope else guard.key(request.args or (), request.kwargs or {})
    ticket = envelope.ticket if envelope else 0
    message = Message(request.id, ticket, request.retries or 0)
    is_copy = _is_copy(request, envelope)
    expects_copies = is_copy or _may_come_again(request, envelope) or not _is_remembered(task)
    waits = 0
    while True:
        attempt = Attempt(
            guard,
            key,
            message,
            envelope,
            expects_copies=expects_copies,
            given_out_again=Binding.of(task.app).given_out_again,
        )
        try:
            answer, reason = _start(attempt)
            if answer is None and guard.options.on_store_error == "run":
                attempt.tell("unguarded", reason, cause="start")
                return body()
            if answer is not None and answer.status == "started":
                # the record knows nothing of it: it was started before, and perhaps it ended
                is_late = is_copy and not answer.found
                if not (is_late and has_ended(task, message)):
                    return _execute(request, attempt, body)
                _end(request, attempt, "interrupted")
                count_in_chord(task, attempt.envelope)
                answer = answer._replace(status="repeated")
        finally:
            if attempt.is_running:
                # a soft time limit struck between the start and the body
                _end(request, attempt, "failure")
        if answer is not None and answer.status not in ("overlap", "early"):
            return _end_without_run(task, attempt, answer)
        delay = delay_after(answer, attempt.envelope.deferrals + waits, longest_delay(task))
        waits += 1
        envelope = attempt.envelope
        sent = attempt.put_back(answer)._replace(is_copy=is_copy)
        defer(task, sent, delay, reason, waits, cause=deferral_cause(answer))


def _start(attempt: Attempt) -> tuple[Start | None, str]:
    """The answer, None while the store is away, and the reason in words."""
    try:
        answer = attempt.start()
    except StoreUnavailableError as error:
        return None, str(error)
    return answer, answer.reason


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
        attempt.tell("repeated", answer.reason, holder_id=answer.holder_id)
        raise Ignore("repeated: an earlier delivery of this message has ended")
    if answer.status == "skipped":
        attempt.tell("skipped", "another attempt runs", holder_id=answer.holder_id)
        if guard.options.on_overlap == "raise":
            raise attempt.overlap_error(answer)
    if answer.status == "duplicate" or (answer.status == "superseded" and guard.is_sharing):
        envelope = attempt.envelope._replace(duplicate_of=answer.holder_id, shares=guard.is_sharing)
        return _end_duplicate(task, guard, envelope)
    return settle(task, guard, answer.status, answer.holder_id, attempt.envelope)


def _end_duplicate(task: Task, guard: Guard, envelope: Envelope) -> object:
    if envelope.shares:
        return share(task, guard, envelope)
    return settle(task, guard, "settled", envelope.duplicate_of, envelope)


def _is_copy(request: Any, envelope: Envelope | None) -> bool:
    """Whether the broker gave it out before: the copy of a delivery that lives, died or ended."""
    redelivered = (request.delivery_info or {}).get("redelivered", False)
    return bool(redelivered or (envelope and envelope.is_copy))


def _may_come_again(request: Any, envelope: Envelope | None) -> bool:
    """Whether a worker held it for long, or it was put back: a copy of it may be about."""
    return bool(request.eta or (envelope and envelope.deferrals))


def _is_remembered(task: Task) -> bool:
    """Whether a late copy is known without a mark: by its result, or as it cannot come soon.

    RabbitMQ gives out again all that is not acknowledged whenever it loses a connection.
    """
    request = task.request
    binding = Binding.of(task.app)
    has_result = binding.has_results and not request.ignore_result
    return not task.acks_late or has_result or not binding.is_on_amqp
