"""A Celery worker for one message at a time, in the calling thread: its code, not its machinery.

A message goes through Celery's own strategy, request and tracer, as in a worker. What is replaced
is what surrounds these: the consumer with its connection, the pool, and the timer for ETAs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import Task, _state, signals
from celery.app import trace
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.result import denied_join_result
from celery.utils.nodenames import default_nodename
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state
from celery.worker.consumer.consumer import Consumer
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import prepare_accept_content

from once_pytest._drain import Clock, DrainError, Ending, Taken, ahead

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["celery_queues", "dated"]

_MOMENTS = ("eta", "expires")

_dating: list[Clock] = []
"""The clock by which this process publishes: signals do not say for which app."""


@contextmanager
def dated(clock: Clock) -> Iterator[None]:
    """Move the moments in messages that are published from the host's clock to the test's."""
    if _dating:
        yield
        return

    def receive(headers: Any = None, body: object = None, **_: object) -> None:  # noqa: ANN401  # Celery's
        _shift(headers if "task" in (headers or {}) else body, ahead(clock))

    _dating.append(clock)
    signals.before_task_publish.connect(receive, weak=False)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(receive)
        _dating.clear()


@contextmanager
def celery_queues(app: Celery, clock: Clock) -> Iterator[_Queues]:
    """The queues of an app, and a worker in this thread; afterwards it is none.

    Args:
        app: The app.
        clock: By which messages are due.
    """
    with ExitStack() as stack:
        stack.enter_context(_current(app))
        stack.enter_context(denied_join_result())  # a result that nobody is there to make
        connection = stack.enter_context(app.connection_for_read())
        queues = _Queues(app, clock, connection)
        stack.callback(queues.give_back)
        signals.task_failure.connect(queues.note_failure, weak=False)
        stack.callback(signals.task_failure.disconnect, queues.note_failure)
        yield queues


@contextmanager
def _current(app: Celery) -> Iterator[None]:
    """Be a worker of this app: its tracer asks for the current app, and for calls to be counted."""
    tls = _state._tls  # noqa: SLF001  # what `get_current_app` answers may be made up
    before = tls.current_app
    is_protected = getattr(Task, "_stackprotected", False)
    app.set_current()
    if not is_protected:
        trace._install_stack_protection()  # noqa: SLF001  # the rest of what workers do is global
    try:
        yield
    finally:
        if not is_protected:
            trace.reset_worker_optimizations(app)
        tls.current_app = before


class _Received(NamedTuple):
    due: float
    number: int
    message: Any


class _Queues:
    """See `once_pytest._drain.Queues`."""

    def __init__(self, app: Celery, clock: Clock, connection: Any) -> None:  # noqa: ANN401  # kombu has no types
        self._app = app
        self._clock = clock
        self._channel = connection.default_channel
        self._is_amqp = connection.transport.driver_type == "amqp"
        self._accept = prepare_accept_content(app.conf.accept_content)  # type: ignore[no-untyped-call]  # kombu's
        self._declared: set[str] = set()
        self._turn = 0
        self._number = 0
        self._held: list[_Received] = []
        self._message_id = ""
        self._error: BaseException | None = None
        self._consumer = _Consumer(app, connection.connection_errors)

    @property
    def left(self) -> int:
        return len(self._held)

    def next_due(self) -> float | None:
        return min((each.due for each in self._held), default=None)

    def take(self) -> Taken | None:
        while True:
            now = self._clock.now()
            due = [each for each in self._held if each.due <= now]
            if due:
                first = min(due)
                self._held.remove(first)
                fields = _fields(first.message)
                return Taken(str(fields.get("task")), str(fields.get("id")), first)
            if not self._receive():
                return None

    def _receive(self) -> bool:
        """Get one message, of each queue in turn; answers whether there was any."""
        queues = self._app.amqp.queues
        names = list(queues)
        for offset in range(len(names)):
            name = names[(self._turn + offset) % len(names)]
            if name not in self._declared:
                queues[name].bind(self._channel).declare()
                self._declared.add(name)
            raw = self._channel.basic_get(name)
            if raw is not None:
                self._turn += offset + 1
                self._hold(self._channel.message_to_python(raw))
                return True
        return False

    def _hold(self, message: Any) -> None:  # noqa: ANN401  # kombu has no types
        message.accept = self._accept
        self._number += 1
        self._held.append(_Received(_due(message), self._number, message))

    def put_back(self, taken: Taken) -> None:
        self._held.append(_received(taken))

    def give_back(self) -> None:
        """Put what was received and not delivered back into its queue, in its order."""
        while self._held and not self._is_amqp and self._receive():
            pass  # brokers but RabbitMQ put it behind the others: all have to be in our hands
        for each in sorted(self._held, key=_number):
            each.message.requeue()

    def deliver(self, taken: Taken) -> Ending:
        message, self._message_id, self._error = _received(taken).message, taken.message_id, None
        fields = _fields(message)
        before = {name: fields[name] for name in _MOMENTS if name in fields}
        # who reads them compares them with the host's clock
        _shift(fields, -ahead(self._clock))

        def requeue_as_it_was(*args: Any, **options: Any) -> None:
            fields.update(before)
            message.reject_log_error(*args, **options)

        try:
            self._consumer.receive(message, requeue_as_it_was)
        finally:
            if not message.acknowledged:
                fields.update(before)
                message.requeue()
        errors = [self._error, self._consumer.error]
        error = next((each for each in errors if each is not None), None)
        return Ending(error, self._consumer.reason)

    def note_failure(
        self, task_id: str = "", exception: BaseException | None = None, **_: object
    ) -> None:
        """A task has failed for good; those that a body runs eagerly have other ids."""
        if task_id == self._message_id:
            self._error = exception


class _Consumer:
    """What strategies, requests and receivers of signals see of a worker's consumer."""

    disable_rate_limits = True
    event_dispatcher = None
    task_buckets: dict[str, object] = {}  # noqa: RUF012  # asked for, and never used without limits
    _limit_task = _limit_post_eta = None

    apply_eta_task = Consumer.apply_eta_task
    on_decode_error = Consumer.on_decode_error
    on_invalid_task = Consumer.on_invalid_task
    on_unknown_message = Consumer.on_unknown_message
    on_unknown_task = Consumer.on_unknown_task
    _message_report = Consumer._message_report  # noqa: SLF001  # `on_unknown_message` calls it

    def __init__(self, app: Celery, connection_errors: tuple[type[BaseException], ...]) -> None:
        self.app = app
        self.connection_errors = connection_errors
        self.hostname = default_nodename("once_drain")
        self.controller = SimpleNamespace(state=state)
        self.qos = SimpleNamespace(increment_eventually=_nothing, decrement_eventually=_nothing)
        self.pool = SimpleNamespace(apply_async=self._apply)
        self.timer = SimpleNamespace(call_at=self._call_at, call_after=_nothing)
        self.error: BaseException | None = None
        self.reason = ""
        self._strategies: dict[str, Callable[..., object]] = {}
        self._at_eta: list[Callable[[], object]] = []
        self._request: Any = None

    def receive(self, message: Any, reject: Callable[..., None]) -> None:  # noqa: ANN401  # kombu has no types
        """Do with a message what `Consumer.create_task_handler` does."""
        self.error, self.reason, self._request, payload = None, "", None, None
        try:
            if message.errors:
                message._reraise_error()  # noqa: SLF001  # as kombu's own consumers do
            if "task" not in (message.headers or {}):
                payload = message.decode()
        except Exception as error:  # noqa: BLE001  # whatever it cannot be read for
            self.error = error
            self.on_decode_error(message, error)
            return
        try:
            self._start(message, payload, reject)
            # only now: its strategy has more to do after it has asked for the timer
            while self._at_eta:
                self._at_eta.pop()()
        except (InvalidTaskError, ContentDisallowed) as error:
            self.error = error
            self.on_invalid_task(payload, message, error)
        except DecodeError as error:
            self.error = error
            self.on_decode_error(message, error)
        finally:
            self._at_eta.clear()
            if self._request is not None:
                state.task_ready(self._request)

    def _start(self, message: Any, payload: Any, reject: Callable[..., None]) -> None:  # noqa: ANN401  # kombu has no types
        name = _name(message, payload)
        if name is None:
            self.error = DrainError(f"a message is none of Celery's, and was rejected: {message!r}")
            self.on_unknown_message(payload, message)
            return
        strategy = self._strategy(name)
        if strategy is None:
            self.error = self._unknown(name)
            self.on_unknown_task(None, message, KeyError(name))
            return
        strategy(message, payload, message.ack_log_error, reject, [])

    def _strategy(self, name: str) -> Callable[..., object] | None:
        if name not in self.app.tasks:
            self.app.loader.import_default_modules()  # which a worker does when it starts
        if name not in self._strategies and name in self.app.tasks:
            self._strategies[name] = self.app.tasks[name].start_strategy(self.app, self)
        return self._strategies.get(name)

    def _unknown(self, name: str) -> DrainError:
        known = sorted(each for each in self.app.tasks if not each.startswith("celery."))
        return DrainError(
            f"a message is for the task {name!r}, which is not registered, so a worker rejects it. "
            f"Registered are: {', '.join(known) or 'none'}. Import the module that defines it, or "
            "mend the name"
        )

    def on_task_request(self, request: Any) -> None:  # noqa: ANN401  # Celery has no types
        """Execute it, as a worker's `_process_task` does."""
        self._request = request
        try:
            request.execute_using_pool(self.pool)
        except TaskRevokedError:
            pass  # it has been announced, and is acknowledged

    def _call_at(
        self,
        _eta: float,
        function: Callable[..., object],
        args: tuple[object, ...] = (),
        **_: object,
    ) -> None:
        """Its ETA is over by the test's clock."""
        self._at_eta.append(lambda: function(*args))

    def _apply(
        self,
        target: Callable[..., Any],
        args: tuple[object, ...] = (),
        callback: Callable[..., object] | None = None,
        error_callback: Callable[..., object] | None = None,
        accept_callback: Callable[..., object] | None = None,
        **_: object,
    ) -> None:
        """Run it here; `Exception` is told as a pool's child would, and all else is the test's."""
        assert callback and error_callback and accept_callback, "given always"  # noqa: S101, PT018  # for type checkers
        accept_callback(os.getpid(), time.monotonic())
        try:
            result = target(*args)
        except Exception as error:  # noqa: BLE001  # whatever the tracer lets pass
            self.reason = repr(error)
            error_callback(ExceptionInfo())
            return
        is_failed, value, _ = result
        if is_failed:
            ended = value.exception
            if isinstance(ended, ExceptionWithTraceback):
                ended = ended.exc
            self.reason = f"{type(ended).__name__}: {ended}"
        callback(result)


