"""What users saw at the edges: each test is named after it."""

from __future__ import annotations

import pytest
from _support.deployment import Deployment
from _support.scenes import hold, let_go
from _support.waiting import wait_until

from once_celery import ConfigurationError, OnceTask

pytestmark = pytest.mark.lifecycle


def test_a_task_that_replaces_itself_is_not_refused_by_the_one_that_waits(
    scene: Deployment, unit: str
) -> None:
    """The replacement runs under the id its caller waits for, though another message waits."""
    running = hold(scene, unit, "replacing_itself")
    waiting = scene.task("replacing_itself").delay(unit)

    let_go(scene, unit)

    assert running.get(timeout=30) == "final"
    assert waiting.get(timeout=30) == "final"


def test_a_retry_that_ran_at_once_leaves_nothing_that_refuses_triggers(
    scene: Deployment, unit: str
) -> None:
    """Without a lease the retry may end before its host; afterwards nothing waits any more."""
    task = scene.task("queued_retrying")
    task.delay(unit, -1)
    wait_until(lambda: len(scene.runs(unit)) == 2, "the retry runs beside its host")

    let_go(scene, unit)

    wait_until(lambda: all(run.end for run in scene.runs(unit)), "both ended")
    wait_until(lambda: not task.is_locked(unit), "nothing waits", within=10)


def test_a_task_that_calls_itself_from_a_hook_goes_on(scene: Deployment, unit: str) -> None:
    """until_done does not refuse a call from after_return: the run is over by then."""
    scene.task("polling").delay(unit)

    wait_until(lambda: len(scene.runs(unit)) == 3, "it called itself twice")


def test_a_tasks_own_expiry_ends_its_wait(scene: Deployment, unit: str) -> None:
    """Nothing waits for longer than the broker keeps the message, wherever that was said."""
    task = scene.task("expiring")

    task.apply_async((unit,), queue=f"nobody-{unit}")

    assert task.holder(unit).remaining <= 5


@pytest.mark.parametrize("option", ["scope", "key", "lease"])
def test_an_option_beside_once_is_refused(scene: Deployment, option: str) -> None:
    """An option in Celery's place would be ignored without a word."""

    def beside(unit: str) -> None:
        """A task whose author took Celery's decorator for ours."""

    options = {"base": OnceTask, "shared": False, option: "x"}
    with pytest.raises(ConfigurationError) as caught:
        str(scene.app.task(name=f"beside-{option}", **options)(beside).name)

    assert f"write once={{\"{option}\": 'x'}}" in str(caught.value)
