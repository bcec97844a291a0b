"""Ending a message that is not to run, so that nobody waits for it for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from dramatiq.middleware import Callbacks, GroupCallbacks, Pipelines, SkipMessage
from dramatiq.results import ResultError, ResultFailure, ResultMissing

from once_core import errors
from once_core.events import emit
from once_dramatiq.errors import as_end

if TYPE_CHECKING:
    from dramatiq import Actor, MessageProxy

    from once_core.envelope import Envelope
    from once_core.guard import Guard
    from once_dramatiq._binding import Binding

__all__ = ["Settlement"]

_MISSING = object()


class Settlement:
    """How a message ends without its body.

    Args:
        binding: Of the broker.
        actor: Whose message it is.
        guard: Of the actor, with the options of the call.
        proxy: The message.
    """

    def __init__(
        self,
        binding: Binding,
        actor: Actor[..., Any],
        guard: Guard,
        proxy: MessageProxy,
    ) -> None:
        self._binding = binding
        self._guard = guard
        self._proxy = proxy
        self._results = binding.results(actor, proxy.options)

    def settle(self) -> None:
        """End it with the value that stands for "somebody else did it"."""
        self._end_with(self._guard.options.return_on_duplicate)

    def has_result(self) -> bool:
        """Whether a result is known to be stored under its id."""
        try:
            return self._result_of(self._proxy.message_id) is not _MISSING
        except ResultError:
            return True
        except Exception:  # noqa: BLE001  # the backend is away: nothing is known
            return False

    def _result_of(self, message_id: str) -> Any:
        if self._results is None:
            return _MISSING
        backend, _ = self._results
        try:
            return backend.get_result(self._proxy.copy(message_id=message_id))
        except ResultMissing:
            return _MISSING

    def _end_with(self, value: object) -> None:
        """Store a value, unless a result is there, and go on with whatever waits for it.

        A result may be there although that waits: of a pipeline or group that is run again, or of
        a first delivery whose worker died before it went on.
        """
        if self._results is not None and not self.has_result():
            backend, ttl = self._results
            backend.store_result(self._proxy, value, ttl)
        # not the actor's callback: the holder calls that
        self._go_on(value, calls_back="on_success" in self._proxy.options)

    def go_on_after_result(self) -> None:
        """Its first delivery stored a result, and may have died before it went on.

        What waits may be told twice, as on every redelivery without us; it never waits for ever.
        """
        try:
            value = self._result_of(self._proxy.message_id)
        except ResultError:
            return  # after a failure nothing goes on
        self._go_on(value, calls_back=True)

    def _go_on(self, value: object, *, calls_back: bool) -> None:
        broker = self._binding.broker
        for each in broker.middleware:
            is_waiting = isinstance(each, (Pipelines, GroupCallbacks))
            if is_waiting or (calls_back and isinstance(each, Callbacks)):
                each.after_process_message(broker, self._proxy, result=value)

    def fail(self, error: errors.OverlapError | errors.DuplicateTaskError) -> NoReturn:
        """End it with an error; no retries, for it would only meet the same again.

        Raises:
            SkipMessage: The error.
        """
        self._proxy.fail()
        self._call_on_failure(error)
        raise as_end(error)

    def _call_on_failure(self, error: Exception) -> None:
        proxy, broker = self._proxy, self._binding.broker
        for each in broker.middleware:
            if isinstance(each, Callbacks):
                each.after_process_message(broker, proxy, exception=error)  # type: ignore[no-untyped-call]  # theirs

    def end_like(self, envelope: Envelope) -> bool:
        """End it as its holder ended; answers whether that was possible.

        Raises:
            SkipMessage: The holder failed, and so does this.
        """
        try:
            value = self._result_of(envelope.duplicate_of)
        except ResultFailure as failure:
            self.tell(envelope, "duplicate; ends as its holder did: failed")
            self._fail_like(failure)
        if value is _MISSING:
            return False
        self.tell(envelope, "duplicate; ends as its holder did")
        self._end_with(value)
        return True

    def _fail_like(self, failure: ResultFailure) -> NoReturn:
        self._proxy.fail()
        # `Results` and callbacks take the name and the text of what is raised here
        kind = type(failure.orig_exc_type or "Exception", (SkipMessage,), {})
        error = kind(failure.orig_exc_msg)
        if "on_failure" in self._proxy.options:  # not the actor's: that was called for the holder
            self._call_on_failure(error)
        raise error

    def tell(self, envelope: Envelope, reason: str) -> None:
        """Say that a duplicate is settled."""
        emit(
            "settled",
            task=self._guard.task,
            key=envelope.key,
            message_id=self._proxy.message_id,
            holder_id=envelope.duplicate_of,
            reason=reason,
        )
