"""The worker's side: one delivery from its start to its end."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from once_core import lease as leases
from once_core import protocol
from once_core._clock import elapsed
from once_core._heartbeat import Held, heartbeat
from once_core._host import is_dead, whereabouts
from once_core.envelope import Envelope
from once_core.errors import OverlapError, StoreUnavailableError
from once_core.events import emit
from once_core.guard import Guard
from once_core.lease import Lease
from once_core.lost import bury
from once_core.options import SCOPES
from once_core.protocol import Finish, Message, Outcome, Start, Step
from once_core.publish import nonce

__all__ = ["Attempt", "current_attempt", "deferral", "delay_after"]

LONG_RUN = 60.0
"""Seconds of run after which a late redelivery has to be expected (rules: finish 3)."""

LAPSE_MARGIN = 0.1
"""Seconds after the end of a lease at which a message that waits for it comes back."""

_current: ContextVar[Attempt | None] = ContextVar("once_attempt", default=None)


def current_attempt() -> Attempt | None:
    """The attempt whose body makes this call, or None."""
    return _current.get()


def deferral(deferrals: int, longest: float = protocol.LONGEST_DEFERRAL) -> float:
    """Seconds to put a message back for: 1 doubling to 30, jittered so that many spread out.

    Args:
        deferrals: How often it was put back already.
        longest: No longer than this; brokers give long-held messages out again.
    """
    most = min(float(2 ** min(deferrals, 10)), longest, protocol.LONGEST_DEFERRAL)
    return most * random.uniform(0.75, 1.0)  # noqa: S311  # spreads load, hides nothing


def delay_after(answer: Start | None, deferrals: int, longest: float) -> float:
    """Seconds after which a message that could not start is to come again.

    Args:
        answer: Why it did not start; None while the store is away.
        deferrals: How often it was put back.
        longest: No longer than this; brokers give long-held messages out again.
    """
    if answer is not None and answer.status == "early":
        return min(answer.remaining, longest)
    delay = deferral(deferrals, longest)
    # a dead holder's lease is waited for no longer than it lasts; a live one has renewed it
    return min(delay, answer.remaining + LAPSE_MARGIN) if answer is not None else delay


class Attempt:
    """One delivery of a message being run. Used by one thread; its lease by any.

    Args:
        guard: Of the task, with the options of the call.
        key: Key of the unit of work.
        message: As the record knows it.
        envelope: That came with the message; None makes one for its retries and deferrals.
        expects_copies: The message was redelivered, deferred or had an ETA: a late copy of it
            may yet come and has to find a mark.
        given_out_again: Seconds after its delivery at which the broker gives out again what was
            not acknowledged; None where it does not.
    """

    def __init__(
        self,
        guard: Guard,
        key: str,
        message: Message,
        envelope: Envelope | None = None,
        *,
        expects_copies: bool = False,
        given_out_again: float | None = None,
    ) -> None:
        self.guard = guard
        self.key = key
        self.message = message
        self.envelope = envelope or Envelope(
            key, message.ticket or nonce(), guard.options.scope, message.id, guard.task
        )
        self.lease: Lease | None = None
        self.retry_delay: float | None = None
        # the producer's word counts: it claimed, or did not, under the scope it knew
        self._limits = SCOPES.get(self.envelope.scope, guard.options.limits)
        # not `random`, which bodies seed: two attempts with one token would end each other's leases
        self._token = os.urandom(8).hex()
        self._expects_copies = expects_copies
        self._given_out_again = given_out_again
        self._waited = 0.0
        self._held: Held | None = None
        self.is_running = False
        self.is_over = False
        self._outcome: Outcome = "failure"
        self._started_at = elapsed()
        self._outer: tuple[Token[Attempt | None], Token[Lease | None]] | None = None

    def start(self) -> Start:
        """Take the lease; in one round trip unless a dead holder is in the way.

        Raises:
            StoreUnavailableError: When the store is away.
        """
        asked_at = elapsed()
        try:
            answer = self._start()
        except BaseException:
            # it may have been heard, and only the answer lost (to an outage, or to a time limit
            # that strikes in the middle of it): nobody would renew that lease
            ghost = self._hold(0, asked_at)
            heartbeat().finish_later(ghost, ghost.giving_up())
            raise
        if answer.status in ("overlap", "skipped") and is_dead(answer.where):
            # its process is gone from this very machine: nobody will renew or finish it
            bury(self.guard, self.key, answer.holder_id, "its process is gone")
            asked_at = elapsed()
            answer = self._start()
        if answer.status == "started":
            self._begin(answer, asked_at)
            if not answer.found:
                self._notice_other_store()
        return answer

    def _start(self) -> Start:
        options = self.guard.options
        return self.guard.store.run(
            protocol.start(
                self.key,
                self.message,
                self._token,
                where=whereabouts(),
                lease=options.lease,
                ttl=options.ttl,
                heal_after=options.heal_after,
                window=options.window or 0.0,
                queued=self._limits.waiting,
                running=self._limits.running,
                give_up=options.on_overlap != "defer",
            )
        )

    def _notice_other_store(self) -> None:
        """The commonest silent mistake: producer and worker lock in different places."""
        store, claimed_in = self.guard.store, self.envelope.store
        is_first_run = self.message.ticket > 0 and not self.message.retries
        if not (is_first_run and claimed_in) or claimed_in in store.strangers:
            return
        if store.is_other(claimed_in, self.message.ticket):
            store.strangers.add(claimed_in)
            emit(
                "other_store",
                task=self.guard.task,
                key=self.key,
                message_id=self.message.id,
                reason=f"its producer locks in another Redis (run id {claimed_in}…) than this "
                f"worker ({store.id}… at {store.place}), so nothing is guarded between them; "
                "give both the same once_url",
            )

    def _hold(self, fence: int, asked_at: float) -> Held:
        """A lease lasts from the moment it was asked for: the answer may have been slow."""
        options = self.guard.options
        return Held(
            self.guard.store,
            self.message,
            self._token,
            whereabouts(),
            Lease(self.key, fence, options.lease, since=asked_at),
            self.guard.task,
            options.warn_after,
            started_at=asked_at,
        )

    def _begin(self, answer: Start, asked_at: float) -> None:
        self._started_at, self._waited = asked_at, answer.waited
        self.is_running = True
        if self._limits.running:
            self._held = self._hold(answer.fence, asked_at)
            self.lease = self._held.lease
            heartbeat().add(self._held)
        emit(
            "started",
            task=self.guard.task,
            key=self.key,
            message_id=self.message.id,
            waited=answer.waited,
            fence=answer.fence,
        )

    def enter_body(self) -> None:
        """The body begins: what it calls can ask for its lease and its attempt."""
        # set by whoever runs a body
        self._outer = _current.set(self), leases._current.set(self.lease)  # noqa: SLF001

    def leave_body(self) -> None:
        """The body is over, in the same thread or task; nothing if it did not begin."""
        if self._outer is not None:
            attempt, lease = self._outer
            self._outer = None
            leases._current.reset(lease)  # noqa: SLF001  # see above
            _current.reset(attempt)

    @contextmanager
    def body(self) -> Iterator[None]:
        """Around the body."""
        self.enter_body()
        try:
            yield
        finally:
            self.leave_body()

    def end(self, outcome: Outcome) -> bool:
        """The body ended: free the lease, unless a done mark has to be left first.

        Args:
            outcome: How; ``"interrupted"`` when the broker will give the message out again.

        Returns:
            Whether that is all. If not, call `end_stored` once the result is stored: a mark that
            is there before its result would lose the result if we die between the two; and a
            result that cannot be stored makes a failure of a success.
        """
        self._outcome = outcome
        self.is_running = False
        ran = elapsed() - self._started_at
        if self._limits.running:
            if outcome != "interrupted" and self._has_copies(ran):
                return False
            if self._finish(write_mark=False) == "due":
                return False
        self.is_over = True
        self._tell(ran)
        return outcome != "success" or not self.guard.options.keep_for

    def expect_copies(self) -> None:
        """A late copy of the message may come, it turned out while it ran."""
        self._expects_copies = True

    def _has_copies(self, ran: float) -> bool:
        # it was delivered at some time while it waited; at the earliest when it was published
        limit = self._given_out_again
        is_overdue = limit is not None and self._waited + ran > limit
        return self._expects_copies or is_overdue or ran > LONG_RUN

    def end_stored(self, *, is_success: bool = True) -> None:
        """The result is stored: leave the mark and free the lease, where that is left to do.

        Args:
            is_success: False takes back what a success would keep (``keep_for``).
        """
        is_undone = self._outcome == "success" and not is_success
        if is_undone:
            self._outcome = "failure"
        if not self.is_over:
            self.is_over = True
            self._finish(write_mark=True)
            self._tell(elapsed() - self._started_at)
        elif is_undone:
            try:
                self.guard.store.run(protocol.release(self.key, self.message.id))
            except StoreUnavailableError:
                pass  # it is kept until keep_for is over

    def announce_retry(self, delay: float) -> None:
        """Note a retry that is about to be published.

        Where no lease makes the retry wait for this attempt's end, its part is written now:
        later it could be written after the retry has run, and refuse triggers for nobody.

        Args:
            delay: Seconds after which it is due.
        """
        self.retry_delay = delay
        if self._limits.waiting and not self._limits.running:
            self._outcome = "retry"
            self._finish(write_mark=False)

    def take_back_retry(self) -> None:
        """The retry could not be published."""
        self.retry_delay = None
        if self._limits.waiting and not self._limits.running:
            retry = self.message._replace(retries=self.message.retries + 1)
            try:
                self.guard.store.run(protocol.withdraw(self.key, retry))
            except StoreUnavailableError:
                pass  # it heals

    def _finish(self, *, write_mark: bool) -> str:
        held = self._held
        if held is not None:
            heartbeat().remove(held)
        try:
            answer = self.guard.store.run(self._finish_step(write_mark=write_mark))
        except BaseException as error:
            if held is not None:
                again = self._finish_step(write_mark=write_mark, again=True)
                heartbeat().finish_later(held, again)
            if not isinstance(error, StoreUnavailableError):
                raise  # such as a soft time limit in the middle of it
            return "later"
        if answer.status == "due" and held is not None:
            held.is_closed = False
            heartbeat().add(held)
        if answer.status == "lost" and self.lease is not None and self.lease._taken():  # noqa: SLF001  # the lease's other half
            emit(
                "lease_lost",
                task=self.guard.task,
                key=self.key,
                message_id=self.message.id,
                reason="found out at its end",
            )
        return answer.status

    def _finish_step(self, *, write_mark: bool, again: bool = False) -> Step[Finish]:
        options = self.guard.options
        return protocol.finish(
            self.key,
            self.message,
            self._token,
            self._outcome,
            ttl=options.ttl,
            heal_after=options.heal_after,
            delay=self.retry_delay or 0.0,
            keep_for=options.keep_for or 0.0,
            queued=self._limits.waiting,
            write_mark=write_mark,
            again=again,
        )

    def overlap_error(self, answer: Start) -> OverlapError:
        """For ``on_overlap="raise"``."""
        return OverlapError(
            f"{self.guard.task} did not start: message {answer.holder_id} runs the same unit of "
            f"work ({self.key}) at {answer.where}; retry later, or use "
            'on_overlap="defer" to have the message wait for its turn',
            task=self.guard.task,
            key=self.key,
            holder_id=answer.holder_id,
        )

    def tell(
        self, kind: str, reason: str, *, holder_id: str = "", delay: float | None = None
    ) -> None:
        """Emit an event about this delivery."""
        emit(
            kind,
            task=self.guard.task,
            key=self.key,
            message_id=self.message.id,
            reason=reason,
            holder_id=holder_id,
            delay=delay,
        )

    def _tell(self, ran: float) -> None:
        emit(
            "finished",
            task=self.guard.task,
            key=self.key,
            message_id=self.message.id,
            reason=self._outcome,
            ran=ran,
            fence=self.lease.fence if self.lease else None,
        )
