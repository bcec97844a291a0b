"""Retries: they wait in a place of their own, and are never refused."""

from __future__ import annotations

from typing import Any

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import everywhere, let_go
from _support.waiting import wait_until
from celery import Celery, chain

pytestmark = pytest.mark.lifecycle

KINDS = ["retrying", "retrying_late", "retrying_quietly", "autoretrying"]


@everywhere
@pytest.mark.parametrize("task", KINDS)
def test_a_retry_runs_under_the_same_id(scene: Deployment, unit: str, task: str) -> None:
    """self.retry, throw=False, autoretry_for and acks_late: each attempt runs, one at a time."""
    handle = scene.task(task).delay(unit, times=2)

    if task == "retrying_quietly":  # the body goes on after its retry, and so ends three times
        wait_until(lambda: len(scene.runs(unit)) == 3, "all attempts ran")
    else:
        assert handle.get(timeout=20) == "after 2"

    runs = scene.runs(unit)
    assert [(run.message_id, run.retries) for run in runs] == [(handle.id, n) for n in range(3)]
    assert overlaps(runs) == []
    assert len({run.fence for run in runs}) == 3


@pytest.mark.parametrize("task", KINDS)
def test_retries_leave_nothing_but_marks_that_expire(
    scene: Deployment, unit: str, task: str
) -> None:
    """After retries the unit is free; what stays is a mark for late copies, and it expires."""
    handle = scene.task(task).delay(unit, times=1)
    wait_until(lambda: len(scene.runs(unit)) == 2, "both attempts ran")
    client = scene.store.client()

    wait_until(lambda: not scene.task(task).is_locked(unit, times=1), "the unit is free")

    parts = {field[:1] for field in client.hkeys(handle.once.key)} - {b"l", b"v"}
    assert parts <= {b"k"}
    assert not parts or 0 < client.ttl(handle.once.key) <= 3600
    assert scene.task(task).delay(unit, times=1).once.state == "claimed"


@everywhere
def test_a_call_is_refused_while_a_retry_waits(scene: Deployment, unit: str) -> None:
    """A duplicate that is sent while a retry waits gets the handle of the retry."""
    retrying = scene.task("retrying")
    first = retrying.delay(unit, countdown=2)
    wait_until(lambda: is_waiting(retrying, unit), "the retry waits")

    duplicate = retrying.delay(unit, countdown=2)

    assert (duplicate.once.state, duplicate.id) == ("waiting", first.id)
    assert retrying.holder(unit).retries == 1
    assert duplicate.get(timeout=20) == "after 1"
    assert [run.message_id for run in scene.runs(unit)] == [first.id] * 2


