"""Queues of Dramatiq that are purged: from code, and with `once purge`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import dramatiq
import pytest
from _support.dramatiq_app import SETTINGS, make_broker
from _support.dramatiq_deployment import DramatiqDeployment
from _support.waiting import wait_until
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import ResultTimeout

from once_core.devserver import DevServer
from once_dramatiq import ConfigurationError, Purged, is_locked, published, purge

pytestmark = pytest.mark.lifecycle_dramatiq

TESTS = Path(__file__).parent.parent

every_broker = pytest.mark.parametrize(
    "broker", ["stub", "redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
CONFIRMED = {"broker_options": {"confirm_delivery": True}}
"""Settings of a producer on RabbitMQ whose message is in its queue when ``send()`` is back."""

real_broker = pytest.mark.parametrize(
    "broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)


@every_broker
def test_after_a_purge_each_unit_is_accepted_at_once(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str, broker: str
) -> None:
    """What waited, and what was delayed; also more than are taken in one go."""
    scene = deploy_dramatiq(broker=broker, conf=CONFIRMED if broker == "rabbitmq" else {})
    work, plain = scene.task("work"), scene.task("unguarded")
    units = [f"{unit}-{number}" for number in range(230)]
    for each in units[:220]:
        work.send(each)
    for each in units[220:]:
        work.send_with_options(args=(each,), delay=3_600_000)
    plain.send(unit)

    assert purge(scene.app) == Purged(messages=231, released=230, left=0)

    assert not [each for each in units if is_locked(work, each)]
    assert purge(scene.app) == Purged(messages=0, released=0, left=0)
    assert published(work.send(units[220])).state == "claimed"
    message = work.send(units[0])
    scene.start()
    assert scene.result(message) == f"done {units[0]}"
    assert scene.runs(units[1]) == []


@real_broker
def test_what_a_worker_holds_stays(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str, broker: str
) -> None:
    """A body goes on under its lease, and what waits behind it is accepted anew and runs."""
    scene = deploy_dramatiq(broker=broker, threads=1)
    scene.worker()
    by_unit = scene.task("by_unit")
    first = scene.hold(unit, "by_unit")

    purge(scene.app)

    assert is_locked(by_unit, unit)
    scene.let_go(unit)
    assert scene.result(first) == f"done {unit}"
    second = by_unit.send(unit)
    assert scene.result(second) == f"done {unit}"
    runs = [run.message_id for run in scene.runs(unit)]
    assert runs == [first.message_id, second.message_id]


@real_broker
def test_a_purge_ends_although_messages_keep_coming(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str, broker: str
) -> None:
    """What is sent meanwhile stays, or goes: the purge ends, and no unit is left behind."""
    confirmed = CONFIRMED if broker == "rabbitmq" else {}
    scene = deploy_dramatiq(broker=broker)
    producer = make_broker({**scene.settings, **confirmed})
    send_one = producer.get_actor("work").send
    has_ended = threading.Event()
    sent: list[str] = []

    def send() -> None:
        while not has_ended.is_set():
            each = f"{unit}-{len(sent)}"
            send_one(each)
            sent.append(each)

    thread = threading.Thread(target=send)
    thread.start()
    wait_until(lambda: len(sent) > 100, "messages come")
    purged = purge(scene.app)
    has_ended.set()
    thread.join()

    rest = purge(scene.app)
    assert purged.messages >= 100
    assert purged.messages + rest.messages == len(sent)
    assert not [each for each in sent if is_locked(scene.task("work"), each)]
    producer.close()


def test_a_retry_that_is_purged_frees_its_unit(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> None:
    """It waits in the delay queue under a newer ticket than its message had."""
    scene = deploy_dramatiq(broker="redis")
    worker = scene.worker()
    retrying = scene.app.get_actor("retrying")
    message = retrying.message(unit, 5).copy(
        options={"min_backoff": 600_000, "max_backoff": 600_000}
    )
    scene.app.enqueue(message)
    wait_until(lambda: scene.runs(unit), "it fails once")
    wait_until(lambda: "Retrying" in worker.log, "it is retried")
    worker.terminate()  # else it would hold the retry until it is due
    worker.process.wait(30)
    assert is_locked(retrying, unit, 5)

    assert purge(scene.app).released == 1

    assert not is_locked(retrying, unit, 5)


def test_nobody_waits_for_ever_for_what_was_purged(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> None:
    """As after ``flush()``: who asks is told when their own time is up; the next pipeline runs."""
    scene = deploy_dramatiq(broker="redis")
    work = scene.task("work")

    def steps() -> dramatiq.pipeline[object]:
        last = work.message_with_options(args=(f"{unit}-2",), pipe_ignore=True)
        return dramatiq.pipeline([work.message(unit), last], broker=scene.app).run()

    lost = steps()

    purge(scene.app)

    with pytest.raises(ResultTimeout):
        lost.get_result(block=True, timeout=100)
    again = steps()
    scene.worker()
    assert again.get_result(block=True, timeout=20_000) == f"done {unit}-2"


def test_without_the_store_the_messages_go_all_the_same(
    deploy_dramatiq: Callable[..., DramatiqDeployment], server: DevServer, unit: str
) -> None:
    """And it is said how many units have to heal."""
    scene = deploy_dramatiq(broker="redis", conf={"once": {"url": server.url}})
    scene.task("work").send(unit)
    server.kill()

    assert purge(scene.app) == Purged(messages=1, released=0, left=1)


def test_a_queue_that_is_none_is_refused(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> None:
    """A misspelt name would purge nothing, and nobody would know."""
    scene = deploy_dramatiq(broker="redis")
    scene.task("work").send(unit)

    with pytest.raises(ConfigurationError, match="did you mean 'once_test_"):
        purge(scene.app, [scene.queue + "x"])
    with pytest.raises(ConfigurationError, match="no OnceMiddleware"):
        purge(StubBroker())

    assert purge(scene.app, [scene.queue]).messages == 1


def test_a_message_that_cannot_be_read_is_no_end(
    deploy_dramatiq: Callable[..., DramatiqDeployment],
    rabbitmq: str,  # it is there
    unit: str,
) -> None:
    """RabbitMQ's consumer answers for it as for an empty queue."""
    scene = deploy_dramatiq(broker="rabbitmq", conf=CONFIRMED)
    work = scene.task("work")
    work.send(f"{unit}-1")
    scene.app.channel.basic_publish(exchange="", routing_key=scene.queue, body=b"no message")
    work.send(f"{unit}-2")

    assert purge(scene.app) == Purged(messages=2, released=2, left=0)


