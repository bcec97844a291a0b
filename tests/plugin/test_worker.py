"""Workers that a test starts in a process of their own, kills, freezes and stops."""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pytest
import redis
from _support.rabbitmq import PIKA_URL
from _support.waiting import wait_until

from once_core._orphans import is_alive
from once_core.devserver import DevServer
from once_core.errors import ConfigurationError
from once_core.events import Event, subscribe
from once_pytest._worker_child import _line
from once_pytest.worker import WorkerProcess, _states, start_worker

HAS_CELERY, HAS_DRAMATIQ = (
    importlib.util.find_spec(name) is not None for name in ("celery", "dramatiq")
)
POOLS = {
    "solo": {},
    "threads": {"pool": "threads", "concurrency": 2},
    "prefork": {"concurrency": 2},
    "dramatiq": {"concurrency": 2},
}
LEASE = 1.0


@dataclass
class Scene:
    """One app or broker with one task, whose bodies tell a Redis what they did."""

    kind: str
    url: str
    unit: str
    amqp: str = ""
    seen: list[Event] = field(default_factory=list)
    workers: list[WorkerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = f"q-{self.unit}"
        self.redis = redis.Redis.from_url(self.url)
        self.target, self.task = (self._dramatiq if self.kind == "dramatiq" else self._celery)()

    def _body(self) -> Callable[..., int]:
        url = self.url

        def work(unit: str, is_held: bool = False) -> int:
            with redis.Redis.from_url(url, socket_timeout=60) as client:
                print("a body of", unit)
                client.rpush(f"{unit}:ran", os.getpid())
                if is_held:
                    client.blpop([f"{unit}:go"], timeout=40)
                return client.rpush(f"{unit}:ended", os.getpid())

        return work

    def _celery(self) -> tuple[Any, Any]:
        from celery import Celery

        from once_celery import OnceTask

        app = Celery("scene", set_as_current=False)
        app.conf.update(
            broker_url=self.amqp or self.url,
            result_backend=self.url,
            task_default_queue=self.queue,
            once_lease=LEASE,
            once_url=self.url,
        )
        return app, app.task(name="work", base=OnceTask, shared=False, once={"key": ["unit"]})(
            self._body()
        )

    def _dramatiq(self) -> tuple[Any, Any]:
        import dramatiq

        from once_dramatiq import OnceMiddleware

        broker = self._bare_broker()
        broker.add_middleware(OnceMiddleware(url=self.url, lease=LEASE))
        declare = dramatiq.actor(broker=broker, queue_name=self.queue, once={"key": ["unit"]})
        return broker, declare(self._body())

    def _bare_broker(self) -> Any:
        if self.amqp:
            from dramatiq.brokers.rabbitmq import RabbitmqBroker

            return RabbitmqBroker(url=PIKA_URL)
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=self.url)

    def start(self, **options: Any) -> WorkerProcess:
        """A worker of this scene's kind."""
        options = {"on_event": self.seen.append, **POOLS[self.kind], **options}
        self.workers.append(start_worker(self.target, **options))
        return self.workers[-1]

    def send(self, is_held: bool = False) -> str:
        """Trigger the unit; returns the message's id."""
        if self.kind == "dramatiq":
            return self.task.send(self.unit, is_held).message_id
        return self.task.delay(self.unit, is_held).id

    def pids(self, what: str) -> list[int]:
        """Processes in which bodies ran or ended."""
        return [int(pid) for pid in self.redis.lrange(f"{self.unit}:{what}", 0, -1)]

    def is_locked(self) -> bool:
        if self.kind == "dramatiq":
            from once_dramatiq import is_locked

            return is_locked(self.task, self.unit)
        return bool(self.task.is_locked(self.unit))

    def release_bodies(self) -> None:
        self.redis.rpush(f"{self.unit}:go", 1, 1, 1)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self.amqp:
            delete_queues(self.queue)
        if self.kind == "dramatiq":
            self.target.close() if self.amqp else self.target.client.close()
        else:
            self.target.close()
        self.redis.close()


@pytest.fixture(params=POOLS)
def scene(request: pytest.FixtureRequest, shared_server: DevServer, unit: str) -> Iterator[Scene]:
    """One of each kind of worker."""
    with _scene(request.param, shared_server, unit) as made:
        yield made


