"""Every decision is one event: a frozen record for subscribers, and a line in the log.

The logger is ``once``. What happens all day is DEBUG, a trigger that was not sent or a message
that did not run is INFO, what somebody should look at is WARNING, and a store that went away
is ERROR once per outage, not per task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

from once_core._clock import wall

__all__ = ["Event", "emit", "subscribe"]

logger = logging.getLogger("once")

_LEVELS = {
    "claimed": logging.DEBUG,
    "refreshed": logging.INFO,
    "replaced": logging.INFO,
    "moved": logging.INFO,
    "duplicate": logging.INFO,
    "withdrawn": logging.INFO,
    "unguarded": logging.WARNING,
    "unavailable": logging.INFO,
    "started": logging.DEBUG,
    "finished": logging.DEBUG,
    "deferred": logging.INFO,
    "skipped": logging.INFO,
    "settled": logging.INFO,
    "superseded": logging.INFO,
    "repeated": logging.INFO,
    "renewed": logging.DEBUG,
    "slow": logging.WARNING,
    "lease_lost": logging.WARNING,
    "lease_restored": logging.WARNING,
    "reaped": logging.WARNING,
    "released": logging.WARNING,
    "store_unavailable": logging.ERROR,
    "store_recovered": logging.WARNING,
    "other_store": logging.ERROR,
    "heartbeat_failed": logging.CRITICAL,
}
"""Level of each kind of event."""


@dataclass(frozen=True)
class Event:
    """One decision. Times in seconds; what does not apply is empty.

    Attributes:
        kind: What was decided, such as ``"duplicate"`` or ``"started"``.
        task: Name of the task.
        key: Key of the unit of work.
        message_id: Of the message the decision is about.
        reason: Why, in words.
        holder_id: Message id of whoever was in the way.
        cause: The same as one of a few words, to count by: of ``"duplicate"`` what was in the way
            (``"waiting"``, ``"running"``, ``"kept"``), of ``"deferred"`` what it waits for
            (``"overlap"``, ``"early"``, ``"store"``, ``"result"``, ``"broker"``), of
            ``"unguarded"`` at which end (``"publish"``, ``"start"``).
        waited: How long the message had waited when it started.
        ran: How long the body ran.
        held: How long the lease was held, from the question for it to its end.
        delay: After which a deferred message comes back.
        lag: By how much a renewal came later than it was due.
        fence: Number of the lease.
        preview: Parameters that ``preview=`` allows to be shown.
        at: Unix time of this host.
    """

    kind: str
    task: str = ""
    key: str = ""
    message_id: str = ""
    reason: str = ""
    holder_id: str = ""
    cause: str = ""
    waited: float | None = None
    ran: float | None = None
    held: float | None = None
    delay: float | None = None
    lag: float | None = None
    fence: int | None = None
    preview: str = ""
    at: float = 0.0

    def __str__(self) -> str:
        """The line in the log.

        Example:
            >>> print(Event("duplicate", task="shop.sync", reason="one waits", holder_id="a1"))
            duplicate shop.sync: one waits (holder_id=a1)
        """
        facts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NOT_A_FACT or value in (None, ""):
                continue
            facts.append(
                f"{field.name}={value:.3f}" if type(value) is float else f"{field.name}={value}"
            )
        head = " ".join(filter(None, (self.kind, self.task)))
        why = f": {self.reason}" if self.reason else ""
        return f"{head}{why}" + (f" ({', '.join(facts)})" if facts else "")


_NOT_A_FACT = ("kind", "task", "reason", "cause", "at")
"""Fields that stand elsewhere in the line, or whose words the reason says better."""

Subscriber = Callable[[Event], object]

_subscribers: tuple[Subscriber, ...] = ()


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Have every event of this process handed to a function, in the thread that decided.

    Args:
        subscriber: Called with each `Event`. What it raises is logged and goes no further.

    Returns:
        A function that ends the subscription.

    Example:
        >>> seen = []
        >>> stop = subscribe(seen.append)
        >>> emit("duplicate", task="shop.sync")
        >>> stop()
        >>> seen[0].kind
        'duplicate'
    """
    global _subscribers  # noqa: PLW0603  # one list a process, replaced as a whole

    def call(event: Event) -> None:  # one object a subscription: the same function may have two
        subscriber(event)

    _subscribers = (*_subscribers, call)

    def stop() -> None:
        global _subscribers  # noqa: PLW0603  # see above
        _subscribers = tuple(each for each in _subscribers if each is not call)

    return stop


def emit(
    kind: str,
    *,
    task: str = "",
    key: str = "",
    message_id: str = "",
    reason: str = "",
    holder_id: str = "",
    cause: str = "",
    waited: float | None = None,
    ran: float | None = None,
    held: float | None = None,
    delay: float | None = None,
    lag: float | None = None,
    fence: int | None = None,
    preview: str = "",
) -> None:
    """Tell the log and the subscribers of one decision; nothing a subscriber does can stop it."""
    level = _LEVELS[kind]
    is_logged = logger.isEnabledFor(level)
    if not (is_logged or _subscribers):
        return
    event = Event(
        kind,
        task=task,
        key=key,
        message_id=message_id,
        reason=reason,
        holder_id=holder_id,
        cause=cause,
        waited=waited,
        ran=ran,
        held=held,
        delay=delay,
        lag=lag,
        fence=fence,
        preview=preview,
        at=wall(),
    )
    if is_logged:
        logger.log(level, "%s", event, extra={"once": event})
    for subscriber in _subscribers:
        try:
            subscriber(event)
        except Exception:
            logger.exception("a subscriber of once events raised; the task goes on")
