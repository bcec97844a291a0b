"""What travels with a message: the key its producer derived, its ticket, and whose it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeGuard

__all__ = ["HEADER", "OFF", "VERSION", "Envelope"]

HEADER = "once"
"""Name of the Celery header and of the Dramatiq option."""

VERSION = 1

OFF = "off"
"""In the place of the scope: the call asked for no guard at all."""

_KEY = re.compile(r"[^\s{}]{1,400}:[0-9a-z]{26,64}")


class Envelope(NamedTuple):
    """The header of one message.

    It counts only for the message and the task it was made for: headers are copied along by
    groups, by retries with other arguments and by users, and a header must never make a worker
    touch a key that is none of ours.

    Attributes:
        key: Key of the unit of work; workers never derive it again.
        ticket: Right to run; negative: a nonce, for a message that was sent without a claim.
        scope: The scope the producer claimed with.
        message_id: Id of the message it belongs to.
        task: Name of the task it belongs to.
        store: Which lock store the producer claimed in; empty where that is not known.
        call: Options given at the call that the worker has to know.
        duplicate_of: Message id of the holder, for a message that is only sent to be settled.
        deferrals: How often it was put back, but for those times when the record said until when.
        is_copy: Whether the broker gave it out again before it was put back.
        shares: Whether a duplicate is to end with the result of its holder.
        shared_ticket: Of that holder, whichever copy of it runs; 0 where that is not known.
        missed: How many looks in a row found neither that holder nor its result.
        retries: How often it was retried, where the framework keeps no count that can be relied on.
        was_delayed: Whether a worker held it until it was due: a copy of it may be about.
        is_away: Whether the record counts on its return: it was put back because others run.
        version: Of this format.
    """

    key: str
    ticket: int
    scope: str
    message_id: str
    task: str
    store: str = ""
    call: Mapping[str, object] = MappingProxyType({})
    duplicate_of: str = ""
    deferrals: int = 0
    is_copy: bool = False
    shares: bool = False
    shared_ticket: int = 0
    missed: int = 0
    retries: int = 0
    was_delayed: bool = False
    is_away: bool = False
    version: int = VERSION

    def to_header(self) -> dict[str, object]:
        """As a dict of plain values, without what is empty.

        Example:
            >>> Envelope("once:t:" + "0" * 32, 5, "queued", "m1", "t").to_header()["ticket"]
            5
        """
        header: dict[str, object] = {
            "v": self.version,
            "key": self.key,
            "ticket": self.ticket,
            "scope": self.scope,
            "id": self.message_id,
            "task": self.task,
        }
        if self.store:
            header["store"] = self.store
        if self.call:
            header["call"] = dict(self.call)
        if self.duplicate_of:
            header["dup"] = self.duplicate_of
        if self.deferrals:
            header["n"] = self.deferrals
        if self.is_away:
            header["away"] = True
        if self.is_copy:
            header["copy"] = True
        if self.shares:
            header["share"] = [self.shared_ticket, self.missed]
        if self.retries:
            header["r"] = self.retries
        if self.was_delayed:
            header["late"] = True
        return header

    def put_back(self) -> Envelope:
        """The same message once more, put back until something has changed.

        Example:
            >>> Envelope("once:t:" + "0" * 32, 5, "queued", "m1", "t").put_back().deferrals
            1
        """
        return self._replace(deferrals=self.deferrals + 1)

    @classmethod
    def read(cls, header: object, message_id: str, task: str) -> Envelope | None:
        """The envelope of a message, or None if it has none that counts.

        Args:
            header: What the message carries under `HEADER`.
            message_id: Id of the message.
            task: Name of its task.
        """
        if not isinstance(header, Mapping):
            return None
        key, ticket = header.get("key"), header.get("ticket")
        if header.get("id") != message_id or header.get("task") != task:
            return None
        if header.get("scope") == OFF:
            return cls("", 0, OFF, message_id, task)
        if not isinstance(key, str) or not _KEY.fullmatch(key) or type(ticket) is not int:
            return None
        version, call, share = header.get("v"), header.get("call"), header.get("share")
        if type(version) is not int:
            return None
        is_newer = version > VERSION
        return cls(
            key=key,
            # what a newer version's ticket means is not known here: the run is guarded by key
            ticket=0 if is_newer else ticket,
            scope=str(header.get("scope", "")),
            message_id=message_id,
            task=task,
            store=str(header.get("store", "")),
            call=call if isinstance(call, Mapping) and not is_newer else {},
            duplicate_of=str(header.get("dup", "")),
            deferrals=_count(header.get("n")),
            is_away=bool(header.get("away")),
            is_copy=bool(header.get("copy")),
            shares=share is not None,
            shared_ticket=_count(share[0]) if _is_pair(share) else 0,
            missed=_count(share[1]) if _is_pair(share) else 0,
            retries=_count(header.get("r")),
            was_delayed=bool(header.get("late")),
            version=version,
        )


def _is_pair(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, (list, tuple)) and len(value) == 2  # noqa: PLR2004  # it says so


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
