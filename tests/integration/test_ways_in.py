"""Ways in, one message at a time: whatever publishes it, it is guarded as promised.

The names are those of the table of publishing paths. Canvases have a file of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from _support import ledger
from _support.celery_app import SETTINGS
from _support.deployment import Deployment
from _support.scenes import everywhere, hold, hold_and_wait, ids, let_go
from _support.waiting import wait_until
from _support.ways_in_tasks import carried_by, foreign, is_logged, take, until_free
from _support.workers import TESTS
from celery import chain, group
from celery.contrib import migrate
from kombu import Exchange, Queue

from once_celery import ConfigurationError
from once_core.devserver import DevServer

BOTH_BROKERS = pytest.mark.parametrize(
    "scene", ["prefork+redis", "prefork+rabbitmq"], indirect=True
)

pytestmark = pytest.mark.lifecycle


def in_a_second() -> datetime:
    """Not long, and in the only form that Celery takes without a time zone of its own."""
    return datetime.now(timezone.utc) + timedelta(seconds=0.2)


WAYS: dict[str, Callable[[Any, str], Any]] = {
    "delay": lambda work, unit: work.delay(unit),
    "delay with a keyword": lambda work, unit: work.delay(unit=unit),
    "apply_async": lambda work, unit: work.apply_async((unit,)),
    "apply_async with kwargs": lambda work, unit: work.apply_async(kwargs={"unit": unit}),
    "Signature.delay": lambda work, unit: work.s(unit).delay(),
    "Signature.apply_async": lambda work, unit: work.si(unit).apply_async(),
    "signature('name')": lambda work, unit: work.app.signature("work", (unit,)).apply_async(),
    "countdown": lambda work, unit: work.apply_async((unit,), countdown=0.2),
    "eta": lambda work, unit: work.apply_async((unit,), eta=in_a_second()),
    "expires": lambda work, unit: work.apply_async((unit,), expires=60),
    "shadow": lambda work, unit: work.apply_async((unit,), shadow="another name"),
}


@pytest.mark.parametrize("way", WAYS)
def test_via_task_apply_async(scene: Deployment, unit: str, way: str) -> None:
    """A duplicate of one that waits is not sent; on an idle unit it runs once, under a lease."""
    work, publish = scene.task("work"), WAYS[way]
    waiting = take(scene, unit)

    duplicate = publish(work, unit)
    work.release(unit)
    fresh = publish(work, unit)

    assert (duplicate.once.state, duplicate.id) == ("waiting", waiting.id)
    assert (fresh.once.state, fresh.get(timeout=20)) == ("claimed", f"done {unit}")
    assert [(run.message_id, run.fence is not None) for run in scene.runs(unit)] == [
        (fresh.id, True)
    ]
    until_free(scene, unit)


def test_a_call_in_a_body(scene: Deployment, unit: str) -> None:
    """A body that publishes gets the handle of the one that waits, and hears what is sent."""
    work, host = scene.task("work"), scene.task("publishing")
    waiting = take(scene, unit)

    refused = host.delay(f"{unit}-1", unit).get(timeout=20)
    work.release(unit)
    state, sent_id = host.delay(f"{unit}-2", unit).get(timeout=20)

    assert refused == ["waiting", waiting.id]
    assert state == "claimed"
    wait_until(lambda: ids(scene, unit) == [sent_id], "the message of the body ran")


def test_a_message_with_a_countdown_is_the_one_that_waits(scene: Deployment, unit: str) -> None:
    """While a worker holds it until it is due calls get its handle, however soon they are due."""
    work = scene.task("work")
    later = work.apply_async((unit,), countdown=1.5)

    now = work.delay(unit)

    assert (now.once.state, now.id) == ("waiting", later.id)
    assert now.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [later.id]


def test_an_id_given_again_while_it_runs_runs_again_in_turn(scene: Deployment, unit: str) -> None:
    """A second call with the id of the running one is a trigger: it runs, after the first."""
    work, mine = scene.task("work"), f"id-{unit}"
    work.apply_async((unit, -1), task_id=mine)
    wait_until(lambda: scene.runs(unit), "the first body runs")

    again = work.apply_async((unit, -1), task_id=mine)
    third = work.apply_async((unit, -1), task_id=mine)
    wait_until(lambda: is_logged(scene, "deferred work", mine), "the second met the first")
    let_go(scene, unit)

    assert (again.once.state, third.once.state) == ("claimed", "waiting")
    until_free(scene, unit, "work", -1)
    assert ids(scene, unit) == [mine, mine]
    assert ledger.overlaps(scene.runs(unit)) == []
    assert again.get(timeout=20) == f"done {unit}"


def test_an_id_given_again_after_its_run_runs_again(scene: Deployment, unit: str) -> None:
    """An id that was used is as good as a new one."""
    work, mine = scene.task("work"), f"id-{unit}"

    for number in (1, 2):
        work.apply_async((unit,), task_id=mine)
        wait_until(lambda: len(scene.runs(unit)) == number, "it ran")  # noqa: B023
        until_free(scene, unit)

    assert ids(scene, unit) == [mine, mine]


def test_signature_freeze_publishes_and_claims_nothing(scene: Deployment, unit: str) -> None:
    """A frozen signature only fixes its id: the unit is free until it is called."""
    signature = scene.task("work").s(unit)

    frozen = signature.freeze()
    locked = scene.task("work").is_locked(unit)
    handle = signature.apply_async()

    assert not locked
    assert (handle.id, handle.get(timeout=20)) == (frozen.id, f"done {unit}")


# Messages of programs without this library


def celery_call(scene: Deployment, *command: str) -> str:
    """Run `celery ... call work` and return the id that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", *command],
        env={**os.environ, SETTINGS: json.dumps(scene.settings), "PYTHONPATH": str(TESTS)},
        cwd=scene.folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("program", ["with this library", "without this library"])
