"""Ways in through canvases: each position is guarded, and a duplicate in it hangs nobody.

The names are those of the table of publishing paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from _support import ledger
from _support.deployment import Deployment
from _support.scenes import everywhere, hold, hold_and_wait, ids, let_go
from _support.waiting import wait_until
from _support.ways_in_tasks import carried_by, foreign, is_logged, take, until_free
from celery import chain, chord, group

pytestmark = pytest.mark.lifecycle


def with_link(scene: Deployment, unit: str) -> Any:
    """A plain task whose callback is the unit."""
    link = scene.task("work").si(unit)
    return scene.task("plain").apply_async((f"{unit}-host",), link=link)


def with_link_error(scene: Deployment, unit: str) -> Any:
    """A failing task whose errback is the unit."""
    errback = scene.task("work").si(unit)
    return scene.task("failing").apply_async((f"{unit}-host",), link_error=errback)


def grown_chord(scene: Deployment, unit: str) -> Any:
    """A chord of which a member adds the unit."""
    growing = scene.task("growing_its_chord").s(f"{unit}-host", unit)
    return chord([growing])(scene.task("plain").s())


CANVASES: dict[str, Callable[[Deployment, str], Any]] = {
    "group member": lambda scene, unit: group(
        scene.task("plain").s(f"{unit}-1"), scene.task("work").s(unit)
    ).apply_async(),
    "chord header": lambda scene, unit: chord(
        [scene.task("work").s(unit), scene.task("plain").s(f"{unit}-1")]
    )(scene.task("plain").s()),
    "chord body": lambda scene, unit: chord([scene.task("plain").s(f"{unit}-1")])(
        scene.task("work").si(unit)
    ),
    "chain step 1": lambda scene, unit: chain(
        scene.task("work").si(unit), scene.task("plain").si(f"{unit}-1")
    )(),
    "chain step n": lambda scene, unit: chain(
        scene.task("plain").si(f"{unit}-1"), scene.task("work").si(unit)
    )(),
    "group in a chain": lambda scene, unit: chain(
        scene.task("plain").si(f"{unit}-1"), group(scene.task("work").si(unit))
    )(),
    "link": with_link,
    "link_error": with_link_error,
    "add_to_chord": grown_chord,
}


@everywhere
@pytest.mark.parametrize("canvas", CANVASES)
def test_canvas(scene: Deployment, unit: str, canvas: str) -> None:
    """A duplicate of one that waits does not run and hangs nobody; else it runs under a lease."""
    work, publish = scene.task("work"), CANVASES[canvas]
    waiting = take(scene, unit)

    settled = publish(scene, unit)
    wait_until(lambda: work.holder(unit).suppressed, "it was refused")
    settled.get(timeout=20, propagate=False)
    ran_as_duplicate, holder = scene.runs(unit), work.holder(unit)
    work.release(unit)
    fresh = publish(scene, unit)
    fresh.get(timeout=20, propagate=False)

    wait_until(lambda: scene.runs(unit), "it runs where nothing waits")
    assert (ran_as_duplicate, holder.message_id) == ([], waiting.id)
    assert [(run.message_id != waiting.id, bool(run.fence)) for run in scene.runs(unit)] == [
        (True, True)
    ]
    until_free(scene, unit)


def test_an_errback_with_the_id_of_the_failed_one(scene: Deployment, unit: str) -> None:
    """An errback of one argument is a task as any other, once for each failure."""
    errback = scene.task("noting_error").s()

    failed = scene.task("failing").apply_async((unit,), link_error=errback)

    def noted() -> list[str]:
        found = ledger.entries(scene.ledger, "error")
        return [each["failed_id"] for each in found if each["failed_id"] == failed.id]

    assert wait_until(noted, "the errback ran") == [failed.id]
    until_free(scene, failed.id, "noting_error")


def test_a_whole_canvas_called_twice_runs_each_unit_once_at_a_time(
    scene: Deployment, unit: str
) -> None:
    """Two equal chords both complete, and no two bodies of a unit overlap."""
    header = [scene.task("work").si(f"{unit}-{number}", 0.2) for number in range(2)]
    body = scene.task("work").si(f"{unit}-body", 0.2)

    results = [chord([each.clone() for each in header])(body.clone()) for _ in range(2)]

    for result in results:
        assert result.get(timeout=30) in {None, f"done {unit}-body"}
    for name in ("0", "1", "body"):
        runs = scene.runs(f"{unit}-{name}")
        assert 1 <= len(runs) <= 2
        assert ledger.overlaps(runs) == []


def test_headers_of_a_group_go_to_every_member(scene: Deployment, unit: str) -> None:
    """What the caller says of a group counts for each member, beside once's own header."""
    members = [scene.task("carrying").s(f"{unit}-{number}") for number in range(2)]

    result = group(members).apply_async(headers={"tenant": "a1"})
    result.get(timeout=20)

    for number, member in enumerate(result.results):
        (facts,) = carried_by(scene, f"{unit}-{number}", member.id)
        assert facts["headers"] == {"tenant": "a1"}
        assert (facts["group"], facts["group_index"]) == (result.id, number)
    assert all(run.fence for number in range(2) for run in scene.runs(f"{unit}-{number}"))


