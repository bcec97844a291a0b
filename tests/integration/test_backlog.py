"""`once doctor` beside a real broker: what waits for a message that nobody has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from celery import Celery
from dramatiq.brokers.redis import RedisBroker

from once_celery import OnceTask
from once_celery.backlog import queued as celery_queued
from once_core import _clock, protocol
from once_core.__main__ import main
from once_core.backlog import Overdue, Queued, of_backlog
from once_core.cli import doctor
from once_core.cli.program import Program
from once_core.devserver import DevServer
from once_core.store import Store
from once_core.survey import survey
from once_dramatiq import OnceMiddleware
from once_dramatiq.backlog import queued as dramatiq_queued


def _body(order_id: int) -> None: ...


@pytest.fixture
def app_of(server: DevServer) -> Iterator[Callable[..., Any]]:
    """Makes an app with one task, `shop.sync`."""
    made: list[Celery] = []

    def make(**conf: Any) -> Any:
        app = Celery("shop", broker=server.url, set_as_current=False)
        app.conf.update(conf)
        made.append(app)
        return app.task(_body, name="shop.sync", base=OnceTask, shared=False)

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("keyprefix", ["", "shop-"])
def test_celery_on_redis(app_of: Callable[..., Any], keyprefix: str) -> None:
    """What is in the queue, and what workers hold, whatever the broker's keys are called."""
    task = app_of(broker_transport_options={"global_keyprefix": keyprefix})
    app = task.app
    assert celery_queued(app, ["shop.sync"]) == {"shop.sync": Queued("celery", 0, True)}

    task.delay(1)
    task.delay(2)
    assert celery_queued(app, ["shop.sync"])["shop.sync"].messages == 2

    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 10, False)
        message = channel.basic_get("celery")  # a worker takes it, and acknowledges nothing
        assert message.headers["task"] == "shop.sync"
        assert celery_queued(app, ["shop.sync"])["shop.sync"].messages == 2
        channel.basic_ack(message.delivery_tag)
    assert celery_queued(app, ["shop.sync"])["shop.sync"].messages == 1


def test_celery_on_a_queue_that_the_caller_chose(app_of: Callable[..., Any]) -> None:
    """No false alarm: the message may be in any queue of the program."""
    task = app_of(task_queues={"celery": {}, "priority": {}})
    task.apply_async((1,), queue="priority")

    assert celery_queued(task.app, ["shop.sync"])["shop.sync"].messages == 1


def test_celery_on_rabbitmq(rabbitmq: str, unit: str, server: DevServer) -> None:
    """What workers hold is not known there."""
    app = Celery("shop", broker=rabbitmq, set_as_current=False)
    app.conf.update(once_url=server.url, task_default_queue=unit)
    task = app.task(_body, name="shop.sync", base=OnceTask, shared=False)
    assert celery_queued(app, ["shop.sync"]) == {"shop.sync": Queued(unit, 0, False)}

    task.delay(1)

    assert celery_queued(app, ["shop.sync"])["shop.sync"].messages == 1
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete(unit)
    app.close()


@pytest.mark.parametrize("what", ["kill", "pause"])
def test_a_broker_that_is_away_is_said(
    app_of: Callable[..., Any],
    server: DevServer,
    shared_server: DevServer,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once, with the rest; a frozen one is not waited for."""
    monkeypatch.setattr(doctor, "BROKER_PATIENCE", 1.0)
    task = app_of(broker_connection_timeout=1, once_url=shared_server.url)
    program = Program(
        "shop",
        {"shop.sync": task.once_guard},
        backlogs=[lambda: celery_queued(task.app, ["shop.sync"])],
    )
    getattr(server, what)()

    assert main(["doctor"], program) == 2
    assert "broker: it could not be looked at: " in capsys.readouterr().out


def test_dramatiq_on_redis(server: DevServer) -> None:
    """Its delay queue, and what workers hold, too."""
    broker = RedisBroker(url=server.url)
    broker.add_middleware(OnceMiddleware())
    actor = dramatiq.actor(lambda order_id: None, actor_name="sync", broker=broker, once=True)
    assert dramatiq_queued(broker, ["sync"]) == {"sync": Queued("default", 0, True)}

    actor.send(1)
    actor.send_with_options(args=(2,), delay=60_000)

    assert dramatiq_queued(broker, ["sync"])["sync"].messages == 2
    broker.close()


def test_only_what_is_overdue_counts(server: DevServer) -> None:
    """A message may be on its way; one that has a delay is not due."""
    store = Store(server.url)
    keys = [f"once:shop.sync:{number:040}" for number in range(3)]
    for key, delay in zip(keys, (0.0, 0.0, 3600.0), strict=True):
        store.run(protocol.claim(key, "m1", ttl=600, heal_after=60, delay=delay))
    store.run(protocol.age(keys[0], 30))
    overdue = Overdue()
    for unit in survey(store):
        overdue.add(unit)

    (found,) = of_backlog(overdue, {"shop.sync": Queued("celery", 0, True)})

    assert overdue.counts == {"shop.sync": 1}
    assert found.text.startswith("1 unit of work waits, due for up to 30 s, but queue 'celery'")
    assert list(of_backlog(overdue, {"shop.sync": Queued("celery", 1, True)})) == []
    assert list(of_backlog(overdue, {})) == []
    assert time.time() - _clock.wall() < 1
