"""The broker gives a message out again and again: its body runs once, and its result is there.

Celery's oldest complaints: #3270 and #5935, an ETA or a body longer than the visibility_timeout of
a Redis broker; and a connection to RabbitMQ that is lost while a body goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from _support.cuttable import Cuttable
from _support.deployment import AMQP_URL, Deployment
from _support.redelivery import sweeping
from _support.scenes import PREFORK, hold, ids, let_go
from _support.waiting import wait_until
from _support.ways_in_tasks import carried_by, is_logged
from _support.workers import CeleryWorker

from once_core.devserver import DevServer

SOON_REDELIVERED = {
    "visibility_timeout": 2,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
"""Of kombu's Redis transport: what is not acked within 2 s is given out again."""

MANY = 20


def received(scene: Deployment, task: str, message_id: str) -> int:
    """How often workers were given a message, be it by the broker or by once."""
    line = f"Task {task}[{message_id}] received"
    return sum(worker.log.count(line) for worker in scene.workers)


def logged(scene: Deployment, kind: str, message_id: str) -> int:
    """How often workers told of such a decision about a message."""
    lines = [line for worker in scene.workers for line in worker.log.splitlines()]
    return sum(1 for line in lines if kind in line and f"message_id={message_id}" in line)


def redelivered(scene: Deployment, task: str, message_id: str) -> int:
    """How often the broker gave a message out again of its own accord."""
    put_back = logged(scene, "deferred", message_id)
    return received(scene, task, message_id) - 1 - put_back


def wait_until_idle(scene: Deployment) -> None:
    """Wait until no worker holds a message, be it a copy, and the broker has none."""
    names = [worker.name for worker in scene.workers]  # others may be on the same RabbitMQ
    inspect = scene.app.control.inspect(names, timeout=5, limit=len(names))
    busy: dict[str, object] = {}

    def is_idle() -> bool:
        busy.clear()
        for kind in ("active", "reserved", "scheduled"):
            held = getattr(inspect, kind)()
            if held != {name: [] for name in names}:
                busy[kind] = held
                return False
        if scene.broker == "redis":
            busy["unacked"] = scene.store.client().hlen("unacked")
        busy["queued"] = scene.queued()
        return not any(busy.values())

    try:
        wait_until(is_idle, "every copy has ended, and was acked", within=60)
    except AssertionError as error:
        raise AssertionError(f"{error}; {busy}") from None


# Redis, visibility_timeout


@pytest.mark.slow
def test_twenty_tasks_longer_than_the_visibility_timeout_run_once_each(
    server: DevServer, deploy: Callable[..., Deployment], unit: str
) -> None:
    """Each message is given out again while its body runs: twenty redeliveries, twenty bodies."""
    conf = {"broker_transport_options": SOON_REDELIVERED, "worker_prefetch_multiplier": 1}
    scene = deploy(store=server, pool="threads", concurrency=MANY, conf=conf)
    units = [f"{unit}-{number}" for number in range(MANY)]

    with sweeping(scene):
        for _ in range(2):
            scene.worker()
        handles = [scene.task("work_late").delay(each, 4.5) for each in units]
        results = [handle.get(timeout=30) for handle in handles]
        wait_until_idle(scene)

    copies = [redelivered(scene, "work_late", handle.id) for handle in handles]
    assert results == [f"done {each}" for each in units]
    assert [len(scene.runs(each)) for each in units] == [1] * MANY
    assert sum(copies) >= MANY, "too few redeliveries: the test shows nothing"


@pytest.mark.slow
def test_an_eta_longer_than_the_visibility_timeout_runs_once(
    server: DevServer, deploy: Callable[..., Deployment], unit: str
) -> None:
    """Two workers hold the same messages until they are due, with and without acks_late."""
    conf = {"broker_transport_options": SOON_REDELIVERED}
    scene = deploy(store=server, pool="threads", concurrency=4, conf=conf)
    calls = [("work", "work_late")[number % 2] for number in range(MANY)]

    with sweeping(scene):
        for _ in range(2):
            scene.worker()
        handles = [
            scene.task(task).apply_async((f"{unit}-{number}",), countdown=5)
            for number, task in enumerate(calls)
        ]
        results = [handle.get(timeout=40) for handle in handles]
        wait_until_idle(scene)

    copies = [redelivered(scene, task, each.id) for task, each in zip(calls, handles, strict=True)]
    assert results == [f"done {unit}-{number}" for number in range(MANY)]
    assert [len(scene.runs(f"{unit}-{number}")) for number in range(MANY)] == [1] * MANY
    assert sum(copies) >= MANY, "too few redeliveries: the test shows nothing"


NO_HANDS = [False, pytest.param(True, id="result ignored")]


