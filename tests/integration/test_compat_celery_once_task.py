"""What celery-once-task's README and the names of its tests promise, with the import changed."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state, shared_task

from once_celery.compat.celery_once_task import (
    OnceTask,
    OnceTaskLocked,
    OnceTaskUnlockBootStep,
    configure,
    reset_config,
    setup_once_task_signals,
    teardown_once_task_signals,
)
from once_pytest.clock import OnceClock

pytestmark = [
    pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning"),
    pytest.mark.once(leaks="ignore"),
]

Drain = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `configure` is given ends with the test, and shared tasks go to no app of others."""
    monkeypatch.setattr(_state, "_apps", weakref.WeakSet())
    yield
    reset_config()


@pytest.fixture
def app(once_celery_app: Celery) -> Celery:
    """An app that is set up as the README says."""
    configure(
        redis_url="redis://localhost:6379/3",
        queue_lock_timeout=3600,
        running_lock_timeout=3600,
    )
    setup_once_task_signals()
    once_celery_app.steps["worker"].add(OnceTaskUnlockBootStep)
    return once_celery_app


def test_the_example_of_the_readme(app: Celery, once_drain: Drain) -> None:
    """Several calls give one message; in place of None each gets the handle of the first."""
    ran = []

    @shared_task(base=OnceTask)
    def my_task(number: int) -> None:
        ran.append(number)

    task = app.tasks[my_task.name]
    first = task.delay(42)
    assert task.delay(42).id == first.id
    assert task.delay(43).id != first.id

    once_drain()

    assert ran == [42, 43]


def test_one_runs_and_one_waits(app: Celery, once_drain: Drain) -> None:
    """A call during the run waits for its end, and is not rejected."""
    steps: list[object] = []

    @app.task(base=OnceTask, bind=True)
    def my_task(self: Any) -> None:
        steps.append("starts")
        if len(steps) == 1:
            steps.append(self.delay().once.state)
        steps.append("ends")

    my_task.delay()
    once_drain()

    assert steps == ["starts", "claimed", "ends", "starts", "ends"]


@pytest.mark.parametrize(
    ("queue_lock", "running_lock", "scope"),
    [(True, True, "queued+running"), (False, True, "running"), (True, False, "queued")],
)
def test_switches(app: Celery, queue_lock: bool, running_lock: bool, scope: str) -> None:
    """Each lock can be switched off for a task."""

    @app.task(base=OnceTask, queue_lock=queue_lock, running_lock=running_lock)
    def my_task() -> None: ...

    assert my_task.once_guard().options.scope == scope
    assert (my_task.delay().id == my_task.delay().id) is queue_lock


def test_both_switches_off(app: Celery) -> None:
    """The task is not under guard at all."""

    @app.task(base=OnceTask, queue_lock=False, running_lock=False)
    def my_task() -> None: ...

    assert my_task.delay().id != my_task.delay().id


def test_a_retry_runs(app: Celery, once_drain: Drain) -> None:
    """The task's own running lock does not reject it (with celery-once-task it does)."""
    attempts = []

    @app.task(base=OnceTask, bind=True)
    def my_task(self: Any) -> None:
        attempts.append(self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=1)

    my_task.delay()
    once_drain()

    assert attempts == [0, 1, 2]


def test_the_queue_lock_times_out(app: Celery, once_clock: OnceClock) -> None:
    """A message that never runs is forgotten after ``queue_lock_timeout``."""
    configure(queue_lock_timeout=60)

    @app.task(base=OnceTask)
    def my_task() -> None: ...

    first = my_task.delay()
    once_clock.advance(70)

    assert my_task.delay() != first


# configure


def test_configure_is_read_late_and_in_parts(once_celery_app: Celery) -> None:
    """It may come after the tasks, and give one setting after the other."""

    @once_celery_app.task(base=OnceTask)
    def my_task() -> None: ...

    assert my_task.name
    configure(queue_lock_timeout=60)
    configure(redis_url="redis://localhost:6379/4")

    options = my_task.once_guard().options
    assert (options.ttl, options.url) == (60.0, "redis://localhost:6379/4")


def test_configure_refuses_other_names() -> None:
    """A misspelt setting is an error."""
    with pytest.raises(TypeError, match="redis_uri"):
        configure(redis_uri="redis://localhost:6379/4")  # type: ignore[call-arg]


def test_reset_config(once_celery_app: Celery) -> None:
    """Tests may forget what was configured."""
    configure(queue_lock_timeout=60)
    reset_config()

    @once_celery_app.task(base=OnceTask)
    def my_task() -> None: ...

    assert my_task.once_guard().options.ttl == 3600.0


def test_our_own_settings_go_before(app: Celery) -> None:
    """Who has set ``once_ttl`` already need not take `configure` away at the same time."""
    app.conf.once_ttl = 99

    @app.task(base=OnceTask)
    def my_task() -> None: ...

    assert my_task.once_guard().options.ttl == 99.0


def test_settings_with_a_namespace(once_celery_app: Celery) -> None:
    """``CELERY_ONCE_…`` of Django's settings reaches every task, ours included."""
    from once_celery import OnceTask as OurOnceTask

    settings = {
        "CELERY_ONCE_REDIS_URL": "redis://localhost:6379/3",
        "CELERY_ONCE_QUEUE_LOCK_TIMEOUT": 600,
        "CELERY_ONCE_RUNNING_LOCK_TIMEOUT": 600,
    }
    once_celery_app.config_from_object(settings, namespace="CELERY")

    for base in (OnceTask, OurOnceTask):

        @once_celery_app.task(base=base, name=f"{base.__module__}.my_task")
        def my_task() -> None: ...

        options = my_task.once_guard().options
        assert (options.ttl, options.url) == (600.0, "redis://localhost:6379/3")


# What has nothing to do


def test_signals_are_there_already(app: Celery) -> None:
    """Connecting and disconnecting does nothing, any number of times."""
    setup_once_task_signals()
    teardown_once_task_signals()
    teardown_once_task_signals()


def test_the_boot_step_is_left_out(app: Celery) -> None:
    """A worker takes it and does nothing with it."""
    step = OnceTaskUnlockBootStep(app)

    assert not step.include_if(app)


def test_the_error_can_be_imported() -> None:
    """Who catches it goes on working; nothing raises it."""
    from celery.exceptions import Reject

    assert issubclass(OnceTaskLocked, Reject)


def test_the_django_app(tmp_path: Path) -> None:
    """It stands in ``INSTALLED_APPS`` and hands on the three settings, with or without Celery's."""
    program = """
import warnings
warnings.simplefilter("ignore")
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["once_celery.compat.celery_once_task.django.OnceTaskAppConfig"],
    CELERY_ONCE_REDIS_URL="redis://localhost:6379/3",
    CELERY_ONCE_QUEUE_LOCK_TIMEOUT=600,
)
django.setup()
from celery import Celery, shared_task
from once_celery.compat.celery_once_task import OnceTask

app = Celery("shop", broker="memory://")

@shared_task(base=OnceTask)
def my_task(): ...

options = app.tasks[my_task.name].once_guard().options
print(options.url, options.ttl)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.stdout.split() == ["redis://localhost:6379/3", "600.0"], ended.stderr
