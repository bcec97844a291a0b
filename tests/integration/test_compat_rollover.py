"""Old and new programs side by side, and the first examples of three READMEs with real workers."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _support import ledger
from _support.waiting import wait_until
from _support.workers import CeleryWorker
from celery import Celery

from once_celery.compat import AlreadyQueued
from once_core.devserver import DevServer

pytestmark = pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning")

BEFORE = """
from celery_once import QueueOnce
from celery_singleton import Singleton
from celery_once_task import OnceTask, OnceTaskUnlockBootStep, configure, setup_once_task_signals
"""
AFTER = BEFORE.replace("from celery_", "from once_celery.compat.celery_")
WITHOUT = """
from celery import Task
QueueOnce = Singleton = OnceTask = Task
OnceTaskUnlockBootStep = None
def configure(**_): ...
def setup_once_task_signals(): ...
"""
"""A program that knows nothing of once, as workers and producers of the old libraries do not."""

PROGRAM = """
from celery import Celery, shared_task
from _support import ledger

celery = Celery("tasks", broker={url!r}, backend={url!r}, set_as_current={is_current})
celery.conf.task_default_queue = {queue!r}
celery.conf.ONCE = {{
    "backend": "celery_once.backends.Redis",
    "settings": {{"url": {url!r}, "default_timeout": 60 * 60}},
}}
celery.conf.broker_connection_retry_on_startup = True
configure(redis_url={url!r}, queue_lock_timeout=3600, running_lock_timeout=3600)
setup_once_task_signals()
if OnceTaskUnlockBootStep:
    celery.steps["worker"].add(OnceTaskUnlockBootStep)

def body(self, unit):
    unit = f"{{self.name}}-{{unit}}"
    ledger.run_body({ledger!r}, self.request.id, self.request.retries, unit, -1)
    return "Done!"

@celery.task(base=QueueOnce, bind=True, name="queue_once", shared=False)
def queue_once(self, unit): return body(self, unit)

@celery.task(base=Singleton, bind=True, name="singleton", shared=False)
def singleton(self, unit): return body(self, unit)

@celery.task(base=OnceTask, bind=True, name="once_task", shared=False)
def once_task(self, unit): return body(self, unit)
"""

TASKS = ["queue_once", "singleton", "once_task"]


class Rollover:
    """One program in two versions; each test has a queue, a ledger and units of its own."""

    def __init__(self, folder: Path, server: DevServer) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self._values = {
            "url": server.url,
            "queue": f"compat-{uuid.uuid4().hex[:12]}",
            "ledger": str(self.ledger),
        }
        self._workers: list[CeleryWorker] = []
        self._apps: list[Celery] = []

    def worker(self, imports: str) -> CeleryWorker:
        """A worker whose import lines are these."""
        name = f"shop_{uuid.uuid4().hex[:6]}"
        source = imports + PROGRAM.format(**self._values, is_current=True)
        (self.folder / f"{name}.py").write_text(source, encoding="utf-8")
        self._workers.append(CeleryWorker({}, self.folder, app=name))
        return self._workers[-1].ready()

    def producer(self, imports: str) -> dict[str, Any]:
        """The names of the program in this process."""
        names: dict[str, Any] = {}
        exec(imports + PROGRAM.format(**self._values, is_current=False), names)
        self._apps.append(names["celery"])
        return names

    def runs(self, task: str, unit: str) -> list[ledger.Run]:
        """What ran so far."""
        return ledger.runs(self.ledger, f"{task}-{unit}")

    def running(self, task: str, unit: str, count: int = 1) -> None:
        """Wait until so many runs have begun."""
        wait_until(
            lambda: len(self.runs(task, unit)) >= count, f"{count} runs of {task} have begun"
        )

    def ended(self, task: str, unit: str) -> None:
        """Wait until all runs have ended."""
        wait_until(lambda: all(run.end for run in self.runs(task, unit)), f"{task} has ended")

    def open_gate(self, task: str, unit: str) -> None:
        """Let the bodies of a unit end."""
        ledger.gate(self.ledger, f"{task}-{unit}").touch()

    def close(self) -> None:
        """End what was started."""
        for each in self._workers:
            each.kill()
        for app in self._apps:
            app.backend.result_consumer.stop()
            app.close()


@pytest.fixture
def rollover(tmp_path: Path, shared_server: DevServer) -> Iterator[Rollover]:
    """A program that is being moved from the old libraries to once."""
    made = Rollover(tmp_path, shared_server)
    yield made
    made.close()


def _call(task: Any, unit: str) -> str:
    try:
        return str(task.delay(unit).id)
    except AlreadyQueued as error:
        return str(error.holder_id)


def test_the_first_examples_with_a_real_worker(rollover: Rollover, unit: str) -> None:
    """A task is sent once, refused or joined until it is done, and accepted again then."""
    rollover.worker(AFTER)
    names = rollover.producer(AFTER)

    for name in TASKS[:2]:
        task = names[name]
        first = task.delay(unit)
        rollover.running(name, unit)
        assert _call(task, unit) == first.id
        rollover.open_gate(name, unit)
        assert first.get(timeout=30) == "Done!"
        assert _call(task, unit) != first.id


def test_one_runs_and_one_waits_with_a_real_worker(rollover: Rollover, unit: str) -> None:
    """With celery-once-task's names a call during the run is neither lost nor beside it."""
    rollover.worker(AFTER)
    task = rollover.producer(AFTER)["once_task"]

    task.delay(unit)
    rollover.running("once_task", unit)
    second = task.delay(unit)
    assert task.delay(unit).id == second.id
    rollover.open_gate("once_task", unit)

    assert second.get(timeout=30) == "Done!"
    assert ledger.overlaps(rollover.runs("once_task", unit)) == []


def test_new_workers_guard_messages_of_old_producers(rollover: Rollover, unit: str) -> None:
    """A message that was published without once never runs beside another of its unit."""
    worker = rollover.worker(AFTER)
    old, new = rollover.producer(WITHOUT), rollover.producer(AFTER)

    for name in TASKS:
        old[name].delay(unit)
        rollover.running(name, unit)
        holder = new[name].holder(unit)
        assert holder.state == "running"
        if name != "once_task":
            assert _call(new[name], unit) == holder.message_id
        old[name].delay(unit)
        wait_until(lambda task=name: f"deferred {task}" in worker.log, "the second one is deferred")  # type: ignore[misc]
        rollover.open_gate(name, unit)
        rollover.running(name, unit, 2)

    for name in TASKS:
        rollover.ended(name, unit)
        assert ledger.overlaps(rollover.runs(name, unit)) == []
    assert "stays with this worker" not in worker.log  # put back, and not a second time


def test_old_workers_run_messages_of_new_producers(rollover: Rollover, unit: str) -> None:
    """They leave the record as it was: calls are refused until it heals, and then accepted."""
    rollover.worker(WITHOUT)
    names = rollover.producer(AFTER)
    names["celery"].conf.once_heal_after = 2
    task = names["singleton"]
    rollover.open_gate("singleton", unit)

    first = task.delay(unit)
    assert first.get(timeout=30) == "Done!"

    assert _call(task, unit) == first.id
    wait_until(lambda: _call(task, unit) != first.id, "a call is accepted again")


def test_the_import_line_is_all_that_changes() -> None:
    """What these tests run is the old program but for the names of three modules."""
    changed: Callable[[str], str] = lambda line: line.replace("once_celery.compat.", "", 1)  # noqa: E731

    assert [changed(line) for line in AFTER.splitlines()] == BEFORE.splitlines()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        exec(AFTER, {})
