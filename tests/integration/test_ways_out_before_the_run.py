"""Every way in which a message ends before its body: it refuses triggers no longer than it must.

What a hook tells us frees the unit at once; what nobody is told of (a purge, a body that cannot
be read) heals: the first trigger `heal_after` seconds later is sent again.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import hold, ids, let_go
from _support.waiting import wait_until
from _support.ways_out_tasks import AT_ONCE, is_free, runs_when_triggered
from celery import states
from celery.exceptions import NotRegistered, TaskRevokedError

PREFORK, THREADS, RABBITMQ = "prefork+redis", "threads+redis", "prefork+rabbitmq"

in_full = pytest.mark.parametrize("scene", [PREFORK, THREADS, RABBITMQ], indirect=True)

prefork_alone = pytest.mark.parametrize("scene", [PREFORK, RABBITMQ], indirect=True)

FAR = 600
"""Seconds: an ETA that no test waits for."""


def received(scene: Deployment, handle: Any, times: int = 1) -> None:
    """A worker has taken the message, so many times."""
    line = f"[{handle.id}] received"
    wait_until(
        lambda: sum(worker.log.count(line) for worker in scene.workers) >= times,
        f"a worker received {handle.id}",
    )


def flagged(scene: Deployment, handle: Any) -> None:
    """All workers know that the message is revoked."""
    for worker in scene.workers:
        wait_until(
            lambda: any(  # used at once
                "flagged as revoked" in line and handle.id in line
                for line in worker.log.splitlines()  # noqa: B023  # used at once
            ),
            "the worker heard of it",
        )


def accepted(task: Any, unit: str) -> Any:
    """Trigger until a trigger is accepted, which must be soon."""
    return wait_until(
        lambda: not (call := task.delay(unit)).once.is_duplicate and call,
        "a trigger is accepted",
        within=AT_ONCE,
    )


def move(scene: Deployment, queue: str, message: bytes, *, redelivered: bool = False) -> None:
    """Give a message of a queue that nobody reads to the workers of a scene."""
    decoded = json.loads(message)
    if redelivered:
        decoded["properties"]["delivery_info"]["redelivered"] = True
    scene.store.client().lpush(scene.settings["task_default_queue"], json.dumps(decoded))


def tamper(scene: Deployment, queue: str, change: Callable[[dict], None]) -> None:
    """The same, changed on its way."""
    message = json.loads(scene.store.client().rpop(queue))
    change(message)
    scene.store.client().lpush(scene.settings["task_default_queue"], json.dumps(message))


def delete(scene: Deployment, queue: str) -> None:
    """RabbitMQ keeps what is not deleted."""
    with scene.app.connection_for_write() as connection:
        connection.default_channel.queue_delete(queue)


def is_revoked(handle: Any) -> None:
    """The caller sees that it was revoked."""
    wait_until(lambda: handle.state == states.REVOKED, "it is REVOKED", within=20)
    with pytest.raises(TaskRevokedError):
        handle.get(timeout=5)


def busy(scene: Deployment, unit: str) -> list[str]:
    """Keep all of a scene's workers busy; what comes then stays with them, reserved."""
    units = [f"{unit}-busy-{n}" for n in range(scene.concurrency)]
    for one in units:
        hold(scene, one, "running")
    return units


# Revoked


