"""Overlaps: what a message does that would start while another attempt runs."""

from __future__ import annotations

import pytest
from _support.deployment import Deployment
from _support.ledger import overlaps
from _support.scenes import everywhere, hold, hold_and_wait, ids, let_go
from _support.waiting import wait_until
from celery import chain, chord

from once_celery import OverlapError

pytestmark = pytest.mark.lifecycle

# defer


@everywhere
def test_a_message_that_meets_a_run_comes_back(scene: Deployment, unit: str) -> None:
    """The same message is put back, uses up no retry, and runs when the unit is free."""
    running, waiting = hold_and_wait(scene, unit)
    wait_until(lambda: is_logged(scene, "deferred", waiting.id), "it was put back")

    let_go(scene, unit)

    assert waiting.get(timeout=20) == running.get(timeout=20) == f"done {unit}"
    assert [(run.message_id, run.retries) for run in scene.runs(unit)] == [
        (running.id, 0),
        (waiting.id, 0),
    ]
    assert overlaps(scene.runs(unit)) == []


def test_a_deferral_is_a_line_in_the_log(scene: Deployment, unit: str) -> None:
    """The worker says at INFO what it put back, for how long, and who was in the way."""
    running, waiting = hold_and_wait(scene, unit)
    wait_until(lambda: is_logged(scene, "deferred", waiting.id), "it was put back")
    let_go(scene, unit)

    lines = [line for line in scene.workers[0].log.splitlines() if "deferred work" in line]
    line = next(line for line in lines if f"message_id={waiting.id}" in line)

    assert f"deferred work: an attempt of message {running.id} runs (key={running.once.key}" in line
    assert "INFO" in line
    assert 0.75 <= float(line.rpartition("delay=")[2].rstrip(")")) <= 1.0


def test_a_deferred_message_is_put_back_again_and_again(scene: Deployment, unit: str) -> None:
    """It is deferred with growing delays for as long as the unit is busy, and is not lost."""
    _, waiting = hold_and_wait(scene, unit)

    def deferrals() -> list[str]:
        lines = scene.workers[0].log.splitlines()
        return [each for each in lines if "deferred work" in each and waiting.id in each]

    wait_until(lambda: len(deferrals()) == 2, "it was put back twice")
    let_go(scene, unit)

    delays = [float(line.rpartition("delay=")[2].rstrip(")")) for line in deferrals()]
    assert delays[0] <= 1.0 < delays[1] <= 2.0
    assert waiting.get(timeout=20) == f"done {unit}"


def test_a_call_is_refused_while_the_waiting_one_is_put_back(scene: Deployment, unit: str) -> None:
    """A deferred message still is the one that waits: there is no second."""
    _, waiting = hold_and_wait(scene, unit)
    wait_until(lambda: is_logged(scene, "deferred", waiting.id), "it was put back")

    third = scene.task("work").delay(unit, -1)
    let_go(scene, unit)

    assert (third.once.state, third.id) == ("waiting", waiting.id)


def test_other_units_are_not_in_the_way(scene: Deployment, unit: str) -> None:
    """While one unit runs and is waited for, another unit of the same task runs."""
    running, _ = hold_and_wait(scene, unit)

    other = scene.task("work").delay(f"{unit}-other")
    value = other.get(timeout=20)
    still_running = scene.task("work").holder(unit, -1).message_id
    let_go(scene, unit)

    assert (value, still_running) == (f"done {unit}-other", running.id)


@everywhere
def test_members_of_a_chord_are_deferred_and_it_completes(scene: Deployment, unit: str) -> None:
    """A deferred message keeps its place in its chord."""
    hold(scene, unit)
    header = [scene.task("work").s(unit, -1), scene.task("plain").s("other")]

    result = chord(header)(scene.task("plain").s())
    wait_until(lambda: is_logged(scene, "deferred", result.parent.results[0].id), "it is put back")
    let_go(scene, unit)

    assert result.get(timeout=20) == f"done ['done {unit}', 'done other']"


def test_links_of_a_deferred_message_are_called_once(scene: Deployment, unit: str) -> None:
    """A deferred message keeps its callback, which is called when it has run."""
    hold(scene, unit)
    link = scene.task("plain").si(f"{unit}-link")

    waiting = scene.task("work").apply_async((unit, -1), link=link)
    wait_until(lambda: is_logged(scene, "deferred", waiting.id), "it was put back")
    called_early = scene.runs(f"{unit}-link")
    let_go(scene, unit)
    wait_until(lambda: scene.runs(f"{unit}-link"), "the callback runs")

    assert called_early == []
    assert len(ids(scene, unit)) == 2


