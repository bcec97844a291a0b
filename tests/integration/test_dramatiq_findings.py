"""What reviewers of the Dramatiq binding saw, one test each; on a `StubBroker`, in this process."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import fakeredis
import pytest
from _support.waiting import wait_until
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import (
    AgeLimit,
    AsyncIO,
    Callbacks,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    Pipelines,
    Retries,
    TimeLimit,
)
from dramatiq.middleware.time_limit import TimeLimitExceeded
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from once_core.attempt import Attempt
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.events import Event, subscribe
from once_core.store import Store
from once_dramatiq import OnceMiddleware, holder, is_locked

pytestmark = pytest.mark.lifecycle_dramatiq


@pytest.fixture
def broker() -> StubBroker:
    """Dramatiq's own middleware, with a time limit that is looked at often, and ours."""
    broker = StubBroker(
        middleware=[
            AgeLimit(),
            TimeLimit(interval=50),
            Callbacks(),
            Pipelines(),
            Retries(min_backoff=10, max_backoff=10),
            AsyncIO(),
            OnceMiddleware(lease=1),
        ]
    )
    broker.emit_after("process_boot")  # starts the watching of time limits
    return broker


@pytest.fixture
def work(broker: StubBroker) -> Iterator[Callable[[], None]]:
    """Starts a worker of four threads, which ends with the test."""
    workers = []

    def start() -> None:
        worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=4)
        workers.append(worker)
        worker.start()

    yield start
    for worker in workers:
        worker.stop()


