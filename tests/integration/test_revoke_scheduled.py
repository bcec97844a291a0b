"""Messages that are revoked, or expire, while a worker holds them until their ETA."""

from __future__ import annotations

import pytest
from _support.deployment import Deployment
from _support.scenes import everywhere, hold, let_go
from _support.waiting import wait_until

pytestmark = pytest.mark.lifecycle

SOON = 10.0
"""Seconds within which the unit is free; the ETA is an hour away."""


def is_held(scene: Deployment) -> bool:
    """Whether a worker has taken all there is."""
    return scene.queued() == 0


def is_deferred(scene: Deployment, message_id: str) -> bool:
    """Whether a worker's log tells of it."""
    lines = scene.workers[0].log.splitlines()
    return any(" deferred " in line and message_id in line for line in lines)


@everywhere
def test_revoked_long_before_its_eta_it_frees_its_unit(scene: Deployment, unit: str) -> None:
    """Revoked by its id; the same on all pools and brokers."""
    task = scene.task("work")
    handle = task.apply_async((unit,), countdown=3600)
    wait_until(lambda: is_held(scene), "a worker holds it")

    handle.revoke()

    wait_until(lambda: not task.is_locked(unit), "the unit is free", within=SOON)
    wait_until(lambda: handle.status == "REVOKED", "its handle says so")
    assert task.delay(unit).get(timeout=20) == f"done {unit}"


def test_revoked_by_a_stamp_it_frees_its_unit(scene: Deployment, unit: str) -> None:
    """Celery itself looks at stamps only when a message is due."""
    task = scene.task("work")
    call = task.si(unit).set(countdown=3600)
    call.stamp(campaign=unit)
    call.apply_async()
    wait_until(lambda: is_held(scene), "a worker holds it")

    scene.app.control.revoke_by_stamped_headers({"campaign": [unit]})

    wait_until(lambda: not task.is_locked(unit), "the unit is free", within=SOON)


def test_expired_before_its_eta_it_frees_its_unit(scene: Deployment, unit: str) -> None:
    """Due after it expires: it can never run."""
    task = scene.task("work")
    handle = task.apply_async((unit,), countdown=3600, expires=3)
    wait_until(lambda: not task.is_locked(unit), "the unit is free", within=SOON)
    wait_until(lambda: handle.status == "REVOKED", "its handle says so")


def test_revoked_while_deferred_it_waits_no_more(scene: Deployment, unit: str) -> None:
    """It waits for its turn in a worker's hands, as if it had an ETA."""
    task = scene.task("work")
    hold(scene, unit)
    waiting = task.delay(unit, -1)
    wait_until(lambda: is_deferred(scene, waiting.id), "it is deferred")

    waiting.revoke()

    wait_until(lambda: task.delay(unit, -1).id != waiting.id, "a call is accepted", within=40)
    let_go(scene, unit)
    wait_until(lambda: len(scene.runs(unit)) == 2, "it runs", within=40)


def test_a_retry_that_is_revoked_frees_its_unit(scene: Deployment, unit: str) -> None:
    """A retry waits under the id of its first run."""
    task = scene.task("retrying")
    handle = task.delay(unit, times=1, countdown=3600)
    wait_until(lambda: handle.status == "RETRY", "it waits for its retry")
    wait_until(lambda: is_held(scene), "a worker holds it")

    handle.revoke()

    wait_until(lambda: not task.is_locked(unit), "the unit is free", within=SOON)