def test_stamps_of_a_canvas_reach_a_deferred_member(scene: Deployment, unit: str) -> None:
    """A stamped canvas is stamped after a deferral as well."""
    hold(scene, unit, "carrying")

    canvas = chain(scene.task("carrying").si(unit), scene.task("plain").si(f"{unit}-1"))
    canvas.stamp(region="eu")
    result = canvas.apply_async()
    wait_until(lambda: is_logged(scene, "deferred carrying", result.parent.id), "it is put back")
    let_go(scene, unit)

    assert result.get(timeout=20) == f"done {unit}-1"
    (facts,) = carried_by(scene, unit, result.parent.id)
    assert (facts["stamps"], facts["stamped_headers"]) == ({"region": "eu"}, ["region"])
    assert facts["chain"] == 1


# Task.replace


@everywhere
def test_replace(scene: Deployment, unit: str) -> None:
    """A replacement of another task runs under the id of its host, guarded as its own unit."""
    other = f"{unit}-other"

    host = scene.task("becoming").delay(unit, "work", other)

    assert host.get(timeout=20) == f"done {other}"
    assert [(run.message_id, bool(run.fence)) for run in scene.runs(other)] == [(host.id, True)]
    until_free(scene, unit, "becoming", "work", other)
    until_free(scene, other)


def test_replace_with_one_that_waits_already(scene: Deployment, unit: str) -> None:
    """The replacement is not refused: its host's id ends with its value."""
    other = f"{unit}-other"
    waiting = take(scene, other)

    host = scene.task("becoming").delay(unit, "work", other)

    assert host.get(timeout=20) == f"done {other}"
    assert [run.message_id for run in scene.runs(other)] == [host.id]
    assert scene.task("work").holder(other).message_id == waiting.id


def test_replace_with_one_that_runs_and_one_that_waits(scene: Deployment, unit: str) -> None:
    """It waits for its turn as well, and the id that its caller waits for ends with its value."""
    other = f"{unit}-other"
    running, waiting = hold_and_wait(scene, other, "carrying")
    wait_until(lambda: is_logged(scene, "deferred carrying", waiting.id), "it is put back")

    host = scene.task("becoming").delay(unit, "carrying", other)
    wait_until(
        lambda: is_logged(scene, "deferred carrying", host.id) or host.ready(),
        "its start was decided",
    )
    let_go(scene, other)

    assert host.get(timeout=20) == f"done {other}"
    assert waiting.get(timeout=20) == f"done {other}"
    assert set(ids(scene, other)) == {running.id, waiting.id, host.id}
    assert ledger.overlaps(scene.runs(other)) == []


