"""What Redis answers to the steps of the record."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Claim", "Finish", "Reap", "Release", "Start"]


class Claim(NamedTuple):
    """Answer of `claim`; times in seconds.

    Attributes:
        status: ``"claimed"``, ``"refreshed"`` and ``"replaced"`` let the call be sent with
            `ticket` and `delay`; ``"moved"``, ``"waiting"``, ``"running"`` and ``"kept"`` do not.
        ticket: Right of the message to run; 0 where it is not sent.
        delay: Delay to send it with.
        holder_id: Message id of the holder; empty where it is sent.
        remaining: Time after which a new call may be accepted.
        holder_ticket: Of the holder, whichever copy of it runs; 0 where that is not known.
    """

    status: Literal["claimed", "refreshed", "replaced", "moved", "waiting", "running", "kept"]
    ticket: int = 0
    delay: float = 0.0
    holder_id: str = ""
    remaining: float = 0.0
    holder_ticket: int = 0

    @property
    def is_duplicate(self) -> bool:
        """Nothing is sent."""
        return not self.ticket


class Start(NamedTuple):
    """Answer of `start`; times in seconds.

    Attributes:
        status: ``"started"``, or why not.
        fence: Number of the lease.
        waited: How long its part had waited.
        found: Whether the record knew of the message.
        holder_id: Message id of the holder where it was not started.
        where: ``host:pid`` of a running holder.
        since: When the holder came, as Unix time of the server.
        remaining: Until it is due (``"early"``), or until the holder's part ends if nothing
            renews it.
        turn: Until it may come back, behind others who were put back before it; 0 where nobody
            can say.
    """

    status: Literal["started", "overlap", "skipped", "superseded", "repeated", "duplicate", "early"]
    fence: int = 0
    waited: float = 0.0
    found: bool = False
    holder_id: str = ""
    where: str = ""
    since: float = 0.0
    remaining: float = 0.0
    turn: float = 0.0

    @property
    def reason(self) -> str:
        """Why it was not started, in words."""
        if self.status == "early":
            return "it is due later now"
        if self.status == "repeated":
            return "it ended before"
        return f"an attempt of message {self.holder_id} runs"


class Finish(NamedTuple):
    """Answer of `finish`: ``"due"`` asks for a second one once the result is stored.

    Attributes:
        status: ``"finished"``, ``"due"`` or ``"lost"``.
        held: Seconds since the start.
    """

    status: Literal["finished", "due", "lost"]
    held: float = 0.0


class Reap(NamedTuple):
    """Answer of `reap`.

    Attributes:
        reaped: Whether the lease was shortened or ended.
        attempt: Of the lease that was found; empty where another message runs, or none.
        where: Its ``host:pid``.
    """

    reaped: bool
    attempt: str = ""
    where: str = ""


class Release(NamedTuple):
    """Answer of `release`.

    Attributes:
        status: ``"released"``, ``"free"`` (there was nothing) or ``"other"`` (not this holder).
        holder_id: Message id of who held it.
    """

    status: Literal["released", "free", "other"]
    holder_id: str = ""
