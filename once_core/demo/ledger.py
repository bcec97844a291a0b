"""The ledger: what really happened, written down by those who did it.

Knows nothing of locks. The body of the task writes when it starts and when it ends, the
producers write what they triggered, the demo writes whom it killed: one line each, appended in
one step, so that lines of many processes never mix.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from once_core._clock import elapsed

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        what: ``"ready"`` (a worker), ``"trigger"``, ``"failed"`` (a trigger that raised),
            ``"received"`` (by a worker), ``"start"`` and ``"end"`` (of a body),
            ``"kill"`` (of a worker), or ``"event"`` (what once says; only shown, never judged).
        at: Seconds on the one clock that all processes of a machine share. Of a trigger: the
            moment before the call.
        unit: Unit of work.
        message_id: Id of the message.
        pid: Process that wrote it, or that was killed.
        worker: Name of its worker, or of its producer.
        host: Of the process.
        fence: Number of the lease, as the body saw it.
        is_sent: Whether a trigger sent a message; else it was refused.
        text: More, for people.
    """

    what: str
    at: float
    unit: str = ""
    message_id: str = ""
    pid: int = 0
    worker: str = ""
    host: str = ""
    fence: int = 0
    is_sent: bool = False
    text: str = ""


_NAMES = frozenset(field.name for field in fields(Entry))


class Ledger:
    """A file of entries that many processes append to. Safe for processes, threads and forks.

    Args:
        path: Of the file; made when it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._read = 0

    def write(self, entry: Entry) -> None:
        """Append one entry."""
        facts = {name: value for name, value in asdict(entry).items() if value}
        # one write: the system appends it whole or not at all
        os.write(self._file, json.dumps(facts).encode() + b"\n")

    def note(self, what: str, *, at: float | None = None, **facts: object) -> Entry:
        """Append what this process did now, and return it.

        Args:
            what: See `Entry`.
            at: When; by default now.
            facts: Other fields of `Entry`.
        """
        moment = elapsed() if at is None else at
        entry = Entry(what, moment, **{"pid": os.getpid(), **facts})  # type: ignore[arg-type]  # its own fields
        self.write(entry)
        return entry

    def read(self) -> list[Entry]:
        """What was appended since the last call."""
        text = b""
        while piece := os.pread(self._file, 1 << 16, self._read + len(text)):
            text += piece
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return [_entry(line) for line in whole.splitlines()]

    def close(self) -> None:
        """Close the file; nothing can be written or read after that."""
        os.close(self._file)


def _entry(line: bytes) -> Entry:
    facts = json.loads(line)
    return Entry(**{name: value for name, value in facts.items() if name in _NAMES})
