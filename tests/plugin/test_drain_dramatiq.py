"""Draining a Dramatiq broker in the test's thread."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from once_pytest.drain import Drained, DrainError, dated, drain

dramatiq = pytest.importorskip("dramatiq")

from dramatiq import Message, MessageProxy, Worker, group, pipeline  # noqa: E402  # see above
from dramatiq.brokers.redis import RedisBroker  # noqa: E402  # see above
from dramatiq.brokers.stub import StubBroker  # noqa: E402  # see above
from dramatiq.common import dq_name  # noqa: E402  # see above
from dramatiq.middleware import (  # noqa: E402  # see above
    AgeLimit,
    AsyncIO,
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    TimeLimit,
)
from dramatiq.middleware.time_limit import TimeLimitExceeded  # noqa: E402  # see above
from dramatiq.rate_limits.backends import StubBackend as RateLimits  # noqa: E402  # see above
from dramatiq.results import Results  # noqa: E402  # see above
from dramatiq.results.backends import StubBackend  # noqa: E402  # see above

from once_core import events, protocol  # noqa: E402  # see above
from once_core.attempt import Attempt  # noqa: E402  # see above
from once_core.devserver import DevServer  # noqa: E402  # see above
from once_dramatiq import OnceMiddleware, is_locked, published  # noqa: E402  # see above

pytestmark = pytest.mark.lifecycle_dramatiq


class Clock:
    """The host's clock, and what was advanced."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def clock() -> Clock:
    """A clock that only the test moves."""
    return Clock()


@pytest.fixture
def broker() -> StubBroker:
    """A broker with all that Dramatiq offers, and a lock store that no other test sees."""
    broker = StubBroker(
        middleware=[
            AgeLimit(),
            TimeLimit(),
            ShutdownNotifications(),
            Callbacks(),
            Pipelines(),
            Retries(min_backoff=10_000, max_backoff=10_000, max_retries=3),
            GroupCallbacks(RateLimits()),
            CurrentMessage(),
            Results(backend=StubBackend(), store_results=True),
            AsyncIO(),
            OnceMiddleware(url=f"memory://{uuid.uuid4().hex}"),
        ]
    )
    broker.emit_after("process_boot")
    return broker


@pytest.fixture
def told() -> Iterator[list[events.Event]]:
    """Every event of this process, while the test runs."""
    seen: list[events.Event] = []
    stop = events.subscribe(seen.append)
    yield seen
    stop()


