"""Flask: tasks under guard that run in its app context, and base classes in the wrong order."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from _support.flask_project import make_flask_task, make_project
from _support.waiting import wait_until
from _support.workers import CeleryWorker
from celery import Celery, Task

from once_celery import ConfigurationError, OnceTask
from once_core.devserver import DevServer

LOST = (
    "ship runs without the FlaskTask of its app, and so without what FlaskTask.__call__ does "
    "around a task (such as Flask's app context), because base=OnceTask takes its place; "
    "write class MyTask(OnceTask, FlaskTask) and give base=MyTask"
)


@pytest.fixture
def flask_app() -> flask.Flask:
    """An application with a setting that only code in its context can read."""
    made = flask.Flask("shop")
    made.config["SHOP"] = "in context"
    return made


@pytest.fixture
def worker(tmp_path: Path, shared_server: DevServer) -> Iterator[tuple[Celery, Path]]:
    """The project with a worker: its Celery app, and the gate at which bodies wait."""
    gate = tmp_path / "gate"
    settings: dict[str, object] = {
        "broker_url": shared_server.url,
        "result_backend": shared_server.url,
        "task_default_queue": f"once-flask-{uuid.uuid4().hex[:8]}",
        "worker_hijack_root_logger": False,
        "gate": str(gate),
    }
    running = CeleryWorker(
        settings, tmp_path, pool="threads", app="_support.flask_project:celery_app"
    )
    app = make_project(settings)
    running.ready()
    yield app, gate
    running.kill()
    app.backend.result_consumer.stop()
    app.close()


def define(app: Celery, base: type[Task], name: str = "ship") -> Any:
    """A task that reads a setting of Flask's."""

    @app.task(base=base, name=name, shared=False)
    def ship(order_id: int) -> str:
        return flask.current_app.config["SHOP"]

    app.finalize()
    return ship


def make(**options: Any) -> Celery:
    """A Celery app of nobody but the test."""
    app = Celery("shop", set_as_current=False, **options)
    app.conf.update(broker_url="memory://", once_url="memory://flask")
    return app


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about base classes."""
    records = [
        each for each in caplog.records if (each.name, each.levelname) == ("once", "WARNING")
    ]
    return [text for each in records if "its app" in (text := each.getMessage())]


@pytest.mark.lifecycle
def test_a_task_runs_in_flasks_context_and_under_guard(worker: tuple[Celery, Path]) -> None:
    """`class FlaskOnceTask(OnceTask, FlaskTask)` does both, in a worker."""
    app, gate = worker
    task = app.tasks["ship"]

    first = task.delay("a")
    wait_until(lambda: task.is_locked("a"), "the first runs")
    second = task.delay("a")

    assert second.get(timeout=30) is None
    assert not first.ready()
    gate.touch()
    assert first.get(timeout=30) == ["in context", True]


def test_the_context_is_there_without_a_worker_too(flask_app: flask.Flask) -> None:
    """Called as a function, and with `task_always_eager`."""
    app = make(task_cls=make_flask_task(flask_app))
    task = define(app, type("FlaskOnceTask", (OnceTask, app.Task), {"abstract": True}))
    app.conf.task_always_eager = True

    assert task(1) == "in context"
    assert task.delay(1).get() == "in context"


def test_the_wrong_order_is_refused(flask_app: flask.Flask) -> None:
    """Flask's `__call__` calls `run` itself, so ours would never be asked."""
    flask_task = make_flask_task(flask_app)

    with pytest.raises(ConfigurationError) as caught:
        define(make(), type("Wrong", (flask_task, OnceTask), {"abstract": True}))
    assert str(caught.value) == (
        "ship: FlaskTask.__call__ hides that of OnceTask, so the task would run unguarded; name "
        "OnceTask first: class MyTask(OnceTask, FlaskTask)"
    )


@pytest.mark.lifecycle
@pytest.mark.parametrize("way", ["task_cls", "app.Task"])
def test_a_lost_context_is_said_once(
    way: str, flask_app: flask.Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """`base=OnceTask` takes the place of the app's task class: one WARNING for all tasks."""
    flask_task = make_flask_task(flask_app)
    app = make(task_cls=flask_task) if way == "task_cls" else make()
    if way == "app.Task":
        app.Task = flask_task
    with caplog.at_level(logging.WARNING, "once"):
        task = define(app, OnceTask)
        define(app, OnceTask, "other")

    with pytest.raises(RuntimeError, match="outside of application context"):
        task(1)
    assert warnings(caplog) == [LOST]


def test_the_class_to_write_is_named_with_the_base_that_was_given(
    flask_app: flask.Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Not OnceTask, where the task has a base of its own that is derived from it."""
    audited = type("Audited", (OnceTask,), {"abstract": True})
    with caplog.at_level(logging.WARNING, "once"):
        define(make(task_cls=make_flask_task(flask_app)), audited)

    assert "write class MyTask(Audited, FlaskTask)" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("task_cls", "bases"),
    [
        ("flask", (OnceTask, "flask")),
        (None, (OnceTask,)),
        (OnceTask, (OnceTask,)),
        ("celery.app.task:Task", (OnceTask,)),
        ("flask", (Task,)),
    ],
    ids=["right order", "no task_cls", "OnceTask for all", "Celery's own", "not under guard"],
)
def test_nothing_is_said_where_nothing_is_lost(
    task_cls: object,
    bases: tuple[object, ...],
    flask_app: flask.Flask,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the task has what the app's task class does, or that does nothing around it."""
    flask_task = make_flask_task(flask_app)
    own = [flask_task if each == "flask" else each for each in bases]
    options = (
        {} if task_cls is None else {"task_cls": flask_task if task_cls == "flask" else task_cls}
    )
    with caplog.at_level(logging.WARNING, "once"):
        define(make(**options), type("Base", tuple(own), {"abstract": True}))

    assert warnings(caplog) == []


def test_a_call_that_leaves_out_its_parent_is_refused() -> None:
    """`class FlaskTask(OnceTask)` whose `__call__` calls `run`: right order, and unguarded."""

    class FlaskTask(OnceTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> object:
            return self.run(*args, **kwargs)

    with pytest.raises(ConfigurationError, match="call super"):
        define(make(), FlaskTask)


def test_a_call_that_asks_its_parent_somewhere_inside_is_accepted() -> None:
    """As a context that takes a function would have it."""

    class FlaskTask(OnceTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> object:
            parent = super()

            def inside() -> object:
                return parent.__call__(*args, **kwargs)

            return inside()

    define(make(), FlaskTask)
