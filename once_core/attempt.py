"""The worker's side: one delivery from its start to its end."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from once_core import _lease as leases
from once_core import protocol
from once_core._clock import elapsed
from once_core._flow import Flow
from once_core._heartbeat import Held, heartbeat
from once_core._host import is_dead, whereabouts
from once_core._lease import Lease
from once_core._strangers import notice_other_store
from once_core.envelope import Envelope
from once_core.errors import ConfigurationError, OverlapError, StoreUnavailableError
from once_core.events import emit
from once_core.guard import Guard
from once_core.lost import burying
from once_core.options import SCOPES
from once_core.protocol import Finish, Mark, Message, Outcome, Start, Step
from once_core.publish import nonce

__all__ = ["Attempt", "current_attempt"]

LONG_RUN = 60.0
"""Seconds of run after which a late redelivery has to be expected (rules: finish 3)."""


_current: ContextVar[Attempt | None] = ContextVar("once_attempt", default=None)


def current_attempt() -> Attempt | None:
    """The attempt whose body makes this call, or None."""
    return _current.get()


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
        self.store = guard.store  # the same from its start to its end
        self.retry_delay: float | None = None
        # the producer's word counts: it claimed, or did not, under the scope it knew
        self._limits = SCOPES.get(self.envelope.scope, guard.options.limits)
        # not `random`, which bodies seed: two attempts with one token would end each other's leases
        self.token = os.urandom(8).hex()
        self._expects_copies = expects_copies
        self._given_out_again = given_out_again
        self._waited = 0.0
        self._held: Held | None = None
        self.is_running = False
        self.is_over = False
        self._outcome: Outcome = "failure"
        self._started_at = elapsed()
        self._entered_at = 0.0
        self._ran: float | None = None
        self._outer: tuple[Token[Attempt | None], Token[Lease | None]] | None = None

    def start(self) -> Start:
        """Take the lease; in one round trip unless a dead holder is in the way.

        Raises:
            StoreUnavailableError: When the store is away.
        """
        return self.store.follow(self.starting())

    def starting(self, park: float = 0.0) -> Flow[Start]:
        """The same as a flow.

        Args:
            park: Seconds for which its place in the line is kept if others run; 0: it does not
                wait for them.
        """
        asked_at = elapsed()
        answer = yield from self._asking(park)
        if answer.status in ("overlap", "skipped") and is_dead(answer.where):
            # its process is gone from this very machine: nobody will renew or finish it
            why = "its process is gone"
            yield from burying(self.guard, self.key, answer.holder_id, why)
            asked_at = elapsed()
            answer = yield from self._asking(park)
        is_own = answer.holder_id == self.message.id  # a copy of what runs: nothing of it is away
        self.envelope = self.envelope._replace(
            is_away=answer.status == "overlap" and not (is_own or park)
        )
        if answer.status == "started":
            self._begin(answer, asked_at)
            if not answer.found:
                notice_other_store(self.guard, self.store, self.message, self.envelope)
        return answer

    def _asking(self, park: float) -> Flow[Start]:
        asked_at = elapsed()
        try:
            answer: Start = yield self._start_step(park)
        except ConfigurationError:
            raise  # of a URL that is none: nobody was asked
        except BaseException:
            # it may have been heard, and only the answer lost (to an outage, or to a time limit
            # that strikes in the middle of it): nobody would renew that lease
            ghost = self._hold(0, asked_at)
            heartbeat().finish_later(ghost, self._take_back() or ghost.giving_up())
            raise
        return answer

    def _take_back(self) -> Step[Finish] | None:
        """The start, where others may not be sent beside a message whose body did not begin."""
        if not self._limits.waiting:
            return None
        life = {"ttl": self.guard.options.ttl, "heal_after": self.guard.options.heal_after}
        return protocol.take_back(self.key, self.message, self.token, **life)

    def put_back(self, answer: Start | None) -> Envelope:
        """The envelope with which the message is put back.

        Args:
            answer: Why it did not start; None while the store is away.
        """
        has_turn = answer is not None and answer.turn
        return self.envelope if has_turn else self.envelope.put_back()

    def _start_step(self, park: float) -> Step[Start]:
        options = self.guard.options
        return protocol.start(
            self.key,
            self.message,
            self.token,
            where=whereabouts(),
            lease=options.lease,
            ttl=options.ttl,
            heal_after=options.heal_after,
            window=options.window or 0.0,
            queued=self._limits.waiting,
            running=self._limits.running,
            give_up=options.on_overlap != "defer",
            limit=options.limit,
            park=park,
            again=self.envelope.is_away,
            replicas=options.min_replicas,
        )

    def _hold(self, fence: int, asked_at: float) -> Held:
        """A lease lasts from the moment it was asked for: the answer may have been slow."""
        options = self.guard.options
        return Held(
            self.store,
            self.message,
            self.token,
            whereabouts(),
            Lease(self.key, fence, options.lease, since=asked_at),
            self.guard.task,
            options.warn_after,
            limit=options.limit,
            owner=weakref.ref(self),
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
            waited=answer.waited if answer.found else None,
            fence=answer.fence,
        )
        self._entered_at = elapsed()  # of what has no `enter_body`

    def enter_body(self) -> None:
        """The body begins: what it calls can ask for its lease and its attempt."""
        # set by whoever runs a body
        self._outer = _current.set(self), leases._current.set(self.lease)  # noqa: SLF001
        self._entered_at = elapsed()

    def leave_body(self) -> None:
        """The body is over, in the same thread or task; nothing if it did not begin."""
        if self._outer is not None:
            self._ran = elapsed() - self._entered_at
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
        if self._limits.running:
            lasted = elapsed() - self._started_at
            if outcome != "interrupted" and self._has_copies(lasted):
                return False
            if self._finish("hold") == "due":
                return False
        self.is_over = True
        self._tell()
        return outcome != "success" or not self.guard.options.keep_for

    def expect_copies(self) -> None:
        """A late copy of the message may come, it turned out while it ran."""
        self._expects_copies = True

    def _has_copies(self, lasted: float) -> bool:
        # it was delivered at some time while it waited; at the earliest when it was published
        limit = self._given_out_again
        is_overdue = limit is not None and self._waited + lasted > limit
        return self._expects_copies or is_overdue or lasted > LONG_RUN

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
            self._finish("write")
            self._tell()
        elif is_undone:
            try:
                self.store.run(protocol.release(self.key, self.message.id))
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
            self._finish("hold")

    def take_back_retry(self) -> None:
        """The retry could not be published."""
        self.retry_delay = None
        if self._limits.waiting and not self._limits.running:
            retry = self.message._replace(retries=self.message.retries + 1)
            try:
                self.store.run(protocol.withdraw(self.key, retry))
            except StoreUnavailableError:
                pass  # it heals

    def ending_for_good(self, outcome: Outcome) -> Flow[None]:
        """A body without a message ended: there is no copy of it, no retry, no result to wait for.

        Args:
            outcome: How.
        """
        self._outcome, self.is_running, self.is_over = outcome, False, True
        self._ran = elapsed() - self._entered_at
        yield from self._finishing("none")
        self._tell()

    def ghost(self) -> Held:
        """What stands for this attempt when its end has to be told later."""
        return self._held or self._hold(0, elapsed())

    def _finish(self, mark: Mark) -> str:
        return self.store.follow(self._finishing(mark))

    def _finishing(self, mark: Mark) -> Flow[str]:
        held = self._held
        if held is not None:
            heartbeat().remove(held)
        try:
            answer: Finish = yield self._finish_step(mark)
        except BaseException as error:
            if held is not None:
                heartbeat().finish_later(held, self._finish_step(mark, again=True))
            if not isinstance(error, StoreUnavailableError):
                raise  # such as a soft time limit in the middle of it
            return "later"
        if answer.status == "due" and held is not None:
            held.is_closed = False
            heartbeat().add(held)
        if answer.status == "lost" and self.lease is not None and self.lease._taken():  # noqa: SLF001  # the lease's other half
            self.tell("lease_lost", "found out at its end")
        return answer.status

    def _finish_step(self, mark: Mark, *, again: bool = False) -> Step[Finish]:
        options = self.guard.options
        return protocol.finish(
            self.key,
            self.message,
            self.token,
            self._outcome,
            ttl=options.ttl,
            heal_after=options.heal_after,
            delay=self.retry_delay or 0.0,
            keep_for=options.keep_for or 0.0,
            queued=self._limits.waiting,
            mark=mark,
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

    def tell(self, kind: str, reason: str, *, holder_id: str = "", cause: str = "") -> None:
        """Emit an event about this delivery."""
        emit(
            kind,
            task=self.guard.task,
            key=self.key,
            message_id=self.message.id,
            reason=reason,
            cause=cause,
            holder_id=holder_id,
        )

    def _tell(self) -> None:
        emit(
            "finished",
            task=self.guard.task,
            key=self.key,
            message_id=self.message.id,
            reason=self._outcome,
            ran=self._ran,
            held=elapsed() - self._started_at if self._limits.running else None,
            fence=self.lease.fence if self.lease else None,
        )
