"""How the cost of a publish grows: with units held, with contenders for one, with processes."""

from __future__ import annotations

import itertools
import multiprocessing
import platform
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.comparison.cost import HELD
from benchmarks.comparison.scene import Scene, against, by_turns, server_time, spread
from benchmarks.comparison.sides import NOOP, Side, make_app

_FILL = """
local dump = redis.call('DUMP', KEYS[1])
local head = string.sub(KEYS[1], 1, -9)
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  redis.call('RESTORE', head .. string.format('%08d', number), ARGV[3], dump, 'REPLACE')
end
"""
"""Copies of the one real lock there is, under names of the same length."""
_AT_ONCE = 20_000
_HOURS = 6 * 3600 * 1000


def _fill(scene: Scene, begin: int, end: int, like: bytes) -> None:
    fill = scene.store.register_script(_FILL)
    for first in range(begin, end, _AT_ONCE):
        fill([like], [first, min(first + _AT_ONCE, end) - 1, _HOURS])


def holding(scene: Scene, levels: Sequence[int], rounds: int) -> dict[str, Any]:
    """Cost of ``delay()`` while ever more units are held, by real locks of the same side.

    Returns:
        By side, one row a level: seconds of a fresh and a duplicate call, as ratios to the
        plain one of the same round too; microseconds of the lock server for one fresh call; and
        bytes of its memory for one unit held, from ``INFO memory``.
    """
    found: dict[str, Any] = {}
    numbers = itertools.count(10**9)
    plain = scene.task(scene.sides[0])
    for side in scene.sides[1:]:
        scene.clear()
        task = scene.task(side)
        task.delay(HELD)
        keys = scene.locks()
        if not keys:
            continue  # holds nothing before its body runs
        empty, filled = scene.store.info("memory")["used_memory"], 0
        found[side.name] = []
        for level in levels:
            _fill(scene, filled, level, keys[0])
            filled = level
            used = (scene.store.info("memory")["used_memory"] - empty) / level
            calls: dict[str, Callable[[], object]] = {
                "plain": lambda: plain.delay(0),
                "fresh": lambda task=task: task.delay(next(numbers)),
                "duplicate": lambda task=task: task.delay(HELD),
            }
            by_turns(calls, max(3, rounds // 10))
            times = by_turns(calls, rounds)
            before = scene.store.info("commandstats")
            for _ in range(rounds):
                task.delay(next(numbers))
            spent = server_time(before, scene.store.info("commandstats"))
            found[side.name].append(
                {
                    "held": level,
                    "fresh": spread(times["fresh"]),
                    "fresh ratio": against(times["fresh"], times["plain"]),
                    "duplicate": spread(times["duplicate"]),
                    "duplicate ratio": against(times["duplicate"], times["plain"]),
                    "server us": spent / rounds,
                    "bytes": used,
                }
            )
    scene.clear()
    return found


def contending(scene: Scene, levels: Sequence[int], calls: int, rounds: int) -> dict[str, Any]:
    """Threads that all publish one free unit at the same moment, each several times.

    Returns:
        By side, one row a level: calls a second of all threads together, seconds of one call,
        and how many messages came of one round.
    """
    units = itertools.count()
    found: dict[str, Any] = {side.name: [] for side in scene.sides}
    for level in levels:
        each = max(1, calls // level)
        rows: dict[str, Any] = {name: {"rate": [], "one": [], "sent": []} for name in found}
        for _ in range(rounds):
            for side in scene.sides:
                took, ones = _race(scene.task(side), next(units), level, each)
                row = rows[side.name]
                row["rate"].append(level * each / took)
                row["one"] += ones
                row["sent"].append(scene.backlog(side))
                scene.clear()
        for name, row in rows.items():
            found[name].append(
                {
                    "contenders": level,
                    "calls": level * each,
                    "rate": spread(row["rate"]),
                    "one": spread(row["one"]),
                    "sent": max(row["sent"]),
                }
            )
    return found


def _race(task: Any, unit: int, threads: int, each: int) -> tuple[float, list[float]]:
    """Seconds of all, and of every call."""
    ready = threading.Barrier(threads + 1)
    ones: list[float] = []

    def run() -> None:
        ready.wait()
        for _ in range(each):
            begin = time.perf_counter()
            task.delay(unit)
            ones.append(time.perf_counter() - begin)

    crew = [threading.Thread(target=run) for _ in range(threads)]
    for one in crew:
        one.start()
    ready.wait()
    begin = time.perf_counter()
    for one in crew:
        one.join()
    return time.perf_counter() - begin, ones


def producer(sides: Sequence[Side], settings: dict[str, Any], line: Connection) -> None:
    """A process that publishes fresh units when it is told to; ends with its pipe."""
    apps = {side.name: make_app(side, settings[side.name]) for side in sides}
    while True:
        try:
            name, first, calls = line.recv()
        except EOFError:
            return
        task = apps[name].tasks[NOOP]
        begin = time.monotonic()
        for number in range(first, first + calls):
            task.delay(number)
        line.send((begin, time.monotonic()))


class Producers:
    """Processes that publish at the same time."""

    def __init__(self, scene: Scene, count: int) -> None:
        self._scene = scene
        self._numbers = itertools.count(0, 10**6)
        settings = {side.name: scene.settings(side) for side in scene.sides}
        spawn = multiprocessing.get_context("spawn")
        self._lines, self._crew = [], []
        for _ in range(count):
            mine, theirs = spawn.Pipe()
            one = spawn.Process(target=producer, args=(scene.sides, settings, theirs), daemon=True)
            one.start()
            theirs.close()
            self._lines.append(mine)
            self._crew.append(one)
        for side in scene.sides:  # everybody is connected
            self.rate(side, count, 5)

    def rate(self, side: Side, level: int, calls: int) -> float:
        """Calls a second of so many processes together, each doing so many."""
        lines = self._lines[:level]
        for line in lines:
            line.send((side.name, next(self._numbers), calls))
        times = [line.recv() for line in lines]
        self._scene.clear()
        return level * calls / (max(end for _, end in times) - min(begin for begin, _ in times))

    def close(self) -> None:
        """Let them end."""
        for line in self._lines:
            line.close()
        for one in self._crew:
            one.join(10)


def spreading(scene: Scene, levels: Sequence[int], calls: int, rounds: int) -> dict[str, Any]:
    """Processes that publish fresh units side by side: calls a second of all together."""
    producers = Producers(scene, max(levels))
    found: dict[str, Any] = {side.name: [] for side in scene.sides}
    for level in levels:
        rates: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for side in scene.sides:
                rates[side.name].append(producers.rate(side, level, calls))
        for name, some in rates.items():
            ratio = against(some, rates["plain"])
            found[name].append({"processes": level, "rate": spread(some), "ratio": ratio})
    producers.close()
    return found


def machine() -> dict[str, str]:
    """What this was measured on."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    memory = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
    return {
        "processor": f"{len(models)} x {models[0]}",
        "memory": f"{int(memory) / 2**20:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
