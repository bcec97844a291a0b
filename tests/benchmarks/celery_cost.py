"""What once costs on Celery, as ratios against a plain task in the same run.

usage: python tests/benchmarks/celery_cost.py [CALLS]

Measures by turns in one process, so that a busy machine slows all sides alike, and counts
round trips and commands from the lock server's own INFO.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from _support.deployment import Deployment
from _support.waiting import wait_until
from _support.workers import CeleryWorker

from once_core.devserver import DevServer
from once_core.keys import KeySpec

TARGETS = {"fresh": 1.35, "duplicate": 0.35, "throughput": 0.85}
NO_OPS = 2000
ROUNDS = 3


def three_arguments(order_id: int, region: str, version: int = 1) -> None:
    """The body whose key is derived."""


def by_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(some) for name, some in times.items()}


def commands(server: DevServer) -> dict[str, int]:
    """How often each command was called on a server, from inside scripts too."""
    stats = server.client().info("commandstats")
    return {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was called in between, without our own looking."""
    ours = {"info", "config|resetstat", "client|setinfo", "hello", "select", "keys", "dbsize"}
    return {
        name: count - before.get(name, 0)
        for name, count in after.items()
        if count > before.get(name, 0) and name not in ours
    }


def publishing(scene: Deployment, rounds: int) -> None:
    """Cost of `delay()`: plain, fresh, duplicate, and the limit of any lock."""
    plain, guarded = scene.task("plain_noop"), scene.task("noop")
    client = scene.store.client()
    numbers = iter(range(10**9))

    def limit() -> None:
        client.set(f"limit:{next(numbers)}", "x", nx=True, px=60000)
        plain.delay(1)

    guarded.delay(-1)
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.delay(1),
        "fresh": lambda: guarded.delay(next(numbers)),
        "limit": limit,
        "duplicate": lambda: guarded.delay(-1),
    }
    by_turns(calls, 50)
    medians = by_turns(calls, rounds)
    base = medians["plain"]
    print(f"\ndelay(), medians of {rounds} calls each, by turns in one process")
    for name, seconds in medians.items():
        target = f"   target at most {TARGETS[name]:.2f}" if name in TARGETS else ""
        print(f"  {name:10}{seconds * 1e6:8.1f} us {seconds / base:6.2f} x plain{target}")
    print("  limit = a plain delay() and one redis-py SET NX PX")


def key_derivation() -> None:
    """Cost of a key of three plain arguments."""
    spec = KeySpec("shop.sync_order", three_arguments)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        for number in range(1000):
            spec.key((number, "eu"), {})
        times.append((time.perf_counter() - begin) / 1000)
    print(f"\nkey of three plain arguments: {statistics.median(times) * 1e6:.1f} us, target 10 us")


def working(scene: Deployment, broker: DevServer) -> None:
    """Throughput of a no-op worker, and what one task costs the lock server."""
    rates: dict[str, list[float]] = {"plain_noop": [], "noop": []}
    worker = CeleryWorker(scene.settings, scene.folder, concurrency=2, loglevel="WARNING")
    scene.workers.append(worker)
    queues = broker.client()

    def is_idle() -> bool:
        return not queues.llen(scene.settings["task_default_queue"]) + queues.hlen("unacked")

    for name in rates:  # everything has run once: scripts are loaded, pools are warm
        scene.task(name).delay(0).get(timeout=60)
    begin_stats = commands(scene.store)
    for _ in range(ROUNDS):
        for name, some in rates.items():
            worker.freeze()
            for number in range(NO_OPS):
                scene.task(name).delay(number)
            begin = time.perf_counter()
            worker.thaw()
            wait_until(is_idle, f"{name} is done", within=120)
            some.append(NO_OPS / (time.perf_counter() - begin))
    ratios = [
        mine / theirs for mine, theirs in zip(rates["noop"], rates["plain_noop"], strict=True)
    ]
    print(f"\nno-op worker, prefork -c 2, {ROUNDS} alternating runs")
    for name, some in rates.items():
        print(f"  {name:12}" + "  ".join(f"{rate:7.0f}/s" for rate in some))
    print(f"  ratio {statistics.median(ratios):.2f}, target at least {TARGETS['throughput']:.2f}")
    tasks = ROUNDS * NO_OPS
    used = grown(begin_stats, commands(scene.store))
    trips = used.get("evalsha", 0) + used.get("eval", 0)
    inside = sum(count for name, count in used.items() if name not in ("evalsha", "eval"))
    print(f"\nlock server, {tasks} tasks from publish to end")
    print(
        f"  round trips a task {trips / tasks:.3f} (target 3), commands inside {inside / tasks:.2f}"
    )
    print("  " + ", ".join(f"{name} {count / tasks:.2f}" for name, count in sorted(used.items())))
    print(f"  keys left behind {len(scene.keys())}, target 0")


def main() -> None:
    """Run all of it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    with tempfile.TemporaryDirectory() as folder, DevServer() as store, DevServer() as broker:
        conf = {"broker_url": broker.url, "worker_prefetch_multiplier": 4}
        scene = Deployment(Path(folder), store, conf={**conf, "result_backend": broker.url})
        try:
            print(f"lock server {store.version}, broker and results on another; "
                  f"Python {sys.version.split()[0]}")  # fmt: skip
            key_derivation()
            publishing(scene, rounds)
            scene.app.control.purge()
            store.client().flushall()
            working(scene, broker)
        finally:
            scene.close()


if __name__ == "__main__":
    main()
