"""What happens, as it happens: the ledger's entries told as lines and as a table of units.

For the eye only. The verdict comes from the judge, who reads the ledger when all is over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from once_core.demo import scenario

if TYPE_CHECKING:
    from collections.abc import Iterable

    from once_core.demo.binding import Binding
    from once_core.demo.ledger import Entry

__all__ = ["Board", "Unit"]

_KEPT = 30


@dataclass
class Unit:
    """One row of the table.

    Attributes:
        name: Of the unit of work.
        run: Start of the run that holds it, or None.
        waiting: Id of the message that waits, or "".
        runs: How many started.
        triggers: How many there were.
        refused: How many of them sent nothing.
        refused_before: The same when the last run started.
        deferred: How often a message was put back because a run was going on.
        cut_off: Start of the run that was killed and not yet made up for, or None.
        killed_at: When that was.
    """

    name: str
    run: Entry | None = None
    waiting: str = ""
    runs: int = 0
    triggers: int = 0
    refused: int = 0
    refused_before: int = 0
    deferred: int = 0
    cut_off: Entry | None = None
    killed_at: float = 0.0

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.run is not None:
            return "runs, 1 waits" if self.waiting else "runs"
        if self.cut_off is not None:
            return "cut off"
        return "waits" if self.waiting else "idle"


class Board:
    """Takes entries, keeps the table, and says what happened.

    Args:
        begin: Moment from which times are counted.
        binding: What the workers are.

    Attributes:
        units: Rows by name.
        recent: The last lines told.
        ready: Processes of workers and producers that are, by their pids.
        refused: Triggers so far that sent nothing.
        sent: Messages sent so far.
    """

    def __init__(self, begin: float, binding: Binding) -> None:
        self.begin = begin
        self._binding = binding
        self.units = {name: Unit(name) for name in (*scenario.ACCOUNTS, scenario.REPORT)}
        self.recent: deque[str] = deque(maxlen=_KEPT)
        self.ready: set[int] = set()
        self.refused = 0
        self.sent = 0
        self._units_of: dict[str, str] = {}
        self._received_by: dict[str, str] = {}
        self._started: set[str] = set()

    def tell(self, at: float, text: str) -> str:
        """Make a line of something that happened, and keep it."""
        line = f"[{at - self.begin:5.1f} s] {text}"
        self.recent.append(line)
        return line

    def add(self, entries: Iterable[Entry]) -> list[str]:
        """Take entries in; returns a line for each that is worth one."""
        lines = []
        for entry in entries:
            text = getattr(self, f"_on_{entry.what}")(entry)
            if text:
                lines.append(self.tell(entry.at, text))
        return lines

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits, as far as is known here."""
        return all(unit.state == "idle" for unit in self.units.values())

    def _on_ready(self, entry: Entry) -> str:
        self.ready.add(entry.pid)
        if entry.worker.startswith("producer"):
            return ""
        return f"worker {entry.worker} is ready (pid {entry.pid}, {self._binding.hands})"

    def _on_trigger(self, entry: Entry) -> str:
        unit = self.units[entry.unit]
        unit.triggers += 1
        if not entry.is_sent:
            unit.refused += 1
            self.refused += 1
            return ""
        self.sent += 1
        self._units_of[entry.message_id] = entry.unit
        if entry.message_id not in self._started:  # its producer may tell later than its worker
            unit.waiting = entry.message_id
        return f"{entry.unit} is triggered, once" if entry.unit == scenario.REPORT else ""

    def _on_failed(self, entry: Entry) -> str:
        self.units[entry.unit].triggers += 1
        return f"a trigger of {entry.unit} raised {entry.text}"

    def _on_received(self, entry: Entry) -> str:
        self._received_by[entry.message_id] = entry.worker
        return ""

    def _on_start(self, entry: Entry) -> str:
        unit = self.units[entry.unit]
        self._units_of[entry.message_id] = entry.unit
        self._started.add(entry.message_id)
        unit.run = entry
        unit.runs += 1
        if unit.waiting == entry.message_id:
            unit.waiting = ""
        refused, unit.refused_before = unit.refused - unit.refused_before, unit.refused
        holder = f"{entry.host}:{entry.pid} of {entry.worker}, fence {entry.fence}"
        if unit.cut_off is None:
            return f"{unit.name} runs: {holder}, {refused} refused before"
        after, is_same = entry.at - unit.killed_at, unit.cut_off.message_id == entry.message_id
        unit.cut_off = None
        how = "the same message, redelivered" if is_same else "by the next message"
        return f"RECOVERED {unit.name} after {after:.1f} s, {how}: {holder}"

    def _on_end(self, entry: Entry) -> str:
        unit = self.units[entry.unit]
        started = unit.run.at if unit.run else entry.at
        unit.run = None
        return f"{entry.unit} is done after {entry.at - started:.1f} s"

    def _on_kill(self, entry: Entry) -> str:
        cut = []
        for unit in self.units.values():
            if unit.run is not None and unit.run.worker == entry.worker:
                unit.cut_off, unit.killed_at, unit.run = unit.run, entry.at, None
                cut.append(unit.name)
        held = [
            unit.name
            for unit in self.units.values()
            if unit.waiting and self._received_by.get(unit.waiting) == entry.worker
        ]
        text = (
            f"KILLED worker {entry.worker} in the middle of {', '.join(cut)}: SIGKILL to pid "
            f"{entry.pid} and its {self._binding.family}"
        )
        return text + (f"; it also had the waiting messages of {', '.join(held)}" if held else "")

    def _on_event(self, entry: Entry) -> str:
        name = self._units_of.get(entry.message_id, "")
        if entry.text.startswith("deferred") and name:
            self.units[name].deferred += 1
            return ""
        if entry.text.startswith("superseded") and name:
            unit = self.units[name]
            unit.waiting = "" if unit.waiting == entry.message_id else unit.waiting
        return f"{name}: {entry.text}" if name else entry.text