@everywhere
def test_a_retry_is_not_refused_by_one_that_waits(scene: Deployment, unit: str) -> None:
    """A run that retries while another message waits: both of them run in the end."""
    retrying = scene.task("retrying")
    first = retrying.delay(unit, countdown=0.1, seconds=-1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    second = retrying.delay(unit, times=0)

    let_go(scene, unit)

    assert (second.once.state, second.get(timeout=20)) == ("claimed", "after 0")
    assert first.get(timeout=20) == "after 1"
    runs = [(run.message_id, run.retries) for run in scene.runs(unit)]
    assert sorted(runs) == sorted([(first.id, 0), (first.id, 1), (second.id, 0)])
    assert overlaps(scene.runs(unit)) == []


@pytest.mark.parametrize(
    "once",
    [
        {"scope": "until_done"},
        {"scope": "queued"},
        {"scope": "running"},
        {"scope": "window", "window": 60},
        {"on_duplicate": "raise"},
        {"on_duplicate": "replace"},
        {"on_overlap": "skip"},
        {"keep_for": 60},
    ],
    ids=str,
)
def test_a_retry_runs_with_every_option(scene: Deployment, unit: str, once: dict) -> None:
    """No scope and no conflict option refuses, raises for or skips a retry."""
    handle = scene.task("retrying").apply_async((unit,), {"times": 2, "countdown": 0.05}, once=once)

    assert handle.get(timeout=20) == "after 2"
    assert [run.retries for run in scene.runs(unit)] == [0, 1, 2]


def test_a_retry_with_on_overlap_skip_waits_its_turn(scene: Deployment, unit: str) -> None:
    """A retry that meets another run is deferred, even with on_overlap="skip"."""
    retrying = scene.task("retrying")
    first = retrying.apply_async((unit,), {"countdown": 1}, once={"on_overlap": "skip"})
    wait_until(lambda: is_waiting(retrying, unit), "the retry waits")

    retrying.release(unit)
    other = retrying.delay(unit, times=0, seconds=-1)
    wait_until(lambda: is_logged(scene, "deferred", first.id), "the retry met the other run")
    let_go(scene, unit)

    assert other.get(timeout=20) == "after 0"
    assert first.get(timeout=20) == "after 1"
    assert overlaps(scene.runs(unit)) == []


@everywhere
def test_a_retry_with_other_arguments_is_a_call_of_another_unit(
    scene: Deployment, unit: str
) -> None:
    """It frees its old unit, runs under the new one, and keeps its id."""
    handle = scene.task("retrying_elsewhere").delay(unit, f"{unit}-b")

    assert handle.get(timeout=20) == "after 1"
    assert [run.message_id for run in scene.runs(f"{unit}-b")] == [handle.id]
    for first in (unit, f"{unit}-b"):
        is_locked = scene.task("retrying_elsewhere").is_locked
        wait_until(lambda: not is_locked(first, f"{unit}-b"), "the unit is free")  # noqa: B023


def test_a_retry_into_a_unit_where_one_waits_is_not_lost(scene: Deployment, unit: str) -> None:
    """A retry with other arguments runs although a message of those arguments waits."""
    task, other = scene.task("retrying_elsewhere"), f"{unit}-b"
    waiting = task.apply_async((other, other), {}, countdown=30)

    handle = task.delay(unit, other)

    assert not waiting.once.is_duplicate
    assert handle.get(timeout=20) == "after 1"
    assert [run.message_id for run in scene.runs(other)] == [handle.id]
    wait_until(lambda: task.holder(other, other).message_id == waiting.id, "it still waits")
    waiting.revoke()


def test_a_message_of_a_program_without_once_can_retry(scene: Deployment, unit: str) -> None:
    """A message by send_task retries under its id, one attempt at a time."""
    names = ("broker_url", "result_backend", "task_default_queue")
    app = Celery("foreign", set_as_current=False)
    app.conf.update({name: scene.settings[name] for name in names})

    handle = app.send_task("retrying", (unit,), {"times": 2, "countdown": 0.05})

    assert handle.get(timeout=20) == "after 2"
    assert [run.retries for run in scene.runs(unit)] == [0, 1, 2]
    assert overlaps(scene.runs(unit)) == []
    app.backend.result_consumer.stop()
    app.close()


def test_a_retry_that_gives_up_frees_the_unit(scene: Deployment, unit: str) -> None:
    """When its retries are used up the message fails and the unit is free."""
    autoretrying = scene.task("autoretrying")
    handle = autoretrying.delay(unit, times=99)

    with pytest.raises(ZeroDivisionError):
        handle.get(timeout=20)

    assert [run.retries for run in scene.runs(unit)] == [0, 1, 2, 3]
    wait_until(lambda: not autoretrying.is_locked(unit, times=99), "the unit is free")


def test_a_chain_goes_on_after_a_step_that_retried(scene: Deployment, unit: str) -> None:
    """A chain step that retries hands on the value of its last attempt."""
    steps = [scene.task("retrying").si(unit, countdown=0.05), scene.task("plain").s()]

    value = chain(*steps)().get(timeout=20)

    assert value == "done after 1"


def is_waiting(task: Any, unit: str) -> bool:
    """Whether the first retry of a unit waits."""
    holder = task.holder(unit)
    return holder is not None and holder.state == "waiting" and holder.retries == 1


def is_logged(scene: Deployment, kind: str, message_id: str) -> bool:
    """Whether a worker of this scene told of such a decision about this message."""
    logs = "\n".join(worker.log for worker in scene.workers)
    return any(kind in line and f"message_id={message_id}" in line for line in logs.splitlines())


def test_a_call_is_refused_while_a_retry_without_lease_waits(scene: Deployment, unit: str) -> None:
    """Scope "queued" has no lease that ends when the retry is noted: it is noted before."""
    task, once = scene.task("retrying"), {"scope": "queued"}
    handle = task.apply_async((unit,), {"countdown": 3}, once=once)
    wait_until(lambda: handle.status == "RETRY", "it waits for its retry")

    refused = task.apply_async((unit,), once=once)

    assert (refused.id, refused.once.state) == (handle.id, "waiting")
    assert handle.get(timeout=20) == "after 1"
    assert not task.is_locked(unit)
