"""Attempts whose process is gone, seen from another one: only accelerators, all of it heals."""

from __future__ import annotations

from once_core import protocol
from once_core._flow import Flow
from once_core._host import is_dead
from once_core.envelope import Envelope
from once_core.errors import StoreUnavailableError
from once_core.events import emit, logger
from once_core.guard import Guard, slots
from once_core.options import SCOPES
from once_core.protocol import Message

__all__ = ["LostRetry", "bury", "burying", "reap", "withdraw"]

MARGIN = 2.0
"""Seconds on top of one renewal interval that a lease keeps whose process may be about to die."""


def bury(guard: Guard, key: str, message_id: str, why: str) -> bool:
    """Free the lease of an attempt if its process is known to be gone from this machine.

    Args:
        guard: Of the task.
        key: Key of the unit of work.
        message_id: Of the attempt.
        why: It is gone, in words.

    Returns:
        Whether nothing is left of it.

    Raises:
        StoreUnavailableError: The store is away.
    """
    return guard.store.follow(burying(guard, key, message_id, why))


def burying(guard: Guard, key: str, message_id: str, why: str) -> Flow[bool]:
    """The same as a flow."""
    seen: protocol.Reap = yield protocol.reap(key, message_id)
    if not seen.attempt:
        return True
    if not is_dead(seen.where):
        return False
    answer: protocol.Reap = yield protocol.reap(key, message_id, seen.attempt)
    if answer.reaped:
        reason = f"{why} ({seen.where})"
        emit("reaped", task=guard.task, key=key, holder_id=message_id, reason=reason)
    return True


def reap(guard: Guard, key: str, message_id: str, why: str) -> bool:
    """The same where the process is dead or about to die: its lease is shortened at least.

    A body that lives on renews what is only shortened: a wrong guess does no harm.

    Args:
        guard: Of the task.
        key: Key of the unit of work.
        message_id: Of the attempt.
        why: It dies, in words.

    Returns:
        Whether nothing is left of it; otherwise it is worth another look. True, too, while the
        store is away: then the lease lapses.
    """
    try:
        if bury(guard, key, message_id, why):
            return True
        seen = guard.store.run(protocol.reap(key, message_id))
        margin = guard.options.lease / 3 + MARGIN
        guard.store.run(protocol.reap(key, message_id, seen.attempt, margin=margin))
    except StoreUnavailableError:
        logger.debug("the lease of a lost process is left to lapse", exc_info=True)
        return True
    return False


def withdraw(guard: Guard, key: str, message_id: str) -> None:
    """What waits under the id of a message that has failed waits no more.

    Raises:
        StoreUnavailableError: The store is away; it heals.
    """
    fields = guard.store.run(protocol.inspect(key))
    own = next((slot for slot in slots(fields) if fields.get(f"{slot}i") == message_id), None)
    started = int(fields[f"{own}s"]) if own else None
    for part in ("w", "n"):
        # an id given again by its caller: what came after the start is another message
        is_newer = started is not None and int(fields.get(f"{part}s", 0)) > started
        if fields.get(f"{part}i") == message_id and not is_newer:
            ticket, retries = int(fields[f"{part}t"]), int(fields.get(f"{part}r", 0))
            step = protocol.withdraw(key, Message(message_id, ticket, retries))
            if guard.store.run(step) == "withdrawn":
                reason = "its process was lost"
                emit("withdrawn", task=guard.task, key=key, message_id=message_id, reason=reason)


class LostRetry:
    """A retry that does not come from its body: that died, or never began.

    Args:
        guard: Of the task, with the options of the call.
        envelope: Of the message that is retried.
        retries: How often it was retried before.
    """

    def __init__(self, guard: Guard, envelope: Envelope, retries: int) -> None:
        self._guard = guard
        self._key = envelope.key
        self._message = Message(envelope.message_id, envelope.ticket, retries)
        self._limits = SCOPES.get(envelope.scope, guard.options.limits)

    def announce(self, delay: float) -> None:
        """Write its part before it is published: afterwards it may have run already.

        Args:
            delay: Seconds after which it is due.
        """
        options = self._guard.options
        if self._limits.running:
            reap(self._guard, self._key, self._message.id, "it is retried, for its process is lost")
        step = protocol.finish(
            self._key,
            self._message,
            "",
            "retry",
            ttl=options.ttl,
            heal_after=options.heal_after,
            delay=delay,
            queued=self._limits.waiting,
        )
        try:
            self._guard.store.run(step)
        except StoreUnavailableError:
            pass  # it runs all the same, and is guarded then

    def take_back(self) -> None:
        """It could not be published."""
        retry = self._message._replace(retries=self._message.retries + 1)
        try:
            self._guard.store.run(protocol.withdraw(self._key, retry))
        except StoreUnavailableError:
            pass  # it heals
