"""What is held at present: one bounded survey at a time, however many browsers look."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from once_core._clock import elapsed, wall
from once_core.errors import OnceError, StoreUnavailableError
from once_core.survey import survey

if TYPE_CHECKING:
    from once_core.cli.program import Program
    from once_core.guard import Holder
    from once_core.survey import Unit

__all__ = ["Census", "Held", "Row", "Surveyor"]

MOST = 20_000
"""Records that a survey reads."""

PATIENCE = 2.0
"""Seconds that a survey takes at most."""

FRESH = 2.0
"""Seconds for which a survey is shown again; longer where it took long, to spare the server."""

SPARE = 5.0
"""So many times as long as it took."""


@dataclass(frozen=True)
class Row:
    """One unit of work that somebody holds."""

    key: str
    task: str
    holders: tuple[Holder, ...]

    @property
    def age(self) -> float:
        """Seconds since when the first of its holders has it."""
        return max(holder.age for holder in self.holders)


@dataclass
class Held:
    """How much is held of one task.

    Attributes:
        running: Attempts.
        waiting: Messages.
        kept: Units kept by ``window=`` or ``keep_for=``.
        oldest: Seconds since when the oldest of its holders has it.
        refused: Publishes that the present holders have refused.
    """

    running: int = 0
    waiting: int = 0
    kept: int = 0
    oldest: float = 0.0
    refused: int = 0

    def add(self, holder: Holder) -> None:
        """Count one holder."""
        setattr(self, holder.state, getattr(self, holder.state) + 1)
        self.oldest = max(self.oldest, holder.age)
        self.refused += holder.suppressed


@dataclass(frozen=True)
class Census:
    """What one survey found.

    Attributes:
        rows: Units that are held, the oldest first.
        tasks: By the name of the task.
        records: How many records were read.
        is_partial: Whether it stopped before it had seen all.
        at: Unix time of its end.
        away: What is wrong with lock stores that did not answer.
        unlisted: Tasks whose keys cannot be listed, for a function gives their prefix.
    """

    rows: Sequence[Row] = ()
    tasks: dict[str, Held] = field(default_factory=dict)
    records: int = 0
    is_partial: bool = False
    at: float = 0.0
    away: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    @property
    def total(self) -> Held:
        """All tasks together."""
        found = Held()
        for each in self.tasks.values():
            found.running += each.running
            found.waiting += each.waiting
            found.kept += each.kept
            found.refused += each.refused
            found.oldest = max(found.oldest, each.oldest)
        return found


class Surveyor:
    """Takes a census when one is wanted and the last one is not fresh. Safe for threads.

    Args:
        program: The user's.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._turn = threading.Lock()
        self._last: Census | None = None
        self._fresh_until = 0.0

    def census(self) -> Census:
        """The present one; while another thread takes it, the last one.

        Raises:
            StoreUnavailableError: No lock store answers.
            ConfigurationError: There is none.
        """
        last = self._last
        if not self._turn.acquire(blocking=last is None):
            assert last is not None, "or it would wait"  # noqa: S101  # for type checkers
            return last
        try:
            last = self._last
            if last is None or elapsed() > self._fresh_until:
                began = elapsed()
                last = self._take()
                self._fresh_until = elapsed() + max(FRESH, SPARE * (elapsed() - began))
        except OnceError:
            last = None  # what is old is not shown as new
            raise
        else:
            return last
        finally:
            self._last = last
            self._turn.release()

    def _take(self) -> Census:
        rows: list[Row] = []
        tasks: dict[str, Held] = {}
        names: dict[str, str] = {}  # found once, for that takes a while
        away: list[StoreUnavailableError] = []
        records, deadline = 0, elapsed() + PATIENCE
        is_full = False
        for unit in self._units(away, deadline):
            is_full = records >= MOST
            if is_full or elapsed() > deadline:
                break
            records += 1
            if not unit.holders:
                continue
            if unit.task not in names:
                names[unit.task] = self._program.task_of(unit.task)
            task = names[unit.task]
            rows.append(Row(unit.key, task, unit.holders))
            for holder in unit.holders:
                tasks.setdefault(task, Held()).add(holder)
        rows.sort(key=lambda row: -row.age)
        return Census(
            rows,
            tasks,
            records,
            is_full or elapsed() > deadline,
            wall(),
            tuple(map(str, away)),
            tuple(sorted(self._program.unlisted)),
        )

    def _units(self, away: list[StoreUnavailableError], until: float) -> Iterator[Unit]:
        places = self._program.places()
        for store, prefix in places:
            try:
                yield from survey(store, prefix, until=until)
            except StoreUnavailableError as error:
                away.append(error)
                if len(away) == len(places):
                    raise
