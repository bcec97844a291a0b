"""Whether the promises held, by accounts that once has no part in.

These are the notes of bodies and of the framework's own signals or hooks, what callers were told,
the broker's log of writes, and what the test did to which process when.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from _support import ledger
from chaos.bodies import LEASE
from chaos.broker_log import Fates
from chaos.scene import AFTER_RESTART, ENDED, FOREVER, FREED, Canvas, Fault, Trigger

BEAT = LEASE / 3
"""Seconds between renewals while all is well."""

UNHEARD = 2.5
"""Seconds that may pass between the return of the store and the next renewal: a heartbeat that
found it away tries again every second, and waits 1.2 s for an answer."""

AWAKE = 0.3
"""The same for a process that was frozen: its heartbeat goes on at once."""

LONGEST_WAIT = 100.0
"""Seconds: a minute, or as long again as it had waited, behind the backlog of a busy machine."""

NEWEST = ("replace", "debounce")
"""Kinds of which the newest payload has to run last."""


@dataclass
class Body:
    """One body that started."""

    run: str
    unit: str
    pid: int
    group: int
    id: str
    retries: int
    start: float
    end: float
    payload: str | None
    was_killed: bool = False


class Pair(NamedTuple):
    """Two bodies of one unit that were alive at the same time, and why that may be."""

    first: Body
    second: Body
    excuse: str


class Finding(NamedTuple):
    """A broken promise, of one unit where it has one."""

    unit: str
    what: str


class Deaf(NamedTuple):
    """A time in which a process could not renew its leases."""

    start: float
    end: float
    why: str


@dataclass
class Account:
    """Everything that is known when all is over.

    Attributes:
        triggers: All calls.
        canvases: All chains and chords.
        faults: What was done to whom.
        path: Of the notes of bodies and signals.
        fates: What the broker did with messages.
        unsent: Ids of messages whose next step of a canvas could not be sent without the broker:
            Celery then fails the whole chain, and Dramatiq drops the rest.
        bodies: By unit, in the order of their starts.
        received: By message id: when, and by which worker.
        begun: By message id: when, by which child, and by which worker.
        ended_canvases: Names of those whose last task ran.
    """

    triggers: list[Trigger]
    canvases: list[Canvas]
    faults: list[Fault]
    path: Path
    fates: Fates
    unsent: set[str]
    bodies: dict[str, list[Body]] = field(default_factory=lambda: defaultdict(list))
    received: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    begun: dict[str, list[tuple[float, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    ended_canvases: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        notes = ledger.entries(self.path)
        ends = {each["run"]: each["at"] for each in notes if each["kind"] == "end"}
        for each in notes:
            match each["kind"]:
                case "start":
                    self.bodies[each["unit"]].append(self._body(each, ends))
                case "received":
                    self.received[each["id"]].append((each["at"], each["group"]))
                case "begun":
                    self.begun[each["id"]].append((each["at"], each["pid"], each["group"]))
                case "canvas":
                    self.ended_canvases[each["canvas"]] += 1
        for some in self.bodies.values():
            some.sort(key=lambda body: body.start)

    def _body(self, note: dict[str, Any], ends: dict[str, float]) -> Body:
        end = ends.get(note["run"])
        killed = [
            max(each.at, note["at"])
            for each in self.faults
            if each.is_kill and each.hits(note["pid"], note["group"]) and each.done >= note["at"]
        ]
        if end is None and not killed and self._ended_by_itself(note):
            end = note["at"]  # nobody knows when it died
        return Body(
            note["run"],
            note["unit"],
            note["pid"],
            note["group"],
            note["id"],
            note["retries"],
            note["at"],
            end if end is not None else min(killed, default=FOREVER),
            note["payload"],
            was_killed=note["run"] not in ends,
        )

    def _ended_by_itself(self, note: dict[str, Any]) -> bool:
        return any(each.what == ENDED and each.group == note["group"] for each in self.faults)

    @property
    def kills(self) -> int:
        """How many processes were killed in the middle of something."""
        return sum(each.is_kill and each.what not in (AFTER_RESTART, FREED) for each in self.faults)

    @property
    def all_bodies(self) -> Iterable[Body]:
        for some in self.bodies.values():
            yield from some

    # Never two at once

    def overlaps(self) -> list[Pair]:
        """All pairs; those without an excuse break a promise."""
        return [pair for some in self.bodies.values() for pair in self._overlaps_of(some)]

    def _overlaps_of(self, bodies: list[Body]) -> list[Pair]:
        found: list[Pair] = []
        # a body that has lost its lease by an excused fault does not get it back
        forfeited: dict[str, str] = {}
        for index, second in enumerate(bodies):
            for first in bodies[:index]:
                if first.end <= second.start:
                    continue
                excuse = forfeited.get(first.run) or self._excuse(first, second)
                if excuse:
                    forfeited[first.run] = excuse
                found.append(Pair(first, second, excuse))
        return found

    def _excuse(self, first: Body, second: Body) -> str:
        for deaf in self._deaf(first):
            lapses = deaf.start + LEASE - BEAT
            if deaf.end > lapses and deaf.start < first.end and second.start >= lapses:
                return deaf.why
        for fault in self.faults:
            # what it forgot is restored with the next renewal, and not before
            back = fault.until
            is_soon = back <= second.start <= back + BEAT + UNHEARD
            if fault.came_back_empty and first.start <= back and is_soon:
                return "store came back empty"
        return ""

    def _deaf(self, body: Body) -> list[Deaf]:
        """Times without a renewal, joined where no beat need fall between them."""
        times = []
        for fault in self.faults:
            if fault.what in ("kill store", "freeze store"):
                times.append(Deaf(fault.at, fault.until + UNHEARD, "store away too long"))
            elif fault.what.startswith("freeze") and fault.hits(body.pid, body.group):
                times.append(Deaf(fault.at, fault.until + AWAKE, "process frozen too long"))
        joined: list[Deaf] = []
        for each in sorted(times):
            if each.end <= body.start:
                continue
            if joined and each.start - joined[-1].end < BEAT:
                last = joined.pop()
                why = last.why if last.why == each.why else "process frozen and store away"
                joined.append(Deaf(last.start, max(last.end, each.end), why))
            else:
                joined.append(each)
        return joined

    # Never lost

    def debts(self) -> dict[str, Trigger]:
        """By unit: its first trigger that no run followed."""
        last = {unit: some[-1].start for unit, some in self.bodies.items()}
        found: dict[str, Trigger] = {}
        for trigger in sorted(self.triggers, key=lambda each: each.at):
            if trigger.is_owed and trigger.at > last.get(trigger.unit, 0.0):
                found.setdefault(trigger.unit, trigger)
        return found

    def waits(self) -> list[tuple[float, Trigger]]:
        """How long each trigger that was owed a run waited for one."""
        found = []
        for unit, some in self._triggers_by_unit().items():
            starts = [body.start for body in self.bodies[unit]]
            index = 0
            for trigger in some:
                while index < len(starts) and starts[index] <= trigger.at:
                    index += 1
                if trigger.is_owed and index < len(starts):
                    found.append((starts[index] - trigger.at, trigger))
        return found

    def triggers_of(self, unit: str) -> list[Trigger]:
        """In the order in which they began."""
        return self._triggers_by_unit().get(unit, [])

    @property
    def units(self) -> set[str]:
        """All that were ever triggered."""
        return set(self._triggers_by_unit())

    def _triggers_by_unit(self) -> dict[str, list[Trigger]]:
        found: dict[str, list[Trigger]] = defaultdict(list)
        for trigger in sorted(self.triggers, key=lambda each: each.at):
            found[trigger.unit].append(trigger)
        return found

    def lost_messages(self) -> list[tuple[Trigger, str]]:
        """Messages that were accepted and never ran, nor a copy of theirs; with the excuse.

        Stricter than the promise: most such triggers were followed by the run of another message.
        Messages that were replaced need not run.
        """
        ran = {body.id for body in self.all_bodies}
        in_canvases = {each for canvas in self.canvases for each in canvas.ids}
        found = []
        for unit, some in self._triggers_by_unit().items():
            if unit.startswith(NEWEST):
                continue
            bodies = self.bodies.get(unit, [])
            groups = list(_copies(some, [body.start for body in bodies]))
            for copies, later in zip_longest(groups, groups[1:]):
                # copies of a message of a canvas: that one may have run, and we do not know it
                first = copies[0]
                # of calls at the same time nobody knows which one the store heard first
                copies += [each for each in some if each.was_sent and each.is_beside(first)]
                if first.state != "claimed" or any(each.holder in ran for each in copies):
                    continue
                # a call of a canvas, or one that failed, may have sent the copy that ran
                others = in_canvases | _of_failed_calls(some, bodies, first.at)
                if any(body.id in others and body.start > first.at for body in bodies):
                    continue
                excuse = self._excuses_of(copies)
                if later and later[0].state == "claimed":
                    # the next call's message took its place, and it ended as that one's duplicate
                    excuse = excuse or self._forgotten_between(first.at, later[0].done)
                found.append((first, excuse))
        return found

    def _excuses_of(self, copies: list[Trigger]) -> str:
        """Why none of them ran: one excuse is not enough, each copy needs its own."""
        excuses = [self.excuse_of(each.unit, each.holder) for each in copies]
        return ", ".join(sorted(set(excuses))) if all(excuses) else ""

    def excuse_of(self, unit: str, message_id: str) -> str:
        """How a message was lost by others than us; empty if it was not."""
        fate = self.fates.last(message_id)
        if fate == "taken":
            return "lost by the broker's transport"
        if unit.startswith("early") and fate == "acked" and self._died_with(message_id):
            return "lost with a process that had acknowledged it"
        return ""

    def _died_with(self, message_id: str) -> bool:
        """Whether a process that had the message was killed or told to give up."""
        places = [(at, 0, group) for at, group in self.received[message_id]]
        for at, pid, group in places + self.begun[message_id]:
            for fault in self.faults:
                hits = fault.hits(pid, group) or (
                    fault.what == "kill child" and self._group_of(fault.pid) == group
                )
                if hits and fault.at >= at and fault.is_deadly:
                    return True
        return False

    def _group_of(self, pid: int) -> int:
        if not hasattr(self, "_groups"):
            self._groups = {
                each_pid: group for some in self.begun.values() for _, each_pid, group in some
            }
        return self._groups.get(pid, 0)

    def stale(self) -> list[tuple[str, str, str]]:
        """Units whose last run was not of the newest payload, what ran instead, and the excuse."""
        found = []
        for unit, some in self._triggers_by_unit().items():
            calls = {each.payload: each for each in some if each.is_owed}
            bodies = self.bodies.get(unit)
            if not (unit.startswith(NEWEST) and calls and bodies):
                continue
            last = calls.get(bodies[-1].payload or "")
            newest = max(calls.values(), key=lambda each: each.at)
            if last is None or last.done < newest.at:
                ran = last or "one whose call failed"
                excuse = self._forgotten_between(last.at if last else 0.0)
                found.append((unit, f"{ran} instead of {newest}", excuse))
        return found

    def _forgotten_between(self, begin: float, end: float = FOREVER) -> str:
        """What waits and what was replaced is known to the store alone."""
        some = [each for each in self.faults if each.came_back_empty]
        is_one = any(each.until > begin and each.at < end for each in some)
        return "store came back empty" if is_one else ""

    def unfinished_canvases(self) -> list[tuple[Canvas, str]]:
        """Chains and chords whose last task never ran, with the excuse."""
        found = []
        for canvas in self.canvases:
            if self.ended_canvases[canvas.name]:
                continue
            sent = [each for each in canvas.ids if self.fates.last(each) != "never published"]
            excuses = {self.excuse_of("late", each) for each in sent}
            if self.unsent & set(canvas.ids):
                excuses.add("broker away when a next step was due")
            found.append((canvas, ", ".join(sorted(excuses - {""}))))
        return found

    # Never stuck

    def recoveries(self) -> dict[str, list[tuple[float, str]]]:
        """By what was killed: seconds until the next body of the unit that ran in it."""
        found: dict[str, list[tuple[float, str]]] = defaultdict(list)
        every = sorted(body.start for body in self.all_bodies)
        for fault in self.faults:
            if not fault.is_kill:
                continue
            for unit in fault.ran:
                after = [body.start for body in self.bodies[unit] if body.start > fault.at]
                if after:
                    found[fault.what].append((after[0] - fault.at, unit))
            if fault.what in ("kill store", "kill broker"):
                after = [start for start in every if start > fault.at]
                if after:
                    found[fault.what].append((after[0] - fault.at, ""))
        return found

    # All of it

    def unhealthy(
        self, debts: dict[str, Trigger], held: dict[str, tuple[str, str]]
    ) -> Iterator[Finding]:
        """Before anything is healed: whatever needs healing needs an excuse."""
        for unit, trigger in debts.items():
            if not self.excuse_of(unit, trigger.holder):
                yield Finding(unit, f"no run after {trigger}, whose message nobody else lost")
        for unit, (state, message_id) in held.items():
            is_ghost = not self.fates.steps.get(message_id) and any(
                each.error for each in self.triggers_of(unit)
            )
            if not (is_ghost or self.excuse_of(unit, message_id)):
                yield Finding(unit, f"{state} by {message_id}, which the broker does not have")

    def broken(self) -> Iterator[Finding]:
        """When all is over: everything that has no excuse."""
        excused = [
            *((pair.first.unit, f"overlap of {pair}", pair.excuse) for pair in self.overlaps()),
            *((each.unit, f"never ran: {each}", excuse) for each, excuse in self.lost_messages()),
            *(("", f"never ended: {each}", why) for each, why in self.unfinished_canvases()),
            *((unit, f"a stale payload ran last: {each}", why) for unit, each, why in self.stale()),
        ]
        for unit, what, excuse in excused:
            if not excuse:
                yield Finding(unit, what)
        for wait, trigger in self.waits():
            # what waits in a backlog may be replaced by newer payloads again and again
            if wait > LONGEST_WAIT and not trigger.unit.startswith(NEWEST):
                yield Finding(trigger.unit, f"waited {wait:.1f} s for a run: {trigger}")


def _of_failed_calls(triggers: list[Trigger], bodies: list[Body], since: float) -> set[str]:
    """Ids of bodies that only calls can have sent which got no answer from the broker."""
    failed = [each.at for each in triggers if each.state == "broker away" and each.at > since]
    if not failed:
        return set()
    sent = {each.holder for each in triggers if each.was_sent}
    return {body.id for body in bodies if body.start > failed[0]} - sent


def _copies(triggers: list[Trigger], starts: list[float]) -> Iterator[list[Trigger]]:
    """Calls in groups, one a ticket: the message, those refused for it, copies it got.

    Args:
        triggers: Of one unit.
        starts: Of its bodies.
    """
    group: list[Trigger] = []
    known = {each.holder for each in triggers if each.was_sent}
    is_unsent = False
    for trigger in triggers:
        if not trigger.is_owed:
            # the copy of a call that the broker did not take may be named as the holder
            is_unsent = is_unsent or trigger.state == "broker away"
            continue
        # one that we did not send: a canvas did, or a retry waits; as long as nothing has started
        # it is a copy that a canvas sent
        has_started = bool(group) and any(group[0].at < each < trigger.done for each in starts)
        is_unknown = trigger.state == "waiting" and trigger.holder not in known
        is_other = is_unknown and has_started and not is_unsent
        if group and (trigger.state == "claimed" or is_other):
            yield group
            group, is_unsent = [], False
        group.append(trigger)
        known.add(trigger.holder)
    if group:
        yield group