@pytest.mark.slow
@pytest.mark.parametrize("ignored", NO_HANDS)
def test_a_task_longer_than_the_visibility_timeout_on_a_worker_with_no_other_hands(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, ignored: bool
) -> None:
    """The copy is only looked at when the body has ended, and does not run it again."""
    conf = {"broker_transport_options": SOON_REDELIVERED}
    scene = deploy(store=server, pool="threads", concurrency=1, conf=conf)

    with sweeping(scene):
        scene.worker()
        handle = scene.task("work_late").apply_async((unit, -1), ignore_result=ignored)
        wait_until(lambda: received(scene, "work_late", handle.id) > 1, "it was given out again")
        let_go(scene, unit)
        wait_until_idle(scene)

    assert ignored or handle.get(timeout=20) == f"done {unit}"
    assert len(scene.runs(unit)) == 1


# Any broker: the same message, many times


@pytest.fixture
def copies_of(scene: Deployment) -> Iterator[Callable[[str, int], None]]:
    """Puts copies of a message, byte for byte, into the scene's queue.

    The message is one that was sent to the queue `nobody-UNIT`.
    """
    with scene.app.connection_for_write() as connection:
        channel = connection.default_channel
        found: dict[str, Any] = {}

        def copy(unit: str, times: int) -> None:
            if unit not in found:
                queue = scene.app.amqp.queues[f"nobody-{unit}"](channel)
                found[unit] = wait_until(lambda: queue.get(no_ack=True), "it was sent")
                queue.delete()
            message = found[unit]
            for _ in range(times):
                connection.Producer(channel).publish(
                    message.body,
                    routing_key=str(scene.settings["task_default_queue"]),
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                    correlation_id=message.properties["correlation_id"],
                    reply_to=message.properties["reply_to"],
                )

        yield copy


