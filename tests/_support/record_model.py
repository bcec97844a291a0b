"""The record of one unit of work, said a second time: in Python, in seconds, without Redis.

The tests run it in lock step with the Lua scripts. It is written from the rules, not from the
scripts, so that a mistake would have to be made twice. Every step takes `now` first, leaves the
parts it does not understand alone, and answers with the types of `once_core.protocol`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from once_core.protocol import Claim, Finish, Message, Reap, Release, Start

HEAL_FLOOR = 60.0
"""Seconds; the wait before a part heals never falls below this, except where it began lower."""
LONG_RUN = 60.0
LONGEST_DEFERRAL = 30.0
LONGEST_LINE = 128
GRANT = 3.0
"""Seconds in which a slot that was given to somebody in the line has to be taken up."""


@dataclass
class Part:
    """Something the record remembers until a time; `letters` name its fields in Redis."""

    letters: ClassVar[dict[str, str]] = {"until": "u"}
    until: float


@dataclass
class Waiting(Part):
    """A message, or a retry, that may run next."""

    letters: ClassVar[dict[str, str]] = {
        "until": "u", "ticket": "t", "id": "i", "retries": "r", "since": "s", "due": "d",
        "heals_at": "h", "heals_every": "e", "copies": "c", "replaces": "p", "nonce": "g",
        "newest_copy": "j", "fingerprint": "x", "refused": "z", "burst_ends": "q",
    }  # fmt: skip
    ticket: int
    id: str
    retries: int
    since: float
    due: float
    heals_at: float
    heals_every: float
    copies: int = 0
    replaces: bool = False
    nonce: str | None = None
    newest_copy: str | None = None
    fingerprint: str | None = None
    refused: int = 0
    burst_ends: float = 0.0

    def stands_for(self, message: Message) -> bool:
        """Whether this part is the message's own."""
        if self.ticket == message.ticket:
            return True
        same = (self.id, self.retries) == (message.id, message.retries)
        return same and (message.retries > 0 or message.ticket <= 0)

    @property
    def holder(self) -> str:
        """The id that duplicates are told."""
        return self.newest_copy or self.id


@dataclass
class Running(Part):
    """An attempt that holds a lease, in a slot of its own."""

    letters: ClassVar[dict[str, str]] = {
        "until": "u", "attempt": "a", "where": "b", "id": "i", "retries": "r", "ticket": "t",
        "since": "s", "lease": "k", "fence": "f", "redelivered": "m", "refused": "z",
    }  # fmt: skip
    attempt: str
    where: str
    id: str
    retries: int
    ticket: int
    since: float
    lease: float
    fence: int
    redelivered: bool = False
    refused: int = 0


@dataclass
class Done(Part):
    """Mark of a delivery that ended, for its late copies."""

    letters: ClassVar[dict[str, str]] = {"until": "u", "id": "i", "retries": "r", "ticket": "t"}
    id: str
    retries: int
    ticket: int


@dataclass
class Spent(Part):
    """A ticket with copies of which one ran."""

    letters: ClassVar[dict[str, str]] = {"until": "u", "id": "i", "ticket": "t"}
    id: str
    ticket: int


@dataclass
class Replaced(Part):
    """Tickets up to this one are dead."""

    letters: ClassVar[dict[str, str]] = {"until": "u", "ticket": "t", "started": "f"}
    ticket: int
    started: int = 0


@dataclass
class Kept(Part):
    """Publishes are refused."""

    letters: ClassVar[dict[str, str]] = {"until": "u", "id": "i", "since": "s", "refused": "z"}
    id: str
    since: float
    refused: int = 0


@dataclass
class Released(Part):
    """An attempt whose lease a person took away."""

    letters: ClassVar[dict[str, str]] = {"until": "u", "attempt": "a"}
    attempt: str


@dataclass
class Parked(Part):
    """An attempt that waits for a slot; whoever has the lowest number is next."""

    letters: ClassVar[dict[str, str]] = {
        "until": "u", "attempt": "a", "where": "b", "id": "i", "number": "t", "limit": "c",
        "length": "k",
    }  # fmt: skip
    attempt: str
    where: str
    id: str
    number: int
    limit: int
    length: float