# The command


@pytest.fixture
def command(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> Callable[..., tuple[DramatiqDeployment, subprocess.CompletedProcess[str]]]:
    """Runs ``once … purge`` as a program of its own, with one message in the queue."""

    def run(
        *words: str, broker: str = "redis"
    ) -> tuple[DramatiqDeployment, subprocess.CompletedProcess[str]]:
        scene = deploy_dramatiq(broker=broker)
        scene.task("work").send(unit)
        done = subprocess.run(
            [sys.executable, "-m", "once_core", "-A", "_support.dramatiq_main", "purge", *words],
            env={**os.environ, SETTINGS: json.dumps(scene.settings), "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return scene, done

    return run


Run = Callable[..., tuple[DramatiqDeployment, "subprocess.CompletedProcess[str]"]]


@real_broker
def test_the_command_purges(command: Run, unit: str, broker: str) -> None:
    """With --yes it does not ask."""
    scene, done = command("--yes", broker=broker)

    assert done.returncode == 0, done.stderr
    assert "Messages thrown away: 1. Units of work freed: 1." in done.stdout
    assert not is_locked(scene.task("work"), unit)


def test_the_command_purges_for_scripts(command: Run) -> None:
    """The numbers as JSON."""
    scene, done = command("--yes", "--json")

    told = json.loads(done.stdout)
    assert told == {
        "purged": True,
        "queues": [scene.queue],
        "messages": 1,
        "released": 1,
        "left": 0,
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "say --yes"),
        (("--yes", "-Q", "once_tests"), "no queue 'once_tests'"),
        (("--yes", "-Q", "a,b"), "no queue 'a'"),
    ],
)
def test_the_command_does_nothing_by_mistake(
    command: Run, unit: str, words: tuple[str, ...], text: str
) -> None:
    """Where nobody can be asked, and where a name is none."""
    scene, done = command(*words)

    assert done.returncode == 2
    assert text in done.stderr
    assert is_locked(scene.task("work"), unit)


CELERY_AND_DRAMATIQ = """
import dramatiq
from celery import Celery
from dramatiq.brokers.redis import RedisBroker
from once_celery import OnceTask
from once_dramatiq import OnceMiddleware

app = Celery("both", broker={url!r})
app.conf.task_default_queue = "tasks"
broker = RedisBroker(url={url!r})
broker.add_middleware(OnceMiddleware())


@app.task(base=OnceTask)
def sync(order_id): ...


@dramatiq.actor(broker=broker, once=True, queue_name="actors")
def restock(shelf): ...


@dramatiq.actor(broker=broker, once=True, queue_name="letters")
def write(letter): ...
"""


def test_a_program_of_both_frameworks(
    tmp_path: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each queue by its own; those that are left out stay."""
    (tmp_path / "both.py").write_text(CELERY_AND_DRAMATIQ.format(url=server.url), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import both

    both.sync.delay(1)
    both.restock.send(1)
    both.write.send(1)

    def type_in(*words: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "once_core", "-A", "both", "purge", "--yes", "--json", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return dict(json.loads(done.stdout))

    assert type_in("-X", "letters,tasks")["queues"] == ["actors"]
    assert (both.sync.is_locked(1), is_locked(both.restock, 1)) == (True, False)
    assert type_in("-Q", "tasks,letters", "-X", "letters")["messages"] == 1
    assert (both.sync.is_locked(1), is_locked(both.write, 1)) == (False, True)
    assert "no queue is left" in str(type_in("-Q", "tasks", "-X", "tasks")["error"])
    assert type_in() == {
        "purged": True,
        "queues": ["actors", "letters", "tasks"],
        "messages": 1,
        "released": 1,
        "left": 0,
    }
    both.app.close()
    both.broker.close()
    sys.modules.pop("both")
