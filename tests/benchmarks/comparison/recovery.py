"""How long a unit of work stays blocked after SIGKILL, and how overlapping calls get their turn."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
import zlib
from collections.abc import Sequence
from typing import Any

from _support.waiting import wait_until
from benchmarks.comparison.cost import memory
from benchmarks.comparison.scene import Scene
from benchmarks.comparison.sides import NARROW, WORK, Side, make_app, notes

PERIOD = 0.25
"""Seconds between the triggers of a unit, before and after the kill."""

SHORT = 10.0
"""Seconds of ``lease`` and ``heal_after`` of ours in one more row."""

QUIET = 4.0
"""Seconds without a message anywhere, after which none is on its way to a process either."""


class Victim:
    """One worker that is killed inside its body, while its unit is triggered on and on.

    Args:
        scene: Where it works.
        side: Whose task.
        kind: ``"child"``: the pool's process alone, as the kernel does when memory is short.
            ``"worker"``: all of it, and a new one is started at once, as on a lost machine.
        label: As in the tables.
        more: Settings of its own.
    """

    def __init__(self, scene: Scene, side: Side, kind: str, label: str, **more: object) -> None:
        self.label, self.kind = label, kind
        self._scene, self._side, self._more = scene, side, more
        self._queue = re.sub("[^a-z0-9-]", "", f"{label}-{kind}")
        self._notes = scene.settings(side, self._queue)["notes"]
        self._number = zlib.crc32(self._queue.encode())
        self._app = make_app(side, scene.settings(side, self._queue, **more))
        self._task = self._app.tasks[WORK]
        self.worker = scene.worker(side, 1, self._queue, **more)
        self._killed_at = 0.0
        self._keys: list[bytes] = []
        self.after: float | None = None

    def trigger(self) -> None:
        """Call for the unit once more."""
        self._task.delay(self._number)

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the unit so far."""
        return notes(self._notes)

    def begin(self) -> None:
        """Have it run, and stay in its body."""
        self.worker.ready()
        others = set(self._scene.locks())
        self.trigger()
        wait_until(self.runs, f"{self._queue} runs")
        self._keys = [key for key in self._scene.locks() if key not in others]

    def kill(self) -> None:
        """End it, in the middle of its body."""
        if self.kind == "child":
            self._killed_at = time.monotonic()
            os.kill(self.runs()[0]["pid"], signal.SIGKILL)
        else:
            self._killed_at = self.worker.kill()
            self.worker = self._scene.worker(self._side, 1, self._queue, **self._more)

    def close(self) -> None:
        """Let go of its connections."""
        self._app.backend.result_consumer.stop()
        self._app.close()

    def blocked_for(self) -> float | None:
        """Seconds for which its lock stays if nobody removes it; None for ever."""
        times = [self._scene.store.ttl(key) for key in self._keys]
        return None if -1 in times else max(0, *times, 0)

    def look(self) -> bool:
        """Whether the unit has run again."""
        runs = self.runs()
        if len(runs) > 1 and self.after is None:
            self.after = runs[1]["at"] - self._killed_at
        return self.after is not None


def recovering(scene: Scene, within: float, kinds: Sequence[str]) -> dict[str, Any]:
    """Seconds from SIGKILL to the next run of the unit, or None if it was longer than `within`.

    All at the same time, for most of it is waiting.
    """
    held: dict[str, Any] = {}
    victims = []
    for kind, side in itertools.product(kinds, scene.sides):
        victims.append(Victim(scene, side, kind, side.name))
        if side.name == "once" and kind == "worker":
            label = f"once, lease={SHORT:g}, heal_after={SHORT:g}"
            victims.append(Victim(scene, side, kind, label, patience=SHORT))
    for victim in victims:
        before = memory(scene)
        victim.begin()
        if victim.kind == "child":
            now = memory(scene)
            victim.trigger()
            both = memory(scene)
            held[victim.label] = {
                "running": now["bytes"] - before["bytes"],
                "running and triggered": both["bytes"] - before["bytes"],
            }
    for victim in victims:
        victim.trigger()
        victim.kill()
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        waiting = [victim for victim in victims if not victim.look()]
        if not waiting:
            break
        for victim in waiting:
            victim.trigger()
        time.sleep(PERIOD)
    found: dict[str, Any] = {"within": within, "after": {}, "held": held}
    for victim in victims:
        found["after"].setdefault(victim.label, {})[victim.kind] = {
            "seconds": victim.after,
            "blocked for": victim.blocked_for(),
        }
        victim.close()
    scene.kill_workers()
    scene.clear()
    return found


def narrowing(scene: Scene, side: Side, calls: int, within: float) -> dict[str, Any]:
    """What becomes of many calls that all want to run on one unit, at four processes.

    Ours with the scope ``"running"``: every call is sent, every call is to run, one at a time.
    """
    queue = f"{side.name}-narrow"
    worker = scene.worker(side, 4, queue).ready()
    worker.freeze()
    path = scene.settings(side, queue)["notes"]
    for _ in range(calls):
        scene.task(side, NARROW).apply_async((1,), queue=queue)
    worker.thaw()

    def ends() -> list[float]:
        return [each["at"] for each in notes(path) if each["what"] == "end"]

    deadline, last = time.monotonic() + within, (time.monotonic(), 0)
    while len(ends()) < calls and time.monotonic() < deadline:
        time.sleep(0.2)
        count = len(notes(path))
        if count != last[1] or scene.backlog(side, queue):
            last = time.monotonic(), count
        elif time.monotonic() - last[0] > QUIET:
            break  # the rest was dropped
    scene.kill_workers()
    scene.clear()
    lines = notes(path)
    runs = [each["at"] for each in lines if each["what"] == "run"]
    deferred = [each for each in lines if each["what"] == "deferred"]
    first = min(runs)
    ended = sorted(round(at - first, 3) for at in ends())
    return {
        "calls": calls,
        "runs": len(runs),
        "deferrals": len(deferred),
        "ideal": calls * 0.02,
        "half": ended[len(ended) // 2],
        "took": ended[-1],
        "ended": _thinned(ended),
        "deferred": _thinned(sorted(round(each["at"] - first, 3) for each in deferred)),
    }


def _thinned(times: list[float], most: int = 150) -> list[tuple[float, int]]:
    """How many there were by when, at about so many points."""
    every = max(1, len(times) // most)
    points = [(at, number) for number, at in enumerate(times, 1) if not number % every]
    return [*points, (times[-1], len(times))] if times else []