@in_full
@pytest.mark.parametrize("terminate", [False, True])
def test_revoked_before_start_by_id_behind_a_run(
    scene: Deployment, unit: str, terminate: bool
) -> None:
    """One waits behind a run and is revoked: the next trigger waits in its place, and runs."""
    leaving = scene.task("leaving")
    running = leaving.delay(unit, "success", -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    revoked = leaving.delay(unit)
    received(scene, revoked, times=2)  # put back once

    revoked.revoke(terminate=terminate)

    behind = accepted(leaving, unit)
    assert leaving.holder(unit).message_id == running.id
    let_go(scene, unit)
    assert behind.get(timeout=20) == "success"
    is_revoked(revoked)
    is_free(leaving, unit)
    assert ids(scene, unit) == [running.id, behind.id]
    assert overlaps(scene.runs(unit)) == []


@pytest.mark.parametrize("scene", [PREFORK, THREADS], indirect=True)
def test_revoked_while_it_runs_and_then_retries(scene: Deployment, unit: str) -> None:
    """The body goes on, its retry is thrown away: nothing of it waits any more."""
    leaving = scene.task("leaving")
    running = leaving.delay(unit, "Retry", -1)
    wait_until(lambda: scene.runs(unit), "the body runs")

    running.revoke()
    flagged(scene, running)
    let_go(scene, unit)

    received(scene, running, times=2)
    is_free(leaving, unit)
    assert ids(scene, unit) == [running.id]
    runs_when_triggered(scene, leaving, unit)


def test_revoked_while_it_runs_after_retry_without_throw(scene: Deployment, unit: str) -> None:
    """The retry is thrown away before its host ends, which nobody knows by then: it heals."""
    leaving = scene.task("leaving")
    running = leaving.apply_async((unit, "Retry quietly", -1), once={"heal_after": 1.5})
    wait_until(lambda: scene.runs(unit), "the body runs")

    running.revoke()
    flagged(scene, running)
    let_go(scene, unit)

    wait_until(lambda: (holder := leaving.holder(unit)) and holder.retries == 1, "it has ended")
    again = accepted(leaving, unit)
    assert again.get(timeout=20) == "success"
    is_free(leaving, unit)


def test_revoked_after_it_replaced_another(scene: Deployment, unit: str) -> None:
    """Neither the revoked one nor the one that it replaced comes back; the next trigger runs."""
    replacing = scene.task("replacing")
    old = replacing.apply_async((unit,), {"payload": "old"}, countdown=3)
    new = replacing.apply_async((unit,), {"payload": "new"}, countdown=FAR)
    assert new.once.state == "replaced"
    received(scene, new)

    new.revoke()

    is_free(replacing, unit)
    assert replacing.delay(unit, payload="newest").get(timeout=20) == "newest"
    assert old.get(timeout=20) is None
    assert [run.payload for run in scene.runs(unit)] == ["newest"]


def test_revoked_copy_of_a_lost_message(scene: Deployment, unit: str) -> None:
    """The first message was lost, its copy is revoked: the next trigger is sent at once."""
    leaving = scene.task("leaving")
    leaving.apply_async((unit,), queue=f"nobody-{unit}", once={"heal_after": 0.5})
    copy = wait_until(
        lambda: (
            not (call := leaving.apply_async((unit,), countdown=FAR)).once.is_duplicate and call
        ),
        "a copy is sent",
    )
    received(scene, copy)

    copy.revoke()

    again = accepted(leaving, unit)
    assert again.get(timeout=20) == "success"
    is_free(leaving, unit)
    assert ids(scene, unit) == [again.id]


@prefork_alone
def test_revoked_before_start_while_reserved(scene: Deployment, unit: str) -> None:
    """A message that a busy worker has taken is revoked: free as soon as it is looked at."""
    leaving = scene.task("leaving")
    others = busy(scene, unit)
    handle = leaving.delay(unit)
    received(scene, handle)

    handle.revoke()
    flagged(scene, handle)
    for other in others:
        let_go(scene, other)

    is_free(leaving, unit)
    is_revoked(handle)
    runs_when_triggered(scene, leaving, unit)
    assert handle.id not in ids(scene, unit)


@pytest.mark.parametrize("scene", [THREADS], indirect=True)
@pytest.mark.parametrize("way", ["revoked", "expired"])
def test_revoked_or_expired_while_reserved_in_threads(
    scene: Deployment, unit: str, way: str
) -> None:
    """Celery has given it to its pool already: it runs, and never beside another.

    Unless it has expired, meets another and is put back: then Celery throws it away.
    """
    leaving = scene.task("leaving")
    others = busy(scene, unit)
    # Long enough to be received before it expires: Celery throws away what comes later.
    expires = 5
    handle = leaving.apply_async((unit,), expires=expires if way == "expired" else None)
    received(scene, handle)

    if way == "revoked":
        handle.revoke()
        flagged(scene, handle)
        last = handle
    else:
        is_free(leaving, unit, within=expires + AT_ONCE)
        last = leaving.delay(unit)
        assert last.once.state == "claimed"
    for other in others:
        let_go(scene, other)

    wait_until(lambda: last.id in ids(scene, unit), "it runs")
    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)
    assert overlaps(scene.runs(unit)) == []


@pytest.mark.parametrize("scene", [PREFORK, THREADS], indirect=True)
def test_revoked_before_start_while_still_in_the_broker(scene: Deployment, unit: str) -> None:
    """The unit is free when a worker finds the message and throws it away."""
    leaving, queue = scene.task("leaving"), f"late-{unit}"
    handle = leaving.apply_async((unit,), queue=queue)

    handle.revoke()
    wait_until(lambda: handle.state == states.REVOKED, "it is REVOKED")
    scene.app.control.add_consumer(queue, reply=True)

    is_free(leaving, unit)
    runs_when_triggered(scene, leaving, unit)
    assert handle.id not in ids(scene, unit)
    scene.app.control.cancel_consumer(queue, reply=True)


