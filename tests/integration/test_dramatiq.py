"""Dramatiq, on real brokers with real workers: the first run of the binding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _support.dramatiq_app import LEASE
from _support.dramatiq_deployment import DramatiqDeployment
from _support.ledger import overlaps
from _support.waiting import wait_until

from once_dramatiq import holder, is_locked, published

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


@pytest.mark.parametrize("options", [(), ("--use-spawn",)], ids=["fork", "spawn"])
def test_several_processes_run_one_at_a_time(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str, options: tuple[str, ...]
) -> None:
    """Each renews its own leases, whether it was forked or spawned."""
    scene = deploy_dramatiq(broker="redis")
    scene.worker(processes=2, threads=2, options=options)
    work = scene.task("work")

    running = scene.hold(unit)
    waiting = work.send(unit, -1)
    fence = scene.runs(unit)[0].fence
    wait_until(
        lambda: any(
            f"deferred work: an attempt of message {running.message_id}" in each.log
            for each in scene.workers
        ),
        "the second one meets the first",
    )
    begun = holder(work, unit, -1)
    assert begun is not None
    wait_until(  # longer than a lease
        lambda: (now := holder(work, unit, -1)) is not None and now.age > begun.age + LEASE + 1,
        "the first outlives its lease",
    )
    scene.let_go(unit)

    assert scene.result(waiting, within=60) == f"done {unit}"
    first, second = scene.runs(unit)
    assert overlaps([first, second]) == []
    assert (first.fence, second.message_id) == (fence, waiting.message_id)
    assert second.fence > first.fence