# skip and raise


@everywhere
def test_skip_ends_a_message_without_running_it(scene: Deployment, unit: str) -> None:
    """With on_overlap="skip" a message that meets a run ends with None."""
    running, met = hold_and_wait(scene, unit, "skipping")

    value = met.get(timeout=20)
    let_go(scene, unit)
    running.get(timeout=20)

    assert value is None
    assert ids(scene, unit) == [running.id]
    assert is_logged(scene, "skipped", met.id)


def test_skip_frees_the_waiting_place(scene: Deployment, unit: str) -> None:
    """After a skip nothing waits: the next call is accepted."""
    _, met = hold_and_wait(scene, unit, "skipping")
    met.get(timeout=20)

    next_one = scene.task("skipping").delay(unit, -1)
    let_go(scene, unit)

    assert (next_one.once.state, next_one.id != met.id) == ("claimed", True)


@everywhere
def test_raise_fails_a_message_without_running_it(scene: Deployment, unit: str) -> None:
    """With on_overlap="raise" a message that meets a run fails with OverlapError."""
    running, met = hold_and_wait(scene, unit, "failing_on_overlap")

    with pytest.raises(OverlapError) as caught:
        met.get(timeout=20)
    let_go(scene, unit)
    running.get(timeout=20)

    assert str(caught.value).startswith(
        f"failing_on_overlap did not start: message {running.id} runs the same unit of work "
        f"({running.once.key}) at "
    )
    assert ids(scene, unit) == [running.id]


def test_the_facts_of_an_overlap_survive_the_result_backend(scene: Deployment, unit: str) -> None:
    """A caller that gets an OverlapError can read who was in the way from its attributes."""
    running, met = hold_and_wait(scene, unit, "failing_on_overlap")

    with pytest.raises(OverlapError) as caught:
        met.get(timeout=20)
    let_go(scene, unit)

    assert (caught.value.task, caught.value.key, caught.value.holder_id) == (
        "failing_on_overlap",
        running.once.key,
        running.id,
    )


def test_a_call_may_choose_to_be_skipped(scene: Deployment, unit: str) -> None:
    """on_overlap= given at a call holds in the worker, for that message alone."""
    hold(scene, unit)

    met = scene.task("work").apply_async((unit, -1), once={"on_overlap": "skip"})
    value = met.get(timeout=20)
    let_go(scene, unit)

    assert value is None
    assert met.id not in ids(scene, unit)


# superseded


@everywhere
def test_replaced_messages_end_with_a_value(scene: Deployment, unit: str) -> None:
    """Each message that a newer one replaced ends, so that nobody waits for it."""
    replacing = scene.task("replacing")
    replacing.delay(unit, -1, "running")
    wait_until(lambda: scene.runs(unit), "the first body runs")
    burst = [replacing.delay(unit, 0, number) for number in range(4)]

    let_go(scene, unit)
    values = [handle.get(timeout=20) for handle in burst]

    assert values == [None, None, None, 3]
    assert [run.payload for run in scene.runs(unit)] == ["running", 3]
    assert all(is_logged(scene, "superseded", handle.id) for handle in burst[:3])


def test_a_chain_behind_a_replaced_message_goes_on(scene: Deployment, unit: str) -> None:
    """A superseded chain step ends with None and the next step runs."""
    replacing = scene.task("replacing")
    replacing.delay(unit, -1, "running")
    wait_until(lambda: scene.runs(unit), "the first body runs")

    result = chain(replacing.si(unit, 0, "old"), scene.task("plain").si(f"{unit}-2"))()
    replacing.delay(unit, 0, "new")
    let_go(scene, unit)

    assert result.get(timeout=20) == f"done {unit}-2"
    assert result.parent.get(timeout=20) is None
    assert "old" not in [run.payload for run in scene.runs(unit)]


def is_logged(scene: Deployment, kind: str, message_id: str) -> bool:
    """Whether a worker of this scene told of such a decision about this message."""
    logs = "\n".join(worker.log for worker in scene.workers)
    return any(kind in line and f"message_id={message_id}" in line for line in logs.splitlines())
