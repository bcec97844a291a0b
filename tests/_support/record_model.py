"""The record of one unit of work, said a second time: in Python, in seconds, without Redis.

The tests run it in lock step with the Lua scripts. It is written from the rules, not from the
scripts, so that a mistake would have to be made twice. Every step takes `now` first, leaves the
parts it does not understand alone, and answers with the types of `once_core.protocol`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from once_core.protocol import Claim, Finish, Message, Reap, Release, Start

HEAL_FLOOR = 60.0
"""Seconds; the wait before a part heals never falls below this, except where it began lower."""
LONG_RUN = 60.0
LONGEST_DEFERRAL = 30.0


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
    """The attempt that holds the lease."""

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


SECONDS = {"until", "since", "due", "heals_at", "heals_every", "lease", "burst_ends"}
PREFIXES = {
    "waiting": "w", "behind": "n", "running": "x0", "done": "k", "done_1": "k1", "done_2": "k2",
    "done_3": "k3", "spent": "z", "replaced": "o", "kept": "q", "released": "y",
}  # fmt: skip
MARKS = ("done", "done_1", "done_2", "done_3")


@dataclass
class State:
    """All parts, and the last number that was given out."""

    waiting: Waiting | None = None
    behind: Waiting | None = None
    running: Running | None = None
    done: Done | None = None
    done_1: Done | None = None
    done_2: Done | None = None
    done_3: Done | None = None
    spent: Spent | None = None
    replaced: Replaced | None = None
    kept: Kept | None = None
    released: Released | None = None
    last: int = 0

    def parts(self) -> dict[str, Part]:
        """The parts that are there, by their word."""
        found = {word: getattr(self, word) for word in PREFIXES}
        return {word: part for word, part in found.items() if part is not None}

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

    def forget(self, part: Part | None) -> None:
        """Take this very part out."""
        for word, found in self.parts().items():
            if found is part:
                setattr(self, word, None)
        self.close_ranks()


@dataclass
class RecordModel:
    """What Redis holds for one unit of work."""

    state: State = field(default_factory=State)

    # what the tests look at

    def in_redis(self) -> dict[str, str]:
        """The hash as it has to be in Redis."""
        hashed: dict[str, str] = {}
        for word, part in self.state.parts().items():
            for name in (each.name for each in fields(part)):
                value = getattr(part, name)
                if value is None or (not isinstance(value, str) and not value):
                    continue  # zeros are not stored
                if name in SECONDS:
                    value = round(value * 1000)
                hashed[PREFIXES[word] + part.letters[name]] = (
                    value if isinstance(value, str) else str(int(value))
                )
        return {**hashed, "l": str(self.state.last), "v": "1"} if hashed else {}

    def ends_at(self) -> float:
        """When the whole record is over; 0 where there is none."""
        return max((part.until for part in self.state.parts().values()), default=0.0)

    def seen(self, now: float) -> State:
        """The parts that count at this time, as a step would find them."""
        state = copy.copy(self.state)
        for word, part in self.state.parts().items():
            setattr(state, word, copy.copy(part) if part.until > now else None)
        if state.running:
            state.running.until = min(state.running.until, now + state.running.lease)
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
    ) -> Claim:
        """May this call be sent?"""
        state = self.seen(now)
        waiting, running, kept = state.waiting, state.running, state.kept
        # one's own work does not stand in one's way
        if kept and not (own and kept.id == message_id):
            return self._refuse(state, now, "kept", kept, kept.id, kept.until)
        if until_done and running and not (own and running.id == message_id):
            return self._refuse(state, now, "running", running, running.id, running.until)
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

    def start(  # noqa: C901  # one branch a rule
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
    ) -> Start:
        """May this delivery run now?"""
        state = self.seen(now)
        holder = state.running
        if holder and holder.attempt == attempt:
            return Start("started", holder.fence, 0.0, found=True)
        queue = [part for part in (state.waiting, state.behind) if part]
        exact = [part for part in queue if part.stands_for(message)]
        named = [part for part in queue if part.id == message.id]
        starving = not (running and holder) and self._is_starving(state, now, message, heal_after)
        ended = self._is_over(state, now, message, known=bool(exact or named), starving=starving)
        if ended:
            self._save(state)
            return ended
        if running and holder:
            status, part = self._meet(
                state, now, message, named, ttl, heal_after, queued=queued, give_up=give_up
            )
            self._save(state)
            return self._refusal(status, part or holder, now)
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
            state.running = Running(
                now + lease, attempt, where, message.id, message.retries, message.ticket, now,
                lease, fence,
            )  # fmt: skip
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
    ) -> str:
        """Heartbeat of an attempt."""
        state = self.seen(now)
        if state.released and state.released.attempt == attempt:
            return "lost"
        if state.running is None:
            state.running = Running(
                now + lease, attempt, where, message.id, message.retries, message.ticket,
                now - held, lease, fence,
            )  # fmt: skip
            state.last = max(state.last, fence)
            self._drop_what_ran(state, message)
            answer = "restored"
        elif state.running.attempt == attempt:
            state.running.until, state.running.lease = now + lease, lease
            answer = "renewed"
        else:
            answer = "lost"
        self._save(state)
        return answer

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
        write_mark: bool = False,
    ) -> Finish:
        """The body ended."""
        state = self.seen(now)
        held = now - state.running.since if state.running else 0.0
        own = state.running is not None and state.running.attempt == attempt
        if own:
            late_copy_likely = state.running.redelivered or held > LONG_RUN
            if outcome != "interrupted":
                if late_copy_likely and not write_mark:
                    return Finish("due", held)
                if late_copy_likely or write_mark:
                    mark = Done(now + ttl, message.id, message.retries, message.ticket)
                    state.mark_done(mark)
            state.running = None
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
        holder = state.running
        if holder is None or holder.id != message_id:
            return Reap(reaped=False)
        if holder.attempt != attempt:
            return Reap(False, holder.attempt, holder.where)
        if margin > 0:
            holder.until = min(holder.until, now + margin)
        else:
            state.running = None
        self._save(state)
        return Reap(True, holder.attempt, holder.where)

    def release(self, now: float, holder_id: str = "") -> Release:
        """A person frees the unit of work."""
        state = self.seen(now)
        if state.running:
            holder = state.running.id
        elif state.waiting:
            holder = state.waiting.holder
        elif state.kept:
            holder = state.kept.id
        else:
            return Release("free")
        if holder_id and holder_id != holder:
            return Release("other", holder)
        if state.running:
            state.released = Released(now + state.running.lease, state.running.attempt)
        state.running = state.waiting = state.behind = state.kept = None
        self._save(state)
        return Release("released", holder)

    # what they share

    def _save(self, state: State) -> None:
        """Idle work leaves nothing behind; a step without effect writes nothing at all."""
        if not state.parts():
            self.state = State()
        elif state.parts() != self.state.parts():
            self.state = state

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
        if known or (state.running and state.running.id == message.id):
            return None
        if state.replaced and state.replaced.ticket >= message.ticket and not starving:
            return self._refusal("superseded", first or state.running, now)
        spent = state.spent
        if spent and spent.ticket == message.ticket and spent.id != message.id:
            return None if message.retries else self._refusal("superseded", spent, now)
        return None

    def _meet(
        self,
        state: State,
        now: float,
        message: Message,
        named: list[Waiting],
        ttl: float,
        heal_after: float,
        *,
        queued: bool,
        give_up: bool,
    ) -> tuple[str, Waiting | None]:
        """Another attempt runs: what becomes of the message, and who is named for it."""
        holder, first = state.running, state.waiting
        assert holder is not None
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
