"""`limit=` for Celery tasks and Dramatiq actors: so many run at once, the next one is deferred."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import dramatiq
import pytest
from _support.waiting import wait_until
from celery import Celery
from celery.contrib.testing.worker import start_worker
from dramatiq.brokers.stub import StubBroker

from once_celery import OnceTask
from once_core import Event, OncePublish, subscribe
from once_core.devserver import DevServer
from once_dramatiq import OnceMiddleware, published

Send = Callable[[str], OncePublish]

# as errors, warnings of Celery's end the threads of its pool, and nobody hears of it
pytestmark = pytest.mark.filterwarnings("default")


class Bodies:
    """Bodies that go on until they are let go.

    Attributes:
        inside: How many run.
        most: How many ran at once at most.
        runs: How many have begun.
    """

    def __init__(self) -> None:
        self.inside = self.most = self.runs = 0
        self._lock = threading.Lock()
        self._may_end = threading.Semaphore(0)

    def run(self) -> None:
        """One body."""
        with self._lock:
            self.runs += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self._may_end.acquire(timeout=60)
        with self._lock:
            self.inside -= 1

    def let_go(self, count: int) -> None:
        """So many may end."""
        for _ in range(count):
            self._may_end.release()


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Kinds of all events of this process, as they happen."""
    seen: list[str] = []

    def note(event: Event) -> None:
        seen.append(event.kind)

    stop = subscribe(note)
    yield seen
    stop()


@pytest.fixture
def bodies() -> Iterator[Bodies]:
    """For one test; none is left running."""
    made = Bodies()
    yield made
    made.let_go(100)


@pytest.fixture(params=["celery", "dramatiq"])
def sender(
    request: pytest.FixtureRequest, shared_server: DevServer, unit: str, bodies: Bodies
) -> Iterator[Callable[..., Send]]:
    """Defines a task with options, has a worker with four threads run it, and sends."""
    name, url = f"check-{unit}", shared_server.url
    app = Celery(f"shop-{unit}", broker=url, backend=url, set_as_current=False)
    app.conf.update(once_url=url, task_default_queue=unit, broker_connection_retry_on_startup=True)
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware(url=url))
    with ExitStack() as stack:
        stack.callback(app.close)
        stack.callback(broker.close)

        def define_celery(**options: Any) -> Send:
            @app.task(base=OnceTask, once=options, name=name)
            def check(order: str) -> None:
                bodies.run()

            worker = start_worker(app, pool="threads", concurrency=4, perform_ping_check=False)
            stack.enter_context(worker)
            stack.callback(bodies.let_go, 100)  # or the worker waits for them
            return lambda order: check.delay(order).once

        def define_dramatiq(**options: Any) -> Send:
            @dramatiq.actor(broker=broker, actor_name=name, once=options)
            def check(order: str) -> None:
                bodies.run()

            worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=4)
            worker.start()
            stack.callback(worker.stop)
            stack.callback(bodies.let_go, 100)
            return lambda order: published(check.send(order))

        yield define_celery if request.param == "celery" else define_dramatiq


def test_two_run_at_once_and_the_third_is_deferred(
    sender: Callable[..., Send], unit: str, bodies: Bodies, told: list[str]
) -> None:
    """With `limit=2` a third message waits for one of two to end, and a fourth is refused."""
    send = sender(limit=2)

    for count in (1, 2):
        assert not send(unit).is_duplicate
        wait_until(lambda count=count: bodies.inside == count, f"{count} run")  # type: ignore[misc]  # mypy and defaults
    assert not send(unit).is_duplicate
    wait_until(lambda: "deferred" in told, "the third one is deferred")
    assert send(unit).is_duplicate
    assert bodies.inside == 2

    bodies.let_go(1)
    wait_until(lambda: bodies.runs == 3, "the third one runs")
    assert bodies.most == 2


def test_another_unit_has_slots_of_its_own(
    sender: Callable[..., Send], unit: str, bodies: Bodies
) -> None:
    """The limit is one of each unit of work, not of the task."""
    send = sender(limit=2)

    for count, name in enumerate([unit, f"{unit}-b", unit, f"{unit}-b"], 1):
        assert not send(name).is_duplicate
        wait_until(lambda count=count: bodies.inside == count, f"{count} run")  # type: ignore[misc]  # mypy and defaults

    assert bodies.most == 4


def test_until_done_refuses_while_all_slots_are_taken(
    sender: Callable[..., Send], unit: str, bodies: Bodies
) -> None:
    """With `scope="until_done"` two may run; a third publish is refused until one has ended."""
    send = sender(limit=2, scope="until_done")

    for count in (1, 2):
        assert not send(unit).is_duplicate
        wait_until(lambda count=count: bodies.inside == count, f"{count} run")  # type: ignore[misc]  # mypy and defaults
    refused = send(unit)
    assert (refused.is_duplicate, refused.state) == (True, "running")

    bodies.let_go(1)
    wait_until(lambda: bodies.inside == 1, "one has ended")
    wait_until(lambda: not send(unit).is_duplicate, "the next publish is accepted")
    wait_until(lambda: bodies.runs == 3, "it runs")
    assert bodies.most == 2


def test_only_skip_ends_what_overlaps(
    sender: Callable[..., Send], unit: str, bodies: Bodies, told: list[str]
) -> None:
    """With `on_overlap="skip"` the third message ends without running."""
    send = sender(limit=2, scope="running", on_overlap="skip")

    for count in (1, 2):
        send(unit)
        wait_until(lambda count=count: bodies.inside == count, f"{count} run")  # type: ignore[misc]  # mypy and defaults
    send(unit)

    wait_until(lambda: "skipped" in told, "the third one is skipped")
    assert bodies.runs == 2