@dataclass
class Turns(Part):
    """When messages come back that were put back."""

    letters: ClassVar[dict[str, str]] = {
        "until": "u", "due": "d", "length": "e", "away": "c",
    }  # fmt: skip
    due: float = 0.0
    length: float = 0.0
    away: int = 0


SECONDS = {"until", "since", "due", "heals_at", "heals_every", "lease", "burst_ends", "length"}
PREFIXES = {
    "waiting": "w", "behind": "n", "done": "k", "done_1": "k1", "done_2": "k2", "done_3": "k3",
    "spent": "z", "replaced": "o", "kept": "q", "turns": "t",
}  # fmt: skip
SEVERAL = {"slots": "x", "line": "p", "released": "y"}
MARKS = ("done", "done_1", "done_2", "done_3")


@dataclass
class State:
    """All parts, and the last number that was given out."""

    waiting: Waiting | None = None
    behind: Waiting | None = None
    done: Done | None = None
    done_1: Done | None = None
    done_2: Done | None = None
    done_3: Done | None = None
    spent: Spent | None = None
    replaced: Replaced | None = None
    kept: Kept | None = None
    turns: Turns | None = None
    slots: dict[int, Running] = field(default_factory=dict)
    line: dict[int, Parked] = field(default_factory=dict)
    released: dict[int, Released] = field(default_factory=dict)
    last: int = 0

    def parts(self) -> dict[str, Part]:
        """The parts that are there, by how they begin in Redis."""
        found = {prefix: getattr(self, word) for word, prefix in PREFIXES.items()}
        for word, prefix in SEVERAL.items():
            found |= {prefix + _suffix(word, n): part for n, part in getattr(self, word).items()}
        return {name: part for name, part in found.items() if part is not None}

    def at(self, now: float) -> State:
        """A copy with the parts alone that last longer than this."""
        state = State(last=self.last)
        for word in PREFIXES:
            part = getattr(self, word)
            setattr(state, word, copy.copy(part) if part and part.until > now else None)
        for word in SEVERAL:
            parts = getattr(self, word).items()
            setattr(state, word, {n: copy.copy(part) for n, part in parts if part.until > now})
        return state

    @property
    def running(self) -> list[Running]:
        """Who holds a lease, in the order of the slots."""
        return [self.slots[number] for number in sorted(self.slots)]

    def run_of(self, message_id: str) -> Running | None:
        """The run of this message."""
        return next((each for each in self.running if each.id == message_id), None)

    def lease_of(self, attempt: str) -> Running | None:
        """The lease of this attempt."""
        return next((each for each in self.running if each.attempt == attempt), None)

    @property
    def free_first(self) -> Running:
        """Whose lease ends first if nobody renews."""
        return min(self.running, key=lambda each: each.until)

    @property
    def next_in_line(self) -> Parked | None:
        """Who waits longest."""
        return min(self.line.values(), key=lambda each: each.number, default=None)

    def take_slot(self, running: Running) -> None:
        """In the first slot that is free."""
        self.slots[_unused(self.slots)] = running

    def leave_slot(self, running: Running) -> None:
        """One slot is free."""
        self.slots = {n: each for n, each in self.slots.items() if each is not running}

    def leave_line(self, attempt: str) -> None:
        """This attempt waits no more."""
        self.line = {n: each for n, each in self.line.items() if each.attempt != attempt}

    @property
    def marks(self) -> list[Done]:
        """Of deliveries that ended, the newest first."""
        found = [getattr(self, word) for word in MARKS]
        return [mark for mark in found if mark is not None]

    def mark_done(self, mark: Done) -> None:
        """Four are remembered; one message has one."""
        others = [old for old in self.marks if (old.id, old.ticket) != (mark.id, mark.ticket)]
        marks = [mark, *others, *[None] * len(MARKS)]
        for word, each in zip(MARKS, marks, strict=False):
            setattr(self, word, each)

    def close_ranks(self) -> None:
        """The retry behind moves up where nothing waits before it."""
        if self.waiting is None:
            self.waiting, self.behind = self.behind, None

    def forget(self, part: Waiting | None) -> None:
        """It waits no more."""
        if self.waiting is part:
            self.waiting = None
        if self.behind is part:
            self.behind = None
        self.close_ranks()