@in_full
def test_revoked_by_stamped_header(scene: Deployment, unit: str) -> None:
    """As by id: the unit is free at once, and not at its ETA."""
    leaving = scene.task("leaving")
    signature = leaving.si(unit)
    signature.stamp(tenant=unit)
    handle = signature.apply_async(countdown=FAR)
    received(scene, handle)

    scene.app.control.revoke_by_stamped_headers({"tenant": [unit]})

    is_free(leaving, unit)
    is_revoked(handle)
    runs_when_triggered(scene, leaving, unit)
    assert handle.id not in ids(scene, unit)


@in_full
@pytest.mark.parametrize("way", ["revoked", "expired"])
def test_revoked_or_expired_while_a_retry_waits(scene: Deployment, unit: str, way: str) -> None:
    """A retry that will never run refuses nobody."""
    task = scene.task("retrying")
    expires = 5  # long enough for its first run
    handle = task.apply_async(
        (unit,), {"countdown": FAR}, expires=expires if way == "expired" else None
    )
    wait_until(lambda: (holder := task.holder(unit)) and holder.retries == 1, "the retry waits")

    if way == "revoked":
        received(scene, handle, times=2)
        handle.revoke()

    is_free(task, unit, within=expires + AT_ONCE)
    wait_until(lambda: handle.state == states.REVOKED, "it is REVOKED", within=20)
    assert task.delay(unit, times=0).get(timeout=20) == "after 0"
    assert ids(scene, unit)[0] == handle.id
    assert len(ids(scene, unit)) == 2


# Expired


@in_full
def test_expires_passed_with_an_eta_after_it(scene: Deployment, unit: str) -> None:
    """A message that expires before it is due waits no longer than it can run."""
    leaving = scene.task("leaving")
    handle = leaving.apply_async((unit,), countdown=FAR, expires=3)
    assert leaving.is_locked(unit)

    is_free(leaving, unit, within=3 + AT_ONCE)
    is_revoked(handle)
    runs_when_triggered(scene, leaving, unit)
    assert handle.id not in ids(scene, unit)


@prefork_alone
def test_expires_passed_while_reserved(scene: Deployment, unit: str) -> None:
    """A message expires with a busy worker: the next trigger runs, the expired one does not."""
    leaving = scene.task("leaving")
    others = busy(scene, unit)
    handle = leaving.apply_async((unit,), expires=1)
    received(scene, handle)

    is_free(leaving, unit, within=1 + AT_ONCE)
    behind = accepted(leaving, unit)
    for other in others:
        let_go(scene, other)

    is_revoked(handle)
    assert behind.get(timeout=20) == "success"
    assert ids(scene, unit) == [behind.id]
    is_free(leaving, unit)


