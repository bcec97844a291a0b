"""`OnceMiddleware`: puts the actors of a broker under guard."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware, MiddlewareError

from once_core import errors, protocol, stream
from once_core.checkup import warn_at_start
from once_core.envelope import OFF, Envelope
from once_core.events import emit, logger
from once_core.options import OnceOptions, OnceOptionsDict
from once_core.protocol import Message
from once_dramatiq._binding import OPTION, Binding
from once_dramatiq._delivery import Delivery
from once_dramatiq._many import send_many
from once_dramatiq._publish import enqueue
from once_dramatiq._seams import wrap_actor, wrap_broker, wrap_stub
from once_dramatiq._thread import ThreadState
from once_dramatiq.errors import ConfigurationError, GuardError, translated

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, MessageProxy, Worker
    from dramatiq.worker import ConsumerThread
    from typing_extensions import Unpack

__all__ = ["OnceMiddleware"]

_DELIVERY = "once_delivery"
"""Attribute of the message in a worker's hands."""


class OnceMiddleware(Middleware):
    """Actors of which at most one message waits and at most one attempt runs.

    Add it before the actors are declared. Its place among the other middleware does not matter.
    Where the broker is a `RedisBroker`, its Redis is the lock store too; a `StubBroker` gets one
    in memory (fakeredis); otherwise give ``url=``. While the lock store is away ``send()`` raises
    `StoreUnavailableError` and messages that start are put back; see ``on_store_error``.

    Args:
        every_actor: Guard all actors, not only those with ``once=``; those with ``once=False``
            are left alone.
        defaults: Options for all actors (see `OnceOptions`), such as ``url=`` or ``client=``.

    Raises:
        ConfigurationError: Options that cannot be.

    Example:
        >>> import dramatiq
        >>> from dramatiq.brokers.stub import StubBroker
        >>> broker = StubBroker(middleware=[])
        >>> broker.add_middleware(OnceMiddleware(url="memory://dramatiq-example"))
        >>> @dramatiq.actor(broker=broker, once={"key": ["order_id"]})
        ... def sync_order(order_id, force=False): ...
        >>> first, second = sync_order.send(1), sync_order.send(1, force=True)
        >>> second.message_id == first.message_id
        True
        >>> from once_dramatiq import is_locked, published
        >>> published(second).is_duplicate, is_locked(sync_order, 1), is_locked(sync_order, 2)
        (True, True, False)
    """

    def __init__(self, *, every_actor: bool = False, **defaults: Unpack[OnceOptionsDict]) -> None:
        self._defaults = OnceOptions(**defaults).given
        self._every_actor = every_actor
        self._thread = ThreadState()
        self._bindings: dict[Broker, Binding] = {}

    @property
    def actor_options(self) -> set[str]:
        """The option of actors and messages."""
        return {OPTION}

    def binding(self, broker: Broker) -> Binding:
        """What the actors of a broker share."""
        try:
            return self._bindings[broker]
        except KeyError:
            new = Binding(broker, self._defaults, self._thread, every_actor=self._every_actor)
            return self._bindings.setdefault(broker, new)

    def borrow_thread(self) -> AbstractContextManager[ThreadState]:
        """Around processing messages in a thread that is no worker's; for test tools."""
        return self._thread.borrowed()

    # Declaring

    def before_declare_actor(self, broker: Broker, actor: Actor[..., Any]) -> None:
        """Refuse an actor that could never work."""
        self._wrap(broker)
        self._or_translated(lambda: self.binding(broker).check(actor))

    def after_declare_actor(self, broker: Broker, actor: Actor[..., Any] | str) -> None:
        """Wrap its ``send()``; also called for actors that are there when we are added."""
        self._wrap(broker)
        found = broker.get_actor(actor) if isinstance(actor, str) else actor  # before Dramatiq 2
        wrap_actor(found, self._thread, partial(send_many, self.binding(broker)))

    def after_declare_queue(self, broker: Broker, queue_name: str) -> None:
        """Wrap the broker before anything can be enqueued."""
        self._wrap(broker)

    def _wrap(self, broker: Broker) -> None:
        if any(isinstance(each, OnceMiddleware) and each is not self for each in broker.middleware):
            raise ConfigurationError(
                "the broker has two OnceMiddleware, and a message that one has started would meet "
                "itself in the other; add it once, with every_actor=True to guard all actors"
            )
        binding = self.binding(broker)
        wrap_broker(broker, lambda send, message, delay: enqueue(binding, send, message, delay))
        wrap_stub(broker, binding.forget)

    # Workers

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Become the last: what runs between us and the body would run under the lease.

        Nothing depends on the order in which users add us, Results, Retries and the others.
        """
        self._wrap(broker)
        others = [each for each in broker.middleware if each is not self]
        broker.middleware = [*others, self]  # a new list: Dramatiq goes through the old one now

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Say what is wrong with the lock server, if somebody has to know."""
        binding = self.binding(broker)
        actors = [each for each in broker.actors.values() if binding.is_guarded(each)]
        warn_at_start(lambda: (binding.guard(each).store for each in actors))

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Write the events that wait: Dramatiq's processes end without `atexit`."""
        stream.flush()

    def after_consumer_thread_boot(self, broker: Broker, thread: ConsumerThread) -> None:
        """Watch its connection."""
        self.binding(broker).consumers.add(thread)

    # Messages

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Start the attempt, or end the message without its body.

        Raises:
            SkipMessage: It is not to run now.
            MiddlewareError: It cannot be guarded; Dramatiq retries it.
        """
        thread = self._thread
        thread.is_worker, thread.is_in_body, thread.delivery = True, False, None
        try:
            delivery = self._delivery(broker, message)
            if delivery is not None:
                # before the first round trip: a time limit may strike in the middle of it
                setattr(message, _DELIVERY, delivery)
                thread.delivery = delivery
                delivery.begin()
        except MiddlewareError:
            raise
        except errors.OnceError as error:
            if isinstance(ours := translated(error), MiddlewareError):
                raise ours from error
            raise _guard_error(message, error) from error
        except Exception as error:
            raise _guard_error(message, error) from error
        thread.is_in_body = True

    def _delivery(self, broker: Broker, message: MessageProxy) -> Delivery | None:
        binding, actor = self.binding(broker), broker.get_actor(message.actor_name)
        envelope = Envelope.read(message.options.get(OPTION), message.message_id, actor.actor_name)
        if message.failed or (envelope is not None and envelope.scope == OFF):
            return None
        if envelope is None and not binding.is_guarded(actor):
            return None
        guard = binding.guard(actor)
        if envelope is not None:
            guard = guard.as_called(envelope)
        return Delivery(binding, actor, guard, message, envelope)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        """The body is over. Whether a failure will be retried is known only later."""
        delivery = self._leave(message)
        if delivery is not None and exception is None and not message.failed:
            delivery.succeed()

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """The body did not run: we, or other middleware, have skipped the message."""
        self._leave(message)

    def _leave(self, message: MessageProxy) -> Delivery | None:
        self._thread.is_in_body = False
        delivery: Delivery | None = vars(message).get(_DELIVERY)
        if delivery is not None:
            delivery.leave_body()
        return delivery

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        """The message leaves this worker, done or retried."""
        self._end(broker, message)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """The message has failed for good."""
        self._end(broker, message)

    def _end(self, broker: Broker, message: MessageProxy) -> None:
        self._thread.delivery = None
        binding = self.binding(broker)
        delivery: Delivery | None = vars(message).get(_DELIVERY)
        if delivery is not None:
            delivery.acknowledge()
        elif not binding.is_put_in_delay_queue(message):
            # what somebody has put back has a newer ticket, and is not meant by this
            self._withdraw(binding, message)

    def _withdraw(self, binding: Binding, message: MessageProxy) -> None:
        """It ended before it came to us: too old, skipped, or its actor is not known here."""
        envelope = binding.read(message)
        if envelope is None or envelope.scope == OFF or envelope.duplicate_of:
            return
        actor = binding.broker.actors.get(message.actor_name)
        try:
            store = binding.guard(actor).store if actor is not None else binding.store()
            part = Message(envelope.message_id, envelope.ticket, envelope.retries)
            answer = store.run(protocol.withdraw(envelope.key, part))
        except errors.OnceError:
            logger.debug("a message that will not run is left to heal", exc_info=True)
            return
        if answer == "withdrawn":
            emit(
                "withdrawn",
                task=message.actor_name,
                key=envelope.key,
                message_id=message.message_id,
                reason="it ended without its body",
            )

    @staticmethod
    def _or_translated(check: Callable[[], None]) -> None:
        try:
            check()
        except errors.OnceError as error:
            raise translated(error) from error


def _guard_error(message: MessageProxy, error: Exception) -> GuardError:
    return GuardError(
        f"{message.actor_name} was not started, for it cannot be guarded: {error!r}; it is retried "
        "like any failure, so mend that before its retries are used up"
    )
