"""What became of every message, by the broker's own log of writes (its append only file).

kombu's Redis transport loses a message that is taken from the queue by a worker which dies, or
whose connection does, before it notes it among those that are not acknowledged: between one
command and the next. Nobody but the broker knows of such a loss. Dramatiq takes and notes in one
script.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Fates", "fates_in_dramatiq", "fates_in_kombu"]


@dataclass
class Fates:
    """By message id: what was done with each of its copies, in order."""

    steps: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def last(self, message_id: str) -> str:
        """``never published``, ``queued``, ``taken`` (lost in mid-air), ``held`` or ``acked``.

        Of several copies the one that could still run counts.
        """
        steps = self.steps.get(message_id)
        if not steps:
            return "never published"
        states: dict[str, str] = {}
        for step in steps:
            state, _, tag = step.partition(" ")
            states[tag] = state
        order = ["queued", "held", "taken", "acked"]
        return min(states.values(), key=order.index)


def fates_in_kombu(folder: Path) -> Fates:
    """Read the log of kombu's broker from its data folder."""
    fates = Fates()
    lists: dict[bytes, list[bytes]] = defaultdict(list)
    ids: dict[str, str] = {}
    for command in _log(folder):
        _follow_kombu(command, lists, ids, fates)
    return fates


def fates_in_dramatiq(folder: Path) -> Fates:
    """Read the log of Dramatiq's broker from its data folder."""
    fates = Fates()
    ids: dict[str, str] = {}
    for command in _log(folder):
        _follow_dramatiq(command, ids, fates)
    return fates


def _log(folder: Path) -> Iterator[list[bytes]]:
    for path in sorted(folder.glob("appendonlydir/*.incr.aof"), key=_number):
        yield from _commands(path.read_bytes())


def _number(path: Path) -> int:
    return int(path.name.split(".")[-3])


def _follow_kombu(
    command: list[bytes], lists: dict[bytes, list[bytes]], ids: dict[str, str], fates: Fates
) -> None:
    name, *words = command
    match name.upper():
        case b"LPUSH" | b"RPUSH":
            key, *payloads = words
            for payload in payloads:
                lists[key].insert(0 if name.upper() == b"LPUSH" else len(lists[key]), payload)
                _note(payload, "queued", ids, fates)
        case b"RPOP" | b"LPOP":
            if lists[words[0]]:
                payload = lists[words[0]].pop(-1 if name.upper() == b"RPOP" else 0)
                _note(payload, "taken", ids, fates)
        case b"HSET" if words[0] == b"unacked":
            _note_tag(words[1], "held", ids, fates)
        case b"HDEL" if words[0] == b"unacked":
            for tag in words[1:]:
                _note_tag(tag, "acked", ids, fates)


def _note(payload: bytes, state: str, ids: dict[str, str], fates: Fates) -> None:
    try:
        message = json.loads(payload)
        tag, message_id = message["properties"]["delivery_tag"], message["headers"]["id"]
    except (ValueError, KeyError, TypeError):
        return  # of remote control, not of a task
    ids[tag] = message_id
    fates.steps[message_id].append(f"{state} {tag}")


def _note_tag(tag: bytes, state: str, ids: dict[str, str], fates: Fates) -> None:
    text = tag.decode()
    if text in ids:
        fates.steps[ids[text]].append(f"{state} {text}")


def _follow_dramatiq(command: list[bytes], ids: dict[str, str], fates: Fates) -> None:
    """What its scripts did: messages in a hash, lists of their ids, and sets of those held."""
    name, *words = command
    match name.upper():
        case b"HSET" if words[0].endswith(b".msgs"):
            ids[words[1].decode()] = json.loads(words[2])["message_id"]
        case b"RPUSH":
            _note_tags(words[1:], "queued", ids, fates)
        case b"SADD":
            _note_tags(words[1:], "held", ids, fates)
        case b"HDEL" if words[0].endswith(b".msgs"):
            _note_tags(words[1:], "acked", ids, fates)


def _note_tags(tags: list[bytes], state: str, ids: dict[str, str], fates: Fates) -> None:
    for tag in tags:
        _note_tag(tag, state, ids, fates)


def _commands(data: bytes) -> Iterator[list[bytes]]:
    """Each command of an append only file; a last one that is cut off is left out."""
    at = 0
    while at < len(data):
        end = data.find(b"\r\n", at)
        line = data[at : end if end >= 0 else len(data)]
        if not line.startswith(b"*"):
            if end < 0:
                return
            at = end + 2  # an annotation
            continue
        at, words = end + 2, []
        for _ in range(int(line[1:])):
            end = data.find(b"\r\n", at)
            if end < 0:
                return
            length = int(data[at + 1 : end])
            at = end + 2
            words.append(data[at : at + length])
            at += length + 2
        if at > len(data):
            return
        yield words
