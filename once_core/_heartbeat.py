"""Renews every lease of this process: one native thread, one pipeline a store and beat."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from once_core import protocol
from once_core._clock import elapsed
from once_core._lease import Lease
from once_core._native import Wake, start_thread
from once_core.errors import StoreUnavailableError
from once_core.events import emit, logger
from once_core.protocol import Message, Step
from once_core.store import Store

__all__ = ["Heartbeat", "Held", "heartbeat"]

T = TypeVar("T")

BEATS_PER_LEASE = 3
"""Two beats may fail before a lease lapses."""

OUTAGE_BEAT = 1.0
"""Seconds between attempts while a store is away: leases are short, outages shorter."""


@dataclass(eq=False)
class Held:
    """A lease in the renewal table, with what its renewal has to say."""

    store: Store
    message: Message
    attempt: str
    where: str
    lease: Lease
    task: str
    warn_after: float | None = None
    limit: int = 1
    owner: weakref.ref[object] | None = None
    started_at: float = field(default_factory=elapsed)
    tried_at: float = 0.0
    is_closed: bool = False
    is_slow: bool = False

    def __post_init__(self) -> None:
        self.tried_at = self.started_at

    def renewal(self, now: float) -> Step[str]:
        """The step that renews it."""
        return protocol.renew(
            self.lease.key,
            self.message,
            self.attempt,
            where=self.where,
            lease=self.lease.length,
            fence=self.lease.fence,
            held=now - self.started_at,
            limit=self.limit,
        )

    @property
    def is_orphan(self) -> bool:
        """Whether nobody is left who runs under it, or could end it."""
        return self.owner is not None and self.owner() is None

    def giving_up(self) -> Step[protocol.Reap]:
        """The step that frees the lease if it is still this attempt's, and does nothing else."""
        return protocol.reap(self.lease.key, self.message.id, self.attempt)


