"""The judge: reads the ledger, and says which promises were kept. Pure; sees nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from once_core.demo.ledger import Entry

__all__ = ["Recovery", "Run", "Verdict", "judge", "runs_of"]

_FOREVER = float("inf")


@dataclass(frozen=True)
class Run:
    """One run of a body.

    Attributes:
        start: Its first entry.
        ended: When it ended, or was killed; never: infinity.
        is_killed: Whether it was cut off.
    """

    start: Entry
    ended: float
    is_killed: bool = False

    @property
    def is_done(self) -> bool:
        """Whether it came to its own end."""
        return not self.is_killed and self.ended < _FOREVER

    def overlaps(self, other: Run) -> bool:
        """Whether both ran at one moment."""
        return self.start.at < other.ended and other.start.at < self.ended


@dataclass(frozen=True)
class Recovery:
    """What became of a run that was cut off.

    Attributes:
        unit: Its unit of work.
        after: Seconds from the kill to the next start of the unit; None if there was none.
        is_redelivery: Whether that was the same message, given out again by the broker.
    """

    unit: str
    after: float | None
    is_redelivery: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the ledger shows.

    Attributes:
        triggers: Calls of ``delay()`` or ``send()``.
        refused: Calls that sent nothing, because a message waited.
        messages: Ids of messages that were sent.
        deliveries: How often workers received a message: redelivered and deferred ones again.
        runs: All runs, in order of their starts.
        recoveries: One for each run that was cut off.
        overlaps: Pairs of runs of one unit at one time.
        lost: Triggers after which no run of their unit started that came to its end.
        broken: A sentence for each promise that was not kept.
    """

    triggers: int
    refused: int
    messages: frozenset[str]
    deliveries: int
    runs: tuple[Run, ...]
    recoveries: tuple[Recovery, ...]
    overlaps: tuple[tuple[Run, Run], ...]
    lost: tuple[Entry, ...]
    broken: tuple[str, ...]


def judge(entries: Iterable[Entry], *, recover_within: float) -> Verdict:
    """Say which promises were kept.

    Args:
        entries: The whole ledger, in any order.
        recover_within: Seconds from a kill to the next start that are no broken promise.
    """
    ordered = sorted(entries, key=lambda entry: entry.at)
    triggers = [entry for entry in ordered if entry.what == "trigger"]
    runs = runs_of(ordered)
    recoveries = _recoveries(runs)
    overlaps = tuple(pair for unit in _by_unit(runs) for pair in _overlaps(unit))
    lost = _lost(triggers, runs)
    return Verdict(
        triggers=len(triggers) + sum(entry.what == "failed" for entry in ordered),
        refused=sum(not entry.is_sent for entry in triggers),
        messages=frozenset(entry.message_id for entry in triggers if entry.is_sent),
        deliveries=sum(entry.what == "received" for entry in ordered),
        runs=runs,
        recoveries=recoveries,
        overlaps=overlaps,
        lost=lost,
        broken=(
            *(_tell_overlap(*pair) for pair in overlaps),
            *_tell_lost(lost),
            *_tell_piles(triggers, runs),
            *_tell_messages(ordered),
            *_tell_fences(runs),
            *_tell_recoveries(recoveries, recover_within),
            *_tell_endless(runs),
        ),
    )


def runs_of(ordered: Iterable[Entry]) -> tuple[Run, ...]:
    """The runs of a ledger, in order of their starts; entries must be in order of time."""
    going: dict[tuple[int, str], Entry] = {}
    runs: list[Run] = []
    for entry in ordered:
        name = (entry.pid, entry.message_id)
        if entry.what == "start":
            if name in going:
                runs.append(Run(going[name], _FOREVER))
            going[name] = entry
        elif entry.what == "end" and name in going:
            runs.append(Run(going.pop(name), entry.at))
        elif entry.what == "kill":
            dead = [name for name, start in going.items() if start.worker == entry.worker]
            runs.extend(Run(going.pop(name), entry.at, is_killed=True) for name in dead)
    runs.extend(Run(start, _FOREVER) for start in going.values())
    return tuple(sorted(runs, key=lambda run: run.start.at))


