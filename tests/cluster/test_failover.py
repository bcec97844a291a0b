"""A primary dies, or a slot moves, in the middle of load; and what a failover can lose."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from _support import ledger
from _support.promises import Scene
from _support.sentinels import SentinelGroup
from _support.waiting import wait_until
from redis.crc import key_slot

from once_core.errors import StoreUnavailableError
from once_core.guard import Holder

UNITS = 24
"""Of the load: of every primary several."""

TASK = "patient"
"""Its lease is far longer than a failover lasts: what overlaps does so because a write was lost."""

BODY = 0.2
"""Seconds of one body."""

MOST_WAITING = 2
"""Messages of one unit: one waits, and a retry behind it."""

HEALED_WITHIN = 90.0
"""Seconds in which whatever was left is runnable again: a lease or `heal_after`, and a margin."""

on_cluster = pytest.mark.parametrize("place", ["cluster"], indirect=True)


@dataclass
class Load:
    """What producers were told; times of CLOCK_MONOTONIC."""

    asked: Counter[str] = field(default_factory=Counter)
    unavailable: list[float] = field(default_factory=list)
    others: list[BaseException] = field(default_factory=list)
    heard_at: dict[str, float] = field(default_factory=dict)
    most_queued: int = 0


@contextmanager
def load(scene: Scene, units: list[str]) -> Iterator[Load]:
    """Two threads trigger all units again and again; at the end both have stopped."""
    told, end = Load(), threading.Event()

    def trigger(some: list[str]) -> None:
        while not end.wait(0.02):
            for unit in some:
                began = time.monotonic()
                try:
                    scene.send(TASK, unit, BODY)
                except StoreUnavailableError:
                    told.unavailable.append(time.monotonic() - began)
                except BaseException as error:  # noqa: BLE001  # the test tells of it
                    told.others.append(error)
                else:
                    told.asked[unit] += 1
                    told.heard_at[unit] = began
            told.most_queued = max(told.most_queued, scene.queued())

    threads = [threading.Thread(target=trigger, args=(units[begin::2],)) for begin in (0, 1)]
    for each in threads:
        each.start()
    try:
        yield told
    finally:
        end.set()
        for each in threads:
            each.join(20)


def goes_on(scene: Scene, units: list[str]) -> None:
    """Wait until each unit has run once more, twice."""
    now = time.monotonic()
    wait_until(
        lambda: all(
            len([run for run in scene.runs(unit) if run.start > now]) > 1 for unit in units
        ),
        "each unit runs again",
        within=HEALED_WITHIN,
    )


def judged(scene: Scene, units: list[str], told: Load) -> list[tuple[ledger.Run, ledger.Run]]:
    """Hold the promises to what happened; the overlaps, of which the fence tells the later one."""
    assert told.others == []
    wait_until(lambda: not scene.queued(), "the queue is empty", within=HEALED_WITHIN)
    wait_until(
        lambda: not any(scene.is_locked(TASK, unit) for unit in units),
        "no unit is stuck",
        within=HEALED_WITHIN,
    )
    for unit in units:
        assert scene.runs(unit)[-1].start > told.heard_at[unit], "its last trigger was lost"
    assert told.most_queued <= MOST_WAITING * len(units)
    assert max(told.unavailable, default=0.0) < 1.5
    pairs = [pair for unit in units for pair in ledger.overlaps(scene.runs(unit))]
    for earlier, later in pairs:
        assert (later.fence or 0) > (earlier.fence or 0)
    print(
        f"\n{sum(told.asked.values())} triggers, {sum(len(scene.runs(each)) for each in units)} "
        f"runs, {len(told.unavailable)} refused (slowest {max(told.unavailable, default=0):.2f} s)"
        f", at most {told.most_queued} queued, {len(pairs)} overlaps, fences "
        f"{[(a.fence, b.fence) for a, b in pairs]}"
    )
    return pairs


def test_a_primary_dies_in_the_middle_of_load(own_scene: Scene, unit: str) -> None:
    """Refused or deferred while nobody has its keys; then all goes on, nothing stuck or piled."""
    scene, units = own_scene, [f"{unit}-{number}" for number in range(UNITS)]
    locks: Any = scene.locks
    scene.worker()
    with load(scene, units) as told:
        goes_on(scene, units)
        if isinstance(locks, SentinelGroup):
            locks.wait_for_failover(locks.kill_primary())
        else:
            key = busy(scene, units).key
            locks.kill_primary_of(key)
            locks.wait_for_failover(key)
        goes_on(scene, units)

    judged(scene, units, told)
    assert told.unavailable


@on_cluster
def test_slots_move_in_the_middle_of_load(own_scene: Scene, unit: str) -> None:
    """No caller notices, and nothing overlaps."""
    scene, units = own_scene, [f"{unit}-{number}" for number in range(UNITS)]
    cluster: Any = scene.locks
    scene.worker()
    with load(scene, units) as told:
        goes_on(scene, units)
        for each in units[:8]:
            slot = key_slot(scene.published(scene.send(TASK, each, BODY)).key.encode())
            source = cluster.owner(slot)
            target = next(node for node in cluster.nodes[:3] if node is not source)
            cluster.reshard(slot, target, pause=lambda: goes_on(scene, units[:8]))
        goes_on(scene, units)

    assert judged(scene, units, told) == []
    assert told.unavailable == []


def busy(scene: Scene, units: list[str]) -> Any:
    """What is known of a call whose unit is held just now."""

    def refused() -> Any:
        return next(
            (
                told
                for unit in units
                if (told := scene.published(scene.send(TASK, unit, BODY))).is_duplicate
            ),
            None,
        )

    return wait_until(refused, "a unit is held")


# What a failover loses


@contextmanager
def lost_with_its_primary(locks: Any, key: str) -> Iterator[None]:
    """What is written in this block is gone at its end: its primary died before it replicated."""
    is_group = isinstance(locks, SentinelGroup)
    with locks.replicating_nothing() if is_group else locks.replicating_nothing(key) as primary:
        yield
        primary.kill()
    locks.wait_for_failover(primary if is_group else key)


def holder_of(scene: Scene, task: str, unit: str) -> Callable[[], Holder | None]:
    """Asks for who holds a unit, as often as it takes until it is known."""

    def holder() -> Holder | None:
        try:
            return scene.holder(task, unit)
        except StoreUnavailableError:
            return None

    return holder


def accepted(scene: Scene, task: str, unit: str, **options: Any) -> Any:
    """Trigger until the store answers."""

    def trigger() -> Any:
        try:
            return scene.send(task, unit, **options)
        except StoreUnavailableError:
            return None

    return wait_until(trigger, "the store answers")


def test_a_claim_that_was_not_replicated_lets_a_second_message_through(
    own_scene: Scene, unit: str
) -> None:
    """One more message than there should be; they run one after the other."""
    scene = own_scene
    locks: Any = scene.locks
    key = scene.published(scene.send(TASK, unit)).key
    scene.lose_messages()
    scene.release(TASK, unit)
    with lost_with_its_primary(locks, key):
        first = scene.send(TASK, unit, 0.5)
        assert scene.published(first).state == "claimed"

    second = accepted(scene, TASK, unit)
    scene.worker()

    assert scene.published(second).state == "claimed"  # nobody knows of the first
    assert [scene.result(each) for each in (first, second)] == [f"done {unit}"] * 2
    earlier, later = scene.has_ended(unit, 2)
    assert ledger.overlaps([earlier, later]) == []
    assert (later.fence or 0) > (earlier.fence or 0)
    print(f"\nfences: {earlier.fence}, then {later.fence}")


def test_a_lease_that_was_not_replicated_lets_two_run_and_the_later_fence_is_greater(
    own_scene: Scene, unit: str
) -> None:
    """Until the first one's next renewal, by which it learns that its lease is lost."""
    scene = own_scene
    locks: Any = scene.locks
    scene.worker()
    scene.result(scene.send(TASK, f"{unit}-before"))  # the worker is warm
    key = scene.published(scene.send(TASK, unit)).key
    scene.has_ended(unit, 1)
    options: dict[str, Any] = {"once": {"lease": 30}}  # renewed every ten seconds
    with lost_with_its_primary(locks, key):
        before = len(scene.runs(unit))
        scene.send(TASK, unit, -1, **options)
        wait_until(lambda: len(scene.runs(unit)) > before, "the body runs")

    accepted(scene, TASK, unit, **options)

    runs = scene.has_ended(unit, 2)
    assert [pair[1] for pair in ledger.overlaps(runs)] == [runs[2]]
    assert (runs[2].fence or 0) > (runs[1].fence or 0)
    print(f"\noverlap: fence {runs[1].fence} still ran when {runs[2].fence} started")
    # the second has ended meanwhile, so the first takes its lease again, or finds it taken
    wait_until(lambda: "lease_" in scene.log(), "the first hears of it", within=30)
    scene.let_go(unit)
    scene.has_ended(unit, 3)
    wait_until(lambda: not scene.is_locked(TASK, unit), "the unit is free")


def test_a_lease_that_was_not_replicated_is_taken_again_by_its_renewal(
    own_scene: Scene, unit: str
) -> None:
    """If nobody was faster: then it is as if nothing had been lost."""
    scene = own_scene
    locks: Any = scene.locks
    scene.worker()
    key = scene.published(scene.send(TASK, unit)).key
    scene.has_ended(unit, 1)
    with lost_with_its_primary(locks, key):
        before = len(scene.runs(unit))
        first = scene.send(TASK, unit, -1, once={"lease": 6})
        wait_until(lambda: len(scene.runs(unit)) > before, "the body runs")

    holder = wait_until(holder_of(scene, TASK, unit), "it has its lease again")
    assert (holder.state, holder.message_id) == ("running", scene.message_id(first))
    assert "restored" in scene.log()
    second = accepted(scene, TASK, unit)
    scene.let_go(unit)
    assert scene.result(second) == f"done {unit}"
    assert ledger.overlaps(scene.has_ended(unit, 3)) == []
