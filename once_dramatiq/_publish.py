"""Enqueuing under guard: send it, answer with the holder's message, or settle its id."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from once_core import errors
from once_core._diversion import is_bypassed
from once_core.attempt import current_attempt
from once_core.envelope import OFF, Envelope
from once_core.events import logger
from once_core.lost import LostRetry
from once_core.publish import OncePublish, Publication, Terms, claim
from once_dramatiq._binding import OPTION, given, is_off
from once_dramatiq.errors import translated

if TYPE_CHECKING:
    from dramatiq import Actor, Message

    from once_core.guard import Guard
    from once_dramatiq._binding import Binding

__all__ = ["PUBLISH", "deliver", "enqueue", "terms"]

PUBLISH = "once_publish"
"""Attribute of a message that was enqueued under guard: what became of it."""

Send = Callable[..., "Message[Any]"]

_AWAITED = ("pipe_target", "group_completion_uuid", "on_success", "on_failure")
"""Options of a message that something waits for."""


def enqueue(binding: Binding, send: Send, message: Message[Any], delay: int | None) -> Message[Any]:
    """Enqueue one message, unless it is a duplicate of one that waits or runs.

    Args:
        binding: Of the broker.
        send: The broker's own ``enqueue``.
        message: Any message; a `MessageProxy` where it is retried.
        delay: In ms.

    Returns:
        What the caller gets: the message that was sent, or one with the holder's id.

    Raises:
        OnceError: As Dramatiq knows it; nothing was sent.
    """
    thread = binding.thread
    is_sent = thread.take_sending(message.actor_name)
    if thread.is_putting_back or (thread.is_consumer and not is_sent):
        return send(message, delay=delay)  # as it is: deferred, or delayed until now
    if thread.is_between_bodies:
        again = _enqueue_again(binding, send, message, delay)
        if again is not None:
            return again
    actor = binding.broker.actors.get(message.actor_name)
    once = message.options.get(OPTION)
    is_asked_for = once is not None and not is_bypassed()
    if actor is None or not (is_asked_for or binding.is_guarded(actor)):
        return send(message, delay=delay)
    try:
        return _enqueue_new(binding, actor, send, message, delay, is_sent=is_sent)
    except errors.OnceError as error:
        if (ours := translated(error)) is error:
            raise
        raise ours from error


def _enqueue_again(
    binding: Binding, send: Send, message: Message[Any], delay: int | None
) -> Message[Any] | None:
    """A message that this worker has in its hands is retried, or put back by other middleware."""
    delivery, envelope = binding.thread.delivery, binding.read(message)
    is_at_hand = delivery is not None and delivery.message_id == message.message_id
    if not is_at_hand and envelope is None:
        return None
    if envelope is not None and (envelope.scope == OFF or envelope.duplicate_of):
        return send(message, delay=delay)  # nothing of it is in the record
    header, take_back = _announced(binding, message, envelope, (delay or 0) / 1000)
    if header is None:
        return send(message, delay=delay)
    header = header._replace(was_delayed=delay is not None, is_copy=False)
    try:
        return send(_with(message, header.to_header()), delay=delay)
    except BaseException:
        take_back()
        raise


def _announced(
    binding: Binding, message: Message[Any], envelope: Envelope | None, seconds: float
) -> tuple[Envelope | None, Callable[[], None]]:
    """Note a retry in the record; what it is to be sent with, and how to take that back.

    Nothing of ours may keep it from being sent: Dramatiq would acknowledge what it could not send.
    """
    delivery = binding.thread.delivery
    try:
        if delivery is not None and delivery.message_id == message.message_id and delivery.is_open:
            return delivery.retry(seconds), delivery.take_back_retry
        if envelope is not None:
            guard = binding.guard(binding.broker.get_actor(message.actor_name))
            lost = LostRetry(guard.as_called(envelope), envelope, envelope.retries)
            lost.announce(seconds)
            return _retried(envelope), lost.take_back
    except Exception as error:  # noqa: BLE001  # whatever is wrong, the retry is sent
        logger.warning("a retry of %s is not in the record: %s", message.actor_name, error)
    return (_retried(envelope) if envelope is not None else None), _nothing


def _retried(envelope: Envelope) -> Envelope:
    return envelope._replace(retries=envelope.retries + 1, deferrals=0)


def _nothing() -> None: ...


def _enqueue_new(
    binding: Binding,
    actor: Actor[..., Any],
    send: Send,
    message: Message[Any],
    delay: int | None,
    *,
    is_sent: bool,
) -> Message[Any]:
    once = message.options.get(OPTION)
    if is_off(once):
        header = Envelope("", 0, OFF, message.message_id, actor.actor_name).to_header()
        return _told(send(_with(message, header), delay=delay), _off(message))
    dispatched = binding.thread.is_between_bodies
    try:
        publication = _claim(binding, actor, message, delay, dispatched=dispatched)
    except Exception as error:
        if not dispatched:
            raise
        # what waits for it would wait for ever: it runs, or fails, where it starts
        logger.warning("%s is sent without a claim: %s", actor.actor_name, error)
        return send(message, delay=delay)
    return deliver(publication, send, message, delay, is_sent=is_sent, dispatched=dispatched)


def deliver(
    publication: Publication,
    send: Send,
    message: Message[Any],
    delay: int | None,
    *,
    is_sent: bool,
    dispatched: bool = False,
) -> Message[Any]:
    """Send a message that has its claim, or answer one that was refused.

    Args:
        publication: What the record has answered.
        send: The broker's own ``enqueue``.
        message: The message.
        delay: In ms.
        is_sent: It is that of a ``send()``, so nobody else knows it yet.
        dispatched: A worker sends it on behalf of a message whose body is done.
    """
    if not publication.publish.is_duplicate:
        return _send(publication, send, message, delay, is_ours=is_sent)
    may_raise = is_sent and not dispatched
    return _refuse(publication, send, message, delay, may_adopt=is_sent, may_raise=may_raise)


def _claim(
    binding: Binding,
    actor: Actor[..., Any],
    message: Message[Any],
    delay: int | None,
    *,
    dispatched: bool,
) -> Publication:
    guard, asked = terms(binding, actor, message, delay, dispatched=dispatched)
    publication = claim(guard, message.args, message.kwargs, message.message_id, **asked)
    is_owed = publication.publish.is_duplicate and asked["own"]
    return publication.unclaimed() if is_owed else publication


def terms(
    binding: Binding,
    actor: Actor[..., Any],
    message: Message[Any],
    delay: int | None,
    *,
    dispatched: bool = False,
) -> tuple[Guard, Terms]:
    """The guard of a message, and what its claim takes besides its arguments and its id."""
    once = message.options.get(OPTION)
    call = given(once, actor.actor_name)
    if actor.options.get(OPTION) is False:
        raise errors.ConfigurationError(
            f"{actor.actor_name} is not under guard (once=False), so once={once!r} at a message "
            "would do nothing; take once=False from the actor, and give it to the messages that "
            "need it"
        )
    guard = binding.guard(actor).with_call(call)
    if "on_duplicate" in call:
        binding.check_sharing(actor, guard.options, message)
    attempt = current_attempt()
    own = attempt is not None and attempt.message.id == message.message_id
    return guard, {
        "call": call,
        "delay": (delay or 0) / 1000,
        "expires": binding.expires(actor, message),
        "own": own,
        "dispatched": dispatched,
    }


def _send(
    publication: Publication,
    send: Send,
    message: Message[Any],
    delay: int | None,
    *,
    is_ours: bool,
) -> Message[Any]:
    if publication.claim is not None and publication.is_replacing:
        # debounced, or no later than the burst may be delayed
        delay = round(publication.claim.delay * 1000) or None
    header = publication.envelope._replace(was_delayed=delay is not None).to_header()
    if is_ours:  # nobody else has it yet, and a copy costs as much as deriving the key
        message.options[OPTION] = header
    else:
        message = _with(message, header)
    try:
        sent = send(message, delay=delay)
    except BaseException:
        publication.failed()
        raise
    publication.sent()
    return _told(sent, publication.publish)


def _refuse(
    publication: Publication,
    send: Send,
    message: Message[Any],
    delay: int | None,
    *,
    may_adopt: bool,
    may_raise: bool,
) -> Message[Any]:
    """Answer a duplicate. An id that somebody waits for is settled by a message."""
    told = publication.publish
    is_awaited = any(message.options.get(name) for name in _AWAITED)
    sent_before = Envelope.read(message.options.get(OPTION), message.message_id, message.actor_name)
    is_accepted = sent_before is not None and not sent_before.duplicate_of and not is_awaited
    if told.holder_id == message.message_id or is_accepted:
        # the same message enqueued twice: settling it would end it before its real run
        return _told(message.copy(), told)
    if publication.guard.options.on_duplicate == "raise" and may_raise:
        raise publication.error()
    if may_adopt and not is_awaited:
        options = {name: value for name, value in message.options.items() if name != OPTION}
        adopted = type(message)(
            queue_name=message.queue_name,
            actor_name=message.actor_name,
            args=message.args,
            kwargs=message.kwargs,
            options=options,
            message_id=told.holder_id,
            message_timestamp=message.message_timestamp,
        )
        return _told(adopted, told)
    return _told(send(_with(message, publication.header), delay=delay), told)


def _with(message: Message[Any], header: dict[str, object]) -> Message[Any]:
    """A copy that carries an envelope: the caller's own message stays as it is."""
    return message.copy(options={OPTION: header})


def _off(message: Message[Any]) -> OncePublish:
    return OncePublish("off", is_duplicate=False, holder_id=message.message_id)


def _told(message: Message[Any], told: OncePublish) -> Message[Any]:
    object.__setattr__(message, PUBLISH, told)  # messages are frozen
    return message
