"""A Dramatiq worker for one message at a time, in the calling thread: its code, not its threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis
from dramatiq.middleware import Interrupt, Middleware, SkipMessage

from once_pytest._drain import Clock, DrainError, Ending, Taken, ahead

if TYPE_CHECKING:
    from dramatiq import Broker, Message, MessageProxy
    from dramatiq.worker import ConsumerThread, WorkerThread
else:
    try:
        from dramatiq.worker import ConsumerThread, WorkerThread
    except ImportError:  # Dramatiq 1
        from dramatiq.worker import _ConsumerThread as ConsumerThread
        from dramatiq.worker import _WorkerThread as WorkerThread

__all__ = ["dated", "dramatiq_queues"]

_MANY = 65535
"""Messages that a consumer may hold."""


@contextmanager
def dated(broker: Broker, clock: Clock) -> Iterator[None]:
    """Move the moments in messages that are enqueued from the host's clock to the test's."""
    if any(isinstance(each, _Dates) for each in broker.middleware):
        yield
        return
    dates = _Dates(clock)
    broker.add_middleware(dates)
    try:
        yield
    finally:
        _remove(broker, dates)


@contextmanager
def dramatiq_queues(broker: Broker, clock: Clock) -> Iterator[_Queues]:
    """The queues of a broker, and a worker in this thread; afterwards it is none.

    Args:
        broker: The broker.
        clock: By which messages are due.
    """
    with ExitStack() as stack:
        watch = _Watch()
        broker.add_middleware(watch)
        stack.callback(_remove, broker, watch)
        putting_back = []
        for each in broker.middleware:
            if hasattr(each, "borrow_thread"):
                thread = stack.enter_context(each.borrow_thread())
                putting_back.append(thread.putting_back)
        worker = _InlineWorker(broker)
        stack.callback(worker.leave)
        queues = _Queues(broker, clock, worker, watch, putting_back)
        stack.callback(_elsewhere, worker.stop)
        stack.callback(queues.give_back)
        _elsewhere(worker.start)
        yield queues


def _elsewhere(function: Callable[[], object]) -> None:
    """Call it in a thread of its own, as hooks of whole workers are never called where bodies run.

    Such a hook of Django's closes the connections of its thread, and the test's transaction with
    them.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def _remove(broker: Broker, middleware: Middleware) -> None:
    # a new list: somebody may be going through the old one
    broker.middleware = [each for each in broker.middleware if each is not middleware]


class _InlineConsumer(ConsumerThread):
    """A consumer whose thread is never started; ours asks it."""

    def join(self, timeout: float | None = None) -> None:
        """Nothing runs."""


class _InlineWorker(Worker):
    """A worker without threads.

    Its consumers of other brokers than the stub hold one message, lest they leave others waiting
    for their time-out when the drain ends early.
    """

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker, worker_threads=1, worker_timeout=0)
        self.queue_prefetch = _MANY if isinstance(broker, StubBroker) else 1
        self.delay_prefetch = _MANY
        self.body_thread = WorkerThread(
            broker=broker, consumers=self.consumers, work_queue=self.work_queue, worker_timeout=0
        )

    def leave(self) -> None:
        """Take from the broker what `start` has put there."""
        for each in self.broker.middleware:
            if getattr(each, "worker", None) is self:
                _remove(self.broker, each)

    def _add_worker(self) -> None:
        """The thread that calls runs the bodies."""

    def _add_consumer(self, queue_name: str, *, delay: bool = False) -> None:
        if queue_name in self.consumers:
            return
        prefetch = self.delay_prefetch if delay else self.queue_prefetch
        thread = self.consumers[queue_name] = _InlineConsumer(
            broker=self.broker,
            queue_name=queue_name,
            prefetch=prefetch,
            work_queue=self.work_queue,
            worker_timeout=0,
        )
        thread.consumer = self.broker.consume(queue_name, prefetch=prefetch, timeout=0)
        self.broker.emit_after("consumer_thread_boot", thread)


class _Dates(Middleware):
    """Has messages say when they are due, and how old they are, by the clock of a test."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:  # noqa: ARG002  # Dramatiq gives it
        """Dramatiq has read the host's."""
        _shift(message, ahead(self._clock))