@pytest.fixture(params=["solo", "dramatiq"])
def plain_scene(
    request: pytest.FixtureRequest, shared_server: DevServer, unit: str
) -> Iterator[Scene]:
    """One of each task queue."""
    with _scene(request.param, shared_server, unit) as made:
        yield made


def delete_queues(name: str) -> None:
    """Of both task queues, on RabbitMQ."""
    with pika.BlockingConnection(pika.URLParameters(PIKA_URL)) as connection:
        for each in (name, f"{name}.DQ", f"{name}.XQ"):
            connection.channel().queue_delete(each)


@contextmanager
def _scene(kind: str, server: DevServer, unit: str, amqp: str = "") -> Iterator[Scene]:
    if not (HAS_DRAMATIQ if kind == "dramatiq" else HAS_CELERY):
        pytest.skip("its task queue is not installed")
    made = Scene(kind, server.url, unit, amqp)
    try:
        yield made
    finally:
        made.close()


def test_runs_in_another_process(scene: Scene) -> None:
    """A task defined in the test runs in the worker's processes; its events come in order."""
    worker = scene.start()

    sent = scene.send()
    started, finished = worker.wait_for("started"), worker.wait_for("finished")

    assert (started.message_id, finished.message_id) == (sent, sent)
    ran = scene.pids("ran")
    assert os.getpid() not in ran
    assert (ran == [worker.pid]) == (scene.kind != "prefork")
    worker.stop()
    kinds = [event.kind for event in scene.seen if event.message_id == sent]
    assert [kind for kind in kinds if kind in ("started", "finished")] == ["started", "finished"]
    assert scene.pids("ended") == ran


def test_killed_in_the_middle_of_a_body(scene: Scene) -> None:
    """A killed worker takes its children along, and another runs the unit once the lease lapses."""
    first = scene.start()
    scene.send(is_held=True)
    first.wait_for("started")
    wait_until(lambda: scene.pids("ran"), "the body runs")

    first.kill()

    assert not first.is_alive
    assert _states(first.pid) == []
    assert "finished" not in [event.kind for event in scene.seen]
    second = scene.start()
    scene.send()
    second.wait_for("finished")
    assert len(scene.pids("ran")) == 2
    assert set(scene.pids("ended")) == {scene.pids("ran")[1]}


def test_frozen_past_its_lease(scene: Scene) -> None:
    """A worker frozen for longer than its lease says so when it is thawed, and goes on."""
    worker = scene.start()
    scene.send(is_held=True)
    worker.wait_for("started")
    wait_until(lambda: scene.pids("ran"), "the body runs")

    worker.freeze()
    states = _states(worker.pid)
    wait_until(lambda: not scene.is_locked(), "the lease lapses")
    worker.thaw()

    assert set(states) == {"T"}
    assert "stood still" in worker.wait_for("lease_lost").reason
    scene.release_bodies()
    worker.wait_for("finished")
    worker.stop()
    assert scene.pids("ended") == scene.pids("ran")


def test_stop_is_warm(scene: Scene) -> None:
    """A body that runs comes to its end before the worker stops, which leaves nobody behind."""
    worker = scene.start()
    scene.send(is_held=True)
    worker.wait_for("started")
    wait_until(lambda: scene.pids("ran"), "the body runs")

    os.kill(worker.pid, signal.SIGTERM)
    scene.release_bodies()
    worker.stop(within=30)

    assert scene.pids("ended") == scene.pids("ran")
    assert [event.kind for event in scene.seen].count("finished") == 1
    assert _states(worker.pid) == []
    worker.stop()
    worker.kill()


def test_stop_that_takes_too_long(plain_scene: Scene) -> None:
    """A worker whose body does not end in time is killed, and the error shows its log."""
    worker = plain_scene.start()
    plain_scene.send(is_held=True)
    worker.wait_for("started")
    wait_until(lambda: "a body of" in worker.log, "the body has printed")

    with pytest.raises(AssertionError) as caught:
        worker.stop(within=0.2)

    assert str(caught.value).startswith("the worker did not end within 0.2 s of SIGTERM")
    assert f"a body of {plain_scene.unit}" in str(caught.value)
    assert _states(worker.pid) == []


