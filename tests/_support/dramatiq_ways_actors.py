"""Sample actors and middleware for every way in and every way out, and what their tests share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from dramatiq import Middleware
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import CurrentMessage, MiddlewareError, SkipMessage

from _support import ledger
from _support.waiting import wait_until
from once_core import events
from once_dramatiq import OnceMiddleware, current_lease, is_locked

if TYPE_CHECKING:
    from _support.dramatiq_deployment import DramatiqDeployment

LEASE = 30.0
"""Seconds: so long that a unit which is free sooner was freed by its end, not by its lease."""

AT_ONCE = 8.0
"""Seconds: much less than `LEASE`, and enough for a busy machine and one deferral."""

OPTIONS = {"key": ["unit"], "lease": LEASE}


class ExpectedError(Exception):
    """What the actors declare with ``throws``."""


class VetoError(MiddlewareError):
    """Of a middleware that lets nobody enqueue."""


class Strict(Middleware):
    """Does to a message what its option ``strict`` names."""

    place = "before"

    def __init__(self, path) -> None:
        self.path = path

    def before_enqueue(self, broker, message, delay):
        if message.options.get("strict") == f"veto {self.place}":
            raise VetoError("on purpose")

    def before_process_message(self, broker, message):
        wish = message.options.get("strict")
        if wish == f"skip {self.place}":
            raise SkipMessage("on purpose")
        if wish == f"fail {self.place}":
            message.fail()
            raise SkipMessage("on purpose")
        if wish == f"raise {self.place}" and not message.options.get("retries"):
            raise VetoError("on purpose")
        if wish == f"requeue {self.place}":
            copy = message.copy(options={"strict": "no more"})
            broker.enqueue(copy, delay=message.options.get("requeue_delay"))
            ledger.note(self.path, "put back", id=message.message_id)
            message.options["store_results"] = False  # else Results stores None for it
            raise SkipMessage("enqueued again")


class StrictAfter(Strict):
    """The same, declared after once."""

    place = "after"


class StrictAtLast(Strict):
    """The same, really between once and the body, for it comes when the worker has started."""

    place = "at last"


class Latecomer(Middleware):
    """Brings middleware when once has made itself the last; notes what workers decide."""

    def __init__(self, path) -> None:
        self.path = path

    def after_worker_boot(self, broker, worker):
        broker.add_middleware(StrictAtLast(self.path))
        self.stop = events.subscribe(
            lambda event: ledger.note(self.path, "event", event=event.kind, id=event.message_id)
        )

    def after_worker_shutdown(self, broker, worker):
        self.stop()


class Consumers(Middleware):
    """Remembers the consumers of a worker, for bodies that break their channels."""

    def __init__(self) -> None:
        self.threads: list[Any] = []

    def after_consumer_thread_boot(self, broker, thread):
        self.threads.append(thread)

    def break_channels(self) -> None:
        """Have RabbitMQ close all channels, as it does after consumer_timeout."""
        for thread in self.threads:
            # a worker says that it is ready before all of its consumers are connected
            consumer = wait_until(lambda thread=thread: thread.consumer, "it consumes")
            channel = consumer.channel
            consumer.connection.add_callback_threadsafe(
                lambda channel=channel: channel.basic_ack(2**40)
            )
            wait_until(lambda channel=channel: channel.is_closed, "the channel is closed")


def add(broker, actor, body, path) -> None:  # noqa: C901  # a list
    """Declare the actors and the middleware.

    Args:
        broker: The broker; it has `OnceMiddleware` already.
        actor: Decorator of the sample actors.
        body: Notes a run, and works until the gate of its unit is open.
        path: Of the ledger.
    """
    consumers = Consumers()
    broker.add_middleware(Strict(path), before=OnceMiddleware)
    broker.add_middleware(StrictAfter(path))
    broker.add_middleware(Latecomer(path))
    broker.add_middleware(consumers)

    def message():
        found = CurrentMessage.get_current_message()
        assert found is not None
        return found

    def leave(unit, how):  # noqa: C901, PLR0912  # a list of ways out
        """End a body in the way that is named."""
        is_first = not message().options.get("retries")
        mine = [run for run in ledger.runs(path, unit) if run.message_id == message().message_id]
        match how:
            case "failure":
                raise RuntimeError("on purpose")
            case "failure once":
                if is_first:
                    raise RuntimeError("on purpose")
            case "failure at its first run":
                if len(mine) == 1:
                    raise RuntimeError("on purpose")
            case "throws":
                raise ExpectedError
            case "Retry":
                if is_first:
                    raise Retry("on purpose", delay=1000)
            case "RateLimitExceeded":
                if is_first:
                    raise RateLimitExceeded
            case "fail()":
                message().fail()
            case "SystemExit":
                raise SystemExit(3)
            case "unserialisable result":
                return object()
            case "again":
                leaving.send(unit)
            case "again until done":
                leaving.send_with_options(args=(unit,), once={"scope": "until_done"})
        return how

    @actor(once=OPTIONS, throws=ExpectedError)
    def leaving(unit, how="success", seconds=0.0, payload=None):
        body(unit, seconds, payload)
        return leave(unit, how)

    @actor(once=OPTIONS)
    def doomed(unit, is_held=False):
        """Shows that it lives, until its gate is open or it does not live any more."""
        with ledger.noted_run(path, message().message_id, 0, unit):
            while is_held and not ledger.gate(path, unit).exists():
                ledger.note(f"{path}-alive", "alive")
                time.sleep(0.02)
        return "success"

    @actor(once=OPTIONS, notify_shutdown=True)
    def stopping(unit, seconds=0.0):
        """Is told that its worker is asked to stop."""
        body(unit, seconds)
        return "success"

    @actor(once=OPTIONS, max_retries=0)
    async def stubborn(unit, seconds=0.0):
        """A coroutine that ignores its cancellation."""
        with ledger.noted_run(path, message().message_id, 0, unit):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    continue
        return "success"

    @actor(once={"key": ["unit"]})
    def busy(unit, seconds=0.0):
        """Computes, and never lets another greenlet work."""
        with ledger.noted_run(path, message().message_id, 0, unit):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass
        return "success"

    @actor(once={"key": ["unit"]}, max_retries=0)
    def watchful(unit):
        """Stops when its lease is lost."""
        with ledger.noted_run(path, message().message_id, 0, unit):
            while not ledger.gate(path, unit).exists():
                if current_lease().lost:
                    raise ExpectedError
                time.sleep(0.01)
        return "success"

    @actor(once=OPTIONS, max_retries=0)
    def cut_off(unit):
        """RabbitMQ takes its message away while it runs."""
        with ledger.noted_run(path, message().message_id, 0, unit):
            wait_until(ledger.gate(path, f"{unit}-cut").exists, "the gate of the cut is open")
            consumers.break_channels()
            wait_until(ledger.gate(path, unit).exists, "its gate is open")
        return "success"


def is_free(actor: Any, unit: str, *, within: float = AT_ONCE) -> None:
    """Wait until nobody holds the unit; long before its lease is over."""
    wait_until(lambda: not is_locked(actor, unit), f"{unit} is free", within=within)


def runs_when_triggered(scene: DramatiqDeployment, actor: Any, unit: str) -> None:
    """The next trigger is accepted, runs, and tells its caller the real result."""
    message = actor.send(unit)
    assert scene.result(message) == "success"
    assert [run.message_id for run in scene.runs(unit)].count(message.message_id) == 1
    is_free(actor, unit)


def ids(scene: DramatiqDeployment, unit: str) -> list[str]:
    """Ids of the messages that ran, in the order of their starts."""
    return [run.message_id for run in scene.runs(unit)]


def told(scene: DramatiqDeployment, kind: str, message: Any) -> int:
    """How often workers have decided so about a message."""
    events = ledger.entries(scene.ledger, "event")
    return [(each["event"], each["id"]) for each in events].count((kind, message.message_id))


def last_seen_alive(scene: DramatiqDeployment) -> dict[int, float]:
    """When each process last ran a body of ``doomed`` that was held."""
    return {each["pid"]: each["at"] for each in ledger.entries(f"{scene.ledger}-alive")}