def test_celery_call(scene: Deployment, unit: str, program: str) -> None:
    """A message of `celery call` is guarded where it runs: it waits for its turn."""
    running = hold(scene, unit)

    app = ["-A", "_support.celery_app"]
    if program == "without this library":
        app = ["-b", scene.store.url]
    queue = str(scene.settings["task_default_queue"])
    arguments = json.dumps([unit, -1])
    called = celery_call(scene, *app, "call", "work", "-a", arguments, "--queue", queue)
    wait_until(lambda: is_logged(scene, "deferred work", called), "it met the running one")
    duplicate = scene.task("work").delay(unit, -1)
    let_go(scene, unit)

    assert (duplicate.once.state, duplicate.id) == ("waiting", called)
    assert duplicate.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [running.id, called]
    assert all(run.fence for run in scene.runs(unit))


@pytest.mark.parametrize("way", ["send_task", "signature('unregistered')", "send_task of ours"])
def test_not_via_task_apply_async(scene: Deployment, unit: str, way: str) -> None:
    """Such messages are all sent; one runs at a time, one waits, the third ends with None."""
    app = foreign(scene)
    hold(scene, unit)

    def publish() -> Any:
        if way == "send_task":
            return app.send_task("work", (unit, -1))
        if way == "send_task of ours":
            return scene.app.send_task("work", (unit, -1))
        return app.signature("work", (unit, -1)).apply_async()

    second = publish()
    wait_until(lambda: is_logged(scene, "deferred work", second.id), "it is put back")
    third = publish()
    value = third.get(timeout=20)
    let_go(scene, unit)

    assert value is None
    assert second.get(timeout=20) == f"done {unit}"
    until_free(scene, unit, "work", -1)
    assert ids(scene, unit)[1:] == [second.id]
    app.backend.result_consumer.stop()
    app.close()


def test_a_foreign_message_keeps_its_own_headers(scene: Deployment, unit: str) -> None:
    """What another program put into its headers is there in the body, put back or not."""
    app = foreign(scene)
    hold(scene, unit, "carrying")

    second = app.send_task("carrying", (unit,), headers={"tenant": "a1"})
    wait_until(lambda: is_logged(scene, "deferred carrying", second.id), "it is put back")
    let_go(scene, unit)
    second.get(timeout=20)

    assert [each["headers"] for each in carried_by(scene, unit, second.id)] == [{"tenant": "a1"}]
    app.backend.result_consumer.stop()
    app.close()


