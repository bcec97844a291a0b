"""What older versions of Celery forget, and once keeps; every version is held to it."""

from __future__ import annotations

import pytest
from _support.deployment import Deployment
from _support.scenes import everywhere, hold, let_go
from _support.waiting import wait_until

pytestmark = pytest.mark.lifecycle


@everywhere
def test_a_deferred_message_keeps_its_calls_ignore_result(scene: Deployment, unit: str) -> None:
    """A call that wants no result has none stored, however often its message was put back.

    Before 5.7 Celery takes ignore_result from the task when a message is made from another.
    """
    running = hold(scene, unit)
    ignored = scene.task("work").apply_async((unit, -1), ignore_result=True)
    wait_until(lambda: is_logged(scene, "deferred work", ignored.id), "it was put back")

    let_go(scene, unit)
    wait_until(lambda: is_logged(scene, "succeeded", ignored.id), "it ran, and its result came by")

    assert running.get(timeout=20) == f"done {unit}"
    assert [run.message_id for run in scene.runs(unit)] == [running.id, ignored.id]
    assert scene.app.backend.get(scene.app.backend.get_key_for_task(ignored.id)) is None


def is_logged(scene: Deployment, what: str, message_id: str) -> bool:
    """Whether a worker of this scene told this about this message."""
    logs = "\n".join(worker.log for worker in scene.workers)
    return any(what in line and message_id in line for line in logs.splitlines())