@pytest.mark.parametrize("scene", [PREFORK, "threads+redis", "prefork+rabbitmq"], indirect=True)
def test_one_message_given_out_thirty_times_runs_once(
    scene: Deployment, unit: str, copies_of: Callable[[str, int], None]
) -> None:
    """While its body runs and after it: one body, with the headers it was sent with, one value."""
    task, queue = scene.task("carrying"), f"nobody-{unit}"
    handle = task.apply_async((unit, -1), queue=queue, headers={"tenant": "a1"}, root_id="the-root")

    copies_of(unit, MANY)
    wait_until(lambda: logged(scene, "deferred", handle.id) >= MANY - 1, "the others met the first")
    let_go(scene, unit)
    value = handle.get(timeout=20)
    copies_of(unit, MANY // 2)
    wait_until(
        lambda: logged(scene, "repeated", handle.id) >= MANY - 1 + MANY // 2,
        "every copy was recognised",
    )

    assert value == handle.get(timeout=20) == f"done {unit}"
    assert [(run.message_id, run.retries) for run in scene.runs(unit)] == [(handle.id, 0)]
    (facts,) = carried_by(scene, unit, handle.id)
    assert (facts["headers"], facts["root_id"]) == ({"tenant": "a1"}, "the-root")
    assert not task.is_locked(unit)


def test_copies_of_a_message_in_a_chain_continue_it_once(
    scene: Deployment, unit: str, copies_of: Callable[[str, int], None]
) -> None:
    """A step that is given out again and again is followed by one next step."""
    step = scene.task("work").si(unit, -1).set(queue=f"nobody-{unit}")
    result = (step | scene.task("plain").si(f"{unit}-next"))()

    copies_of(unit, 5)
    wait_until(lambda: logged(scene, "deferred", result.parent.id) >= 4, "they met the first")
    let_go(scene, unit)
    wait_until(lambda: logged(scene, "repeated", result.parent.id) == 4, "each was recognised")

    assert result.get(timeout=20) == f"done {unit}-next"
    assert (len(scene.runs(unit)), len(scene.runs(f"{unit}-next"))) == (1, 1)


def test_a_late_copy_of_a_message_behind_which_another_ran(
    scene: Deployment, unit: str, copies_of: Callable[[str, int], None]
) -> None:
    """One ran and was given out again meanwhile, the next one waited and ran: each once."""
    task = scene.task("carrying")
    first = task.apply_async((unit, -1), queue=f"nobody-{unit}")
    copies_of(unit, 2)
    wait_until(lambda: logged(scene, "deferred", first.id), "the copy met its own body")
    second = task.delay(unit)
    wait_until(lambda: logged(scene, "deferred", second.id), "the second waits for its turn")
    let_go(scene, unit)
    assert second.get(timeout=20) == f"done {unit}"
    wait_until(lambda: not task.is_locked(unit), "both have ended")

    copies_of(unit, 1)
    wait_until(lambda: logged(scene, "repeated", first.id) == 2, "both copies were recognised")

    assert sorted(ids(scene, unit)) == sorted([first.id, second.id])


# RabbitMQ, connection loss


@pytest.fixture
def proxy(rabbitmq: str) -> Iterator[Cuttable]:
    """The way to RabbitMQ of the test's workers."""
    address = urlsplit(rabbitmq)
    proxy = Cuttable(str(address.hostname), address.port or 5672)
    yield proxy
    proxy.close()


@pytest.fixture
def lossy(
    deploy: Callable[..., Deployment], proxy: Cuttable
) -> Callable[..., tuple[Deployment, CeleryWorker]]:
    """Makes a scene on RabbitMQ with a prefork worker whose connections can be cut.

    In the threads pool plain Celery 5.7 loses ETAs then: threads ack on a connection that is gone.
    """

    def make(**options: Any) -> tuple[Deployment, CeleryWorker]:
        scene = deploy(broker="rabbitmq", **options)
        netloc = urlsplit(AMQP_URL).netloc.rpartition("@")[0]
        scene.settings["broker_url"] = f"amqp://{netloc}@127.0.0.1:{proxy.port}//"
        scene.settings["worker_cancel_long_running_tasks_on_connection_loss"] = False
        return scene, scene.worker()

    return make


Lossy = Callable[..., tuple[Deployment, CeleryWorker]]


def acked_in_the_end(scene: Deployment, worker: CeleryWorker) -> bool:
    """Whether nothing comes back to the queue from a worker that did all its work."""
    wait_until_idle(scene)
    worker.kill()
    return scene.queued() == 0


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_connection_to_rabbitmq_that_is_lost_while_the_body_goes_on(
    lossy: Lossy, proxy: Cuttable, unit: str
) -> None:
    """The broker gives the message out again at once; the body runs once, its value counts."""
    scene, worker = lossy(concurrency=2)
    handle = hold(scene, unit, "work_late")

    for times in (1, 2):
        assert proxy.cut() > 0
        wait_until(
            lambda: redelivered(scene, "work_late", handle.id) >= times,  # noqa: B023
            "it was given out again",
        )
    wait_until(lambda: is_logged(scene, "deferred", handle.id), "it met its own body")
    let_go(scene, unit)

    assert handle.get(timeout=20) == f"done {unit}"
    wait_until(lambda: is_logged(scene, "repeated", handle.id), "the copy was recognised")
    wait_until(lambda: not scene.task("work_late").is_locked(unit, -1), "the unit is free")
    assert acked_in_the_end(scene, worker)
    assert len(scene.runs(unit)) == 1
    assert handle.get(timeout=20) == f"done {unit}"


@pytest.mark.slow
@pytest.mark.rabbitmq
@pytest.mark.parametrize("ignored", NO_HANDS)
def test_a_connection_to_rabbitmq_that_is_lost_by_a_worker_with_no_other_hands(
    lossy: Lossy, proxy: Cuttable, unit: str, ignored: bool
) -> None:
    """The copy is only looked at when the body has ended, and does not run it again."""
    scene, worker = lossy(concurrency=1)
    handle = scene.task("work_late").apply_async((unit, -1), ignore_result=ignored)
    wait_until(lambda: scene.runs(unit), "the body runs")

    proxy.cut()
    wait_until(lambda: received(scene, "work_late", handle.id) > 1, "it was given out again")
    let_go(scene, unit)

    assert ignored or handle.get(timeout=20) == f"done {unit}"
    assert acked_in_the_end(scene, worker)
    assert len(scene.runs(unit)) == 1


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_connection_to_rabbitmq_that_is_lost_while_messages_wait_in_the_worker(
    lossy: Lossy, proxy: Cuttable, unit: str
) -> None:
    """A message with an ETA, and one that was put back, are given out again and run once."""
    scene, worker = lossy(concurrency=2)
    work = scene.task("work")
    running = hold(scene, unit)
    deferred = work.delay(unit, -1)
    wait_until(lambda: is_logged(scene, "deferred", deferred.id), "it met the running one")
    later = work.apply_async((f"{unit}-eta",), countdown=2)
    wait_until(lambda: received(scene, "work", later.id), "the worker holds it")

    proxy.cut()
    wait_until(lambda: received(scene, "work", later.id) > 1, "it was given out again")
    let_go(scene, unit)

    assert later.get(timeout=20) == f"done {unit}-eta"
    assert deferred.get(timeout=20) == running.get(timeout=20) == f"done {unit}"
    wait_until(lambda: not work.is_locked(unit, -1), "the unit is free")
    assert acked_in_the_end(scene, worker)
    assert ids(scene, unit) == [running.id, deferred.id]
    assert ids(scene, f"{unit}-eta") == [later.id]
