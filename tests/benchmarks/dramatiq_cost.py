"""What once costs on Dramatiq, as ratios against a plain actor in the same run.

usage: python tests/benchmarks/dramatiq_cost.py [CALLS]

Measures by turns in one process, so that a busy machine slows all sides alike, and counts
round trips and commands from the lock server's own INFO. The plain actors are those of a broker
without our middleware.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import dramatiq
from _support.waiting import wait_until
from celery_cost import by_turns, commands, grown
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Callbacks, Middleware, Pipelines, Retries, TimeLimit

from once_core._client import make_client
from once_core._line import Line
from once_core.devserver import DevServer
from once_core.protocol import inspect
from once_dramatiq import OnceMiddleware

TARGETS = {"fresh": 1.8, "duplicate": 1.0, "throughput": 0.9}
THREADS = 8
NO_OPS = 2000
WARM = 200
"""Messages of each run before the clock starts: all threads are at work by then."""
ROUNDS = 9


class TwoTrips(Middleware):
    """The floor of any lock that asks before and after a body: two questions of no meaning."""

    def __init__(self, store: DevServer) -> None:
        self._line = Line(make_client(store.url))
        self._step = inspect("once:floor")

    def before_process_message(self, broker: Any, message: Any) -> None:  # a hook
        self._line.script(self._step)

    def after_process_message(  # a hook
        self, broker: Any, message: Any, *, result: object = None, exception: object = None
    ) -> None:
        self._line.script(self._step)


class Side:
    """A broker with a no-op actor that counts. For one worker.

    Args:
        broker: Where its messages lie.
        store: Where its locks lie.
        kind: ``"plain"``, ``"guarded"`` with our middleware, or ``"floor"``.
    """

    def __init__(self, broker: DevServer, store: DevServer, kind: str) -> None:
        # the default middleware, without Prometheus, which older versions add
        middleware = [AgeLimit(), TimeLimit(), Callbacks(), Pipelines(), Retries()]
        self.broker = RedisBroker(url=broker.url, middleware=middleware, namespace=kind)
        if kind == "floor":
            self.broker.add_middleware(TwoTrips(store))
        if kind == "guarded":
            self.broker.add_middleware(OnceMiddleware(url=store.url, every_actor=True))
        self.started_at: list[float] = []
        self.actor: Any = dramatiq.actor(self._note, broker=self.broker, actor_name="noop")

    def _note(self, number: int) -> None:
        self.started_at.append(time.perf_counter())

    def rate(self, count: int) -> float:
        """Messages a second of a worker that finds them all in its queue."""
        for number in range(count):
            self.actor.send(number)
        worker = Worker(self.broker, worker_threads=THREADS, worker_timeout=100)
        worker.start()
        try:
            wait_until(lambda: len(self.started_at) >= count, "all have run", within=120)
            self.broker.join(self.actor.queue_name)
        finally:
            worker.stop()
            self.broker.close()
        return (count - WARM) / (self.started_at[count - 1] - self.started_at[WARM - 1])


def publishing(broker: DevServer, store: DevServer, rounds: int) -> None:
    """Cost of `send()`: plain, fresh, duplicate, and the limit of any lock."""
    plain, guarded = Side(broker, store, "plain"), Side(broker, store, "guarded")
    client = store.client()
    numbers = iter(range(10**9))

    def limit() -> None:
        client.set(f"limit:{next(numbers)}", "x", nx=True, px=60000)
        plain.actor.send(1)

    guarded.actor.send(-1)
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.actor.send(1),
        "fresh": lambda: guarded.actor.send(next(numbers)),
        "limit": limit,
        "duplicate": lambda: guarded.actor.send(-1),
    }
    by_turns(calls, 50)
    medians = by_turns(calls, rounds)
    base = medians["plain"]
    print(f"\nsend(), medians of {rounds} calls each, by turns in one process")
    for name, seconds in medians.items():
        target = f"   target at most {TARGETS[name]:.2f}" if name in TARGETS else ""
        print(f"  {name:10}{seconds * 1e6:8.1f} us {seconds / base:6.2f} x plain{target}")
    print("  limit = a plain send() and one redis-py SET NX PX")


def working(broker: DevServer, store: DevServer) -> None:
    """Throughput of a no-op worker, and what one message costs the lock server."""
    rates: dict[str, list[float]] = {"plain": [], "guarded": [], "floor": []}
    used: Counter[str] = Counter()
    for _ in range(ROUNDS):
        for name, some in rates.items():
            before = commands(store)
            some.append(Side(broker, store, name).rate(NO_OPS))
            if name == "guarded":
                used.update(grown(before, commands(store)))
    print(f"\nno-op worker, {THREADS} threads in this process, {ROUNDS} alternating runs")
    for name, some in rates.items():
        print(f"  {name:9}" + " ".join(f"{rate:5.0f}/s" for rate in some))
    for name in ("guarded", "floor"):
        ratios = [mine / theirs for mine, theirs in zip(rates[name], rates["plain"], strict=True)]
        print(
            f"  {name:9}{statistics.median(ratios):.2f} x plain "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"  target at least {TARGETS['throughput']:.2f}; floor = two round trips that do nothing")
    messages = ROUNDS * NO_OPS
    trips = used.get("evalsha", 0) + used.get("eval", 0)
    inside = sum(count for name, count in used.items() if name not in ("evalsha", "eval"))
    print(f"\nlock server, {messages} messages from publish to end")
    print(
        f"  round trips a message {trips / messages:.3f} (target 3), "
        f"commands inside {inside / messages:.2f}"
    )
    print(
        "  " + ", ".join(f"{name} {count / messages:.2f}" for name, count in sorted(used.items()))
    )
    print(f"  keys left behind {len(store.client().keys('once:*'))}, target 0")


def main() -> None:
    """Run all of it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    with DevServer() as store, DevServer() as broker:
        print(
            f"Dramatiq {dramatiq.__version__}, lock server {store.version}, broker on another; "
            f"Python {sys.version.split()[0]}"
        )
        publishing(broker, store, rounds)
        broker.client().flushall()
        store.client().flushall()
        working(broker, store)


if __name__ == "__main__":
    main()