class Heartbeat:
    """The renewal table of one process and the thread that works through it.

    The thread starts with the first lease, never at import, and survives whatever happens in a
    beat. A forked child starts with an empty table: the leases are its parent's.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._unfinished: list[tuple[Held, Step[Any]]] = []
        self._siblings: dict[int, tuple[Store, Store]] = {}
        self._wake = Wake()
        self._runs = False
        self._is_asked = False
        self._next_beat = 0.0
        self._beat_every = 20.0

    def add(self, held: Held) -> None:
        """Renew this lease from now on."""
        self._held[held.attempt] = held
        beat = min(held.lease.length / BEATS_PER_LEASE, held.warn_after or held.lease.length)
        if not self._runs:
            self._next_beat = elapsed() + beat
            self._start()
        elif elapsed() + beat < self._next_beat:
            self._next_beat = elapsed() + beat
            self._wake.set()

    def _start(self) -> None:
        self._runs = True
        try:
            start_thread(self._run)
        except RuntimeError as error:  # no thread to be had, or the interpreter is ending
            self._runs = False
            logger.critical("leases are not renewed: no thread can be started: %s", error)
            emit("heartbeat_failed", reason=str(error))

    def remove(self, held: Held) -> None:
        """Stop renewing it; to be called before its `finish` is sent, never after."""
        held.is_closed = True
        self._held.pop(held.attempt, None)

    def finish_later(self, held: Held, step: Step[Any]) -> None:
        """The store was away when this attempt ended: go on trying until its lease is over."""
        self._unfinished.append((held, step))
        self._is_asked = True
        if not self._runs:
            self._start()
        self._wake.set()

    def _run(self) -> None:
        """The thread. Nothing may end it: without it every lease of the process lapses."""
        while True:
            try:
                self._sleep()
                if self._is_asked:
                    self._finish_now()  # at once: somebody may wait for it
                else:
                    self.beat()
            except BaseException as error:  # noqa: BLE001  # SystemExit in here would be silent
                logger.critical("the renewal of leases failed; it goes on", exc_info=True)
                emit("heartbeat_failed", reason=f"{type(error).__name__}: {error}")
                self._next_beat = elapsed() + OUTAGE_BEAT

    def _sleep(self) -> None:
        while not self._is_asked:
            if self.interval is not None:
                self._next_beat = min(self._next_beat, elapsed() + self.interval)
            if self._unfinished:
                self._next_beat = min(self._next_beat, elapsed() + OUTAGE_BEAT)
            remaining = self._next_beat - elapsed()
            if remaining <= 0:
                return
            self._wake.wait(remaining)

    @property
    def interval(self) -> float | None:
        """Seconds between two beats that the leases in the table need; None without any."""
        return _interval(self._held.values())

    def interval_in(self, store: Store) -> float | None:
        """The same for the leases in one store alone."""
        return _interval(each for each in list(self._held.values()) if each.store is store)

    def beat(self) -> None:
        """Renew every lease once, and try again what could not be finished.

        Called by the thread; by a test in whose time a beat is due.
        """
        lag = max(0.0, elapsed() - self._next_beat)
        self._give_up_orphans()
        held = list(self._held.values())
        has_renewed = False
        self._beat_every = self.interval or self._beat_every
        self._next_beat = elapsed() + self._beat_every
        for some in _by_store(held, lambda each: each.store):
            if self._renew(some):
                has_renewed = True
            else:
                self._next_beat = min(self._next_beat, elapsed() + OUTAGE_BEAT)
        self._finish_now()
        self._warn_of_slow_runs(held)
        if has_renewed:
            emit("renewed", lag=lag)  # last: no lease waits for whoever listens

    def _give_up_orphans(self) -> None:
        """An interrupt in the middle of an end leaves a lease that nobody would ever free."""
        for each in list(self._held.values()):
            if each.is_orphan:
                self._held.pop(each.attempt, None)
                self._unfinished.append((each, each.giving_up()))

    def _sibling(self, store: Store) -> Store:
        """Connections of the thread's own: green threads must not share sockets with it."""
        if id(store) not in self._siblings:
            self._siblings[id(store)] = (store, store.sibling())
        return self._siblings[id(store)][1]

    def _carry(self, store: Store, steps: list[Step[T]]) -> list[T | StoreUnavailableError]:
        sibling = self._sibling(store)
        if not sibling.is_at_hand:
            return [StoreUnavailableError(f"{store.place} is not asked in a test") for _ in steps]
        return sibling.run_many(steps)

    def _renew(self, held: list[Held]) -> bool:
        sent_at = elapsed()
        answers = self._carry(held[0].store, [each.renewal(sent_at) for each in held])
        for each, answer in zip(held, answers, strict=True):
            # asleep, and not only unheard: no renewal was even tried for longer than the lease
            has_slept = sent_at - each.tried_at > each.lease.length
            each.tried_at = sent_at
            if not isinstance(answer, StoreUnavailableError):
                self._answered(each, answer, sent_at, has_slept=has_slept)
            elif has_slept:
                self._lost(each, "this process stood still for longer than its lease")
        return not any(isinstance(answer, StoreUnavailableError) for answer in answers)

    def _answered(self, held: Held, answer: str, sent_at: float, *, has_slept: bool) -> None:
        if held.is_closed:
            if answer == "restored":
                # its finish overtook this renewal, which then took the lease again for nobody
                self._unfinished.append((held, held.giving_up()))
            return
        if answer == "lost":
            self._held.pop(held.attempt, None)
            self._lost(held, "another attempt runs, or somebody released it")
            return
        held.lease._renewed(sent_at)  # noqa: SLF001  # the lease's other half
        if answer == "restored" and has_slept:
            self._lost(held, "this process stood still for longer than its lease")
        elif answer == "restored":
            _emit("lease_restored", held, "the lock store had lost it")

    def _lost(self, held: Held, reason: str) -> None:
        if held.lease._taken():  # noqa: SLF001  # the lease's other half
            _emit("lease_lost", held, reason)

    def _finish_now(self) -> None:
        self._is_asked = False
        ends, self._unfinished = self._unfinished, []
        for pairs in _by_store(ends, lambda pair: pair[0].store):
            answers = self._carry(pairs[0][0].store, [step for _, step in pairs])
            for pair, answer in zip(pairs, answers, strict=True):
                held = pair[0]
                is_over = elapsed() > held.tried_at + held.lease.length
                if isinstance(answer, StoreUnavailableError) and not is_over:
                    self._unfinished.append(pair)

    def _warn_of_slow_runs(self, held: list[Held]) -> None:
        for each in held:
            ran = elapsed() - each.started_at
            if each.warn_after and ran > each.warn_after and not each.is_slow:
                each.is_slow = True
                reason = f"it runs for longer than warn_after={each.warn_after:g} s"
                _emit("slow", each, reason)
            elif each.warn_after and not each.is_slow:
                self._next_beat = min(self._next_beat, each.started_at + each.warn_after)


def _interval(held: Iterable[Held]) -> float | None:
    lengths = [each.lease.length for each in list(held)]
    return min(lengths) / BEATS_PER_LEASE if lengths else None


def _by_store(items: list[T], store_of: Callable[[T], Store]) -> list[list[T]]:
    """Items in groups, one a store: each group is one pipeline."""
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(id(store_of(item)), []).append(item)
    return list(groups.values())


def _emit(kind: str, held: Held, reason: str) -> None:
    emit(
        kind,
        task=held.task,
        key=held.lease.key,
        message_id=held.message.id,
        reason=reason,
        ran=elapsed() - held.started_at,
        fence=held.lease.fence,
    )


_process: dict[int, Heartbeat] = {}


def heartbeat() -> Heartbeat:
    """The heartbeat of this process; a forked child gets a new one."""
    pid = os.getpid()
    found = _process.get(pid)
    if found is None:
        # atomic: two threads must not end up with two tables
        found = _process.setdefault(pid, Heartbeat())
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_process.clear)
    return found