def test_a_foreign_message_beside_one_of_ours_that_waits(scene: Deployment, unit: str) -> None:
    """It ends with None where one waits already: there is no third run."""
    app = foreign(scene)
    running, waiting = hold_and_wait(scene, unit)

    value = app.send_task("work", (unit, -1)).get(timeout=20)
    let_go(scene, unit)

    assert value is None
    assert waiting.get(timeout=20) == f"done {unit}"
    until_free(scene, unit, "work", -1)
    assert ids(scene, unit) == [running.id, waiting.id]
    app.backend.result_consumer.stop()
    app.close()


# The broker moves the raw message


def test_contrib_migrate_moves_a_message_with_its_ticket(scene: Deployment, unit: str) -> None:
    """A message that is moved to another queue still is the one that waits, and runs once."""
    work = scene.task("work")
    waiting = take(scene, unit)
    away = Queue(f"nobody-{unit}")
    home = scene.app.amqp.queues[str(scene.settings["task_default_queue"])]
    before = work.delay(unit)

    with scene.app.connection_for_write() as connection:
        migrate.move(lambda *_: home, connection=connection, app=scene.app, source=[away], limit=1)

    assert (before.once.state, before.id) == ("waiting", waiting.id)
    assert waiting.get(timeout=20) == f"done {unit}"
    until_free(scene, unit)
    assert [(run.message_id, bool(run.fence)) for run in scene.runs(unit)] == [(waiting.id, True)]


# What a message carries


NEXT_HOUR = datetime.now(timezone.utc) + timedelta(hours=1)


def options_of(unit: str) -> dict[str, Any]:
    """Everything that a caller can say about one message."""
    return {
        "headers": {"tenant": "a1", "trace": {"id": 7}},
        "stamped_headers": ["region"],
        "region": "eu",
        "shadow": "shown as this",
        "time_limit": 40,
        "soft_time_limit": 30,
        "expires": NEXT_HOUR,
        "priority": 3,
        "reply_to": "a-queue",
        "root_id": f"root-{unit}",
        "parent_id": f"parent-{unit}",
        "replaced_task_nesting": 2,
        "argsrepr": "(hidden)",
        "kwargsrepr": "{hidden}",
    }


EVERYTHING = frozenset({
    "headers", "stamps", "stamped_headers", "shadow", "timelimit", "expires", "priority",
    "reply_to", "root_id", "parent_id", "replaced_task_nesting", "callbacks", "errbacks",
    "ignore_result", "exchange", "routing_key", "origin",
})  # fmt: skip


def links(scene: Deployment, unit: str) -> dict[str, Any]:
    """Something to call when it ends."""
    plain = scene.task("plain")
    return {"link": plain.si(f"{unit}-link"), "link_error": plain.si(f"{unit}-error")}


def run_at_once(scene: Deployment, unit: str, **options: Any) -> dict[str, Any]:
    """What a message carries that nothing is in the way of."""
    handle = scene.task("carrying").apply_async((unit,), **options)
    wait_until(lambda: carried_by(scene, unit, handle.id), "it ran")
    return carried_by(scene, unit, handle.id)[0]


def run_deferred(scene: Deployment, unit: str, **options: Any) -> dict[str, Any]:
    """What the same message carries when it was put back and came again."""
    hold(scene, unit, "carrying")
    handle = scene.task("carrying").apply_async((unit,), **options)
    wait_until(lambda: is_logged(scene, "deferred carrying", handle.id), "it is put back")
    let_go(scene, unit)
    wait_until(lambda: carried_by(scene, unit, handle.id), "it ran")
    return carried_by(scene, unit, handle.id)[0]