def test_a_coroutine_that_raises_after_dramatiq_gave_it_up_frees_its_unit(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """It was renewed for ever: only a coroutine that returned ended its attempt."""
    ended = []

    @dramatiq.actor(broker=broker, once=True, time_limit=100, max_retries=0)
    async def slow(unit: int) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(2)  # longer than the second for which Dramatiq waits
            ended.append(is_locked(slow, unit))

    work()
    slow.send(1)

    wait_until(lambda: ended, "the coroutine has ended")
    assert ended == [True]
    wait_until(lambda: not is_locked(slow, 1), "its unit is free")


def test_an_async_actor_can_await_the_coroutine_of_another(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """The event loop of all async actors stood still for ever."""
    done = []

    @dramatiq.actor(broker=broker, once=True)
    async def inner(unit: int) -> None:
        done.append("inner")

    @dramatiq.actor(broker=broker, once=True)
    async def outer(unit: int) -> None:
        await inner.fn.__wrapped__(unit)  # type: ignore[attr-defined]
        done.append("outer")

    work()
    outer.send(1)

    wait_until(lambda: done == ["inner", "outer"], "both have run")


def test_bodies_that_seed_random_keep_their_leases(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """Attempts had equal tokens, and the end of one ended the renewal of the other's lease."""
    gate, runs = threading.Event(), []

    @dramatiq.actor(broker=broker, once=True)
    def simulate(unit: str, is_held: bool = False) -> None:
        random.seed(42)
        runs.append(unit)
        if is_held:
            assert gate.wait(30)

    work()
    simulate.send("held", True)
    wait_until(lambda: runs, "the first runs")
    for unit in range(8):
        random.seed(42)
        simulate.send(f"short-{unit}")
    wait_until(lambda: len(runs) == 9, "the others have run")
    simulate.send("held", True)
    wait_until(
        lambda: (now := holder(simulate, "held", True)) is not None and now.age > 3,
        "the first has outlived its lease of a second",
    )

    assert runs.count("held") == 1
    gate.set()
    wait_until(lambda: runs.count("held") == 2, "the second runs after it")


def test_a_message_is_kept_beyond_its_time_limit_while_broker_and_store_are_away(
    broker: StubBroker, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit made a retry of it, which the broker did not take: it was lost."""
    runs: list[int] = []
    limits: list[Any] = []

    @dramatiq.actor(broker=broker, once=True, time_limit=300)
    def late(unit: int) -> None:
        runs.append(unit)

    late.send(1)
    away = threading.Event()
    away.set()
    run, put = Store.run, broker.queues["default.DQ"].put

    def run_or_fail(self: Store, step: Any) -> Any:
        if away.is_set():
            raise StoreUnavailableError("away")
        return run(self, step)

    def put_or_fail(message: bytes) -> None:
        if away.is_set():
            limits.append(message)
            raise ConnectionClosed("away")
        put(message)

    monkeypatch.setattr(Store, "run", run_or_fail)
    monkeypatch.setattr(broker.queues["default.DQ"], "put", put_or_fail)
    work()
    wait_until(lambda: len(limits) >= 2, "it could not be put back twice")
    assert runs == []

    away.clear()
    wait_until(lambda: runs == [1], "it runs")


def test_a_bad_option_of_a_later_step_does_not_stop_its_pipeline(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """A worker enqueues it, where an error is swallowed and the step is never sent."""
    ran = []

    @dramatiq.actor(broker=broker, once=True)
    def first(unit: int) -> int:
        return unit

    @dramatiq.actor(broker=broker, once=True)
    def second(unit: int) -> None:
        ran.append(unit)

    work()
    step = second.message_with_options(once={"leese": 5})
    dramatiq.pipeline([first.message(7), step], broker=broker).run()

    wait_until(lambda: ran == [7], "the step has run")


def test_a_prefix_that_raises_in_a_worker_does_not_stop_a_pipeline(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """The tenant of a request is not there; the step runs, or fails, where it starts."""
    ran, tenants = [], ["acme"]

    @dramatiq.actor(broker=broker, once=True)
    def first(unit: int) -> int:
        tenants.clear()
        return unit

    @dramatiq.actor(broker=broker, once={"prefix": lambda: tenants[0]}, max_retries=3)
    def second(unit: int) -> None:
        ran.append(unit)

    @dramatiq.actor(broker=broker)
    def come_back() -> None:
        tenants.append("acme")

    work()
    dramatiq.pipeline([first.message(7), second.message()], broker=broker).run()
    wait_until(lambda: not tenants, "the tenant is gone")
    come_back.send()

    wait_until(lambda: ran == [7], "the step has run")


def test_a_retry_is_sent_by_a_worker_that_has_no_lock_store(
    broker: StubBroker, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ONCE_URL`` was forgotten there: the message was acknowledged without a run."""
    ran = []

    @dramatiq.actor(broker=broker, once={"scope": "queued"}, max_retries=50)
    def late(unit: int) -> None:
        ran.append(unit)

    late.send(1)
    run, is_missing = Store.run, threading.Event()
    is_missing.set()

    def run_or_refuse(self: Store, step: Any) -> Any:
        if is_missing.is_set():
            raise ConfigurationError("once has no lock store")
        return run(self, step)

    monkeypatch.setattr(Store, "run", run_or_refuse)
    seen = []
    monkeypatch.setattr(
        broker.queues["default.DQ"], "put", put_and_note(broker.queues["default.DQ"].put, seen)
    )
    work()
    wait_until(lambda: len(seen) >= 2, "it was retried")
    assert ran == []

    is_missing.clear()
    wait_until(lambda: ran == [1], "it runs")


def put_and_note(put: Callable[[bytes], None], seen: list[bytes]) -> Callable[[bytes], None]:
    """A queue's `put` that is watched."""

    def noting(message: bytes) -> None:
        seen.append(message)
        put(message)

    return noting


def test_a_duplicate_waits_for_a_result_backend_that_is_away() -> None:
    """It failed without a retry, and its pipeline never went on."""
    backend = StubBackend()
    broker = StubBroker(middleware=[Pipelines(), Retries(), OnceMiddleware()])
    broker.add_middleware(Results(backend=backend))  # type: ignore[no-untyped-call]
    went_on = threading.Event()

    @dramatiq.actor(broker=broker, once=True, store_results=True, max_retries=0)
    def first(unit: int) -> None: ...

    @dramatiq.actor(broker=broker)
    def second(value: object) -> None:
        went_on.set()

    first.send(1)
    dramatiq.pipeline([first.message(1), second.message()], broker=broker).run()
    store, failures = backend.store_result, []

    def store_or_fail(*args: Any, **kwargs: Any) -> None:
        if len(failures) < 1:
            failures.append(args)
            raise ConnectionError("away")
        store(*args, **kwargs)

    backend.store_result = store_or_fail  # type: ignore[method-assign]
    # the waiting message would store its result first
    messages = [broker.queues["default"].get() for _ in range(2)]
    broker.queues["default"].put(messages[1])
    broker.queues["default"].task_done()
    broker.queues["default"].task_done()
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    try:
        wait_until(went_on.is_set, "the next step has run")
    finally:
        worker.stop()
    assert len(failures) == 1


def test_two_of_our_middleware_on_one_broker_are_refused(broker: StubBroker) -> None:
    """Every message met itself, and was put back for ever."""

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: int) -> None: ...

    with pytest.raises(ConfigurationError, match="two OnceMiddleware"):
        broker.add_middleware(OnceMiddleware())


def test_a_client_that_was_handed_in_has_one_store() -> None:
    """Each call made a store of its own, with an INFO and connections."""
    broker = StubBroker(middleware=[])
    ours = OnceMiddleware(client=fakeredis.FakeRedis())
    broker.add_middleware(ours)

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: int) -> None: ...

    for unit in range(5):
        work.send_with_options(args=(unit,), once={"ttl": 60})

    assert len(ours.binding(broker)._stores) == 1


def test_middleware_that_comes_after_the_worker_lets_delayed_messages_through() -> None:
    """In a notebook: what was due was taken for a message that is sent twice, and vanished."""
    broker = StubBroker(middleware=[])
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    broker.add_middleware(OnceMiddleware())
    ran = []

    @dramatiq.actor(broker=broker, once=True)
    def work(unit: int) -> None:
        ran.append(unit)

    work.send_with_options(args=(1,), delay=100)
    try:
        wait_until(lambda: ran == [1], "it runs")
    finally:
        worker.stop()


def test_an_empty_dict_asks_for_a_guard_at_a_message_too(broker: StubBroker) -> None:
    """As it does at an actor."""

    @dramatiq.actor(broker=broker)
    def work(unit: int) -> None: ...

    first = work.send_with_options(args=(1,), once={})
    assert work.send_with_options(args=(1,), once={}).message_id == first.message_id


def test_an_actor_that_is_guarded_no_more_runs_what_was_sent_before(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """A new release with once=False dead-lettered all that the old one had sent."""
    ran = []

    @dramatiq.actor(broker=broker, once=True)
    def change(unit: int) -> None:
        ran.append(unit)

    change.send(1)
    change.options["once"] = False
    work()

    wait_until(lambda: ran == [1], "it runs")
    with pytest.raises(ConfigurationError, match="is not under guard"):
        is_locked(change, 1)


def test_a_dead_letter_that_is_sent_again_and_redelivered_runs_in_scope_running() -> None:
    """The result of its first run made it a late copy of that: the trigger was lost."""
    backend = StubBackend()
    broker = StubBroker(middleware=[])
    broker.add_middleware(Results(backend=backend))  # type: ignore[no-untyped-call]
    broker.add_middleware(OnceMiddleware())
    ran = []

    @dramatiq.actor(broker=broker, once={"scope": "running"}, store_results=True)
    def again(unit: int) -> int:
        ran.append(unit)
        return unit

    consume = broker.consume

    def consume_redelivered(*args: Any, **kwargs: Any) -> Any:
        consumer = consume(*args, **kwargs)
        take = consumer.__next__

        class Redelivered:
            def __iter__(self) -> Redelivered:
                return self

            def __next__(self) -> Any:
                message = take()
                if message is not None:
                    message.redelivered = True  # as RabbitMQ says of what was only prefetched
                return message

            def __getattr__(self, name: str) -> Any:
                return getattr(consumer, name)

        return Redelivered()

    broker.consume = consume_redelivered  # type: ignore[method-assign]
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    try:
        message = again.message(1)
        broker.enqueue(message)
        wait_until(lambda: ran == [1], "it runs")
        broker.join("default", timeout=10_000)
        broker.enqueue(message)
        wait_until(lambda: ran == [1, 1], "it runs again")
    finally:
        worker.stop()


def test_the_first_message_of_a_thread_that_other_middleware_lets_fail_is_retried() -> None:
    """The thread was not yet known as a worker's: its retry was taken for a message sent twice."""

    class Limiter(Middleware):
        calls = 0

        def before_process_message(self, broker: Any, message: Any) -> None:
            self.calls += 1
            if self.calls == 1:
                raise MiddlewareError("not now")

    broker = StubBroker(middleware=[Retries(min_backoff=10, max_backoff=10), Limiter()])
    broker.add_middleware(OnceMiddleware())
    ran = []

    @dramatiq.actor(broker=broker, once=True)
    def late(unit: int) -> None:
        ran.append(unit)

    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    late.send(1)
    try:
        wait_until(lambda: ran == [1], "it runs")
    finally:
        worker.stop()


def test_a_time_limit_that_strikes_while_a_message_is_put_back_loses_nothing(
    broker: StubBroker, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen broker: the first attempt to put it back takes longer than the actor may."""
    ran: list[int] = []
    queue = broker.queues

    @dramatiq.actor(broker=broker, once=True, time_limit=100)
    def late(unit: int) -> None:
        ran.append(unit)

    late.send(1)
    run, put = Store.run, queue["default.DQ"].put
    away, refusals = threading.Event(), []
    away.set()

    def run_or_fail(self: Store, step: Any) -> Any:
        if away.is_set():
            raise StoreUnavailableError("away")
        return run(self, step)

    def put_or_hang(message: bytes) -> None:
        if away.is_set():
            refusals.append(message)
            threading.Event().wait(0.5)  # longer than the time limit, which strikes afterwards
            raise ConnectionClosed("away")
        put(message)

    monkeypatch.setattr(Store, "run", run_or_fail)
    monkeypatch.setattr(queue["default.DQ"], "put", put_or_hang)
    work()
    wait_until(lambda: len(refusals) >= 2, "it could not be put back twice")
    away.clear()

    wait_until(lambda: ran == [1], "it runs")


def test_a_message_that_waits_long_is_put_back_less_and_less_often(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """Each delay may be twice the one before; taken for a retry, it came back every second."""
    gate, ran = threading.Event(), []

    @dramatiq.actor(broker=broker, once={"key": ["unit"], "lease": 60})
    def late(unit: int, is_held: bool = False) -> None:
        ran.append(is_held)
        if is_held:
            assert gate.wait(60)

    seen: list[Event] = []
    stop = subscribe(seen.append)
    work()
    late.send(1, True)
    wait_until(lambda: ran == [True], "the first runs")
    late.send(1)
    try:
        wait_until(
            lambda: any(each.kind == "deferred" and (each.delay or 0) > 2.5 for each in seen),
            "it was put back for longer than 2.5 s",
        )
    finally:
        stop()
        gate.set()
    wait_until(lambda: ran == [True, False], "it runs")


def test_a_body_that_enqueues_its_own_message_again_runs_again(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """Also where the scope refuses others while it runs: it counts on itself."""
    broker.add_middleware(CurrentMessage())
    ran = []

    @dramatiq.actor(broker=broker, once={"scope": "until_done"})
    def again(unit: int) -> None:
        ran.append(unit)
        message = CurrentMessage.get_current_message()
        if len(ran) == 1 and message is not None:
            broker.enqueue(message)

    work()
    again.send(1)

    wait_until(lambda: ran == [1, 1], "it runs again")
    wait_until(lambda: not is_locked(again, 1), "its unit is free")


def test_a_message_that_is_put_back_stays_in_the_unit_of_its_call(
    broker: StubBroker, work: Callable[[], None]
) -> None:
    """Its key is the one that its call was given, not what the worker would derive."""
    gate, ran, met = threading.Event(), [], []

    @dramatiq.actor(broker=broker, once={"key": ["unit"], "lease": 60})
    def late(unit: int, is_held: bool = False) -> None:
        ran.append(is_held)
        if is_held:
            assert gate.wait(60)

    own = {"name": "the unit of these calls"}
    stop = subscribe(lambda event: met.append(event.key) if event.kind == "deferred" else None)
    work()
    late.send_with_options(args=(1, True), once=own)
    wait_until(lambda: ran == [True], "the first runs")
    late.send_with_options(args=(1,), once=own)
    try:
        wait_until(lambda: len(met) >= 2, "the second met it twice")
    finally:
        stop()
        gate.set()
    assert len(set(met)) == 1
    wait_until(lambda: ran == [True, False], "it runs")


def test_a_message_that_is_too_old_refuses_nobody_while_no_worker_looks_at_it(
    broker: StubBroker,
) -> None:
    """It will not run any more from then on, wherever it is."""

    @dramatiq.actor(broker=broker, once=True)
    def late(unit: int) -> None: ...

    late.send_with_options(args=(1,), max_age=500)
    assert is_locked(late, 1)

    wait_until(lambda: not is_locked(late, 1), "its unit is free", within=20)


def test_a_time_limit_that_strikes_between_start_and_body_frees_the_unit(
    broker: StubBroker, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message met its own attempt, whose lease was renewed as long as the process lived."""
    ran, strikes = [], []
    enter = Attempt.enter_body

    def strike_once(self: Attempt) -> None:
        enter(self)
        if not strikes:
            strikes.append(self)
            raise TimeLimitExceeded

    monkeypatch.setattr(Attempt, "enter_body", strike_once)

    @dramatiq.actor(broker=broker, once=True)
    def late(unit: int) -> None:
        ran.append(unit)

    work()
    late.send(1)

    wait_until(lambda: ran == [1], "it runs")
    wait_until(lambda: not is_locked(late, 1), "its unit is free")