def test_stop_of_a_frozen_worker(plain_scene: Scene) -> None:
    """A frozen worker is thawed to be stopped."""
    worker = plain_scene.start()
    worker.freeze()

    worker.stop()

    assert not worker.is_alive


def test_kill_of_a_frozen_worker(scene: Scene) -> None:
    """A frozen worker can be killed."""
    worker = scene.start()
    worker.freeze()

    worker.kill()

    assert _states(worker.pid) == []


def test_freeze_of_a_dead_worker(plain_scene: Scene) -> None:
    """Nobody can freeze a worker that is gone."""
    worker = plain_scene.start()
    worker.kill()

    with pytest.raises(AssertionError, match="cannot be frozen: ended by SIGKILL"):
        worker.freeze()


def test_parent_publishes_all_the_time(scene: Scene) -> None:
    """The test publishes, and hears of results, before, beside and after its workers."""
    handles = [scene.send()]
    first = scene.start()
    for _ in range(2):
        first.wait_for("finished")
        handles.append(scene.send())
    first.wait_for("finished")
    second = scene.start()
    handles.append(scene.send())
    wait_until(lambda: len(scene.pids("ended")) == 4, "it ran on one of two workers")
    first.kill()
    second.stop()

    handles.append(scene.send())
    third = scene.start()

    third.wait_for("finished")
    assert len(scene.pids("ended")) == 5
    assert len(set(handles)) == 5


@pytest.mark.skipif(not HAS_CELERY, reason="is about Celery's results")
@pytest.mark.parametrize("scene", ["solo", "threads", "prefork"], indirect=True)
def test_results_reach_the_test(scene: Scene) -> None:
    """Results come over the connection that the test had before, also from bodies that call."""
    from once_celery import OnceTask

    @scene.target.task(name="caller", base=OnceTask, shared=False)
    def caller(unit: str) -> str:
        return scene.task.delay(unit).id

    unit = scene.unit
    waiting = scene.task.delay(unit, False)
    first = scene.start()
    assert waiting.get(timeout=20) == 1
    second = scene.start()
    inner = caller.delay(unit).get(timeout=20)

    assert scene.target.AsyncResult(inner).get(timeout=20) == 2
    assert scene.task.delay(unit).get(timeout=20) == 3
    first.kill()
    assert scene.task.delay(f"{unit}-other").get(timeout=20) == 1
    second.stop()


