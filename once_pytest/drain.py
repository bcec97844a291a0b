"""Running what is queued in the test's own thread, as a worker would. No pytest in here."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from once_core.events import Event, subscribe
from once_pytest._drain import Clock, DrainError, Queues

if TYPE_CHECKING:
    from celery import Celery
    from dramatiq import Broker

__all__ = ["Clock", "DrainError", "Drained", "dated", "drain"]

_TICK = 0.001
"""Seconds by which time passes at least, lest rounding keep a message from ever being due."""

_NAMED = 5
"""Messages that are named where there were too many."""


@dataclass(frozen=True)
class Drained:
    """What `drain` has done.

    Attributes:
        delivered: Messages that were handed to a worker's code, whatever that did with them.
        left: Messages that are still queued, for they are not due; 0 after ``until_idle=True``.
    """

    delivered: int
    left: int


def drain(
    target: Celery | Broker,
    *,
    clock: Clock,
    until_idle: bool = True,
    max_tasks: int = 100,
    raises: bool = True,
) -> Drained:
    """Run the messages that are queued, one after the other, in the calling thread.

    They run as in a worker, not eagerly: they come off the broker by the framework's own worker
    code, with signals and middleware, retries and acknowledgements, and leave results. What they
    send is run as well. What a worker does with processes and timers is left out: time limits
    and rate limits of Celery, commands such as ``revoke()``, hooks at the start and the end of a
    process or thread, priorities of Dramatiq. Of Django, connections that are in a transaction
    stay open: what tasks write is in that of the test.

    The queues must be the test's alone. Those of Celery's ``memory://`` are shared by all apps
    of a process and outlive each of them: give every test a ``task_default_queue`` of its own,
    or purge the queues in ``app.amqp.queues`` before it begins.

    Args:
        target: A Celery app or a Dramatiq broker. Of Celery the queues in ``app.amqp.queues``
            are drained: those of the configuration, and those that routing has made.
        clock: By which messages are due. See `dated` for tests that advance it themselves.
        until_idle: Whether to let time pass until nothing is left, as a patient worker would
            wait for countdowns, retries and deferrals. False runs what is due now.
        max_tasks: Deliveries after which the drain gives up.
        raises: Whether an error that ends a task for good is raised here, once its message has
            ended; what is queued behind it stays there. What only makes it retry is not.

    Returns:
        What was done.

    Raises:
        DrainError: More than ``max_tasks`` deliveries, an unknown task, or a drain in a drain.
        TypeError: For a target that is neither.
        BaseException: Of a task, see ``raises``; what is no `Exception` ends the drain always.
    """
    __tracebackhide__ = True
    named, reasons = Counter[tuple[str, str]](), dict[str, str]()
    delivered = 0
    with (
        _alone(target) as refused,
        dated(target, clock),
        _told(reasons),
        _transactions_kept(),
        _queues(target, clock) as queues,
    ):
        while True:
            taken = queues.take()
            if taken is None:
                due = queues.next_due()
                if due is None or not until_idle:
                    break
                clock.advance(max(due - clock.now(), _TICK))
                continue
            if delivered >= max_tasks:
                queues.put_back(taken)
                raise _too_many(max_tasks, named, reasons)
            reasons.pop(taken.message_id, None)
            ending = queues.deliver(taken)
            delivered += 1
            named[taken.task, taken.message_id] += 1
            reasons.setdefault(taken.message_id, ending.reason)
            if refused:
                raise refused[0]
            if ending.error is not None and (raises or ending.is_fatal):
                raise ending.error
        return Drained(delivered, queues.left)


@contextmanager
def dated(target: Celery | Broker, clock: Clock) -> Iterator[None]:
    """Have what is published inside count its delays and expiries from the test's clock.

    `drain` does this for what tasks send. A test that advances the clock and then sends with a
    countdown needs it around all of it; entering it again changes nothing.

    Args:
        target: A Celery app or a Dramatiq broker.
        clock: The test's.

    Raises:
        TypeError: For a target that is neither.
    """
    if _is_celery(target):
        from once_pytest import _drain_celery

        with _drain_celery.dated(clock):
            yield
    else:
        from once_pytest import _drain_dramatiq

        with _drain_dramatiq.dated(target, clock):
            yield


def _is_celery(target: object) -> bool:
    """Whether it is an app of Celery's, and no broker of Dramatiq's; neither is imported.

    Raises:
        TypeError: It is neither.
    """
    __tracebackhide__ = True
    celery, dramatiq = sys.modules.get("celery"), sys.modules.get("dramatiq")
    if celery is not None and isinstance(target, celery.Celery):
        return True
    if dramatiq is not None and isinstance(target, dramatiq.Broker):
        return False
    raise TypeError(
        f"{target!r} cannot be drained: it is neither a Celery app nor a Dramatiq broker; give the "
        "object that your tasks are declared with"
    )


def _queues(target: Celery | Broker, clock: Clock) -> AbstractContextManager[Queues]:
    if _is_celery(target):
        from once_pytest._drain_celery import celery_queues

        return celery_queues(target, clock)
    from once_pytest._drain_dramatiq import dramatiq_queues

    return dramatiq_queues(target, clock)


_running: dict[int, tuple[object, list[DrainError]]] = {}
"""By thread: what it drains, and the drains in it that were refused."""


@contextmanager
def _alone(target: object) -> Iterator[list[DrainError]]:
    """Refuse a drain in a drain; the outer one fails of it even if the body's error is retried."""
    __tracebackhide__ = True
    thread = threading.get_ident()
    for ident, (drained, refusals) in list(_running.items()):
        if ident == thread or drained is target:
            error = DrainError(
                "once_drain was called while it runs already: by a task, or from another thread. "
                "What a task sends is run by the drain that runs the task; call once_drain in the "
                "test alone"
            )
            refusals.append(error)
            raise error
    refused: list[DrainError] = []
    _running[thread] = target, refused
    try:
        yield refused
    finally:
        del _running[thread]


