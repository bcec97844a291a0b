"""What happened just now: the newest events, so many and so old, and the figures of each task."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from once_core import stream
from once_core._clock import elapsed, wall

if TYPE_CHECKING:
    from once_core.cli.program import Program
    from once_core.events import Event
    from once_core.store import Store

__all__ = [
    "WARNINGS",
    "Figures",
    "Happened",
    "Recent",
    "attention",
    "figures_of",
    "is_overlap",
    "mark_of",
]

MOST = 10_000
"""Events kept."""

LENGTH = 900.0
"""Seconds for which they are kept."""

SHORTEST = 60.0
"""Seconds over which a rate is taken at least."""

PAUSE = 0.5
"""Seconds between two looks at the stream, however many browsers wait."""

PAGE = 1000
"""Events read in one round trip."""

REFUSED = frozenset({"duplicate", "moved"})

WARNINGS = {
    "slow": "slow run",
    "lease_lost": "lease lost",
    "overlap": "overlap",
    "unguarded": "sent or run unguarded",
    "reaped": "dead process",
    "released": "released by hand",
    "lease_restored": "lease restored",
    "unavailable": "call failed, lock store away",
    "store_unavailable": "lock store away",
    "other_store": "other lock store",
    "heartbeat_failed": "heartbeat failed",
    "dropped": "events not written",
}
"""Kinds of events that somebody should look at, the most telling first, in a few words."""


class Happened(NamedTuple):
    """One event of the stream, in the order in which the stream has them.

    Attributes:
        mark: Where it stands in the stream: milliseconds and a number.
        event: What happened.
        where: ``host:pid`` of the process that told it.
    """

    mark: tuple[int, int]
    event: Event
    where: str

    @property
    def id(self) -> str:
        """The mark as text."""
        return f"{self.mark[0]}-{self.mark[1]}"

    @property
    def warning(self) -> str:
        """Which of `WARNINGS` it is; empty for none."""
        kind = "overlap" if is_overlap(self.event) else self.event.kind
        return kind if kind in WARNINGS else ""


@dataclass
class Figures:
    """What happened to one task of late.

    Attributes:
        minutes: What they are figures of.
        runs: Attempts that ended.
        refused: Publishes that were refused.
        times: Seconds that each of those attempts ran, in order of size.
        warnings: How many of each of `WARNINGS`.
    """

    minutes: float = 1.0
    runs: int = 0
    refused: int = 0
    times: list[float] = field(default_factory=list)
    warnings: dict[str, int] = field(default_factory=dict)

    def share(self, part: float) -> float:
        """The time that this part of the runs took at most; 0 where there is none."""
        last = len(self.times) - 1
        return self.times[min(last, int(part * len(self.times)))] if self.times else 0.0

    @property
    def runs_a_minute(self) -> float:
        """How many attempts end in a minute."""
        return self.runs / self.minutes

    @property
    def refused_a_minute(self) -> float:
        """How many publishes are refused in a minute."""
        return self.refused / self.minutes


class Recent:
    """The newest events of all streams of a program. Safe for threads.

    Nothing reads while nobody looks: each look reads on from where the last one ended.

    Args:
        program: The user's.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._turn = threading.Lock()
        self._looked_at = float("-inf")
        self._last: dict[tuple[str, str], str] = {}
        self._found: Sequence[Happened] = ()

    def look(self) -> Sequence[Happened]:
        """The events of late, the oldest first; empty where the stream is off.

        Raises:
            StoreUnavailableError: A store is away.
        """
        if elapsed() - self._looked_at < PAUSE or not self._turn.acquire(blocking=False):
            return self._found
        try:
            new = [each for place in self._program.places() for each in self._read(*place)]
            since = (int((wall() - LENGTH) * 1000), 0)
            found = sorted([*self._found, *new], key=_mark) if new else self._found
            self._found = found[bisect_right(found, since, key=_mark) :][-MOST:]
            self._looked_at = elapsed()
            return self._found
        finally:
            self._turn.release()

    def after(self, mark: tuple[int, int]) -> Sequence[Happened]:
        """Those that came after one, the oldest first."""
        found = self.look()
        return found[bisect_right(found, mark, key=_mark) :]

    def _read(self, store: Store, prefix: str) -> Iterator[Happened]:
        place = store.place, prefix
        last = self._last.get(place, "")
        while True:
            count = PAGE if last else MOST
            entries = stream.read(store, prefix, after=last, count=count)
            for entry in entries:
                where = entry.where.rpartition(":")[0] or entry.where
                yield Happened(mark_of(entry.id), entry.event, where)
            if entries:
                last = self._last[place] = entries[-1].id
            if len(entries) < PAGE or count == MOST:
                return


def _mark(happened: Happened) -> tuple[int, int]:
    return happened.mark


def mark_of(text: str) -> tuple[int, int]:
    """A place in the stream, from its text; its beginning if that is none.

    Example:
        >>> mark_of("1795248000000-3"), mark_of("nonsense")
        ((1795248000000, 3), (0, 0))
    """
    milliseconds, _, number = text.partition("-")
    try:
        return int(milliseconds), int(number or 0)
    except ValueError:
        return 0, 0


def is_overlap(event: Event) -> bool:
    """Whether a message was put back or ended because another attempt ran."""
    return event.kind == "skipped" or (event.kind == "deferred" and event.cause == "overlap")


def attention(found: Sequence[Happened], most: int = 5) -> list[tuple[Happened, int]]:
    """What somebody should look at: the newest of each kind and unit, and how many there were.

    Args:
        found: The events, the oldest first.
        most: How many at most, the newest first.
    """
    newest: dict[tuple[str, str, str], Happened] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for each in reversed(found):
        if each.warning:
            about = each.warning, each.event.task, each.event.key
            newest.setdefault(about, each)
            counts[about] += 1
    return [(each, counts[about]) for about, each in newest.items()][:most]


def figures_of(found: Sequence[Happened]) -> dict[str, Figures]:
    """The figures of each task; those of all under an empty name.

    Args:
        found: The events, the oldest first.
    """
    length = wall() - found[0].mark[0] / 1000 if found else 0.0
    minutes = min(max(length, SHORTEST), LENGTH) / 60
    figures = {"": Figures(minutes)}
    for each in found:
        for name in {"", each.event.task}:
            _count(figures.setdefault(name, Figures(minutes)), each)
    for one in figures.values():
        one.times.sort()
    return figures


def _count(figures: Figures, happened: Happened) -> None:
    event = happened.event
    if event.kind == "finished":
        figures.runs += 1
        if event.ran is not None:
            figures.times.append(event.ran)
    elif event.kind in REFUSED:
        figures.refused += 1
    if happened.warning:
        figures.warnings[happened.warning] = figures.warnings.get(happened.warning, 0) + 1