@BOTH_BROKERS
def test_a_deferred_message_carries_all_that_it_was_sent_with(scene: Deployment, unit: str) -> None:
    """Headers, stamps, ancestors, limits, expiry, route, links: as if it had run at once."""
    options = {**options_of(unit), **links(scene, unit)}
    expected = run_at_once(scene, f"{unit}-free", **options)

    found = run_deferred(scene, unit, **options)

    assert {name: found[name] for name in EVERYTHING} == {
        name: expected[name] for name in EVERYTHING
    }
    assert expected["headers"] == {"tenant": "a1", "trace": {"id": 7}}
    assert (expected["stamps"], expected["timelimit"]) == ({"region": "eu"}, [40, 30])
    assert (expected["callbacks"], expected["errbacks"]) == (1, 1)


def test_a_deferred_message_is_no_child_of_itself(scene: Deployment, unit: str) -> None:
    """A message that a program sent has no parent, whether it was put back or not."""
    found = run_deferred(scene, unit)

    assert found["parent_id"] is None


def test_arguments_that_the_caller_hid_stay_hidden_when_deferred(
    scene: Deployment, unit: str
) -> None:
    """argsrepr= and kwargsrepr= keep secrets out of logs and events, also after a deferral."""
    found = run_deferred(scene, unit, argsrepr="(hidden)", kwargsrepr="{hidden}")

    assert (found["argsrepr"], found["kwargsrepr"]) == ("(hidden)", "{hidden}")


def test_a_retry_carries_what_its_first_attempt_carried(scene: Deployment, unit: str) -> None:
    """Our header takes nothing away from a retry."""
    options = {**options_of(unit), **links(scene, unit)}
    handle = scene.task("carrying").apply_async((unit, 0.0, 1), **options)
    handle.get(timeout=20)

    first, second = carried_by(scene, unit, handle.id)

    # parent_id: Celery makes each retry a child of the attempt before
    kept = EVERYTHING - {"parent_id"}
    assert {name: second[name] for name in kept} == {name: first[name] for name in kept}


def test_a_retry_of_a_deferred_message_carries_it_too(scene: Deployment, unit: str) -> None:
    """Put back, then run, then retried: the caller's headers are still there, once's are ours."""
    hold(scene, unit, "carrying")
    handle = scene.task("carrying").apply_async((unit, 0.0, 1), headers={"tenant": "a1"})
    wait_until(lambda: is_logged(scene, "deferred carrying", handle.id), "it is put back")
    let_go(scene, unit)
    handle.get(timeout=20)

    found = carried_by(scene, unit, handle.id)

    assert [each["headers"] for each in found] == [{"tenant": "a1"}] * 2