@contextmanager
def _told(reasons: dict[str, str]) -> Iterator[None]:
    """Note why messages were deferred."""

    def note(event: Event) -> None:
        if event.kind == "deferred":
            reasons[event.message_id] = f"deferred by once: {event.reason}"

    stop = subscribe(note)
    try:
        yield
    finally:
        stop()


@contextmanager
def _transactions_kept() -> Iterator[None]:
    """Keep the connections of Django that are in a transaction, such as that of a `TestCase`.

    Between two messages workers close connections, which in this thread would end the test's.
    """
    django, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    is_used = django is not None and conf is not None and conf.settings.configured
    opened = django.connections.all(initialized_only=True) if django and is_used else ()
    kept = [each for each in opened if each.in_atomic_block]
    for each in kept:
        each.close = lambda: None
    try:
        yield
    finally:
        for each in kept:
            del each.close


def _too_many(
    max_tasks: int, named: Counter[tuple[str, str]], reasons: dict[str, str]
) -> DrainError:
    lines = []
    for (task, message_id), times in named.most_common(_NAMED):
        why = f"; last: {reasons[message_id]}" if reasons.get(message_id) else ""
        lines.append(f"  {task} {message_id}: {times} x{why}")
    if len(named) > _NAMED:
        lines.append(f"  and {len(named) - _NAMED} more")
    tasks = Counter[str]()
    for (task, _), times in named.items():
        tasks[task] += times
    lines.append("By task: " + ", ".join(f"{task} {times} x" for task, times in tasks.items()))
    return DrainError(
        f"{max_tasks} messages were delivered and there are more, so this might never end. Those "
        "that came most often:\n" + "\n".join(lines) + "\nA task that retries or sends itself for "
        "ever has to be ended by the test, and one that is deferred needs its holder to end; give "
        "once_drain(until_idle=False) to run only what is due now, or a greater max_tasks= if "
        "that many are right. What is left is still queued"
    )