class Hooks(Middleware):
    """What a middleware is told, and whether it is the test's thread that tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith(("before_", "after_")):
            return found

        def hook(*args: Any, **kwargs: Any) -> Any:
            self.told.append((name, threading.current_thread() is threading.main_thread()))
            return found(*args, **kwargs)

        return hook


def queued(broker: StubBroker, name: str = "default") -> list[Message[Any]]:
    """What is in a queue, in its order."""
    return [Message.decode(data) for data in broker.queues[name].queue]


def unfinished(broker: StubBroker) -> int:
    """Messages that are neither acknowledged nor rejected."""
    return sum(queue.unfinished_tasks for queue in broker.queues.values())


def test_runs_what_is_queued_as_a_worker_does(broker: StubBroker, clock: Clock) -> None:
    """In the calling thread, with its message and its result."""
    seen: dict[str, Any] = {}
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("of the test")

    @dramatiq.actor(broker=broker, once=True)
    def work(number: int) -> int:
        current = CurrentMessage.get_current_message()
        seen.update(
            id=current.message_id if current else None,
            thread=threading.current_thread(),
            variable=variable.get(),
        )
        return number + 1

    message = work.send(1)

    assert drain(broker, clock=clock) == Drained(delivered=1, left=0)
    assert message.get_result(backend=broker.get_results_backend()) == 2
    assert seen == {
        "id": message.message_id,
        "thread": threading.main_thread(),
        "variable": "of the test",
    }
    assert unfinished(broker) == 0
    assert CurrentMessage.get_current_message() is None


def test_calls_the_hooks_of_a_worker(broker: StubBroker, clock: Clock) -> None:
    """Those of messages where bodies run, those of the whole worker in another thread, once."""
    hooks = Hooks()
    broker.add_middleware(hooks)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    work.send()
    work.send()
    hooks.told.clear()
    drain(broker, clock=clock)

    messages = ["process_message", "ack"]
    expected = [f"{when}_{name}" for name in messages for when in ("before", "after")]
    assert [name for name, is_ours in hooks.told if is_ours] == [*expected, *expected]
    others = [name for name, is_ours in hooks.told if not is_ours]
    assert [name for name in others if "worker" in name] == [
        "before_worker_boot",
        "after_worker_boot",
        "before_worker_shutdown",
        "after_worker_shutdown",
    ]


def test_leaves_the_broker_and_the_threads_as_they_were(broker: StubBroker, clock: Clock) -> None:
    """No thread goes on, and no middleware stays."""

    @dramatiq.actor(broker=broker)
    async def work() -> None: ...

    work.send()
    threads, middleware = set(threading.enumerate()), set(broker.middleware)
    drain(broker, clock=clock)

    assert set(threading.enumerate()) == threads
    assert set(broker.middleware) == middleware
    broker.declare_queue("late")
    assert set(threading.enumerate()) == threads


def test_nothing_queued_is_nothing_done(broker: StubBroker, clock: Clock) -> None:
    """An empty broker is no error."""
    assert drain(broker, clock=clock) == Drained(delivered=0, left=0)


def test_runs_what_actors_send(broker: StubBroker, clock: Clock) -> None:
    """The same drain goes on with it, in whichever queue it is, even in a new one."""
    ran: list[int] = []

    @dramatiq.actor(broker=broker)
    def work(number: int) -> None:
        ran.append(number)
        if number < 3:
            broker.declare_queue(f"q{number}")
            message: Message[Any] = work.message(number + 1)
            broker.enqueue(message.copy(queue_name=f"q{number}"))

    work.send(0)

    assert drain(broker, clock=clock).delivered == 4
    assert ran == [0, 1, 2, 3]


@pytest.mark.timeout(60)
def test_waits_for_what_is_delayed_by_advancing_the_clock(broker: StubBroker, clock: Clock) -> None:
    """Messages run when they are due, in that order, and no real time passes."""
    ran: list[tuple[str, int]] = []

    @dramatiq.actor(broker=broker, once=True)
    def work(name: str) -> None:
        ran.append((name, round(clock.ahead)))
        if name == "an hour":
            work.send_with_options(args=("and a minute",), delay=60_000)

    work.send_with_options(args=("an hour",), delay=3_600_000)
    work.send_with_options(args=("a minute",), delay=60_000)
    work.send("now")

    assert drain(broker, clock=clock) == Drained(delivered=4, left=0)
    assert ran == [("now", 0), ("a minute", 60), ("an hour", 3600), ("and a minute", 3660)]
    assert unfinished(broker) == 0


def test_leaves_what_is_not_due_as_it_is(broker: StubBroker, clock: Clock) -> None:
    """With ``until_idle=False`` it stays in the queue, in its order, and runs when it is due."""
    ran: list[str] = []

    @dramatiq.actor(broker=broker, once=True)
    def work(name: str) -> None:
        ran.append(name)

    for name in ("b", "c", "d"):
        work.send_with_options(args=(name,), delay=600_000)
    work.send("a")
    later = queued(broker, dq_name("default"))

    for _ in range(2):
        drained = drain(broker, clock=clock, until_idle=False)

        assert (drained.left, ran) == (3, ["a"])
        assert queued(broker, dq_name("default")) == later
        assert unfinished(broker) == 3

    clock.advance(600)

    assert drain(broker, clock=clock, until_idle=False) == Drained(delivered=3, left=0)
    assert ran == ["a", "b", "c", "d"]
    assert clock.ahead == 600


def test_what_a_drain_leaves_is_run_by_a_worker(broker: StubBroker, clock: Clock) -> None:
    """A message that was looked at is like one that was not."""
    ran: list[str] = []

    @dramatiq.actor(broker=broker, once=True)
    def work(name: str) -> None:
        ran.append(name)

    work.send_with_options(args=("a",), delay=300)
    drain(broker, clock=clock, until_idle=False)
    worker = Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    broker.join("default", timeout=30_000)
    worker.stop()

    assert ran == ["a"]


def test_delays_count_from_the_tests_clock(broker: StubBroker, clock: Clock) -> None:
    """What is sent within `dated` after the clock was advanced is due later than that."""
    ran: list[str] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        ran.append("due")

    with dated(broker, clock):
        clock.advance(1000)
        work.send_with_options(delay=10_000)

        assert drain(broker, clock=clock, until_idle=False).left == 1
        clock.advance(10)
        assert drain(broker, clock=clock, until_idle=False).delivered == 1
    assert ran == ["due"]


def test_retries_run_until_they_succeed(broker: StubBroker, clock: Clock) -> None:
    """Each after its back-off, counted, with the same id."""
    seen: list[tuple[str, int]] = []

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> str:
        current = CurrentMessage.get_current_message()
        assert current is not None
        seen.append((current.message_id, current.options.get("retries", 0)))
        if len(seen) < 4:
            raise ValueError(unit)
        return "done"

    message = work.send("a")

    assert drain(broker, clock=clock).delivered == 4
    assert seen == [(message.message_id, number) for number in range(4)]
    assert message.get_result(backend=broker.get_results_backend()) == "done"
    assert clock.ahead > 14
    assert not is_locked(work, "a")
    assert broker.dead_letters == []


def test_raises_the_error_of_an_actor_that_failed(broker: StubBroker, clock: Clock) -> None:
    """The very error, once its message is a dead letter; what is behind it stays queued."""
    ran: list[str] = []
    error = ZeroDivisionError("of the actor")

    @dramatiq.actor(broker=broker, once=True, max_retries=1)
    def work(name: str) -> None:
        ran.append(name)
        if name == "bad":
            work.send_with_options(args=("good",), delay=3_600_000)
            raise error

    bad = work.send("bad")

    with pytest.raises(ZeroDivisionError) as raised:
        drain(broker, clock=clock)

    assert raised.value is error
    assert ran == ["bad", "bad"]
    assert [each.message_id for each in broker.dead_letters] == [bad.message_id]
    assert not is_locked(work, "bad")
    assert is_locked(work, "good")
    assert drain(broker, clock=clock).delivered == 1
    assert unfinished(broker) == 0


def test_the_rest_keeps_its_order_after_a_failure(broker: StubBroker, clock: Clock) -> None:
    """Delayed or not, before the failure or after it."""

    @dramatiq.actor(broker=broker, max_retries=0)
    def work(name: str) -> None:
        if name == "bad":
            work.send_with_options(args=("d",), delay=1000)
            raise ZeroDivisionError

    for name in ("b", "c"):
        work.send_with_options(args=(name,), delay=1000)
    for name in ("bad", "x", "y"):
        work.send(name)

    with pytest.raises(ZeroDivisionError):
        drain(broker, clock=clock)

    assert [each.args for each in queued(broker)] == [("x",), ("y",)]
    assert [each.args for each in queued(broker, dq_name("default"))] == [("b",), ("c",), ("d",)]
    assert unfinished(broker) == 5


def test_goes_on_after_a_failure_if_told_to(broker: StubBroker, clock: Clock) -> None:
    """With ``raises=False`` errors are in the dead letters alone."""

    @dramatiq.actor(broker=broker, max_retries=0)
    def work(number: int) -> float:
        return 1 / number

    work.send(0)
    good = work.send(1)

    assert drain(broker, clock=clock, raises=False).delivered == 2
    assert len(broker.dead_letters) == 1
    assert good.get_result(backend=broker.get_results_backend()) == 1


def test_a_failure_without_retries_is_raised(clock: Clock) -> None:
    """Where nobody retries, the message is acknowledged; it has failed all the same."""
    broker = StubBroker(middleware=[])

    @dramatiq.actor(broker=broker)
    def work() -> None:
        raise KeyError("of the actor")

    work.send()

    with pytest.raises(KeyError, match="of the actor"):
        drain(broker, clock=clock)
    assert unfinished(broker) == 0


def test_what_is_no_exception_ends_the_drain(broker: StubBroker, clock: Clock) -> None:
    """Such as `pytest.fail` in a body, whatever ``raises`` says and whoever would retry it."""

    @dramatiq.actor(broker=broker)
    def work() -> None:
        pytest.fail("in the body")

    work.send()

    with pytest.raises(pytest.fail.Exception, match="in the body"):
        drain(broker, clock=clock, raises=False)


def test_gives_up_after_too_many_messages(broker: StubBroker, clock: Clock) -> None:
    """The error names those that kept coming, how often, why, and what to do; nothing is lost."""

    @dramatiq.actor(broker=broker, max_retries=None)
    def poll() -> None:
        raise ValueError("not yet")

    message = poll.send()

    with pytest.raises(DrainError) as raised:
        drain(broker, clock=clock, max_tasks=7)

    text = str(raised.value)
    assert "7 messages were delivered" in text
    assert f"poll {message.message_id}: 7 x; last: ValueError('not yet')" in text
    assert "max_tasks=" in text
    assert [each.message_id for each in queued(broker)] == [message.message_id]
    assert unfinished(broker) == 1


def test_an_unknown_actor_is_rejected_and_named(broker: StubBroker, clock: Clock) -> None:
    """With the actors that are known, for it is a wrong name or a missing import."""

    @dramatiq.actor(broker=broker, actor_name="known")
    def work() -> None: ...

    broker.enqueue(work.message().copy(actor_name="unknown"))

    with pytest.raises(DrainError, match=r"'unknown'.*Declared are: .*known"):
        drain(broker, clock=clock)
    assert [each.actor_name for each in broker.dead_letters] == ["unknown"]
    assert drain(broker, clock=clock) == Drained(delivered=0, left=0)


def test_an_error_of_a_drain_leaves_messages_where_they_were(
    broker: StubBroker, clock: Clock
) -> None:
    """Such as one of the clock, or of middleware that refuses what is due."""

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> None: ...

    class Refusing(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            raise dramatiq.middleware.MiddlewareError("full")

    for unit in ("a", "b"):
        work.send_with_options(args=(unit,), delay=1_000_000)
    before = queued(broker, dq_name("default"))
    broker.add_middleware(Refusing())

    with pytest.raises(dramatiq.middleware.MiddlewareError, match="full"):
        drain(broker, clock=clock)
    assert queued(broker, dq_name("default")) == before
    assert unfinished(broker) == 2


def test_time_limits_hold_where_they_are_watched(broker: StubBroker, clock: Clock) -> None:
    """The hook at the start of a process has begun to; the test's thread is like a worker's."""

    @dramatiq.actor(broker=broker, time_limit=100, max_retries=0)
    def work() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pass

    work.send()

    with pytest.raises(TimeLimitExceeded):
        drain(broker, clock=clock)


def test_a_server_as_broker_can_be_drained(clock: Clock, shared_server: DevServer) -> None:
    """What is left there keeps its order, and nothing is taken for being worked on."""
    ran: list[str] = []
    broker = RedisBroker(url=shared_server.url, namespace=f"n-{uuid.uuid4().hex}")
    broker.add_middleware(OnceMiddleware(prefix=uuid.uuid4().hex))

    @dramatiq.actor(broker=broker, once=True, max_retries=0)
    def work(name: str) -> None:
        ran.append(name)
        if name == "bad":
            raise ZeroDivisionError

    for name in ("c", "d"):
        work.send_with_options(args=(name,), delay=600_000)
    for name in ("bad", "a", "b"):
        work.send(name)

    with pytest.raises(ZeroDivisionError):
        drain(broker, clock=clock)
    assert ran == ["bad"]
    assert drain(broker, clock=clock, until_idle=False) == Drained(delivered=2, left=2)
    assert drain(broker, clock=clock) == Drained(delivered=2, left=0)
    assert ran == ["bad", "a", "b", "c", "d"]
    broker.close()
    broker.client.close()


DJANGO = """
import sys, time
import django
from django.conf import settings

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}
database["TEST"] = {"NAME": sys.argv[1] + "-test"}
apps = ["django.contrib.contenttypes", "django.contrib.auth"]
settings.configure(DATABASES={"default": database}, INSTALLED_APPS=apps)
django.setup()

