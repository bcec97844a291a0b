"""Draining Celery's queues in the test's thread."""

from __future__ import annotations

import contextvars
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from once_pytest.drain import Drained, DrainError, dated, drain

celery = pytest.importorskip("celery")

from celery import Celery, chain, chord, current_app, group, signals  # noqa: E402  # see above
from celery.backends.cache import CacheBackend  # noqa: E402  # see above
from celery.exceptions import Ignore, InvalidTaskError, Reject  # noqa: E402  # see above
from celery.worker import state  # noqa: E402  # see above

from once_celery import OnceTask  # noqa: E402  # see above
from once_core import events  # noqa: E402  # see above
from once_core.attempt import Attempt  # noqa: E402  # see above
from once_core.devserver import DevServer  # noqa: E402  # see above
from once_core.protocol import Message  # noqa: E402  # see above

pytestmark = pytest.mark.lifecycle


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
def app() -> Iterator[Celery]:
    """An app with queues and a lock store that no other test sees."""
    app = Celery(
        "drained", broker="memory://", backend="cache+memory://", set_as_current=False, fixups=[]
    )
    app.conf.task_default_queue = f"q-{uuid.uuid4().hex}"
    app.conf.once_url = f"memory://{uuid.uuid4().hex}"
    yield app
    app.close()


@pytest.fixture
def told() -> Iterator[list[events.Event]]:
    """Every event of this process, while the test runs."""
    seen: list[events.Event] = []
    stop = events.subscribe(seen.append)
    yield seen
    stop()