@pytest.fixture
def special(scene: Deployment, unit: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A queue that was added to the scene's worker at run time, with the arguments of the test."""
    name, options = f"special-{unit}", getattr(request, "param", {})
    workers = [worker.name for worker in scene.workers]
    scene.app.control.add_consumer(name, options=options, destination=workers, reply=True)
    queue = Queue(name, Exchange(name, **options), name, **options)
    scene.app.amqp.queues.add(queue)
    yield name
    scene.app.control.cancel_consumer(name, destination=workers, reply=True)
    del scene.app.amqp.queues[name]
    with scene.app.connection_for_write() as connection:
        channel = connection.default_channel
        queue(channel).delete()
        queue.exchange(channel).delete()


@BOTH_BROKERS
def test_a_message_of_another_queue_is_put_back_into_that_queue(
    scene: Deployment, unit: str, special: str
) -> None:
    """A deferred message returns to the queue that it came from, not to the default one."""
    found = run_deferred(scene, unit, queue=special)

    assert found["routing_key"] == special


@pytest.mark.rabbitmq
@pytest.mark.parametrize("scene", ["prefork+rabbitmq"], indirect=True)
@pytest.mark.parametrize("special", [{"auto_delete": True}], indirect=True, ids=["auto_delete"])
def test_a_message_that_its_queue_does_not_take_back_is_not_lost(
    scene: Deployment, unit: str, special: str
) -> None:
    """Where the broker refuses a deferral (406: a queue of other arguments) the worker keeps it."""
    running = hold(scene, unit)

    second = scene.task("work").apply_async((unit, -1), queue=special)
    wait_until(
        lambda: is_logged(scene, "deferred work", second.id) or second.ready(), "it was refused"
    )
    let_go(scene, unit)

    assert second.get(timeout=20) == running.get(timeout=20) == f"done {unit}"
    assert ids(scene, unit) == [running.id, second.id]


# Not in the queue at all


@pytest.mark.parametrize("way", ["apply()", "direct call", "run()"])
def test_not_published(scene: Deployment, unit: str, way: str) -> None:
    """In the caller's own process the body runs at once, unguarded, whoever waits or runs."""
    work = scene.task("work")
    waiting = take(scene, unit)

    if way == "apply()":
        value = work.apply((unit,)).get()
    elif way == "direct call":
        value = work(unit)
    else:
        value = work.run(unit)

    assert value == f"done {unit}"
    assert [(run.pid, run.fence) for run in scene.runs(unit)] == [(os.getpid(), None)]
    assert work.holder(unit).message_id == waiting.id


@pytest.mark.parametrize("way", ["calling", "applying"])
def test_a_direct_call_in_a_body_of_another_task(scene: Deployment, unit: str, way: str) -> None:
    """A task that is called as a function, or applied, runs in its caller, without a lease."""
    other = f"{unit}-other"
    waiting = take(scene, other)

    handle = scene.task(way).delay(unit, "work", other)

    assert handle.get(timeout=20) == f"done {other}"
    assert len(scene.runs(other)) == 1
    assert scene.runs(other)[0].message_id != waiting.id
    assert scene.task("work").holder(other).message_id == waiting.id


@everywhere
def test_a_task_that_calls_itself_as_a_function(scene: Deployment, unit: str) -> None:
    """Recursion is plain Python: all levels run in the one body, and it ends with its value."""
    handle = scene.task("countdown").delay(2, unit)

    assert handle.get(timeout=20) == [2, 1, 0]
    assert [len(scene.runs(f"{unit}-{number}")) for number in (2, 1, 0)] == [1, 1, 1]
    until_free(scene, 2, "countdown", unit)


# Eager mode


@pytest.fixture
def eager(deploy: Callable[..., Deployment]) -> Deployment:
    """An app whose tasks all run where they are called."""
    return deploy(conf={"task_always_eager": True})


def test_task_always_eager_with_on_duplicate_raise(eager: Deployment, unit: str) -> None:
    """Nothing is a duplicate of anything: `raise` does not raise."""
    handles = [eager.task("raising").delay(unit) for _ in range(2)]

    assert [each.get() for each in handles] == [f"done {unit}"] * 2
    assert [each.once.state for each in handles] == ["off", "off"]
    assert len(eager.runs(unit)) == 2


@pytest.mark.parametrize("task", ["retrying", "autoretrying"])
@pytest.mark.parametrize("way", ["delay", "apply"])
def test_task_always_eager_with_a_retry(eager: Deployment, unit: str, task: str, way: str) -> None:
    """Retries run on the spot, under the same id, and leave no key."""
    call = {"times": 2, **({"countdown": 0} if task == "retrying" else {})}
    handle = eager.task(task).apply_async if way == "delay" else eager.task(task).apply
    handle = handle((unit,), call)

    assert handle.get() == "after 2"
    assert [(run.message_id, run.retries) for run in eager.runs(unit)] == [
        (handle.id, number) for number in range(3)
    ]
    assert not eager.task(task).is_locked(unit, **call)


def test_apply_with_replace(scene: Deployment, unit: str) -> None:
    """A task that becomes another while it is applied ends with that one's value, unguarded."""
    handle = scene.task("becoming").apply((unit, "work", f"{unit}-other"))

    assert handle.get() == f"done {unit}-other"
    assert [run.fence for run in scene.runs(f"{unit}-other")] == [None]


def test_task_always_eager_with_a_group_and_a_chain(eager: Deployment, unit: str) -> None:
    """Equal members of a canvas all run, one after the other, with their values."""
    work = eager.task("work")

    grouped = group(work.si(unit), work.si(unit)).apply_async()
    chained = chain(work.si(unit), work.si(unit)).apply_async()

    assert (grouped.get(), chained.get()) == ([f"done {unit}"] * 2, f"done {unit}")
    assert [run.fence for run in eager.runs(unit)] == [None] * 4
    assert not work.is_locked(unit)


def test_task_always_eager_needs_no_lock_store(deploy: Callable[..., Deployment]) -> None:
    """Tests of users run where there is no Redis."""
    scene = deploy(conf={"task_always_eager": True, "once_url": "redis://127.0.0.1:1/0"})

    assert scene.task("work").delay("anything").get() == "done anything"


def test_task_always_eager_still_refuses_a_misspelt_option(eager: Deployment, unit: str) -> None:
    """What production would refuse is not accepted in tests."""
    with pytest.raises(ConfigurationError, match="leese"):
        eager.task("work").apply_async((unit,), once={"leese": 5})


# Beat


FOREIGN_BEAT = """
import json, os
from celery import Celery
app = Celery("scheduler")
app.conf.update(json.loads(os.environ["FOREIGN_BEAT"]))
"""

PERIOD, LONG = 0.4, 1.2
"""Seconds between two ticks, and of the bodies that cannot keep up with them."""

ENTRIES = {
    "registered": ["work", "until_done", "raising"],
    "unregistered": ["keyed"],
}


@pytest.fixture(scope="module", autouse=True)  # so that they tick while other tests run
def beats(
    tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Iterator[Deployment]:
    """Two beat processes at work: one that knows the tasks, and one that only knows names."""
    folder = tmp_path_factory.mktemp("beats")
    scene = Deployment(folder, shared_server, pool="threads", concurrency=8)
    (folder / "foreign_beat.py").write_text(FOREIGN_BEAT, encoding="utf-8")
    scene.worker()
    processes = []
    try:
        for kind, module in (
            ("registered", "_support.celery_app"),
            ("unregistered", "foreign_beat"),
        ):
            entries = {
                name: {"task": name, "schedule": PERIOD, "args": [f"beat-{name}", LONG]}
                for name in ENTRIES[kind]
            }
            settings = {**scene.settings, "beat_schedule": entries}
            plain = {
                name: settings[name]
                for name in ("broker_url", "task_default_queue", "beat_schedule")
            }
            with (folder / f"{kind}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [
                            sys.executable, "-m", "celery", "-A", module, "beat",
                            "--schedule", str(folder / f"{kind}-schedule"), "--pidfile=",
                            "--loglevel", "DEBUG",
                        ],
                        env={
                            **os.environ,
                            SETTINGS: json.dumps(settings),
                            "FOREIGN_BEAT": json.dumps(plain),
                            "PYTHONPATH": os.pathsep.join([str(TESTS), str(folder)]),
                        },
                        cwd=folder,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip
        yield scene
    finally:
        for each in processes:
            each.kill()
            each.wait(10)
        scene.close()


def ticks(scene: Deployment, kind: str, task: str) -> int:
    """How often beat has called a task so far."""
    log = (scene.folder / f"{kind}.log").read_text(encoding="utf-8")
    return log.count(f"Sending due task {task} ")


@pytest.mark.parametrize(
    ("kind", "task"), [(kind, task) for kind, tasks in ENTRIES.items() for task in tasks]
)
def test_beat(beats: Deployment, kind: str, task: str) -> None:
    """A task slower than its period neither overlaps nor piles up, though beat ticks on."""
    unit = f"beat-{task}"

    wait_until(lambda: len(beats.runs(unit)) >= 3, "it ran three times", within=40)
    sent, started = ticks(beats, kind, task), len(beats.runs(unit))
    waiting = beats.queued()

    assert ledger.overlaps(beats.runs(unit)) == []
    assert all(run.fence for run in beats.runs(unit))
    assert sent >= 2 * started, "beat did not go on, or the task kept up with it"
    assert waiting <= 4, "one of each task may be on its way"
    log = (beats.folder / f"{kind}.log").read_text(encoding="utf-8")
    errors = [line for line in log.splitlines() if "Message Error" in line]
    assert all("raising was not sent" in line for line in errors)
    assert bool(errors) == (kind == "registered")
