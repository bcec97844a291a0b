"""Dramatiq, on real brokers with real workers: the first run of the binding."""

from __future__ import annotations

import pytest
from _support.dramatiq_deployment import DramatiqDeployment

from once_dramatiq import is_locked, published

pytestmark = pytest.mark.lifecycle_dramatiq


def test_a_message_runs_and_leaves_nothing(dramatiq_scene: DramatiqDeployment, unit: str) -> None:
    """The unit is free before its result is seen."""
    message = dramatiq_scene.task("work").send(unit)
    assert dramatiq_scene.result(message) == f"done {unit}"
    assert not is_locked(dramatiq_scene.task("work"), unit)


def test_one_runs_and_one_waits(dramatiq_scene: DramatiqDeployment, unit: str) -> None:
    """A third one is refused, and its message answers with the second's result."""
    work = dramatiq_scene.task("work")
    running = dramatiq_scene.hold(unit)
    waiting, refused = work.send(unit, -1), work.send(unit, -1)
    assert published(refused).is_duplicate
    assert refused.message_id == waiting.message_id
    dramatiq_scene.let_go(unit)
    assert dramatiq_scene.result(refused) == f"done {unit}"
    assert [run.message_id for run in dramatiq_scene.runs(unit)] == [
        running.message_id,
        waiting.message_id,
    ]