class _Watch(Middleware):
    """Sees how the message at hand ends."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, message_id: str) -> None:
        self._message_id = message_id
        self.error: BaseException | None = None
        self.comes_again = False

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:  # noqa: ARG002  # Dramatiq gives it
        """Retried, deferred, or put back by other middleware."""
        if message.message_id == self._message_id:
            self.comes_again = True

    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002  # Dramatiq gives it
        message: MessageProxy,  # noqa: ARG002  # Dramatiq gives it
        *,
        result: object = None,  # noqa: ARG002  # Dramatiq gives it
        exception: BaseException | None = None,
    ) -> None:
        """The body has ended."""
        self.error = exception

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002  # Dramatiq gives it
        """It has an error only if it was skipped as one that failed."""
        self.error = message._exception  # noqa: SLF001  # hooks are not given it


class _Received(NamedTuple):
    due: float
    number: int
    proxy: Any


class _Queues:
    """See `once_pytest._drain.Queues`."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        worker: _InlineWorker,
        watch: _Watch,
        putting_back: list[Callable[[], AbstractContextManager[None]]],
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._worker = worker
        self._watch = watch
        self._putting_back = putting_back
        self._held: list[_Received] = []
        self._turn = 0
        self._number = 0

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
                self._move(min(due))
                continue
            received = self._receive()
            if received is None:
                return None
            if received.proxy.options.get("eta") is None:
                proxy = received.proxy
                return Taken(proxy.actor_name, proxy.message_id, received)
            self._held.append(received)

    def _receive(self) -> _Received | None:
        """Get one message, of each queue in turn."""
        names = list(self._worker.consumers)
        for offset in range(len(names)):
            received = self._receive_from(names[(self._turn + offset) % len(names)])
            if received is not None:
                self._turn += offset + 1
                return received
        return None

    def _receive_from(self, queue_name: str) -> _Received | None:
        consumer = self._worker.consumers[queue_name].consumer
        proxy = next(consumer) if consumer is not None else None
        if proxy is None:
            return None
        self._number += 1
        eta = proxy.options.get("eta")
        due = eta / 1000 if isinstance(eta, (int, float)) else 0.0
        return _Received(due, self._number, proxy)

    def _move(self, received: _Received) -> None:
        """Enqueue a delayed message that is due now, as its consumer does."""
        proxy = received.proxy
        consumer = self._worker.consumers[proxy.queue_name]
        eta, seconds = proxy.options["eta"], ahead(self._clock)
        _shift(proxy, -seconds)
        proxy.options["eta"] = current_millis()  # it is due, whatever rounding says
        with ExitStack() as stack:
            for putting_back in self._putting_back:
                stack.enter_context(putting_back())
            try:
                consumer.handle_message(proxy)
                consumer.handle_delayed_messages()
            except BaseException:
                _shift(proxy, seconds)
                proxy.options["eta"] = eta
                raise
        self._held.remove(received)

    def put_back(self, taken: Taken) -> None:
        self._held.append(_received(taken))

    def give_back(self) -> None:
        """Put what was received and not delivered back into its queue, in its order."""
        for name, consumer in self._worker.consumers.items():
            held = [each for each in self._held if each.proxy.queue_name == name]
            if held and isinstance(self._broker, StubBroker):
                self._give_back_to_stub(name, held)
            elif held:
                consumer.requeue_messages([each.proxy for each in held])

    def _give_back_to_stub(self, name: str, held: list[_Received]) -> None:
        while (received := self._receive_from(name)) is not None:
            held.append(received)  # it goes behind the others, so that all have to be in our hands
        consumer: Any = self._worker.consumers[name].consumer
        for each in sorted(held, key=_number):
            self._broker.queues[name].put(each.proxy.encode())
            consumer.ack(each.proxy)

    def deliver(self, taken: Taken) -> Ending:
        proxy = _received(taken).proxy
        watch, worker = self._watch, self._worker
        watch.begin(taken.message_id)
        # who reads its age compares it with the host's clock
        _shift(proxy, -ahead(self._clock))
        worker.consumers[proxy.queue_name].handle_message(proxy)
        try:
            item: Any = worker.work_queue.get_nowait()
        except Empty:
            return Ending(self._unknown(proxy.actor_name))
        # before Dramatiq 2 a tuple
        worker.body_thread.process_message(item[1] if isinstance(item, tuple) else item.message)
        error = watch.error
        if error is None or type(error) is SkipMessage:  # its subclasses are errors of this library
            return Ending(reason=str(error or ""))
        is_fatal = not isinstance(error, (Exception, Interrupt))
        has_failed = is_fatal or proxy.failed or not watch.comes_again
        return Ending(error if has_failed else None, repr(error), is_fatal)

    def _unknown(self, name: str) -> DrainError:
        known = sorted(self._broker.get_declared_actors())
        return DrainError(
            f"a message is for the actor {name!r}, which is not declared on this broker, so a "
            f"worker rejects it. Declared are: {', '.join(known) or 'none'}. Import the module "
            "that defines it, or mend the name"
        )


def _received(taken: Taken) -> _Received:
    assert isinstance(taken.handle, _Received), "ours"  # noqa: S101  # for type checkers
    return taken.handle


def _number(received: _Received) -> int:
    return received.number


def _shift(message: Message[Any] | MessageProxy, seconds: float) -> None:
    """Move the moments in a message, in place."""
    if not seconds:
        return
    inner: Any = getattr(message, "_message", message)
    by = round(seconds * 1000)
    # messages are frozen
    object.__setattr__(inner, "message_timestamp", inner.message_timestamp + by)
    if isinstance(inner.options.get("eta"), (int, float)):
        inner.options["eta"] += by