def test_replace_in_a_chord(scene: Deployment, unit: str) -> None:
    """A member that becomes another task counts for its chord once, with the other's value."""
    other = f"{unit}-other"
    header = [scene.task("becoming").s(unit, "work", other), scene.task("plain").s("b")]

    result = chord(header)(scene.task("plain").s())

    assert result.get(timeout=20) == f"done ['done {other}', 'done b']"
    assert len(scene.runs(other)) == 1


def test_replace_of_a_deferred_message_in_a_chain(scene: Deployment, unit: str) -> None:
    """Put back, run, replaced: the chain goes on with the replacement's value."""
    other = f"{unit}-other"
    scene.task("becoming").delay(unit, "plain", "first", -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")

    step = scene.task("becoming").si(unit, "work", other)
    result = chain(step, scene.task("plain").s())()
    wait_until(lambda: is_logged(scene, "deferred becoming", result.parent.id), "it is put back")
    let_go(scene, unit)

    assert result.get(timeout=20) == f"done done {other}"
    assert ids(scene, other) == [result.parent.id]


def test_protocol_2_headers_through_replace(scene: Deployment, unit: str) -> None:
    """A replacement has its host's root and group, one more nesting, and its own claim."""
    other = f"{unit}-other"
    becoming = scene.task("becoming")

    host = becoming.apply_async(
        (unit, "carrying", other), headers={"tenant": "a1"}, root_id="the-root"
    )
    host.get(timeout=20)

    (facts,) = carried_by(scene, other, host.id)
    assert (facts["root_id"], facts["replaced_task_nesting"]) == ("the-root", 1)
    assert facts["headers"] == {}, "Celery does not carry them over, and so neither do we"


# map, starmap, chunks

ITEMS: dict[str, Callable[[Any, list[str]], Any]] = {
    "map": lambda work, units: work.map(units),
    "starmap": lambda work, units: work.starmap([(unit,) for unit in units]),
    "chunks": lambda work, units: work.chunks([(unit,) for unit in units], 2).group(),
}


@pytest.mark.parametrize("way", ITEMS)
def test_items_are_direct_calls(scene: Deployment, unit: str, way: str) -> None:
    """Items all run, in one body of a task of Celery's, without leases and without claims."""
    units = [f"{unit}-{number}" for number in (1, 2)]

    value = ITEMS[way](scene.task("work"), units).apply_async().get(timeout=20)

    expected = [f"done {each}" for each in units]
    assert value == ([expected] if way == "chunks" else expected)
    for each in units:
        assert [(run.message_id, run.fence) for run in scene.runs(each)] == [(None, None)]
        assert not scene.task("work").is_locked(each)


@pytest.mark.parametrize("way", ITEMS)
def test_items_equal_to_a_unit_that_waits(scene: Deployment, unit: str, way: str) -> None:
    """They run all the same, and the one that waits is neither consumed nor lost."""
    waiting = take(scene, unit)

    ITEMS[way](scene.task("work"), [unit]).apply_async().get(timeout=20)

    assert len(scene.runs(unit)) == 1
    assert scene.task("work").holder(unit).message_id == waiting.id


# Programs without this library


def test_a_canvas_of_a_foreign_program(scene: Deployment, unit: str) -> None:
    """Members without our header are guarded where they run, and the chord completes."""
    app = foreign(scene)
    hold(scene, unit)

    header = [app.signature("work", (unit, -1)), app.signature("plain", ("b",))]
    result = chord(header, app=app)(app.signature("plain"))
    member = result.parent.results[0].id
    wait_until(lambda: is_logged(scene, "deferred work", member), "it met the running one")
    let_go(scene, unit)

    assert result.get(timeout=20) == f"done ['done {unit}', 'done b']"
    assert ids(scene, unit)[1:] == [member]
    app.backend.result_consumer.stop()
    app.close()
