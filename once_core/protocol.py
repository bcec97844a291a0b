"""The steps of the record as values: what to send, and what the answer means. No I/O here.

`store.Store` and `aio.AsyncStore` only carry a `Step` to Redis and back, so sync and async
share every rule. What each step does is said in its `lua/*.lua` file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from once_core._answers import Claim, Finish, Reap, Release, Start
from once_core._scripts import Script, script

__all__ = [
    "Claim",
    "Finish",
    "Mark",
    "Message",
    "Outcome",
    "Reap",
    "Release",
    "Start",
    "Step",
    "age",
    "claim",
    "confirm",
    "finish",
    "inspect",
    "leave",
    "reap",
    "release",
    "renew",
    "start",
    "take_back",
    "turn_channel",
    "withdraw",
]

T = TypeVar("T")

LONGEST_DEFERRAL = 30.0
"""Seconds; the longest delay of a message that met an overlap (design 4)."""

ON_REPLICAS = " on replicas"
"""End of the name of a step that replicas have to have."""

Mark = Literal["hold", "write", "none"]
Outcome = Literal["success", "failure", "retry", "interrupted"]


class Message(NamedTuple):
    """What the record has to know of one message.

    Attributes:
        id: Message id; stays the same through retries and redeliveries.
        ticket: Above 0: given out by a claim. Below: a random nonce of a message that was sent
            without one. 0: sent by a program without this library.
        retries: How often it was retried.
    """

    id: str
    ticket: int = 0
    retries: int = 0


@dataclass(slots=True, eq=False)
class Step(Generic[T]):
    """One atomic step on one record: what to send, and how to read the answer."""

    script: Script
    key: str
    args: tuple[str | int, ...]
    parse: Callable[[Any], T]
    replicas: int = 0
    """How many have to have it, or it counts as failed."""

    @property
    def name(self) -> str:
        """What is told apart when servers fail or recover."""
        return self.script.name + ON_REPLICAS if self.replicas else self.script.name


def claim(
    key: str,
    message_id: str,
    *,
    ttl: float,
    heal_after: float,
    replace: bool = False,
    delay: float = 0.0,
    latest: float | None = None,
    expires: float | None = None,
    until_done: bool = False,
    own: bool = False,
    nonce: str = "",
    lost: str = "",
    fingerprint: str = "",
    retries: int = 0,
    limit: int = 1,
    replicas: int = 0,
) -> Step[Claim]:
    """Before the publish: may this call be sent? Durations in seconds; see `lua/claim.lua`."""
    args = (
        message_id,
        "replace" if replace else "skip",
        _ms(delay),
        _ms(ttl),
        _ms(heal_after),
        -1 if latest is None else _ms(latest),
        -1 if expires is None else max(0, _ms(expires)),
        int(until_done),
        int(own),
        nonce,
        lost,
        fingerprint,
        retries,
        limit,
    )
    return Step(script("claim"), key, args, _parse_claim, replicas)


def confirm(key: str, ticket: int, *, ttl: float) -> Step[str]:
    """After a replacing message was published: the older ones are dead."""
    return Step(script("confirm"), key, (ticket, _ms(ttl)), _parse_status)


def withdraw(key: str, message: Message) -> Step[str]:
    """The message will not run: publish failed, revoked, expired, dead-lettered."""
    args = (message.id, message.ticket, message.retries)
    return Step(script("withdraw"), key, args, _parse_status)


def start(
    key: str,
    message: Message,
    attempt: str,
    *,
    where: str,
    lease: float,
    ttl: float,
    heal_after: float,
    window: float = 0.0,
    queued: bool = True,
    running: bool = True,
    give_up: bool = False,
    limit: int = 1,
    park: float = 0.0,
    again: bool = False,
    replicas: int = 0,
) -> Step[Start]:
    """In the worker, before the body. Durations in seconds; see `lua/start.lua`."""
    args = (
        message.id,
        message.ticket,
        message.retries,
        attempt,
        where,
        _ms(lease),
        _ms(ttl),
        _ms(heal_after),
        _ms(LONGEST_DEFERRAL),
        _ms(window),
        int(queued),
        int(running),
        int(give_up),
        limit,
        _ms(park),
        int(again),
    )
    return Step(script("start"), key, args, _parse_start, replicas)


def renew(
    key: str,
    message: Message,
    attempt: str,
    *,
    where: str,
    lease: float,
    fence: int,
    held: float,
    limit: int = 1,
) -> Step[str]:
    """Heartbeat of one attempt; answers ``"renewed"``, ``"restored"`` or ``"lost"``."""
    args = (
        message.id,
        message.ticket,
        message.retries,
        attempt,
        where,
        _ms(lease),
        fence,
        _ms(held),
        limit,
    )
    return Step(script("renew"), key, args, _parse_status)


def finish(
    key: str,
    message: Message,
    attempt: str,
    outcome: Outcome,
    *,
    ttl: float,
    heal_after: float,
    delay: float = 0.0,
    keep_for: float = 0.0,
    queued: bool = True,
    mark: Mark = "hold",
    again: bool = False,
) -> Step[Finish]:
    """After the body. Durations in seconds; see `lua/finish.lua`."""
    args = (
        message.id,
        message.ticket,
        message.retries,
        attempt,
        outcome,
        _ms(delay),
        _ms(ttl),
        _ms(heal_after),
        _ms(keep_for),
        int(queued),
        mark,
        int(again),
    )
    return Step(script("finish"), key, args, _parse_finish)


def take_back(
    key: str, message: Message, attempt: str, *, ttl: float, heal_after: float
) -> Step[Finish]:
    """A start that was heard, and nobody knows the answer: the message waits as before.

    Durations in seconds; where the start was not heard, nothing changes.
    """
    # as if an attempt before it had ended in a retry, which is the message itself
    before = message._replace(retries=message.retries - 1)
    return finish(
        key,
        before,
        attempt,
        "retry",
        ttl=ttl,
        heal_after=heal_after,
        delay=LONGEST_DEFERRAL,
        mark="none",
        again=True,
    )


def reap(key: str, message_id: str, attempt: str = "", *, margin: float = 0.0) -> Step[Reap]:
    """The child of this message is known to be dead, or is about to be; see `lua/reap.lua`."""
    return Step(script("reap"), key, (message_id, attempt, _ms(margin)), _parse_reap)


def inspect(key: str) -> Step[dict[str, str]]:
    """The fields of the record that still count, and ``now`` (ms of the server's clock)."""
    return Step(script("inspect"), key, (), _parse_inspect)


def leave(key: str, attempt: str) -> Step[str]:
    """Whoever is parked gives up; answers ``"left"``."""
    return Step(script("leave"), key, (attempt,), _parse_status)


def turn_channel(key: str, attempt: str) -> str:
    """Where it is published that a parked attempt has been given its slot."""
    return f"{key}:turn:{attempt}"


def release(key: str, holder_id: str = "") -> Step[Release]:
    """A person frees the unit of work; only from this holder where one is named."""
    return Step(script("release"), key, (holder_id,), _parse_release)


def age(key: str, seconds: float) -> Step[str]:
    """For tests: so much time passes at once; answers ``"aged"``, or ``"gone"`` with its end."""
    return Step(script("age"), key, (_ms(seconds),), _parse_status)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _parse_status(reply: str) -> str:
    return reply


def _parse_claim(reply: str) -> Claim:
    status, first, rest = reply.split(" ", 2)
    if status in ("claimed", "refreshed", "replaced"):
        return Claim(status, int(first), int(rest) / 1000)  # type: ignore[arg-type]  # narrowed by value
    ticket, holder_id = rest.split(" ", 1)
    return Claim(
        status,  # type: ignore[arg-type]  # narrowed by value
        holder_id=holder_id,
        remaining=int(first) / 1000,
        holder_ticket=int(ticket),
    )


def _parse_start(reply: str) -> Start:
    status, _, rest = reply.partition(" ")
    if status == "started":
        fence, waited, found = rest.split(" ")
        return Start("started", int(fence), int(waited) / 1000, found == "1")
    if status == "early":
        return Start("early", remaining=int(rest) / 1000)
    since, remaining, turn, where, holder_id = rest.split(" ", 4)
    return Start(
        status,  # type: ignore[arg-type]  # narrowed by value
        holder_id=holder_id,
        where=where,
        since=int(since) / 1000,
        remaining=int(remaining) / 1000,
        turn=int(turn) / 1000,
    )


def _parse_finish(reply: str) -> Finish:
    status, held = reply.split(" ")
    return Finish(status, int(held) / 1000)  # type: ignore[arg-type]  # narrowed by value


def _parse_reap(reply: str) -> Reap:
    status, attempt, where = reply.split(" ", 2)
    return Reap(status == "reaped", attempt, where)


def _parse_inspect(reply: Sequence[str]) -> dict[str, str]:
    return {"now": reply[1], **dict(zip(reply[2::2], reply[3::2], strict=True))}


def _parse_release(reply: str) -> Release:
    status, _, holder_id = reply.partition(" ")
    return Release(status, holder_id)  # type: ignore[arg-type]  # narrowed by value