def test_log_is_the_workers_alone(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    """What a worker prints and logs is in its log, and not in the test's output."""
    worker = scene.start()
    scene.send()
    worker.wait_for("finished")
    worker.stop()

    captured = capfd.readouterr()

    assert f"a body of {scene.unit}" in worker.log
    assert "INFO" in worker.log
    assert (captured.out, captured.err) == ("", "")


def test_warnings_do_not_fail_a_worker(plain_scene: Scene) -> None:
    """Where tests make warnings errors, in the worker they are lines of its log."""

    def warn(event: Event) -> None:
        warnings.warn(f"on {event.kind}", stacklevel=1)

    stop = subscribe(warn)
    logging.captureWarnings(capture=True)  # as an earlier test may have left it
    try:
        worker = plain_scene.start()
    finally:
        logging.captureWarnings(capture=False)
    stop()
    plain_scene.send()

    worker.wait_for("finished")
    assert "on started" in worker.log


def test_wait_for_takes_each_event_once(plain_scene: Scene) -> None:
    """An event that came before the call counts, and counts once."""
    worker = plain_scene.start()
    sent = []
    for _ in range(3):
        sent.append(plain_scene.send())
        wait_until(lambda: len(plain_scene.pids("ended")) == len(sent), "it ended")

    assert [worker.wait_for("started").message_id for _ in sent] == sent
    with pytest.raises(AssertionError, match=r"no event 'started' \(number 4\) from the worker"):
        worker.wait_for("started", within=0)


def test_wait_for_what_never_comes(plain_scene: Scene) -> None:
    """The error shows the events that did come, and the log."""
    worker = plain_scene.start()
    plain_scene.send()
    worker.wait_for("finished")

    with pytest.raises(AssertionError) as caught:
        worker.wait_for("lease_lost", within=0.1)

    text = str(caught.value)
    assert text.startswith("no event 'lease_lost' from the worker within 0.1 s; it lives. Its last")
    assert "\n  finished " in text
    assert f"a body of {plain_scene.unit}" in text


def test_wait_for_a_frozen_worker(plain_scene: Scene) -> None:
    """Who waits in vain for a worker that is still frozen is told so."""
    worker = plain_scene.start()
    worker.freeze()

    with pytest.raises(AssertionError, match="within 0 s; it is frozen"):
        worker.wait_for("started", within=0)


def test_a_worker_outlives_the_thread_that_started_it(scene: Scene) -> None:
    """Only the end of the test's process ends a worker, not that of a thread."""
    with ThreadPoolExecutor(1) as threads:
        worker = threads.submit(scene.start).result()

    scene.send()
    worker.wait_for("finished")
    worker.stop()


def test_wait_for_ends_with_the_worker(plain_scene: Scene) -> None:
    """Nobody waits for a worker that is gone, but what it said before counts."""
    worker = plain_scene.start()
    plain_scene.send()
    wait_until(lambda: plain_scene.pids("ended"), "it ended")
    worker.kill()

    worker.wait_for("started")
    with pytest.raises(AssertionError, match="it ended by SIGKILL"):
        worker.wait_for("lease_lost", within=600)


def test_on_event_may_raise(plain_scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """An on_event that raises is told to the log, and the next event comes."""

    def raising(event: Event) -> None:
        raise ValueError(event.kind)

    worker = plain_scene.start(on_event=raising)
    plain_scene.send()

    worker.wait_for("started")
    worker.wait_for("finished")
    assert "on_event of a worker raised" in caplog.text


def test_a_worker_that_crashes_at_start(plain_scene: Scene) -> None:
    """The error says how it ended, and shows its log."""
    with DevServer() as gone:
        url = gone.url
    scene = Scene(plain_scene.kind, url, plain_scene.unit)
    if scene.kind == "solo":
        scene.target.conf.broker_connection_retry_on_startup = False

    with pytest.raises(AssertionError) as caught:
        scene.start()

    text = str(caught.value)
    assert text.startswith("the worker ended with code 1 before it was ready. Its log")
    assert "connection" in text.lower()
    scene.close()


def test_a_worker_that_does_not_come_up(plain_scene: Scene) -> None:
    """The worker that is late is killed, and the error shows its log."""
    before = set(_children())

    with pytest.raises(AssertionError, match=r"the worker did not come up within 0 s\. Its log"):
        plain_scene.start(within=0)

    assert set(_children()) <= before


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.rabbitmq
@pytest.mark.parametrize("kind", POOLS)
def test_on_rabbitmq(kind: str, rabbitmq: str, shared_server: DevServer, unit: str) -> None:
    """RabbitMQ does as well: the test's connection stays the test's."""
    with _scene(kind, shared_server, unit, rabbitmq) as scene:
        scene.send()
        first = scene.start()
        first.wait_for("finished")
        scene.send(is_held=True)
        first.wait_for("started")
        wait_until(lambda: len(scene.pids("ran")) == 2, "the body runs")
        first.kill()

        scene.release_bodies()  # RabbitMQ gives out again what a killed worker held
        scene.send()
        second = scene.start()

        second.wait_for("finished")
        second.stop()
        assert set(scene.pids("ran")[:2]).isdisjoint(scene.pids("ran")[2:])


def test_who_outlives_the_worker(
    plain_scene: Scene, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """A process that left the worker's group and still talks to the test is told of."""
    monkeypatch.setattr("once_pytest.worker._GONE", 0.5)

    def escape(event: Event) -> None:
        if event.kind == "started" and not os.fork():
            os.setsid()
            with redis.Redis.from_url(plain_scene.url) as client:
                client.rpush(f"{unit}:escaped", os.getpid())
            signal.pause()

    stop = subscribe(escape)
    worker = plain_scene.start()
    stop()
    plain_scene.send()
    wait_until(lambda: plain_scene.pids("escaped"), "somebody has left the group")

    with pytest.raises(AssertionError, match="a process group of its own outlives it"):
        worker.kill()

    os.kill(plain_scene.pids("escaped")[0], signal.SIGKILL)
    worker.kill()


def test_queues(scene: Scene) -> None:
    """A worker consumes the queues that it was told, and no others."""
    if scene.kind == "dramatiq":
        scene.target.declare_queue("other")
    other = scene.start(queues=["other"])
    sent = scene.send()
    own = scene.start(queues=[scene.queue])

    assert own.wait_for("finished").message_id == sent
    other.stop()
    with pytest.raises(AssertionError):
        other.wait_for("started", within=0)


@pytest.mark.skipif(not HAS_CELERY, reason="is about Celery")
def test_refused_for_celery(unit: str) -> None:
    """What cannot work is refused before anything starts, and the text says what to do."""
    from celery import Celery

    memory = Celery("memory", broker="memory://", set_as_current=False)
    app = Celery("redis", broker="redis://127.0.0.1:1/0", set_as_current=False)
    eager = Celery("eager", broker="redis://127.0.0.1:1/0", set_as_current=False)
    eager.conf.task_always_eager = True

    with pytest.raises(ConfigurationError, match=r"reach.*memory://.*--once-redis=spawn"):
        start_worker(memory)
    with pytest.raises(ConfigurationError, match=r"task_always_eager=False"):
        start_worker(eager)
    with pytest.raises(ConfigurationError, match=r"pool='gevent' .* solo, threads, prefork"):
        start_worker(app, pool="gevent")
    with pytest.raises(ConfigurationError, match=r"concurrency=2 .* solo runs one body at a time"):
        start_worker(app, pool="solo", concurrency=2)
    for each in (memory, app, eager):
        each.close()


@pytest.mark.skipif(not HAS_DRAMATIQ, reason="is about Dramatiq")
def test_refused_for_dramatiq() -> None:
    """Brokers in memory are refused, with what to do instead."""
    import fakeredis
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.brokers.stub import StubBroker

    fake = RedisBroker(client=fakeredis.FakeRedis())

    for broker in (StubBroker(), fake):
        with pytest.raises(ConfigurationError, match=r"another process.*--once-redis=spawn"):
            start_worker(broker)
    with pytest.raises(ConfigurationError, match="threads and no pool"):
        start_worker(StubBroker(), pool="prefork")


def test_refused_for_anything_else(plain_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no app and no broker is refused, and so is a system that cannot fork."""
    with pytest.raises(TypeError, match="neither a Celery app nor a Dramatiq broker"):
        start_worker(object())

    monkeypatch.delattr(os, "fork")
    with pytest.raises(NotImplementedError, match="Windows"):
        plain_scene.start()


def test_long_events_are_cut() -> None:
    """An event never is longer than what a pipe takes in one piece."""
    short = Event("slow", task="a", reason="because", at=1.5, fence=3)
    long = Event("slow", task="a", key="k" * 100, reason="\N{SNOWMAN}" * 9000, preview='"' * 9000)
    longest = Event("slow", task="\N{SNOWMAN}" * 9000, message_id="i" * 9000, holder_id='"' * 9000)

    assert b"because" in _line(short)
    assert b"k" * 100 in _line(long)
    for event in (short, long, longest):
        assert len(_line(event)) <= select.PIPE_BUF
        assert _line(event).endswith(b"}\n")


LEFT_BEHIND = """
import os, signal, sys
from once_pytest.worker import start_worker
{target}
worker = start_worker(target)
if {is_frozen}:
    worker.freeze()
print(worker.pid, flush=True)
{end}
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux kills orphans")
@pytest.mark.parametrize("is_frozen", [False, True], ids=["running", "frozen"])
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "kill"])
def test_no_worker_outlives_its_test_run(plain_scene: Scene, end: str, *, is_frozen: bool) -> None:
    """A worker ends with the process that started it, however that ends."""
    url = plain_scene.url
    target = (
        f"from celery import Celery; target = Celery(broker={url!r})"
        if plain_scene.kind == "solo"
        else f"from dramatiq.brokers.redis import RedisBroker; target = RedisBroker(url={url!r})"
    )
    script = LEFT_BEHIND.format(target=target, is_frozen=is_frozen, end=end)

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout, done.stderr
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
    pid = int(done.stdout)
    wait_until(lambda: not _states(pid), "the worker is gone")
    assert not is_alive(pid) or not _states(pid)