def _suffix(word: str, number: int) -> str:
    """Once there was room for one released attempt alone, so the first has no number."""
    if word == "released":
        return str(number - 1) if number else ""
    return str(number)


def _unused(numbers: dict[int, Any]) -> int:
    return next(number for number in range(len(numbers) + 1) if number not in numbers)


@dataclass
class RecordModel:
    """What Redis holds for one unit of work."""

    state: State = field(default_factory=State)

    # what the tests look at

    def in_redis(self) -> dict[str, str]:
        """The hash as it has to be in Redis."""
        hashed: dict[str, str] = {}
        for prefix, part in self.state.parts().items():
            for name in (each.name for each in fields(part)):
                value = getattr(part, name)
                if value is None or (not isinstance(value, str) and not value):
                    continue  # zeros are not stored
                if name in SECONDS:
                    value = round(value * 1000)
                hashed[prefix + part.letters[name]] = (
                    value if isinstance(value, str) else str(int(value))
                )
        return {**hashed, "l": str(self.state.last), "v": "1"} if hashed else {}

    def ends_at(self) -> float:
        """When the whole record is over; 0 where there is none."""
        return max((part.until for part in self.state.parts().values()), default=0.0)

    def seen(self, now: float) -> State:
        """The parts that count at this time, as a step would find them."""
        state = self.state.at(now)
        for running in state.running:
            running.until = min(running.until, now + running.lease)
        for parked in state.line.values():
            parked.until = min(parked.until, now + parked.length)
        if state.turns and state.turns.until > now + 2 * LONGEST_DEFERRAL:
            state.turns = None
        for part in (state.waiting, state.behind):
            if part and part.since > now:  # the clock stepped back
                ahead = part.since - now
                part.due -= ahead
                part.until -= ahead
                part.since = part.heals_at = now
                part.heals_every = HEAL_FLOOR
        kept = state.kept
        if kept and kept.since > now:
            kept.until -= kept.since - now
            kept.since = now
        state.close_ranks()
        return state

    # the steps

    def claim(  # noqa: C901  # one rule after the other, as they are written down
        self,
        now: float,
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
    ) -> Claim:
        """May this call be sent?"""
        state = self.seen(now)
        waiting, kept = state.waiting, state.kept
        # one's own work does not stand in one's way
        if kept and not (own and kept.id == message_id):
            return self._refuse(state, now, "kept", kept, kept.id, kept.until)
        is_own = own and state.run_of(message_id) is not None
        if until_done and len(state.slots) >= limit and not is_own:
            first = state.free_first
            return self._refuse(state, now, "running", first, first.id, first.until)
        if waiting and lost and waiting.nonce == lost:
            # nobody saw that claim: it must not make others wait longer than one claim would
            self._heal_now(waiting, min(waiting.heals_at, now))
        may_heal = waiting is not None and now >= waiting.heals_at
        if waiting and not replace:
            if not may_heal:
                free_at = waiting.heals_at
                return self._refuse(state, now, "waiting", waiting, waiting.holder, free_at)
            waiting.heals_at = now + waiting.heals_every
            waiting.heals_every *= 2
            waiting.copies += 1
            waiting.due = max(waiting.due, now)
            waiting.until = max(waiting.until, now + delay + ttl)
            waiting.newest_copy, waiting.nonce = message_id, nonce
            self._save(state)
            return Claim("refreshed", waiting.ticket, delay)
        if waiting and latest is not None:
            delay = max(0.0, min(delay, waiting.since + latest - now))
        due = now + delay
        same = waiting and waiting.replaces and fingerprint and waiting.fingerprint == fingerprint
        if same and not may_heal and due >= waiting.due:
            waiting.due = due
            waiting.until = max(waiting.until, due + ttl)
            return self._refuse(state, now, "moved", waiting, waiting.holder, due)
        fresh = self._queue(state, now, message_id, retries, due, due + ttl, heal_after)
        fresh.nonce = nonce
        if expires is not None:
            fresh.until = min(fresh.until, max(due, now + expires))
        if replace:
            fresh.replaces, fresh.fingerprint = True, fingerprint or None
            if latest is not None:
                fresh.burst_ends = (waiting.since if waiting else now) + latest
        if waiting:
            fresh.since, fresh.until = waiting.since, max(fresh.until, waiting.until)
        state.waiting = fresh
        self._save(state)
        return Claim("replaced" if waiting else "claimed", fresh.ticket, delay)

    def confirm(self, now: float, ticket: int, *, ttl: float) -> str:
        """A replacing message was published."""
        state = self.seen(now)
        self._bury_below(state, now, ticket, ttl)
        self._save(state)
        return "confirmed"

    def withdraw(self, now: float, message: Message) -> str:
        """The message will not run."""
        state = self.seen(now)
        found = self._take_away(state, now, message)
        self._save(state)
        return "withdrawn" if found else "not_yours"

    def start(  # noqa: C901, PLR0912, PLR0915  # one branch a rule
        self,
        now: float,
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
    ) -> Start:
        """May this delivery run now?"""
        state = self.seen(now)
        mine = state.lease_of(attempt)
        if mine:
            mine.until, mine.lease, mine.where = now + lease, lease, where
            self._save(state)
            return Start("started", mine.fence, 0.0, found=True)
        if running:
            self._serve_the_line(state, now, limit, attempt)
        holder = self._in_the_way(state, message, limit) if running else None
        queue = [part for part in (state.waiting, state.behind) if part]
        exact = [part for part in queue if part.stands_for(message)]
        named = [part for part in queue if part.id == message.id]
        starving = not holder and self._is_starving(state, now, message, heal_after)
        ended = self._is_over(state, now, message, known=bool(exact or named), starving=starving)
        if ended:
            self._save(state)
            return ended
        has_place = any(each.attempt == attempt for each in state.line.values())
        if holder and park and (has_place or len(state.line) < LONGEST_LINE):
            self._wait_in_line(state, now, message, attempt, where, limit, park)
            self._save(state)
            return self._refusal("overlap", holder, now)
        if holder:
            status, part = self._meet(
                state, now, message, holder, named, ttl, heal_after, queued=queued, give_up=give_up
            )
            refusal = self._refusal(status, part or holder, now)
            if status == "overlap" and holder.id != message.id:
                refusal = refusal._replace(turn=self._turn(state, now, holder, limit, again=again))
            self._save(state)
            return refusal
        if again and state.turns:
            state.turns.away = max(0, state.turns.away - 1)
        first = state.waiting
        if first and first.replaces and message.ticket > 0:
            if now < first.due and message.ticket <= first.ticket:
                self._save(state)
                return Start("early", remaining=first.due - now)
            self._bury_below(state, now, min(message.ticket, first.ticket), ttl)
        if message.ticket > 0 and state.replaced:
            state.replaced.started = max(state.replaced.started, message.ticket)
        fence = self._number(state, now)
        if running:
            state.leave_line(attempt)
            running_now = Running(
                now + lease, attempt, where, message.id, message.retries, message.ticket, now,
                lease, fence,
            )  # fmt: skip
            state.take_slot(running_now)
        mine = next(iter(exact + named), None)
        if mine and mine is state.waiting:
            if mine.copies:
                state.spent = Spent(max(mine.until, now + ttl), message.id, mine.ticket)
            if window and not message.retries:
                until = max(mine.due + window, state.kept.until if state.kept else 0.0)
                state.kept = Kept(until, message.id, now)
        waited = now - mine.since if mine else 0.0
        if starving and first:
            first.since = now
        state.forget(mine)
        self._save(state)
        return Start("started", fence, waited, found=mine is not None)

    def renew(
        self,
        now: float,
        message: Message,
        attempt: str,
        *,
        where: str,
        lease: float,
        fence: int,
        held: float,
        limit: int = 1,
    ) -> str:
        """Heartbeat of an attempt."""
        state = self.seen(now)
        own = state.lease_of(attempt)
        if own:
            own.until, own.lease = now + lease, lease
            self._save(state)
            return "renewed"
        if any(each.attempt == attempt for each in state.released.values()):
            return "lost"
        if len(state.slots) >= limit or state.run_of(message.id):
            self._save(state)
            return "lost"
        restored = Running(
            now + lease, attempt, where, message.id, message.retries, message.ticket, now - held,
            lease, fence,
        )  # fmt: skip
        state.take_slot(restored)
        state.last = max(state.last, fence)
        self._drop_what_ran(state, message)
        self._save(state)
        return "restored"

    def finish(
        self,
        now: float,
        message: Message,
        attempt: str,
        outcome: str,
        *,
        ttl: float,
        heal_after: float,
        delay: float = 0.0,
        keep_for: float = 0.0,
        queued: bool = True,
        mark: str = "hold",
    ) -> Finish:
        """The body ended."""
        state = self.seen(now)
        own = state.lease_of(attempt)
        held = now - own.since if own else 0.0
        if own:
            late_copy_likely = own.redelivered or held > LONG_RUN
            if outcome != "interrupted":
                if late_copy_likely and mark == "hold":
                    return Finish("due", held)
                if mark != "none" and (late_copy_likely or mark == "write"):
                    done = Done(now + ttl, message.id, message.retries, message.ticket)
                    state.mark_done(done)
            if state.turns:
                self._learn(state.turns, held)
                state.turns = state.turns if state.turns.away else None
            self._free(state, now, own)
            if outcome == "success" and keep_for:
                state.kept = Kept(now + keep_for, message.id, now)
        else:
            self._drop_what_ran(state, message)
        if outcome == "retry" and queued:
            retry = self._queue(
                state, now, message.id, message.retries + 1, now + delay, now + ttl, heal_after
            )
            first = state.waiting
            if first is None:
                state.waiting = retry
            elif state.behind is None and first.id != message.id and not first.replaces:
                state.behind = retry
        self._save(state)
        return Finish("finished" if own else "lost", held)

    def reap(self, now: float, message_id: str, attempt: str = "", *, margin: float = 0.0) -> Reap:
        """The process of this message died."""
        state = self.seen(now)
        lease = state.lease_of(attempt) or state.run_of(message_id)
        if lease is None or lease.id != message_id:
            return Reap(reaped=False)
        if lease.attempt != attempt:
            return Reap(False, lease.attempt, lease.where)
        if margin > 0:
            lease.until = min(lease.until, now + margin)
        else:
            self._free(state, now, lease)
        self._save(state)
        return Reap(True, lease.attempt, lease.where)

    def leave(self, now: float, attempt: str) -> str:
        """Whoever waits in the line gives up; it may have been given its slot already."""
        state = self.seen(now)
        state.leave_line(attempt)
        lease = state.lease_of(attempt)
        if lease:
            self._free(state, now, lease)
        self._save(state)
        return "left"

    def release(self, now: float, holder_id: str = "") -> Release:
        """A person frees the unit of work, or the slot of one who runs."""
        state = self.seen(now)
        own = state.run_of(holder_id)
        freed = [own] if own else state.running
        if freed:
            holder = freed[0].id
        elif state.waiting:
            holder = state.waiting.holder
        elif state.kept:
            holder = state.kept.id
        else:
            return Release("free")
        if holder_id and holder_id != holder:
            return self._release_beside(state, holder_id) or Release("other", holder)
        if freed == state.running:
            state.waiting = state.behind = state.kept = None
        for lease in freed:
            released = Released(now + lease.lease, lease.attempt)
            state.released[_unused(state.released)] = released
            self._free(state, now, lease)
        self._save(state)
        return Release("released", holder)

    def _release_beside(self, state: State, holder_id: str) -> Release | None:
        """Others run: what waits or is kept under this id goes."""
        found = False
        for part in (state.waiting, state.behind):
            if part and part.holder == holder_id:
                state.forget(part)
                found = True
        if state.kept and state.kept.id == holder_id:
            state.kept, found = None, True
        if not found:
            return None
        self._save(state)
        return Release("released", holder_id)

    # what they share

    def _save(self, state: State) -> None:
        """Idle work leaves nothing behind; a step without effect writes nothing at all."""
        if not state.parts():
            self.state = State()
        elif state.parts() != self.state.parts():
            self.state = state

    def _free(self, state: State, now: float, lease: Running) -> None:
        """A slot is free: whoever waits longest has it, for as long as it takes to take it up."""
        number = next(number for number, each in state.slots.items() if each is lease)
        state.leave_slot(lease)
        first = state.next_in_line
        # each counts by its own limit, which a deployment may just have lowered
        if first and len(state.slots) < first.limit:
            state.slots[number] = self._grant(state, now, first)

    def _grant(self, state: State, now: float, first: Parked) -> Running:
        state.leave_line(first.attempt)
        return Running(
            now + GRANT, first.attempt, first.where, first.id, 0, first.number, now, GRANT,
            self._number(state, now),
        )  # fmt: skip

    def _serve_the_line(self, state: State, now: float, limit: int, attempt: str) -> None:
        """Nobody says that a lease has lapsed: its slot goes to who waits longer than this one."""
        while len(state.slots) < limit:
            first = state.next_in_line
            if first is None or first.attempt == attempt or len(state.slots) >= first.limit:
                return
            state.take_slot(self._grant(state, now, first))

    @staticmethod
    def _in_the_way(state: State, message: Message, limit: int) -> Running | None:
        """The run of the same message, or the first of those who have taken all slots to end."""
        own = state.run_of(message.id)
        if own or not state.slots or len(state.slots) < limit:
            return own
        return state.free_first

    def _wait_in_line(
        self,
        state: State,
        now: float,
        message: Message,
        attempt: str,
        where: str,
        limit: int,
        park: float,
    ) -> None:
        mine = next((each for each in state.line.values() if each.attempt == attempt), None)
        if mine is None:
            mine = Parked(0.0, attempt, where, message.id, self._number(state, now), limit, park)
            state.line[_unused(state.line)] = mine
        mine.until, mine.length, mine.limit = now + park, park, limit

    @staticmethod
    def _is_starving(state: State, now: float, message: Message, heal_after: float) -> bool:
        """Whether what waits has been replaced for so long that this older message may run."""
        first = state.waiting
        if not (first and first.replaces and now >= first.due):
            return False
        started = state.replaced.started if state.replaced else 0
        waits_since = max(first.since, first.burst_ends)
        return started < message.ticket < first.ticket and now - waits_since >= heal_after

    def _is_over(  # noqa: PLR0911  # one return a rule
        self, state: State, now: float, message: Message, *, known: bool, starving: bool
    ) -> Start | None:
        """Whether this delivery is known to be dead, and by what."""
        first = state.waiting
        for done in state.marks:
            is_ended = (done.id, done.ticket) == (message.id, message.ticket)
            if is_ended and message.retries <= done.retries:
                self._take_away(state, now, message)
                return self._refusal("repeated", done, now)
        if message.ticket <= 0:
            return None
        is_retried = first and first.id == message.id and first.retries > message.retries
        if is_retried and first.ticket > message.ticket:
            return self._refusal("repeated", first, now)
        if known or state.run_of(message.id):
            return None
        if state.replaced and state.replaced.ticket >= message.ticket and not starving:
            newer = first or (state.free_first if state.slots else None)
            return self._refusal("superseded", newer, now)
        spent = state.spent
        if spent and spent.ticket == message.ticket and spent.id != message.id:
            return None if message.retries else self._refusal("superseded", spent, now)
        return None

    def _meet(
        self,
        state: State,
        now: float,
        message: Message,
        holder: Running,
        named: list[Waiting],
        ttl: float,
        heal_after: float,
        *,
        queued: bool,
        give_up: bool,
    ) -> tuple[str, Waiting | None]:
        """Another attempt runs: what becomes of the message, and who is named for it."""
        first = state.waiting
        own = holder.id == message.id
        mine = first is not None and (first in named or first.ticket == message.ticket)
        if own and message.retries <= holder.retries:
            holder.redelivered = True
        if give_up and not own and message.retries == 0:
            if mine:
                state.forget(first)
            return "skipped", None
        back_by = now + LONGEST_DEFERRAL
        if mine:
            first.heals_at = max(back_by, first.due) + heal_after
            first.until = max(first.until, back_by + ttl)
        elif queued and message.ticket <= 0 and not message.retries and not (own or named):
            if first:
                return "duplicate", first
            state.waiting = self._queue(
                state, now, message.id, 0, back_by, back_by + ttl, heal_after
            )
        return "overlap", None

    @staticmethod
    def _turn(state: State, now: float, holder: Running, limit: int, *, again: bool) -> float:
        """Seconds after which it comes back, one run's length behind whoever was told before."""
        turns = state.turns = state.turns or Turns(0.0)
        turns.until = now + 2 * LONGEST_DEFERRAL
        turns.away += not again
        if not turns.length:
            return 0.0
        held = now - holder.since
        overdue = math.ceil(round(held * 1000) / 8) / 1000
        expected = turns.length - held if held < turns.length else overdue
        taken = 0.0 if again and turns.away <= 1 else turns.due
        moment = max(taken, now + max(expected, 0.1))
        if moment > min(now + LONGEST_DEFERRAL, holder.until):
            return 0.0
        turns.due = moment + math.ceil(round(turns.length * 1000) / limit) / 1000
        return round(moment - now, 3)

    @staticmethod
    def _learn(turns: Turns, held: float) -> None:
        """A run has lasted so long: a quarter of what is expected of the next."""
        if turns.length:
            turns.length = math.ceil(round(3000 * turns.length + 1000 * held) / 4) / 1000
        else:
            turns.length = max(held, 0.001)

    def _refuse(
        self, state: State, now: float, status: str, part: Any, holder: str, free_at: float
    ) -> Claim:
        part.refused += 1
        self._save(state)
        ticket = getattr(part, "ticket", 0)
        remaining = max(free_at - now, 0.0)
        return Claim(status, holder_id=holder, remaining=remaining, holder_ticket=ticket)

    @staticmethod
    def _refusal(status: str, part: Any, now: float) -> Start:
        if part is None:
            return Start(status, since=now)
        return Start(
            status,
            holder_id=getattr(part, "newest_copy", None) or getattr(part, "id", ""),
            where=getattr(part, "where", ""),
            since=getattr(part, "since", now),
            remaining=part.until - now,
        )

    @staticmethod
    def _number(state: State, now: float) -> int:
        state.last = max(state.last + 1, round(now * 1_000_000))
        return state.last

    def _queue(
        self,
        state: State,
        now: float,
        message_id: str,
        retries: int,
        due: float,
        until: float,
        heal: float,
    ) -> Waiting:
        ticket = self._number(state, now)
        return Waiting(until, ticket, message_id, retries, now, due, due + heal, heal)

    @staticmethod
    def _bury_below(state: State, now: float, ticket: int, ttl: float) -> None:
        until = max(now + ttl, state.waiting.until if state.waiting else 0.0)
        old = state.replaced or Replaced(0.0, 0)
        dead = max(old.ticket, ticket - 1)
        state.replaced = Replaced(max(old.until, until), dead, old.started)

    @staticmethod
    def _take_away(state: State, now: float, message: Message) -> bool:
        mine = [p for p in (state.waiting, state.behind) if p and p.stands_for(message)]
        for part in mine:
            if part.copies:
                RecordModel._heal_now(part, now)
            else:
                state.forget(part)
        return bool(mine)

    @staticmethod
    def _heal_now(part: Waiting, heals_at: float) -> None:
        """A copy may be sent, and does not count as one more doubling of its age."""
        part.heals_at = heals_at
        part.heals_every = max(part.heals_every / 2, min(HEAL_FLOOR, part.heals_every))

    @staticmethod
    def _drop_what_ran(state: State, message: Message) -> None:
        for part in (state.waiting, state.behind):
            if part and part.id == message.id and part.retries <= message.retries:
                state.forget(part)