def _by_unit(runs: Sequence[Run]) -> list[list[Run]]:
    units: dict[str, list[Run]] = {}
    for run in runs:
        units.setdefault(run.start.unit, []).append(run)
    return list(units.values())


def _overlaps(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    return [(one, other) for one, other in combinations(runs, 2) if one.overlaps(other)]


def _lost(triggers: Iterable[Entry], runs: Iterable[Run]) -> tuple[Entry, ...]:
    """A run that was cut off does not count: its work is not done."""
    latest: dict[str, float] = {}
    for run in runs:
        if run.is_done:
            latest[run.start.unit] = run.start.at  # in order: the last one stays
    return tuple(entry for entry in triggers if entry.at >= latest.get(entry.unit, 0.0))


def _recoveries(runs: Sequence[Run]) -> tuple[Recovery, ...]:
    found = []
    for unit in _by_unit(runs):
        for position, run in enumerate(unit):
            if not run.is_killed:
                continue
            follower = next(iter(unit[position + 1 :]), None)
            if follower is None:
                found.append(Recovery(run.start.unit, None))
                continue
            is_same = follower.start.message_id == run.start.message_id
            found.append(Recovery(run.start.unit, follower.start.at - run.ended, is_same))
    return tuple(found)


def _tell_overlap(one: Run, other: Run) -> str:
    return (
        f"overlap: {one.start.unit} ran in process {one.start.pid} and, "
        f"{other.start.at - one.start.at:.2f} s later, in process {other.start.pid} too"
    )


def _tell_lost(lost: Iterable[Entry]) -> list[str]:
    counts = Counter(entry.unit for entry in lost)
    return [
        f"lost: no run of {unit} started after its last trigger and came to its end ({count} "
        f"trigger{'s' if count > 1 else ''})"
        for unit, count in counts.items()
    ]


def _tell_piles(triggers: Iterable[Entry], runs: Iterable[Run]) -> list[str]:
    """At most one message waits: all the others must have had a start."""
    sent = Counter(entry.unit for entry in triggers if entry.is_sent)
    started = Counter(run.start.unit for run in runs)
    return [
        f"pile: {count} messages for {started[unit]} runs of {unit}"
        for unit, count in sent.items()
        if count > started[unit] + 1
    ]


def _tell_messages(ordered: Sequence[Entry]) -> list[str]:
    """What the producers say they sent is what the workers say they got."""
    sent = {entry.message_id for entry in ordered if entry.what == "trigger" and entry.is_sent}
    received = {entry.message_id for entry in ordered if entry.what == "received"}
    failed = [entry for entry in ordered if entry.what == "failed"]
    told = []
    if sent - received:
        told.append(f"messages: {len(sent - received)} were sent, and no worker received them")
    if received - sent:
        told.append(f"messages: {len(received - sent)} were received that nobody says to have sent")
    if failed:
        told.append(f"triggers: {len(failed)} raised an error, the first {failed[0].text}")
    return told


def _tell_fences(runs: Sequence[Run]) -> list[str]:
    return [
        f"fence: that of {later.start.unit} went from {earlier.start.fence} to {later.start.fence}"
        for unit in _by_unit(runs)
        for earlier, later in pairwise(unit)
        if later.start.fence <= earlier.start.fence
    ]


def _tell_recoveries(recoveries: Iterable[Recovery], within: float) -> list[str]:
    return [
        f"stuck: {each.unit} was cut off and "
        + ("did not start again" if each.after is None else f"took {each.after:.1f} s to recover")
        for each in recoveries
        if each.after is None or each.after > within
    ]


def _tell_endless(runs: Iterable[Run]) -> list[str]:
    return [
        f"stuck: the run of {run.start.unit} in process {run.start.pid} did not end"
        for run in runs
        if run.ended == _FOREVER
    ]
