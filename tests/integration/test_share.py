"""on_duplicate="share": a duplicate whose id somebody waits for ends with its holder's result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _support.deployment import Deployment
from _support.scenes import everywhere, let_go
from _support.waiting import wait_until
from celery import Celery, chain, chord, group

from once_celery import ConfigurationError, DuplicateTaskError, OnceTask
from once_core.devserver import DevServer

pytestmark = pytest.mark.lifecycle


@everywhere
def test_a_chord_with_duplicates_gets_real_values(scene: Deployment, unit: str) -> None:
    """One body, and its value in the place of each member."""
    task = scene.task("sharing")
    holder = task.apply_async((unit,), countdown=2)
    result = chord([task.s(unit), task.s(unit), task.s(unit)])(scene.task("collect").s())
    assert result.get(timeout=40) == [f"done {unit}"] * 3
    assert holder.get(timeout=20) == f"done {unit}"
    assert len(scene.runs(unit)) == 1


def test_a_duplicate_of_a_running_task_gets_its_result(scene: Deployment, unit: str) -> None:
    """Under until_done it is refused while one runs."""
    task = scene.task("sharing")
    once = {"scope": "until_done"}
    holder = task.apply_async((unit, -1), once=once)
    wait_until(lambda: scene.runs(unit), "it runs")
    duplicate = task.apply_async((unit, -1), once=once, task_id=f"{unit}-duplicate")
    assert (duplicate.id, duplicate.once.is_duplicate) == (f"{unit}-duplicate", True)
    wait_until(lambda: scene.queued() == 0, "a worker has the duplicate")
    let_go(scene, unit)
    assert duplicate.get(timeout=30) == holder.get(timeout=30) == f"done {unit}"
    assert len(scene.runs(unit)) == 1


def test_a_duplicate_fails_as_its_holder_fails(scene: Deployment, unit: str) -> None:
    """With the same error, so that errbacks and chords see it."""
    task = scene.task("sharing")
    task.apply_async((unit, 0), {"fails": True}, countdown=2)
    members = group(task.s(unit, 0, fails=True), task.s(unit, 0, fails=True)).apply_async()
    for member in members.results:
        with pytest.raises(RuntimeError, match=f"on purpose: {unit}"):
            member.get(timeout=30)
    assert len(scene.runs(unit)) == 1


def test_the_rest_of_a_chain_gets_the_holders_value(scene: Deployment, unit: str) -> None:
    """Not None, with which the next step could do nothing."""
    task = scene.task("sharing")
    holder = task.apply_async((unit,), countdown=2)
    result = chain(task.si(unit), scene.task("collect").s()).apply_async()
    assert result.get(timeout=30) == f"done {unit}"
    assert holder.get(timeout=10) == f"done {unit}"
    assert len(scene.runs(unit)) == 1


def test_nothing_is_sent_where_nobody_waits_for_an_id(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """The holder's own handle gives the same result without a message."""
    scene = deploy()
    task = scene.task("sharing")
    first, second = task.delay(unit), task.delay(unit)
    assert (second.id, second.once.is_duplicate) == (first.id, True)
    assert scene.queued() == 1


def test_a_call_may_choose_to_share(scene: Deployment, unit: str) -> None:
    """The option travels with the message."""
    task, share = scene.task("work"), {"on_duplicate": "share"}
    holder = task.apply_async((unit,), countdown=1)
    duplicate = task.apply_async((unit,), task_id=f"{unit}-duplicate", once=share)
    assert duplicate.get(timeout=30) == holder.get(timeout=30) == f"done {unit}"


def test_it_ends_when_its_holder_is_gone_without_a_result(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """The holder's queue was purged: no hang, and no value that is none."""
    scene = deploy()
    task = scene.task("sharing")
    holder = task.apply_async((unit,))
    scene.app.control.purge()
    duplicate = task.apply_async((unit,), task_id=f"{unit}-duplicate")
    task.release(unit)
    scene.worker()
    with pytest.raises(DuplicateTaskError, match=f"result of {holder.id}") as caught:
        duplicate.get(timeout=40)
    assert (caught.value.holder_id, caught.value.state) == (holder.id, "gone")


def test_it_waits_no_longer_than_ttl(deploy: Callable[..., Deployment], unit: str) -> None:
    """Where the record keeps no account of what runs, time alone ends it."""
    scene = deploy()
    task, once = scene.task("sharing"), {"scope": "queued", "ttl": 4}
    task.apply_async((unit,), once=once)
    scene.app.control.purge()
    duplicate = task.apply_async((unit,), task_id=f"{unit}-duplicate", once=once)
    scene.worker()
    with pytest.raises(DuplicateTaskError, match="had none after 4 s"):
        duplicate.get(timeout=40)


@pytest.mark.parametrize(
    ("settings", "options", "advice"),
    [
        ({}, {}, "set result_backend"),
        ({"result_backend": "rpc://"}, {}, "set result_backend"),
        ({"result_backend": "cache+memory://"}, {"ignore_result": True}, "take ignore_result"),
        ({"result_backend": "cache+memory://", "task_ignore_result": True}, {}, "ignore_result"),
        ({"result_backend": "cache+memory://"}, {"key": ["a"]}, "leave key= out"),
    ],
)
def test_it_is_refused_where_it_could_not_work(settings: dict, options: dict, advice: str) -> None:
    """Told the moment the task is defined, with what to do."""
    app = Celery("tests", broker="memory://", set_as_current=False)
    app.conf.update(settings, once_url="memory://share")
    key = {"key": options.pop("key")} if "key" in options else {}
    with pytest.raises(ConfigurationError, match=advice):

        @app.task(
            base=OnceTask,
            shared=False,
            lazy=False,
            once={"on_duplicate": "share", **key},
            **options,
        )
        def add(a: int, b: int) -> None: ...


def test_it_is_refused_at_a_call_where_it_could_not_work(shared_server: DevServer) -> None:
    """As at the definition; nothing is sent and nothing taken."""
    app = Celery("tests", broker="memory://", set_as_current=False)
    app.conf.once_url = shared_server.url

    @app.task(base=OnceTask, shared=False)
    def add(a: int, b: int) -> None: ...

    with pytest.raises(ConfigurationError, match="set result_backend"):
        add.apply_async((1, 2), once={"on_duplicate": "share"})
    assert not add.is_locked(1, 2)
