"""One message in the hands of a worker's thread: from its start to its acknowledgement."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from dramatiq.middleware import Interrupt, MiddlewareError, Shutdown, SkipMessage
from dramatiq.middleware.time_limit import TimeLimitExceeded

from once_core._clock import elapsed
from once_core.attempt import Attempt
from once_core.delays import deferral, deferral_cause, delay_after
from once_core.envelope import Envelope
from once_core.errors import DuplicateTaskError, OnceError, StoreUnavailableError
from once_core.events import emit
from once_core.protocol import LONGEST_DEFERRAL, Message, Outcome, Start
from once_core.sharing import Search
from once_dramatiq._binding import OPTION, is_async
from once_dramatiq._settle import Settlement

if TYPE_CHECKING:
    from dramatiq import Actor, MessageProxy

    from once_core.guard import Guard
    from once_dramatiq._binding import Binding

__all__ = ["Delivery"]

_current: ContextVar[Delivery | None] = ContextVar("once_delivery", default=None)


class Delivery:
    """One delivery of a message under guard. For the thread that works on it.

    Args:
        binding: Of the broker.
        actor: Whose message it is.
        guard: Of the actor, with the options of the call.
        proxy: The message.
        envelope: That came with it, or None.
    """

    def __init__(
        self,
        binding: Binding,
        actor: Actor[..., Any],
        guard: Guard,
        proxy: MessageProxy,
        envelope: Envelope | None,
    ) -> None:
        self.message_id = proxy.message_id
        self._binding = binding
        self._actor = actor
        self._guard = guard
        self._proxy = proxy
        self._queue = proxy.queue_name
        self._envelope = envelope
        self._attempt: Attempt | None = None
        self._token: Token[Delivery | None] | None = None
        self._started_at = 0.0
        self._outcome: Outcome = "failure"
        self._has_ended = False
        self._is_out_of_time = False
        self._ending = threading.Lock()
        self._coroutine = threading.Lock()
        self._is_left_to_coroutine = False

    @cached_property
    def _settlement(self) -> Settlement:
        return Settlement(self._binding, self._actor, self._guard, self._proxy)

    @staticmethod
    def current() -> Delivery | None:
        """The delivery whose body makes this call, or None."""
        return _current.get()

    def begin(self) -> None:
        """Start the attempt; returns if the body is to run.

        Raises:
            SkipMessage: It was put back, settled, or has ended before.
        """
        self._binding.consumers.have_lost_connection(self._queue)  # notes who consumes now
        waits = 0
        while True:
            try:
                if self._may_run(waits):
                    return
            except (TimeLimitExceeded, Shutdown):
                # no failure: it has not begun, and while the broker is away a retry would be lost
                self._is_out_of_time = True
                self._give_up_start()
            except (MiddlewareError, OnceError, TypeError, ValueError):
                self._give_up_start()
                raise
            except Exception as error:  # such as a result backend that is away
                self._give_up_start()
                envelope = self._attempt.envelope if self._attempt else self._envelope
                ttl = self._guard.options.ttl
                if envelope is None or envelope.deferrals * LONGEST_DEFERRAL > ttl:
                    raise  # waiting does not cure it
                delay = deferral(envelope.deferrals + waits)
                why = f"it could not be ended: {error!r}"
                self._put_back(envelope.put_back(), delay, why, waits + 1, cause="result")
            waits += 1

    def _give_up_start(self) -> None:
        """Free the lease of an attempt that has started and will not come to its body."""
        if self._attempt is not None and self._attempt.is_running:
            self.leave_body()
            self._attempt.end("interrupted")

    def _may_run(self, waits: int) -> bool:
        """Whether it was started; not if this worker has to keep it for a while.

        Args:
            waits: How often it could not be put back; the broker is away as well.

        Raises:
            SkipMessage: It was put back, settled, or has ended before.
        """
        if self._envelope is not None and self._envelope.duplicate_of:
            self._end_duplicate(self._envelope)
        is_copy = self._is_copy
        attempt = self._attempt = self._new_attempt(is_copy=is_copy)
        answer, reason = self._start(attempt)
        cause = deferral_cause(answer)
        if answer is None and self._guard.options.on_store_error == "run":
            attempt.tell("unguarded", reason, cause="start")
            self._attempt = None
            self._has_ended = True  # nothing of it is in the record, or it heals
            return True
        if answer is not None and answer.status == "started":
            # in doubt it runs: an id from another program may be that of an earlier message
            is_known = attempt.message.ticket > 0 and not attempt.message.retries
            is_gone = is_copy and is_known and not answer.found
            is_late = is_gone and self._settlement.has_result()
            if not (is_late or self._is_out_of_time):
                self._enter(attempt)
                return True
            attempt.end("interrupted")
            if is_late:
                self._settlement.go_on_after_result()
                self._end_without_run(attempt, answer._replace(status="repeated"))
            reason = "its time limit passed while it waited for the broker"
            cause = "broker"
        elif answer is not None and answer.status not in ("overlap", "early"):
            self._end_without_run(attempt, answer)
        delay = delay_after(answer, attempt.envelope.deferrals + waits, LONGEST_DEFERRAL)
        self._envelope = attempt.envelope
        sent = attempt.put_back(answer)._replace(is_copy=is_copy)
        self._put_back(sent, delay, reason, waits + 1, cause=cause)
        return False

    def _new_attempt(self, *, is_copy: bool) -> Attempt:
        envelope = self._envelope
        if envelope is not None:
            key, ticket, retries = envelope.key, envelope.ticket, envelope.retries
        else:
            proxy = self._proxy
            key, ticket = self._guard.key(proxy.args, proxy.kwargs), 0
            retries = int(proxy.options.get("retries", 0))
        # the copy in the delay queue is acknowledged after it was enqueued anew
        was_held = bool(envelope and (envelope.deferrals or envelope.was_delayed))
        may_come_again = was_held and self._binding.gives_out_again
        message = Message(self.message_id, ticket, retries)
        return Attempt(
            self._guard, key, message, envelope, expects_copies=is_copy or may_come_again
        )

    @cached_property
    def _is_copy(self) -> bool:
        """Whether the broker gave it out before, perhaps without it having been looked at."""
        redelivered = getattr(self._proxy, "redelivered", False)  # RabbitMQ's alone
        return bool(redelivered or (self._envelope and self._envelope.is_copy))

    @staticmethod
    def _start(attempt: Attempt) -> tuple[Start | None, str]:
        """The answer, None while the store is away, and the reason in words."""
        try:
            answer = attempt.start()
        except StoreUnavailableError as error:
            return None, str(error)
        return answer, answer.reason

    def _enter(self, attempt: Attempt) -> None:
        self._started_at = elapsed()
        attempt.enter_body()
        if is_async(self._actor):
            self._token = _current.set(self)

    def leave_body(self) -> None:
        """The body is over, or will not be."""
        if self._attempt is not None:
            self._attempt.leave_body()
        if self._token is not None:
            _current.reset(self._token)
            self._token = None

    def succeed(self) -> None:
        """The body succeeded: the unit is free before anybody sees the result."""
        if self._attempt is None or self._has_ended:
            return
        self._outcome = "success"
        self._notice_copies(self._attempt)
        try:
            self._has_ended = self._attempt.end("success")
        except Interrupt:
            # the time limit of a body that ended in time: it is measured until after this
            pass

    def _notice_copies(self, attempt: Attempt) -> None:
        """The broker may have taken this process for dead, and given the message out again."""
        limit = getattr(self._binding.broker, "heartbeat_timeout", None)  # Redis', in ms
        is_overdue = limit is not None and elapsed() - self._started_at > limit / 1000
        if is_overdue or self._binding.consumers.have_lost_connection(self._queue):
            attempt.expect_copies()

    def acknowledge(self) -> None:
        """The message leaves this worker; whether it failed or is retried is known by now."""
        attempt = self._attempt
        if attempt is None or self._has_ended:
            return
        self._is_left_to_coroutine = True  # first, or a coroutine that ends now would not see it
        if self._coroutine.acquire(blocking=False):
            self._coroutine.release()
            self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        with self._ending:
            if self._has_ended:
                return
            self._has_ended = True
        if self._outcome == "success":
            attempt.end_stored()
            return
        self._notice_copies(attempt)
        if not attempt.end("failure" if attempt.retry_delay is None else "retry"):
            attempt.end_stored(is_success=False)

    @contextmanager
    def coroutine(self) -> Iterator[None]:
        """Around the coroutine of an async actor, which may go on after its message has ended."""
        if not self._coroutine.acquire(blocking=False):
            yield  # one that awaits the coroutine function of another actor
            return
        try:
            yield
        finally:
            self._coroutine.release()
            if self._is_left_to_coroutine and self._attempt is not None:
                self._end(self._attempt)

    @property
    def is_open(self) -> bool:
        """Whether its attempt has still to end."""
        return self._attempt is not None and not self._has_ended

    def retry(self, delay: float) -> Envelope:
        """Note that the message is about to be enqueued again; it is never refused.

        Args:
            delay: Seconds after which it is due.

        Returns:
            The envelope to send it with.
        """
        attempt = self._attempt
        assert attempt is not None, "only while it is open"  # noqa: S101  # for type checkers
        attempt.announce_retry(delay)
        return attempt.envelope._replace(retries=attempt.message.retries + 1, deferrals=0)

    def take_back_retry(self) -> None:
        """It could not be enqueued."""
        if self._attempt is not None:
            self._attempt.take_back_retry()

    def _put_back(
        self, envelope: Envelope, delay: float, reason: str, waits: int, *, cause: str
    ) -> None:
        """Enqueue it again: same id, arguments and retries.

        Returns, after a while, only if the broker is away as well: this worker is all that has it.

        Raises:
            SkipMessage: It was put back.
        """
        proxy, binding = self._proxy, self._binding
        envelope = envelope._replace(was_delayed=True)
        message = proxy.copy(options={OPTION: envelope.to_header()})
        try:
            with binding.thread.putting_back():
                binding.broker.enqueue(message, delay=max(1, round(delay * 1000)))
        except Exception as error:  # noqa: BLE001  # whatever a broker refuses it with: it is not lost
            why = f"{reason}; it stays with this worker, for it cannot be put back: {error}"
            self._tell_deferred(envelope, why, cause)
            time.sleep(deferral(waits))
            return
        self._tell_deferred(envelope, reason, cause, delay)
        self._skip(f"deferred by once: {reason}")

    def _tell_deferred(
        self, envelope: Envelope, reason: str, cause: str, delay: float | None = None
    ) -> None:
        emit(
            "deferred",
            task=self._guard.task,
            key=envelope.key,
            message_id=self.message_id,
            reason=reason,
            cause=cause,
            delay=delay,
        )

    def _end_without_run(self, attempt: Attempt, answer: Start) -> NoReturn:
        guard, holder_id = self._guard, answer.holder_id
        if answer.status == "repeated":
            # its first delivery has stored its result and settled what waits for it
            attempt.tell("repeated", answer.reason, holder_id=holder_id)
            self._skip("repeated: an earlier delivery of this message has ended")
        if answer.status == "skipped":
            attempt.tell("skipped", "another attempt runs", holder_id=holder_id)
            if guard.options.on_overlap == "raise":
                self._has_ended = True
                self._settlement.fail(attempt.overlap_error(answer))
        elif answer.status == "duplicate" or guard.is_sharing:
            self._end_duplicate(
                attempt.envelope._replace(duplicate_of=holder_id, shares=guard.is_sharing)
            )
        else:
            attempt.tell("superseded", "a newer message or a copy of it runs", holder_id=holder_id)
        self._settlement.settle()
        self._skip(f"{answer.status}: message {holder_id} runs instead")

    def _end_duplicate(self, envelope: Envelope) -> NoReturn:
        self._has_ended = True
        if envelope.shares:
            self._share(envelope)
        self._settlement.tell(envelope, "duplicate")
        self._settlement.settle()
        self._skip(f"settled: a duplicate of {envelope.duplicate_of}")

    def _share(self, envelope: Envelope) -> NoReturn:
        """End a duplicate as its holder ended; put it back until that is known."""
        search = Search(self._guard, envelope, LONGEST_DEFERRAL)
        looks = 0
        while not self._settlement.end_like(search.envelope):
            try:
                delay = search.look(looks)
            except DuplicateTaskError as error:
                self._settlement.fail(error)
            looks += 1
            reason = f"waits for the result of {search.envelope.duplicate_of}"
            self._put_back(search.envelope.put_back(), delay, reason, looks, cause="result")
        self._skip(f"settled: as {search.envelope.duplicate_of} ended")

    def _skip(self, why: str) -> NoReturn:
        self._has_ended = True
        # nobody but us may store a result for it: `Results` would store None
        self._proxy.options["store_results"] = False
        raise SkipMessage(why)