@prefork_alone
def test_expires_passed_behind_a_run(scene: Deployment, unit: str) -> None:
    """One waits behind a run and expires: it is not run afterwards, and refuses nobody."""
    leaving = scene.task("leaving")
    running = leaving.delay(unit, "success", -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    expired = leaving.apply_async((unit,), expires=1.5)
    received(scene, expired)

    is_revoked(expired)
    behind = accepted(leaving, unit)
    let_go(scene, unit)

    assert behind.get(timeout=20) == "success"
    is_free(leaving, unit)
    assert ids(scene, unit) == [running.id, behind.id]


@pytest.mark.parametrize("scene", [PREFORK, RABBITMQ], indirect=True)
def test_expires_passed_in_the_queue(scene: Deployment, unit: str) -> None:
    """RabbitMQ drops it and tells nobody, Redis keeps it: the unit is free when it expires."""
    leaving, queue = scene.task("leaving"), f"late-{unit}"
    before = time.monotonic()
    handle = leaving.apply_async((unit,), queue=queue, expires=3)
    assert leaving.delay(unit).once.state == "waiting"
    wait_until(lambda: not leaving.is_locked(unit), "the unit is free", within=3 + 2)
    assert time.monotonic() - before > 2

    runs_when_triggered(scene, leaving, unit)
    scene.app.control.add_consumer(queue, reply=True)
    if scene.broker == "redis":
        is_revoked(handle)
    scene.app.control.cancel_consumer(queue, reply=True)

    assert handle.state == (states.REVOKED if scene.broker == "redis" else states.PENDING)
    assert handle.id not in ids(scene, unit)
    is_free(leaving, unit)
    delete(scene, queue)


# Nobody is told


@pytest.mark.parametrize("scene", [PREFORK, RABBITMQ], indirect=True)
def test_purge(scene: Deployment, deploy: Callable[..., Deployment], unit: str) -> None:
    """app.control.purge() takes what waits: the first trigger `heal_after` later is sent again."""
    other = deploy(broker=scene.broker)  # its queue has no workers
    leaving, here = other.task("leaving"), scene.settings["task_default_queue"]
    purged = leaving.apply_async((unit,), once={"heal_after": 1.5})
    assert other.app.control.purge() == 1
    assert leaving.delay(unit).once.state == "waiting"

    again = wait_until(
        lambda: not (call := leaving.apply_async((unit,), queue=here)).once.is_duplicate and call,
        "a trigger is sent again",
        within=AT_ONCE,
    )

    assert again.once.state == "refreshed"
    assert again.get(timeout=20) == "success"
    assert purged.state == states.PENDING
    assert ids(scene, unit) == [again.id]
    is_free(leaving, unit)
    runs_when_triggered(scene, scene.task("leaving"), unit)


@in_full
def test_unknown_task(scene: Deployment, unit: str) -> None:
    """A worker without the task fails its messages; a trigger `heal_after` later is sent again."""
    from once_celery import OnceTask

    def unheard_of() -> None: ...

    task = scene.app.task(
        name=f"unheard_of-{unit}", base=OnceTask, shared=False, once={"heal_after": 1.5}
    )(unheard_of)
    calls = [task.delay()]
    calls.append(
        wait_until(
            lambda: not (call := task.delay()).once.is_duplicate and call,
            "a trigger is sent again",
            within=AT_ONCE,
        )
    )

    assert calls[1].once.state == "refreshed"
    for call in calls:
        with pytest.raises(NotRegistered):
            call.get(timeout=20)


def break_body(message: dict) -> None:
    """Good headers, and a body that is no JSON."""
    message["body"] = base64.b64encode(b"[[, {}").decode()


def forbid_content(message: dict) -> None:
    """A serializer that workers do not accept."""
    message["content-type"] = "application/x-python-serialize"


def break_eta(message: dict) -> None:
    """An ETA that is no time."""
    message["headers"]["eta"] = "tomorrow"


def break_format(message: dict) -> None:
    """No format that Celery knows."""
    del message["headers"]["task"]


def break_kwargs(message: dict) -> None:
    """Arguments that are no mapping."""
    args, _, embedded = json.loads(base64.b64decode(message["body"]))
    body = json.dumps([args, ["no", "mapping"], embedded])
    message["body"] = base64.b64encode(body.encode()).decode()


BROKEN = {
    "undecodable body with good headers": break_body,
    "disallowed content": forbid_content,
    "bad ETA": break_eta,
    "unknown format": break_format,
    "kwargs not a mapping": break_kwargs,
}


@pytest.mark.parametrize("scene", [PREFORK, THREADS], indirect=True)
def test_messages_that_cannot_be_read(scene: Deployment, unit: str) -> None:
    """Undecodable body, disallowed content, bad ETA, unknown format, kwargs not a mapping.

    All end without a run, and a trigger `heal_after` later is sent again and runs.
    """
    leaving = scene.task("leaving")
    units = {f"{unit}-{number}": name for number, name in enumerate(BROKEN)}
    calls = {}
    for one, name in units.items():
        call = leaving.apply_async((one,), queue=f"nobody-{one}", once={"heal_after": 1.5})
        tamper(scene, f"nobody-{one}", BROKEN[name])
        assert leaving.delay(one).id == call.id
        calls[one] = call

    for one, name in units.items():
        again = accepted(leaving, one)
        assert (again.once.state, again.get(timeout=20)) == ("refreshed", "success"), name
        assert ids(scene, one) == [again.id]
        assert calls[one].state == states.PENDING, name
        is_free(leaving, one)


def test_rate_limited(scene: Deployment, unit: str) -> None:
    """A message that is held back by a rate limit waits like any other, and runs once."""
    slowly = scene.task("leaving_slowly")
    slowly.delay(f"{unit}-before").get(timeout=20)

    handle = slowly.delay(unit)
    received(scene, handle)
    duplicate = slowly.delay(unit)

    assert (duplicate.once.state, duplicate.id) == ("waiting", handle.id)
    assert handle.get(timeout=20) == "success"
    is_free(slowly, unit)
    assert ids(scene, unit) == [handle.id]


def test_redelivered_after_success_with_deduplication(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """With worker_deduplicate_successful_tasks Celery drops a copy; the next trigger runs."""
    scene = deploy(conf={"worker_deduplicate_successful_tasks": True})
    late, queue = scene.task("leaving_late"), f"nobody-{unit}"
    handle = late.apply_async((unit,), queue=queue)
    copy = scene.store.client().lindex(queue, 0)
    scene.worker()
    move(scene, queue, copy)
    assert handle.get(timeout=20) == "success"

    move(scene, queue, copy, redelivered=True)
    wait_until(lambda: "already completed successfully" in scene.workers[0].log, "it is dropped")

    is_free(late, unit)
    runs_when_triggered(scene, late, unit)
    assert ids(scene, unit)[0] == handle.id
    assert len(ids(scene, unit)) == 2