def ids(app: Celery) -> list[str]:
    """Ids of what is queued, in its order; it stays there."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        found: list[Any] = []
        for name in app.amqp.queues:
            while (message := channel.basic_get(name)) is not None:
                found.append(message)
        for message in found:
            message.requeue()
    return [message.headers["id"] for message in found]


def test_runs_what_is_queued_as_a_worker_does(app: Celery, clock: Clock) -> None:
    """In the calling thread, with its request, its signals and its result; not eagerly."""
    seen: dict[str, Any] = {}
    fired: list[str] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("of the test")

    @app.task(shared=False, bind=True)
    def work(self: Any, number: int) -> int:
        request = self.request
        seen.update(
            eager=request.is_eager,
            id=request.id,
            routed=request.delivery_info["routing_key"],
            thread=threading.current_thread(),
            app=current_app._get_current_object(),
            variable=variable.get(),
        )
        return number + 1

    names = ("task_received", "task_prerun", "task_success", "task_postrun")
    receivers = {name: (lambda name=name, **_: fired.append(name)) for name in names}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver, weak=False)
    before = current_app._get_current_object()
    result = work.delay(1)
    try:
        drained = drain(app, clock=clock)
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)

    assert drained == Drained(delivered=1, left=0)
    assert result.get(timeout=0) == 2
    assert seen == {
        "eager": False,
        "id": result.id,
        "routed": app.conf.task_default_queue,
        "thread": threading.main_thread(),
        "app": app,
        "variable": "of the test",
    }
    assert fired == list(names)
    assert current_app._get_current_object() is before
    assert not state.active_requests
    assert not state.reserved_requests
    assert app.current_worker_task is None


def test_nothing_queued_is_nothing_done(app: Celery, clock: Clock) -> None:
    """An empty queue is no error."""
    assert drain(app, clock=clock) == Drained(delivered=0, left=0)


def test_runs_what_tasks_send(app: Celery, clock: Clock) -> None:
    """The same drain goes on with it, in whichever queue it is."""
    ran: list[int] = []

    @app.task(shared=False)
    def work(number: int) -> None:
        ran.append(number)
        if number < 3:
            work.apply_async((number + 1,), queue=f"{app.conf.task_default_queue}-{number}")

    work.delay(0)

    assert drain(app, clock=clock).delivered == 4
    assert ran == [0, 1, 2, 3]


@pytest.mark.timeout(60)
def test_waits_for_what_is_delayed_by_advancing_the_clock(app: Celery, clock: Clock) -> None:
    """Messages run when they are due, in that order, and no real time passes."""
    ran: list[tuple[str, int]] = []

    @app.task(shared=False)
    def work(name: str) -> None:
        ran.append((name, round(clock.ahead)))
        if name == "an hour":
            work.apply_async(("and a minute",), countdown=60)

    work.apply_async(("an hour",), countdown=3600)
    work.apply_async(("a minute",), eta=datetime.now(timezone.utc) + timedelta(seconds=60))
    work.delay("now")

    assert drain(app, clock=clock) == Drained(delivered=4, left=0)
    assert ran == [("now", 0), ("a minute", 60), ("an hour", 3600), ("and a minute", 3660)]


def test_leaves_what_is_not_due_as_it_is(app: Celery, clock: Clock) -> None:
    """With ``until_idle=False`` it stays in the queue, in its order, and runs when it is due."""
    ran: list[str] = []
    fired: list[str] = []

    @app.task(shared=False)
    def work(name: str) -> None:
        ran.append(name)

    def receive(request: Any = None, **_: Any) -> None:
        fired.append(request.id)

    later = [work.apply_async((name,), countdown=600) for name in ("b", "c", "d")]
    work.delay("a")
    signals.task_received.connect(receive)

    for _ in range(2):
        drained = drain(app, clock=clock, until_idle=False)

        assert (drained.left, ran) == (3, ["a"])
        assert ids(app) == [each.id for each in later]
        assert not {each.id for each in later} & set(fired)

    clock.advance(600)

    assert drain(app, clock=clock, until_idle=False) == Drained(delivered=3, left=0)
    assert ran == ["a", "b", "c", "d"]
    assert clock.ahead == 600


def test_delays_count_from_the_tests_clock(app: Celery, clock: Clock) -> None:
    """What is sent within `dated` after the clock was advanced is due later than that."""
    ran: list[str] = []

    @app.task(shared=False, bind=True)
    def work(self: Any) -> None:
        eta = datetime.fromisoformat(self.request.eta)
        ran.append("late" if eta > datetime.now(timezone.utc) else "due")

    with dated(app, clock):
        clock.advance(1000)
        work.apply_async(countdown=10)

        assert drain(app, clock=clock, until_idle=False).left == 1
        clock.advance(10)
        assert drain(app, clock=clock, until_idle=False).delivered == 1
    assert ran == ["due"]


def test_retries_run_until_they_succeed(app: Celery, clock: Clock) -> None:
    """Each after its countdown, counted, with the same id."""
    seen: list[tuple[str, int, int]] = []

    @app.task(shared=False, bind=True, base=OnceTask, max_retries=3)
    def work(self: Any, unit: str) -> str:
        seen.append((self.request.id, self.request.retries, round(clock.ahead)))
        if self.request.retries < 3:
            raise self.retry(countdown=100, exc=ValueError(unit))
        return "done"

    result = work.delay("a")

    assert drain(app, clock=clock).delivered == 4
    assert seen == [(result.id, number, 100 * number) for number in range(4)]
    assert result.get(timeout=0) == "done"
    assert not work.is_locked("a")


def test_raises_the_error_of_a_task_that_failed(app: Celery, clock: Clock) -> None:
    """The very error, once its message has ended; what is behind it stays queued."""
    ran: list[str] = []
    error = ZeroDivisionError("of the task")

    @app.task(shared=False, base=OnceTask)
    def work(name: str) -> None:
        ran.append(name)
        if name == "bad":
            raise error

    bad = work.delay("bad")
    good = [work.delay("good"), work.apply_async(("later",), countdown=10)]

    with pytest.raises(ZeroDivisionError) as raised:
        drain(app, clock=clock)

    assert raised.value is error
    assert bad.state == "FAILURE"
    assert not work.is_locked("bad")
    assert work.is_locked("good")
    assert ids(app) == [each.id for each in good]
    assert drain(app, clock=clock).delivered == 2
    assert ran == ["bad", "good", "later"]


def test_goes_on_after_a_failure_if_told_to(app: Celery, clock: Clock) -> None:
    """With ``raises=False`` errors are in the results alone."""

    @app.task(shared=False)
    def work(number: int) -> float:
        return 1 / number

    results = [work.delay(number) for number in (0, 1)]

    assert drain(app, clock=clock, raises=False).delivered == 2
    assert [each.state for each in results] == ["FAILURE", "SUCCESS"]


def test_a_retry_used_up_is_a_failure(app: Celery, clock: Clock) -> None:
    """The last error is raised, not the ones before it."""

    @app.task(
        shared=False, bind=True, autoretry_for=(KeyError,), max_retries=2, retry_backoff=False
    )
    def work(self: Any) -> None:
        raise KeyError(self.request.retries)

    work.delay()

    with pytest.raises(KeyError, match="2"):
        drain(app, clock=clock)


def test_what_is_no_exception_ends_the_drain(app: Celery, clock: Clock) -> None:
    """Such as `pytest.fail` in a body, whatever ``raises`` says; a late one is given out again."""

    @app.task(shared=False, acks_late=True)
    def work() -> None:
        pytest.fail("in the body")

    result = work.delay()

    with pytest.raises(pytest.fail.Exception, match="in the body"):
        drain(app, clock=clock, raises=False)
    assert ids(app) == [result.id]
    assert not state.active_requests
    assert not state.requests


def test_gives_up_after_too_many_messages(app: Celery, clock: Clock) -> None:
    """The error names those that kept coming, how often, why, and what to do; nothing is lost."""

    @app.task(shared=False, bind=True, max_retries=None)
    def poll(self: Any) -> None:
        raise self.retry(countdown=1)

    result = poll.delay()

    with pytest.raises(DrainError) as raised:
        drain(app, clock=clock, max_tasks=7)

    text = str(raised.value)
    assert "7 messages were delivered" in text
    assert f"{poll.name} {result.id}: 7 x; last: Retry: Retry in 1s" in text
    assert "max_tasks=" in text
    assert ids(app) == [result.id]


def test_exactly_max_tasks_are_not_too_many(app: Celery, clock: Clock) -> None:
    """The limit is what may be delivered."""

    @app.task(shared=False)
    def work() -> None: ...

    for _ in range(3):
        work.delay()

    assert drain(app, clock=clock, max_tasks=3).delivered == 3


def test_an_unknown_task_is_rejected_and_named(app: Celery, clock: Clock) -> None:
    """With the tasks that are known, for it is a wrong name or a missing import."""

    @app.task(shared=False, name="shop.known")
    def work() -> None: ...

    result = app.send_task("shop.unknown")

    with pytest.raises(DrainError, match=r"'shop.unknown'.*Registered are: .*shop\.known"):
        drain(app, clock=clock)
    assert result.state == "FAILURE"
    assert drain(app, clock=clock) == Drained(delivered=0, left=0)


@pytest.mark.parametrize(
    ("body", "options", "error"),
    [
        ({"hello": 1}, {}, DrainError),
        ("no json", {"content_type": "application/json"}, Exception),
        (b"x", {"serializer": "pickle", "headers": {"task": "shop.known", "id": "1"}}, Exception),
        (
            [[], {}, {}],
            {"headers": {"task": "shop.known", "id": "1", "eta": "soon"}},
            InvalidTaskError,
        ),
    ],
)
def test_what_no_worker_can_read_is_rejected(
    app: Celery, clock: Clock, body: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    """It is in nobody's way afterwards."""

    @app.task(shared=False, name="shop.known")
    def work() -> None: ...

    with app.connection_for_write() as connection, connection.Producer() as producer:
        queue = app.amqp.queues[app.conf.task_default_queue]
        producer.publish(body, routing_key=queue.name, declare=[queue], **options)
        producer.publish(body, routing_key=queue.name, declare=[queue], **options)

    with pytest.raises(error):
        drain(app, clock=clock)
    assert drain(app, clock=clock, raises=False) == Drained(delivered=1, left=0)
    assert ids(app) == []


