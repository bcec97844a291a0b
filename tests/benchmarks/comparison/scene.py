"""Servers, producers and workers of one comparison, and the arithmetic on what was measured."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from _support.waiting import wait_until
from _support.workers import CeleryWorker
from benchmarks.comparison.sides import NOOP, Side, make_app

from once_core.devserver import DevServer

NOT_WORK = {
    *("AUTH", "CLIENT", "CONFIG", "DBSIZE", "ECHO", "HELLO"),
    *("INFO", "KEYS", "MONITOR", "PING", "SELECT"),
}
"""Commands that open a connection, or look."""


class Scene:
    """Locks on one server, queues and results on another; a producer and a queue for each side.

    Args:
        folder: For logs and notes.
        store: Where the locks lie.
        broker: Where messages and results lie.
        sides: Who is compared.
    """

    def __init__(
        self, folder: Path, store: DevServer, broker: DevServer, sides: Sequence[Side]
    ) -> None:
        self.folder = folder
        self.sides = sides
        self.store_url, self.broker_url = store.url, broker.url
        # patient: to forget a million keys takes seconds
        self.store = redis.Redis.from_url(store.url, socket_timeout=60)
        self.broker = redis.Redis.from_url(broker.url, socket_timeout=60)
        self._workers: list[CeleryWorker] = []
        self.apps = {side.name: make_app(side, self.settings(side)) for side in sides}

    def settings(self, side: Side, queue: str = "", /, **more: object) -> dict[str, Any]:
        """What an app or a worker of a side is told."""
        queue = queue or side.name.replace(" ", "")
        return {
            "store": self.store_url,
            "broker": self.broker_url,
            "queue": queue,
            "notes": str(self.folder / f"{queue}.notes"),
            **more,
        }

    def task(self, side: Side, name: str = NOOP) -> Any:
        """A task of a side, to publish."""
        return self.apps[side.name].tasks[name]

    def worker(self, side: Side, concurrency: int, queue: str = "", **more: object) -> CeleryWorker:
        """Start a worker of a side; `ready` is the caller's to await."""
        found = CeleryWorker(
            self.settings(side, queue, side=side.name, **more),
            self.folder,
            app="benchmarks.comparison.sides",
            concurrency=concurrency,
        )
        self._workers.append(found)
        return found

    def backlog(self, side: Side, queue: str = "") -> int:
        """Messages in the queue, and those a worker has in hand."""
        queue = self.settings(side, queue)["queue"]
        return int(self.broker.llen(queue)) + int(self.broker.hlen("unacked"))

    def drain(self, side: Side, within: float = 120) -> None:
        """Wait until the side has nothing left to do."""
        wait_until(lambda: not self.backlog(side), f"{side.name} is done", within=within)

    def locks(self) -> list[bytes]:
        """All that is in the lock store."""
        return list(self.store.keys())

    def clear(self) -> None:
        """Empty both servers."""
        self.store.flushall()
        self.broker.flushall()

    def kill_workers(self) -> None:
        """End all workers at once, frozen ones too."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def close(self) -> None:
        """End everything but the servers."""
        self.kill_workers()
        for app in self.apps.values():
            app.backend.result_consumer.stop()
            app.close()


def by_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, each called once a round, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of some values."""
    if len(values) < 2:
        return {"median": values[0], "q1": values[0], "q3": values[0], "n": len(values)}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def against(values: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios, each to the plain task of the same round."""
    return spread([mine / theirs for mine, theirs in zip(values, plain, strict=True)])


@contextlib.contextmanager
def watching(store: Any) -> Iterator[dict[str, int]]:
    """Count what a server is asked meanwhile: ``requests`` by clients, ``commands`` in all.

    A script is one request; it and what it calls are commands, without the EVALSHA itself. By
    MONITOR, so never while the time is taken.
    """
    counts = {"requests": 0, "commands": 0}
    with store.monitor() as monitor:
        yield counts
        store.echo("seen")
        while True:
            seen = monitor.next_command()
            name = seen["command"].split()[0].upper()
            if name == "ECHO":
                return
            if name in NOT_WORK:
                continue
            counts["requests"] += seen["client_type"] != "lua"
            counts["commands"] += name not in {"EVAL", "EVALSHA"}


def server_time(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Microseconds that a server worked between two ``INFO commandstats``."""
    spent = {
        name: each["usec"] - before.get(name, {}).get("usec", 0)
        for name, each in after.items()
        if name.removeprefix("cmdstat_").split("|")[0].upper() not in NOT_WORK
    }
    scripts = spent.get("cmdstat_evalsha", 0)  # what a script calls is in its own time
    return float(scripts or sum(spent.values()))
