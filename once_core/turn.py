"""One attempt of a function or of a ``with`` block: taken at once, refused, or waited for.

No message stands behind it, so nothing can be given out again, retried or marked: it starts, and
it ends. All of it is flows, which sync and async stores carry alike.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from once_core import _lease as leases
from once_core import protocol
from once_core._clock import elapsed
from once_core._flow import Flow, Pause
from once_core._heartbeat import heartbeat
from once_core.attempt import Attempt
from once_core.errors import LeaseTimeoutError, OverlapError, StoreUnavailableError
from once_core.events import emit
from once_core.protocol import Message, Start
from once_core.publish import nonce

if TYPE_CHECKING:
    from once_core._lease import Lease
    from once_core.guard import Guard
    from once_core.store import Store

__all__ = ["Turn", "held_here"]

PARK = 6.0
"""Seconds for which a place in the line is kept; asked for again at a third of it."""

LAPSE_MARGIN = 0.05
"""Seconds after the end of a lease at which whoever waits for it asks again."""

_here: ContextVar[tuple[Turn, ...]] = ContextVar("once_turns_here", default=())


def _owner() -> tuple[int, int, int]:
    """Who runs: threads, child tasks and forks inherit a context, but not what is held in it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        task = None
    return os.getpid(), threading.get_ident(), id(task) if task else 0


def held_here(key: str) -> Lease | None:
    """The lease of this key under which the calling code runs already, or None."""
    me = _owner()
    mine = (turn for turn in _here.get() if turn.is_running and turn.owner == me)
    return next((turn.lease for turn in mine if turn.key == key), None)


class Turn:
    """One attempt. For one thread, or one task of an event loop.

    Args:
        guard: What once knows of the function; its scope limits what runs.
        key: Key of the unit of work.
    """

    def __init__(self, guard: Guard, key: str) -> None:
        self.guard = guard
        self.key = key
        self.id = os.urandom(16).hex()
        self._attempt = Attempt(guard, key, Message(self.id, nonce()))
        self.owner = _owner()
        self.outer: Lease | None = None
        """The lease that is current again after this one."""

    @property
    def store(self) -> Store:
        """The store, the same from its start to its end."""
        return self._attempt.store

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._attempt.is_running

    @property
    def lease(self) -> Lease | None:
        """The lease, from the start to the end."""
        return self._attempt.lease

    def taking(self, wait_up_to: float | None = 0.0) -> Flow[Start]:
        """Start, perhaps after others; the answer is ``"started"``, or says who is in the way.

        Args:
            wait_up_to: Seconds to wait for its turn; None as long as it takes.

        Raises:
            OverlapError: It would wait for itself: the calling code holds a lease of this key,
                and no slot is free beside it.
            StoreUnavailableError: The store is away.
        """
        began = elapsed()
        attempt, waits = self._attempt, wait_up_to is None or wait_up_to > 0
        # no place in the line for who would wait for itself; a free slot it may have
        is_inner = waits and held_here(self.key) is not None
        try:
            while True:
                answer = yield from attempt.starting(park=PARK if waits and not is_inner else 0.0)
                if answer.status == "started" or is_inner or not waits:
                    break
                left = float("inf") if wait_up_to is None else wait_up_to - (elapsed() - began)
                if left <= 0:
                    yield protocol.leave(self.key, attempt.token)
                    break
                yield Pause(self._channel, min(left, self._patience(answer)))
        except BaseException as error:
            if waits:
                self._leave_later()
            is_away = isinstance(error, StoreUnavailableError)
            if is_away and self.guard.options.on_store_error == "raise":
                self._attempt.tell("unavailable", str(error), cause="start")
            raise
        if is_inner and answer.status != "started":
            raise self.reentry_error()
        if answer.status != "started":
            emit(
                "skipped",
                task=self.guard.task,
                key=self.key,
                message_id=self.id,
                holder_id=answer.holder_id,
                reason=answer.reason,
                waited=elapsed() - began,
            )
        return answer

    @property
    def _channel(self) -> str:
        return protocol.turn_channel(self.key, self._attempt.token)

    @staticmethod
    def _patience(answer: Start) -> float:
        """Seconds after which to ask in any case: a crashed holder says nothing."""
        keep_place = PARK / 3 * random.uniform(0.75, 1.0)  # noqa: S311  # spreads load, hides nothing
        return max(LAPSE_MARGIN, min(keep_place, answer.remaining + LAPSE_MARGIN))

    def _leave_later(self) -> None:
        """Interrupted while it waits: whoever comes next must not wait for it."""
        attempt = self._attempt
        ghost = attempt.ghost()
        heartbeat().finish_later(ghost, protocol.leave(self.key, attempt.token))

    def enter(self) -> Lease | None:
        """The body begins, in this thread or task."""
        # not the attempt: within a task's body, that one is whose calls these are
        self.outer = leases.current_lease()
        _here.set((*_here.get(), self))
        leases._current.set(self.lease)  # noqa: SLF001  # as tasks do
        return self.lease

    def leave(self) -> None:
        """The body is over; perhaps in another context, or before one that began later.

        A generator may be closed anywhere, and blocks may end in any order: so nothing is put
        back as it was, but this turn is taken out.
        """
        others = tuple(turn for turn in _here.get() if turn is not self)
        _here.set(others)
        for turn in others:
            if turn.outer is self.lease:
                turn.outer = self.outer
        if leases.current_lease() is self.lease:
            leases._current.set(self.outer)  # noqa: SLF001  # see above

    def giving_back(self, *, is_success: bool) -> Flow[None]:
        """Free the lease; while the store is away it is freed later.

        A fork that runs off the end of the body leaves it to its parent, whose lease it is.
        """
        if os.getpid() == self.owner[0]:
            yield from self._attempt.ending_for_good("success" if is_success else "failure")

    def overlap_error(self, answer: Start) -> OverlapError:
        """For ``on_overlap="raise"``."""
        return OverlapError(
            f"{self.guard.task} did not run: {_who(answer)} holds {self.key}; retry later, or wait "
            'for it with on_overlap="wait"',
            task=self.guard.task,
            key=self.key,
            holder_id=answer.holder_id,
        )

    def reentry_error(self) -> OverlapError:
        """For code that would wait for itself."""
        return OverlapError(
            f"{self.guard.task} would wait for itself for ever: the calling code holds {self.key} "
            "already; call the inner part without the lock, or say that this is meant with "
            "lease(…, reentrant=True)",
            task=self.guard.task,
            key=self.key,
        )

    def timeout_error(self, answer: Start, waited: float) -> LeaseTimeoutError:
        """For a turn that did not come."""
        return LeaseTimeoutError(
            f"{self.guard.task} was not free within {waited:.1f} s: {_who(answer)} holds "
            f"{self.key}; wait longer with wait_up_to=, or see who it is with holder()",
            key=self.key,
            waited=waited,
        )

    def unguarded(self, error: StoreUnavailableError) -> None:
        """It runs without a lease (``on_store_error="run"``)."""
        self._attempt.tell("unguarded", str(error), cause="start")


def _who(answer: Start) -> str:
    where = answer.where.rpartition(":")[0] or answer.where
    return f"an attempt at {where}" if where else f"attempt {answer.holder_id}"