def test_tasks_that_a_worker_would_import_are_known(
    app: Celery, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of ``imports``, when the first of them comes."""
    ran: list[str] = []

    def import_default_modules() -> None:
        @app.task(shared=False, name="shop.imported")
        def work() -> None:
            ran.append("imported")

    monkeypatch.setattr(app.loader, "import_default_modules", import_default_modules)
    app.send_task("shop.imported")
    drain(app, clock=clock)

    assert ran == ["imported"]


def test_an_error_of_a_drain_leaves_messages_where_they_were(app: Celery, clock: Clock) -> None:
    """Such as one of the clock."""

    @app.task(shared=False)
    def work() -> None: ...

    def advance(seconds: float) -> None:
        raise OSError(seconds)

    later = [work.apply_async(countdown=seconds) for seconds in (2000, 1000)]
    clock.advance = advance  # type: ignore[method-assign]

    with pytest.raises(OSError, match="9"):
        drain(app, clock=clock)
    assert ids(app) == [each.id for each in later]


def test_a_drain_in_a_task_is_refused(app: Celery, clock: Clock) -> None:
    """Even where the task would be retried for it."""

    @app.task(shared=False, bind=True, autoretry_for=(Exception,))
    def work(self: Any) -> None:
        drain(app, clock=clock)

    work.delay()

    with pytest.raises(DrainError, match="in the test alone"):
        drain(app, clock=clock)


@pytest.mark.parametrize("acks_late", [False, True])
def test_rejects_ignores_and_requeues_as_a_worker_does(
    app: Celery, clock: Clock, acks_late: bool
) -> None:
    """What is requeued comes again if it was not acknowledged before; the others have ended."""
    ran: list[str] = []

    @app.task(shared=False, acks_late=acks_late)
    def work(name: str) -> None:
        ran.append(name)
        if name == "ignored":
            raise Ignore
        if ran.count("requeued") == 1:
            raise Reject("not now", requeue=True)

    work.delay("ignored")
    work.delay("requeued")
    drain(app, clock=clock)

    assert ran == ["ignored", "requeued", *(["requeued"] if acks_late else [])]
    assert ids(app) == []


def test_expired_and_revoked_messages_do_not_run(
    app: Celery, clock: Clock, told: list[events.Event]
) -> None:
    """By the test's clock, told to all who hear it, and their unit is free again."""
    ran: list[str] = []

    @app.task(shared=False, base=OnceTask)
    def work(name: str) -> None:
        ran.append(name)

    expired = work.apply_async(("expired",), expires=60)
    in_time = work.apply_async(("in time",), expires=120)
    revoked = work.delay("revoked")
    state.revoked.add(revoked.id)
    clock.advance(90)

    assert drain(app, clock=clock).delivered == 3
    assert ran == ["in time"]
    assert [each.state for each in (expired, in_time, revoked)] == ["REVOKED", "SUCCESS", "REVOKED"]
    assert [each.message_id for each in told if each.kind == "withdrawn"] == [
        expired.id,
        revoked.id,
    ]


def test_expiries_survive_retries_and_are_relative_to_the_tests_clock(
    app: Celery, clock: Clock
) -> None:
    """What a task sends with an expiry after an hour of the clock has its whole time."""
    ran: list[str] = []

    @app.task(shared=False, bind=True, max_retries=None)
    def work(self: Any, name: str) -> None:
        ran.append(name)
        if name == "first":
            work.apply_async(("second",), countdown=50, expires=100)
        if name == "retried":
            raise self.retry(countdown=40)

    work.apply_async(("first",), countdown=3600)
    drain(app, clock=clock)
    retried = work.apply_async(("retried",), expires=100 + clock.ahead)
    drain(app, clock=clock)

    assert ran == ["first", "second", "retried", "retried", "retried"]
    assert retried.state == "REVOKED"


def test_what_is_revoked_at_the_last_moment_does_not_run(app: Celery, clock: Clock) -> None:
    """Between its receipt and its start, as by a receiver of the signal."""

    @app.task(shared=False)
    def work() -> None:
        pytest.fail("it ran")

    def revoke(request: Any = None, **_: Any) -> None:
        state.revoked.add(request.id)

    signals.task_received.connect(revoke)
    result = work.delay()

    assert drain(app, clock=clock).delivered == 1
    assert result.state == "REVOKED"
    assert ids(app) == []


def test_a_server_as_broker_can_be_drained(clock: Clock, shared_server: DevServer) -> None:
    """What is left there keeps its order, and nothing is taken for being worked on."""
    ran: list[str] = []
    app = Celery(
        "drained", broker=shared_server.url, backend="cache+memory://", set_as_current=False
    )
    app.conf.task_default_queue = f"q-{uuid.uuid4().hex}"

    @app.task(shared=False, base=OnceTask, once={"prefix": uuid.uuid4().hex})
    def work(name: str) -> None:
        ran.append(name)
        if name == "bad":
            raise ZeroDivisionError

    queued = [work.apply_async((name,), countdown=600) for name in ("c", "d")]
    queued += [work.delay(name) for name in ("bad", "a", "b")]

    with pytest.raises(ZeroDivisionError):
        drain(app, clock=clock)
    assert [each.id for each in queued if not each.ready()] == ids(app)
    assert drain(app, clock=clock, until_idle=False) == Drained(delivered=2, left=2)
    assert drain(app, clock=clock) == Drained(delivered=2, left=0)
    assert ran == ["bad", "a", "b", "c", "d"]
    app.close()


def test_canvases_complete(app: Celery, clock: Clock) -> None:
    """Chains, groups and chords with duplicates in them leave nobody waiting."""
    ran: list[str] = []

    @app.task(shared=False, base=OnceTask, once={"return_on_duplicate": -1})
    def work(*values: Any) -> int:
        ran.append("work")
        return 1

    @app.task(shared=False)
    def total(values: list[int]) -> int:
        return sum(values)

    in_chord = chord([work.si("a"), work.si("a"), work.si("b")])(total.s())
    in_group = group(work.si("c"), work.si("c")).apply_async()
    in_chain = chain(work.si("d"), work.si("d"), work.si("e")).apply_async()
    drain(app, clock=clock)

    assert in_chord.get(timeout=0) == 1 - 1 + 1
    assert in_group.get(timeout=0) == [1, -1]
    assert in_chain.get(timeout=0) == 1
    assert in_chain.parent.parent.get(timeout=0) == 1


def test_a_chord_that_is_polled_for_completes(
    app: Celery, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the backend cannot count, a task retries until all members have ended."""
    monkeypatch.setattr(CacheBackend, "implements_incr", False)

    @app.task(shared=False, base=OnceTask)
    def work(number: int) -> int:
        return number

    @app.task(shared=False)
    def total(values: list[int]) -> int:
        return sum(values)

    members = [work.s(1), work.s(2).set(countdown=5)]
    result = chord(members)(total.s())
    drain(app, clock=clock)

    assert result.get(timeout=0) == 3
    assert clock.ahead > 4  # the rest has passed while the chord was sent


def test_a_task_may_send_its_own_unit(app: Celery, clock: Clock) -> None:
    """One that runs does not count as waiting; the other runs after it, in the same drain."""
    ran: list[int] = []

    @app.task(shared=False, base=OnceTask, once={"key": ["unit"]})
    def work(unit: str, depth: int) -> None:
        ran.append(depth)
        if depth == 0:
            work.delay(unit, 1)

    work.delay("a", 0)
    drain(app, clock=clock)

    assert ran == [0, 1]
    assert not work.is_locked("a", 0)


def test_a_deferral_waits_for_its_holder(
    app: Celery, clock: Clock, told: list[events.Event]
) -> None:
    """While another attempt runs the same message comes again and again, and uses up no retry."""
    ran: list[tuple[str, int, bool]] = []

    @app.task(shared=False, bind=True, base=OnceTask, once={"scope": "running"})
    def work(self: Any, unit: str) -> None:
        ran.append((self.request.id, self.request.retries, clock.ahead >= 20))

    guard = work.once_guard()
    holder = Attempt(guard, guard.key(("a",), {}), Message("holder", 0, 0), None)
    assert holder.start().status == "started"

    @app.task(shared=False)
    def release() -> None:
        holder.end("success")

    result = work.delay("a")
    release.apply_async(countdown=20)

    with pytest.raises(DrainError, match="last: deferred by once: "):
        drain(app, clock=clock, max_tasks=2)
    drain(app, clock=clock)

    assert ran == [(result.id, 0, True)]
    assert result.state == "SUCCESS"
    assert {each.message_id for each in told if each.kind == "deferred"} == {result.id}


def test_waiting_for_a_result_in_a_task_is_refused(app: Celery, clock: Clock) -> None:
    """As in a worker; it would wait for ever."""

    @app.task(shared=False)
    def inner() -> None: ...

    @app.task(shared=False)
    def outer() -> None:
        inner.delay().get()

    outer.delay()

    with pytest.raises(RuntimeError, match=r"Never call result\.get"):
        drain(app, clock=clock)
    inner.delay()
    drain(app, clock=clock)


def test_a_call_after_the_drain_is_one_of_a_program(app: Celery, clock: Clock) -> None:
    """Nothing of the last delivery stays with the thread."""

    @app.task(shared=False, base=OnceTask)
    def work(unit: str) -> None: ...

    work.delay("a")
    drain(app, clock=clock)
    first, second = work.delay("a"), work.delay("a")

    assert not first.once.is_duplicate
    assert second.once.is_duplicate
    assert first.parent is None


@pytest.mark.parametrize("protocol", [1, 2])
def test_both_protocols_of_celery_run(app: Celery, clock: Clock, protocol: int) -> None:
    """Also with a countdown, which the first one has in its body."""
    ran: list[int] = []
    app.conf.task_protocol = protocol

    @app.task(shared=False)
    def work() -> None:
        ran.append(round(clock.ahead))

    work.apply_async(countdown=30)
    work.delay()
    drain(app, clock=clock)

    assert ran == [0, 30]


def test_a_class_with_a_call_of_its_own_keeps_its_request(app: Celery, clock: Clock) -> None:
    """``super().__call__`` does not hide the request from the body, as in a worker."""
    seen: list[str | None] = []

    class Own(celery.Task):  # type: ignore[misc, name-defined]  # Celery has no types
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    @app.task(shared=False, bind=True, base=Own)
    def work(self: Any) -> None:
        seen.append(self.request.id)

    result = work.delay()
    drain(app, clock=clock)

    assert seen == [result.id]
    assert not hasattr(celery.Task, "_stackprotected")


def test_what_is_no_app_cannot_be_drained(clock: Clock) -> None:
    """The error says what can."""
    with pytest.raises(TypeError, match="neither a Celery app nor a Dramatiq broker"):
        drain(object(), clock=clock)  # type: ignore[arg-type]