def _nothing(*_: object, **__: object) -> None: ...


def _received(taken: Taken) -> _Received:
    assert isinstance(taken.handle, _Received), "ours"  # noqa: S101  # for type checkers
    return taken.handle


def _number(received: _Received) -> int:
    return received.number


def _name(message: Any, payload: Any) -> str | None:  # noqa: ANN401  # kombu has no types
    try:
        return str(message.headers["task"] if payload is None else payload["task"])
    except (TypeError, KeyError):
        return None


def _fields(message: Any) -> dict[str, Any]:  # noqa: ANN401  # kombu has no types
    """Where a message says what it is: its headers, or in Celery's first protocol its body."""
    if "task" in (message.headers or {}):
        return message.headers  # type: ignore[no-any-return]  # a dict
    try:
        payload = message.decode()
    except Exception:  # noqa: BLE001  # the worker's code finds out, and rejects it
        return {}
    return payload if isinstance(payload, dict) else {}


def _due(message: Any) -> float:  # noqa: ANN401  # kombu has no types
    """Unix time; 0 for what is due at once, and for what cannot be read, which is rejected."""
    moment = _moment(_fields(message).get("eta"))
    return 0.0 if moment is None else float(moment.timestamp())


def _shift(fields: Any, seconds: float) -> None:  # noqa: ANN401  # anything may be in a message
    """Move the moments in a message, in place."""
    if not seconds or not isinstance(fields, dict):
        return
    for name in _MOMENTS:
        moment = _moment(fields.get(name))
        if moment is not None:
            fields[name] = (moment + timedelta(seconds=seconds)).isoformat()


def _moment(text: Any) -> Any:  # noqa: ANN401  # a datetime, or None
    try:
        return maybe_make_aware(maybe_iso8601(text), timezone.utc) if text is not None else None
    except (AttributeError, TypeError, ValueError):
        return None
