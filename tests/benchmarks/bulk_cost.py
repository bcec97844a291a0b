"""What claiming costs per call where 500 are sent at once, over plain publishing in the same run.

usage: python tests/benchmarks/bulk_cost.py [ROUNDS]

Measures by turns in one process, so that a busy machine slows all sides alike; the cost is the
median of the differences of each turn. The plain sides send 500 messages one by one, of a task that
is under no guard: with `delay()`, and over one connection.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import dramatiq
from _support.deployment import Deployment
from dramatiq_cost import Side

from once_core.bulk import BATCH
from once_core.devserver import DevServer
from once_dramatiq import send_many

TARGET = 8.0
"""Microseconds a call."""


def by_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds a call of each side, in each turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            times[name].append((time.perf_counter() - begin) * 1e6 / BATCH)
    return times


def shown(some: list[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(some, n=4)
    return f"{middle:8.1f} us ({low:.1f} to {high:.1f})"


def report(what: str, times: dict[str, list[float]], base: str) -> None:
    """Print each side, and what it costs over the plain one."""
    print(f"\n{what}, {BATCH} calls a turn, {len(times[base])} turns; median, and middle half")
    plain = times[base]
    for name, some in times.items():
        over = [mine - theirs for mine, theirs in zip(some, plain, strict=True)]
        ratio = statistics.median(some) / statistics.median(plain)
        line = f"  {name:22}{shown(some):32} {ratio:5.2f} x"
        print(line if name == base else f"{line}   over it {shown(over)}")
    print(f"  target: fresh calls at most {TARGET:.0f} us over plain publishing")


def celery(folder: Path, broker: DevServer, store: DevServer, rounds: int) -> None:
    """`delay_many()`."""
    conf = {"broker_url": broker.url, "result_backend": broker.url}
    scene = Deployment(folder, store, conf=conf)
    plain, guarded = scene.task("plain_noop"), scene.task("noop")
    numbers = iter(range(10**9))

    def one_connection() -> None:
        with scene.app.producer_or_acquire() as producer:
            for _ in range(BATCH):
                plain.apply_async((next(numbers),), producer=producer)

    sides: dict[str, Callable[[], object]] = {
        "plain delay()": lambda: [plain.delay(next(numbers)) for _ in range(BATCH)],
        "plain, one connection": one_connection,
        "fresh delay()": lambda: [guarded.delay(next(numbers)) for _ in range(BATCH)],
        "fresh delay_many()": lambda: guarded.delay_many(
            [((next(numbers),), {}) for _ in range(BATCH)]
        ),
        "500 duplicates": lambda: guarded.delay_many([((-1,), {}) for _ in range(BATCH)]),
    }
    try:
        guarded.delay(-1)
        by_turns(sides, 3)
        report("Celery", by_turns(sides, rounds), "plain, one connection")
    finally:
        scene.close()


def of_dramatiq(broker: DevServer, store: DevServer, rounds: int) -> None:
    """`send_many()`."""
    plain, guarded = Side(broker, store, "plain").actor, Side(broker, store, "guarded").actor
    numbers = iter(range(10**9))
    sides: dict[str, Callable[[], object]] = {
        "plain send()": lambda: [plain.send(next(numbers)) for _ in range(BATCH)],
        "fresh send()": lambda: [guarded.send(next(numbers)) for _ in range(BATCH)],
        "fresh send_many()": lambda: send_many(
            guarded, [((next(numbers),), {}) for _ in range(BATCH)]
        ),
        "500 duplicates": lambda: send_many(guarded, [((-1,), {}) for _ in range(BATCH)]),
    }
    guarded.send(-1)
    by_turns(sides, 3)
    report("Dramatiq", by_turns(sides, rounds), "plain send()")


def claiming_alone(broker: DevServer, store: DevServer, rounds: int) -> None:
    """The part of the lock server in it: what its own clock says of 500 claims."""
    actor = Side(broker, store, "guarded").actor
    client = store.client()
    client.config_resetstat()
    for turn in range(rounds):
        send_many(actor, [((f"alone-{turn}-{at}",), {}) for at in range(BATCH)])
    stats = client.info("commandstats")["cmdstat_evalsha"]
    print(f"\nthe lock server's own time: {stats['usec'] / stats['calls']:.1f} us a claim")


def main() -> None:
    """Run all of it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as folder, DevServer() as store, DevServer() as broker:
        print(
            f"lock server {store.version}, broker on another; Dramatiq {dramatiq.__version__}; "
            f"Python {sys.version.split()[0]}; load {os.getloadavg()[0]:.1f}"
        )
        celery(Path(folder), broker, store, rounds)
        of_dramatiq(broker, store, rounds)
        claiming_alone(broker, store, 5)
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