import dramatiq
from django.contrib.auth.models import User
from django.test import TestCase
from django.test.runner import DiscoverRunner
from django_dramatiq.middleware import DbConnectionsMiddleware
from dramatiq.brokers.stub import StubBroker
from once_dramatiq import OnceMiddleware
from once_pytest.drain import drain

broker = StubBroker()
broker.add_middleware(DbConnectionsMiddleware())
broker.add_middleware(OnceMiddleware())

class Clock:
    now = staticmethod(time.time)

@dramatiq.actor(broker=broker, once=True, max_retries=0)
def work(name):
    User.objects.create(username=name)

class Test(TestCase):
    def test_one(self):
        work.send("a")
        drain(broker, clock=Clock())
        self.assertEqual(["a"], [each.username for each in User.objects.all()])

    test_two = test_one

runner = DiscoverRunner(verbosity=0)
databases = runner.setup_databases()
result = runner.run_suite(runner.test_loader.loadTestsFromTestCase(Test))
runner.teardown_databases(databases)
sys.exit(not result.wasSuccessful())
"""


def test_what_actors_write_is_in_the_transaction_of_the_test(tmp_path: Path) -> None:
    """That of Django's `TestCase`, although there is middleware that closes connections."""
    pytest.importorskip("django_dramatiq")
    command = [sys.executable, "-c", DJANGO, str(tmp_path / "database")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr


def test_the_broker_that_dramatiq_makes_can_be_drained(clock: Clock) -> None:
    """With the middleware of its defaults, and no hook called before."""
    broker = StubBroker()
    ran: list[str] = []

    @dramatiq.actor(broker=broker)
    def work() -> None:
        ran.append("work")

    work.send()

    assert drain(broker, clock=clock).delivered == 1
    assert ran == ["work"]


def test_a_drain_in_an_actor_is_refused(broker: StubBroker, clock: Clock) -> None:
    """Even where the actor would be retried for it, and in the thread of coroutines."""

    @dramatiq.actor(broker=broker)
    def work() -> None:
        drain(broker, clock=clock)

    @dramatiq.actor(broker=broker)
    async def work_in_a_loop() -> None:
        drain(broker, clock=clock)

    for actor in (work, work_in_a_loop):
        broker.flush_all()
        actor.send()
        with pytest.raises(DrainError, match="in the test alone"):
            drain(broker, clock=clock)


def test_too_old_messages_do_not_run(broker: StubBroker, clock: Clock) -> None:
    """By the test's clock; one that is sent after an hour has its whole time."""
    ran: dict[str, list[float]] = {}

    @dramatiq.actor(broker=broker, once=True, max_age=60_000)
    def work(name: str) -> None:
        ran.setdefault(name, []).append(clock.ahead - 90)
        if name == "retried":
            raise ValueError(name)

    work.send("old")
    clock.advance(90)
    with dated(broker, clock):
        work.send_with_options(args=("delayed",), delay=50_000)
        work.send_with_options(args=("retried",), max_retries=None)  # every 5 to 10 s
        drain(broker, clock=clock)

    assert "old" not in ran
    assert len(ran["delayed"]) == 1
    assert 40 < ran["retried"][-1] < 60
    assert {each.args for each in broker.dead_letters} == {("old",), ("retried",)}
    assert not is_locked(work, "old")


def test_pipelines_groups_and_callbacks_complete(broker: StubBroker, clock: Clock) -> None:
    """With duplicates in them, which leave nobody waiting."""
    called: list[str] = []

    @dramatiq.actor(broker=broker, once={"return_on_duplicate": -1, "key": ["unit"]})
    def work(unit: str, before: int = 0) -> int:
        return before + 1

    @dramatiq.actor(broker=broker)
    def wait() -> str:
        return "a"

    @dramatiq.actor(broker=broker)
    def done(*values: Any) -> None:
        called.append("done")

    grouped = group([work.message("a"), work.message("a"), work.message("b")], broker=broker)
    grouped.add_completion_callback(done.message())
    grouped.run()
    piped = pipeline([wait.message(), work.message(), done.message()], broker=broker).run()
    work.send_with_options(args=("c",), on_success=done)
    drain(broker, clock=clock)

    assert list(grouped.get_results()) == [1, -1, 1]
    assert [*piped.get_results()][:1] == ["a"]
    assert called == ["done"] * 3


@pytest.mark.parametrize("name", ["work", "work_in_a_loop"])
def test_a_deferral_waits_for_its_holder(
    broker: StubBroker, clock: Clock, told: list[events.Event], name: str
) -> None:
    """While another attempt runs the same message comes again and again, and uses up no retry."""
    ran: list[tuple[str, int, bool]] = []

    def note() -> None:
        current = CurrentMessage.get_current_message()
        assert current is not None
        ran.append((current.message_id, current.options.get("retries", 0), clock.ahead >= 20))

    @dramatiq.actor(broker=broker, once={"scope": "running"})
    def work(unit: str) -> None:
        note()

    @dramatiq.actor(broker=broker, once={"scope": "running"})
    async def work_in_a_loop(unit: str) -> None:
        note()

    actor = broker.get_actor(name)
    middleware = next(each for each in broker.middleware if isinstance(each, OnceMiddleware))
    guard = middleware.binding(broker).guard(actor)
    holder = Attempt(guard, guard.key(("a",), {}), protocol.Message("holder", 0, 0), None)
    assert holder.start().status == "started"

    @dramatiq.actor(broker=broker)
    def release() -> None:
        holder.end("success")

    message = actor.send("a")
    release.send_with_options(delay=20_000)

    with pytest.raises(DrainError, match="last: deferred by once: "):
        drain(broker, clock=clock, max_tasks=2)
    drain(broker, clock=clock)

    assert ran == [(message.message_id, 0, True)]
    assert {each.message_id for each in told if each.kind == "deferred"} == {message.message_id}
    assert not is_locked(actor, "a")


def test_an_error_of_a_skipped_message_is_raised(broker: StubBroker, clock: Clock) -> None:
    """Such as an overlap that the options say is an error."""

    @dramatiq.actor(broker=broker, once={"scope": "running", "on_overlap": "raise"})
    def work(unit: str) -> None: ...

    middleware = next(each for each in broker.middleware if isinstance(each, OnceMiddleware))
    guard = middleware.binding(broker).guard(work)
    holder = Attempt(guard, guard.key(("a",), {}), protocol.Message("holder", 0, 0), None)
    assert holder.start().status == "started"
    work.send("a")

    with pytest.raises(Exception, match="runs the same unit of work"):
        drain(broker, clock=clock)
    holder.end("success")


def test_a_send_after_the_drain_is_one_of_a_program(broker: StubBroker, clock: Clock) -> None:
    """Nothing of the last delivery stays with the thread, not even of one that raised."""

    @dramatiq.actor(broker=broker, once={"on_duplicate": "raise"}, max_retries=0)
    def work(unit: str) -> None:
        raise ValueError(unit)

    work.send("a")
    with pytest.raises(ValueError, match="a"):
        drain(broker, clock=clock)
    first = work.send("a")

    assert not published(first).is_duplicate
    with pytest.raises(Exception, match="waits"):  # between bodies it would be settled instead
        work.send("a")


def test_other_middleware_may_put_a_message_back(broker: StubBroker, clock: Clock) -> None:
    """A message that comes again has not failed."""
    ran: list[str] = []

    class Once(Middleware):
        def before_process_message(self, broker: Any, message: MessageProxy) -> None:
            if "again" not in message.options:
                broker.enqueue(message.copy(options={"again": True}), delay=1000)
                raise dramatiq.middleware.SkipMessage

    broker.add_middleware(Once())

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: str) -> None:
        ran.append(unit)

    work.send("a")

    assert drain(broker, clock=clock).delivered == 2
    assert ran == ["a"]
