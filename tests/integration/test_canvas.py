"""Canvases with duplicates, superseded, deferred, skipped and repeated messages all complete."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from _support import canvases
from _support.canvas_tasks import INSTEAD
from _support.canvases import EQUAL_MEMBERS, READ, Make, making, start_workers
from _support.deployment import Deployment
from _support.waiting import wait_until
from celery import chain, chord, group

from once_core.devserver import DevServer


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Iterator[Deployment]:
    """Workers for all canvases of this file."""
    scene = Deployment(tmp_path_factory.mktemp("canvas"), shared_server)
    start_workers(scene)
    yield scene
    scene.close()
    del scene.app  # it holds handles that say goodbye to the server when they are collected
    gc.collect()


@pytest.fixture
def make(scene: Deployment, unit: str) -> Iterator[Make]:
    """Makes canvases whose held bodies end with the test."""
    yield from making(scene, unit)


KINDS: dict[str, Callable[[Make], None]] = {
    "celery itself": partial(canvases.undisturbed, task="plain_member"),
    "undisturbed": canvases.undisturbed,
    "duplicate": canvases.duplicate,
    "duplicate with a value": partial(canvases.duplicate, task="member_with_value", value=INSTEAD),
    "duplicate delivered twice": canvases.duplicate_delivered_twice,
    "duplicate of one that runs": canvases.duplicate_of_one_that_runs,
    "duplicate, raise": canvases.duplicate_that_raises,
    "duplicate that replaces its equal": canvases.duplicate_that_replaces_its_equal,
    "superseded": canvases.superseded,
    "superseded by a copy": canvases.superseded_by_a_copy,
    "skipped": canvases.skipped,
    "deferred": canvases.deferred,
    "repeated": canvases.repeated,
    "shared": canvases.shared,
    "shared, superseded by a copy": partial(
        canvases.superseded_by_a_copy, task="member_sharing_healing", value=...
    ),
    "ignored by the call": partial(
        canvases.ignored, hanging=READ, task="member", ignore_result=True
    ),
    "ignored by the task": partial(canvases.ignored, hanging=READ, task="member_quiet"),
    "ignored, deferred": partial(canvases.ignored_and_deferred, hanging=READ),
    "celery itself, failing": canvases.failing,
    "shared failure": canvases.shared_failure,
    "overlap, raise": canvases.overlap_that_raises,
}


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
@pytest.mark.parametrize("kind", KINDS)
def test_every_position(make: Make, kind: str) -> None:
    """All canvases complete, each `get()` returns, and each value is in its place."""
    KINDS[kind](make)


def test_a_chord_whose_member_is_deferred_for_seconds(make: Make) -> None:
    """However often it is put back, its real value is what the body is given."""
    chords = [name for name in canvases.POSITIONS if "chord" in name and "chain" not in name]
    canvases.deferred(partial(make, only=chords), times=3)


@pytest.mark.parametrize("build", EQUAL_MEMBERS)
def test_equal_members_are_duplicates_of_each_other(
    scene: Deployment, unit: str, build: str
) -> None:
    """The commonest mistake: the canvas completes, with a real value and None for the others."""
    canvases.equal_members(scene, unit, EQUAL_MEMBERS[build])


# Sharing


def test_a_shared_holder_that_was_sent_as_a_copy(scene: Deployment, unit: str) -> None:
    """A backlog: a duplicate names the newest copy, and the older message is what runs."""
    task, late = scene.task("member_sharing_healing"), f"late-{unit}"
    original = task.apply_async(kwargs={"unit": unit}, queue=f"{late}-1")
    wait_until(
        lambda: (
            task.apply_async(
                kwargs={"unit": unit}, task_id=f"{unit}-copy", queue=f"{late}-2"
            ).once.state
            == "refreshed"
        ),
        "a copy is sent",
    )
    result = chord(
        [task.si(unit=unit), scene.task("part").si("a", unit)],
        scene.task("then").s(label="z", unit=unit),
    )()
    canvases.read(scene, f"{late}-1")
    assert original.get(timeout=30) == f"done {unit}"
    assert result.get(timeout=60) == ["z", [f"done {unit}", "a"]]
    assert len(scene.runs(unit)) == 1


# Failures beside duplicates


def test_errbacks_run_once_beside_duplicates(scene: Deployment, unit: str) -> None:
    """A chord with one failure and many duplicates calls its errback once."""
    canvases.a_failure_beside_duplicates(scene, unit)


def test_an_errback_of_a_deferred_message_runs_once(scene: Deployment, unit: str) -> None:
    """It travels with the message that is put back."""
    some = canvases.Canvases(scene, unit, "member", only=["group member"], fails=True)
    some.hold()
    some.publish(errback=True)
    some.until("deferred")
    some.let_go()
    some.fail_with(f"RuntimeError: on purpose: {unit}")


def test_an_errback_that_celery_calls_directly(scene: Deployment, unit: str) -> None:
    """An errback of three arguments runs in the process of the failed one: no message to refuse."""
    errback = scene.task("old_errback")
    errback.apply_async((1, 2, 3), {"unit": unit}, queue=f"nobody-{unit}")
    failing = scene.task("plain_member").si(unit=f"{unit}-bad", fails=True)
    failing.link_error(errback.s(unit=unit))
    handle = failing.apply_async()
    with pytest.raises(RuntimeError):
        handle.get(timeout=20)
    (run,) = wait_until(lambda: scene.runs(unit), "the errback ran")
    assert run.payload == f"on purpose: {unit}-bad"


# Canvases made by bodies


@pytest.mark.parametrize("at", ["alone", "in a chain", "in a chord"])
def test_a_task_that_becomes_a_canvas_with_a_duplicate(
    scene: Deployment, unit: str, at: str
) -> None:
    """Every position again, as what `Task.replace` puts in the place of its task."""
    hanging = canvases.NO_REPLACEMENT_IN_A_CHORD if at == "in a chord" else ()
    without = (*canvases.GIVING_NOTHING, *canvases.NO_REPLACEMENT, *hanging)
    names = [name for name in canvases.POSITIONS if name not in without]
    some = canvases.Canvases(scene, unit, "member", only=names)
    some.take()
    becoming, then = scene.task("becoming_canvas"), scene.task("then")
    handles = {}
    for name, kit in some.kits.items():
        canvas, value = canvases.POSITIONS[name](kit)
        host = becoming.si(unit=f"{kit.unit}-host", canvas=dict(canvas))
        if at == "in a chain":
            host, value = chain(host, then.s(label="end", unit=kit.unit)), ["end", value]
        if at == "in a chord":
            host = chord([host], then.s(label="end", unit=kit.unit))
            value = ["end", [value]]
        handles[name] = host.apply_async(), value
    wrong = {}
    deadline = time.monotonic() + 40
    for name, (handle, value) in handles.items():
        found = canvases.outcome(handle, deadline)
        if found != value:
            wrong[name] = (found, value)
    assert wrong == {}


def test_a_duplicate_that_is_added_to_a_chord(scene: Deployment, unit: str) -> None:
    """add_to_chord: the chord waits for it, and it ends."""
    canvases.take(scene, unit)
    adding = scene.task("adding_to_chord").si(
        unit=f"{unit}-adding", member=dict(scene.task("member").si(unit=unit))
    )
    result = chord([adding])(scene.task("gather").s(label="z", unit=unit))  # in any order
    assert result.get(timeout=30) == ["z", [None, f"done {unit}-adding"]]


# What else canvases can do


def test_a_canvas_that_is_sent_twice(scene: Deployment, unit: str) -> None:
    """The same object: the second time all of its members are duplicates."""
    canvases.take(scene, unit)
    member, then = scene.task("member"), scene.task("then")
    canvas = chord([member.si(unit=unit)], then.s(label="z", unit=unit))
    assert [canvas.apply_async().get(timeout=30) for _ in range(2)] == [["z", [None]]] * 2
    steps = chain(member.si(unit=unit), then.s(label="z", unit=unit))
    assert [steps.apply_async().get(timeout=30) for _ in range(2)] == [["z", None]] * 2


def test_a_stamped_canvas_with_duplicates(scene: Deployment, unit: str) -> None:
    """Stamps go to the messages that settle as well."""
    canvases.take(scene, unit)
    member, then = scene.task("member"), scene.task("then")
    canvas = chord([chain(member.si(unit=unit), then.s("y", unit))], then.s("z", unit))
    canvas.stamp(region="eu")
    assert canvas.apply_async().get(timeout=30) == ["z", [["y", None]]]


# Celery's result backend with redis-py 8
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_a_saved_group_with_duplicates(scene: Deployment, unit: str) -> None:
    """group().save() and restore(): another process reads the same results."""
    canvases.take(scene, unit)
    members = [scene.task("part").si("a", unit), scene.task("member").si(unit=unit)]
    result = group(members).apply_async()
    result.save()
    restored = scene.app.GroupResult.restore(result.id)
    assert restored.get(timeout=30) == ["a", None]
    assert restored.successful()


def test_canvases_with_nothing_in_them(scene: Deployment, unit: str) -> None:
    """An empty header starts its body, of which one waits already."""
    canvases.take(scene, unit)
    assert group([], app=scene.app).apply_async().get(timeout=30) == []
    empty = chord(group([], app=scene.app), scene.task("member").si(unit=unit), app=scene.app)
    assert empty.apply_async().get(timeout=30) is None
    assert scene.runs(unit) == []
