"""What a task costs with each side: publish, run, requests, memory, keys left behind."""

from __future__ import annotations

import itertools
import time
from typing import Any

from benchmarks.comparison.scene import Scene, against, by_turns, spread, watching
from benchmarks.comparison.sides import Side

HELD = -1
"""The unit that is held while duplicates are published."""


def publishing(scene: Scene, rounds: int) -> dict[str, Any]:
    """Seconds of ``delay()``: fresh, and a duplicate of a call that waits."""
    numbers = itertools.count()
    calls = {}
    for side in scene.sides:
        task = scene.task(side)
        task.delay(HELD)
        calls[f"{side.name} fresh"] = lambda task=task: task.delay(next(numbers))
        calls[f"{side.name} duplicate"] = lambda task=task: task.delay(HELD)
    by_turns(calls, max(3, rounds // 10))
    times = by_turns(calls, rounds)
    scene.clear()
    plain = times["plain fresh"]
    return {
        side.name: {
            kind: {
                "seconds": spread(times[f"{side.name} {kind}"]),
                "ratio": against(times[f"{side.name} {kind}"], plain),
            }
            for kind in ("fresh", "duplicate")
        }
        for side in scene.sides
    }


def running(scene: Scene, tasks: int, rounds: int) -> dict[str, Any]:
    """Rate of no-op workers that find their tasks in the queue; then what the tasks asked for.

    The workers stand still (SIGSTOP) but for the one whose turn it is.
    """
    numbers = itertools.count()
    workers = {side.name: scene.worker(side, concurrency=2) for side in scene.sides}
    for side in scene.sides:
        workers[side.name].ready()
        for _ in range(10):  # scripts are loaded, connections are open
            scene.task(side).delay(next(numbers))
        scene.drain(side)
        workers[side.name].freeze()
    rates: dict[str, list[float]] = {side.name: [] for side in scene.sides}
    for _ in range(rounds):
        for side in scene.sides:
            for _ in range(tasks):
                scene.task(side).delay(next(numbers))
            begin = time.perf_counter()
            workers[side.name].thaw()
            scene.drain(side)
            rates[side.name].append(tasks / (time.perf_counter() - begin))
            workers[side.name].freeze()
    found = {
        side.name: {
            "rate": spread(rates[side.name]),
            "ratio": against(rates[side.name], rates["plain"]),
        }
        for side in scene.sides
    }
    scene.store.flushall()
    for side in scene.sides:
        found[side.name].update(_asked(scene, side, workers[side.name], min(tasks, 200)))
        scene.store.flushall()
    scene.kill_workers()
    scene.clear()
    return found


def _asked(scene: Scene, side: Side, worker: Any, tasks: int) -> dict[str, Any]:
    task = scene.task(side)
    with watching(scene.store) as publishes:
        for number in range(tasks):
            task.delay(number)
    memory = _memory(scene, tasks)
    with watching(scene.store) as duplicates:
        for number in range(tasks):
            task.delay(number)
    messages = scene.backlog(side)  # more than one a unit where duplicates are sent
    with watching(scene.store) as runs:
        worker.thaw()
        scene.drain(side)
        _settle(scene)
    worker.freeze()
    return {
        "fresh": {name: count / tasks for name, count in publishes.items()},
        "duplicate": {name: count / tasks for name, count in duplicates.items()},
        "run": {name: count / messages for name, count in runs.items()},
        "waiting": memory,
        "left": scene.store.dbsize(),
    }


def _settle(scene: Scene, within: float = 1.0) -> None:
    """The last tasks were acknowledged before they ran: let them end."""
    deadline = time.monotonic() + within
    while scene.store.dbsize() and time.monotonic() < deadline:
        time.sleep(0.02)


def _memory(scene: Scene, units: int) -> dict[str, float]:
    """Bytes by MEMORY USAGE, and keys, of one unit."""
    keys = scene.locks()
    used = sum(scene.store.memory_usage(key, samples=0) for key in keys)
    return {"bytes": used / units, "keys": len(keys) / units}


def memory(scene: Scene) -> dict[str, float]:
    """The same of everything in the store, for one unit."""
    return _memory(scene, 1)
