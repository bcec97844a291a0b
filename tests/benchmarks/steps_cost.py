"""What each step of a task's life costs: Python's time here, and the lock server's own.

usage: python tests/benchmarks/steps_cost.py

For whoever changes the hot path: run it before and after, on an idle machine. Each number is the
best of several rounds, in microseconds; the last line is one heartbeat for 10,000 leases.
"""

from __future__ import annotations

import time
import timeit
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import redis

from once_core import Guard, OnceOptions, Store, protocol
from once_core._heartbeat import Heartbeat, Held
from once_core._host import whereabouts
from once_core._lease import Lease
from once_core._line import _packed
from once_core.devserver import DevServer
from once_core.protocol import Message, Step
from once_core.publish import Claiming, Publication, claiming

ROUNDS, CALLS, LEASES = 7, 2000, 10_000
WAITING: dict[str, float] = {"ttl": 3600.0, "heal_after": 60.0}
WORKER: dict[str, Any] = {"where": whereabouts(), "lease": 60.0}


def sync(order_id: int, shop: str = "x", dry: bool = False) -> None:
    """A task of three arguments."""


def here(function: Callable[[], object]) -> float:
    """Microseconds of a call."""
    return min(timeit.repeat(function, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def there(client: redis.Redis, store: Store, steps: Sequence[Step[Any]]) -> float:
    """Microseconds of a step by the server's own clock."""
    store.run_many(steps[:1])  # which may have to bring its script
    client.config_resetstat()
    store.run_many(steps[1:])
    return float(client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])


def claims(units: Sequence[tuple[str, str]]) -> list[Step[protocol.Claim]]:
    """A claim for each unit, by a key and a message id."""
    return [protocol.claim(key, each, nonce="0123456789", **WAITING) for key, each in units]


def lives(client: redis.Redis, store: Store) -> dict[str, float]:
    """The server's time for each step of many units."""
    units = [(f"once:sync:{uuid.uuid4().hex}", str(uuid.uuid4())) for _ in range(CALLS)]
    beside = [(f"{key}-d", each) for key, each in units]
    store.run_many(claims(beside))
    found = {
        "claim": there(client, store, claims(units)),
        "duplicate": there(client, store, claims([(key, "another") for key, _ in beside])),
    }
    messages = [(key, Message(each, int(client.hget(key, "wt") or 0))) for key, each in units]  # type: ignore[arg-type]  # not async
    lease: list[tuple[str, Message, str]] = [(key, each, each.id[:16]) for key, each in messages]
    starts = [protocol.start(*each, **WORKER, **WAITING) for each in lease]
    renewals = [protocol.renew(*each, fence=1, held=1.0, **WORKER) for each in lease]
    finishes = [protocol.finish(*each, "success", **WAITING) for each in lease]
    found["start"] = there(client, store, starts)
    found["renew"] = there(client, store, renewals)
    found["finish"] = there(client, store, finishes)
    return found


def python(guard: Guard) -> dict[str, float]:
    """The time of this process for each part of a call."""
    key, message = guard.key((1,), {}), Message("a" * 36, 1795304200222087)
    asked: Claiming | Publication = claiming(guard, (1,), {}, "a" * 36)
    assert isinstance(asked, Claiming)
    step = asked.step
    answer = step.parse(f"claimed {message.ticket} 0")
    publication = asked.answered(answer)
    return {
        "key of three arguments": here(lambda: guard.key((1,), {})),
        "claim, with its key": here(lambda: claiming(guard, (1,), {}, "a" * 36)),
        "packed": here(lambda: _packed(("EVALSHA", step.script.sha, 1, step.key, *step.args))),
        "its answer": here(lambda: asked.answered(step.parse(f"claimed {message.ticket} 0"))),
        "header of the message": here(lambda: publication.header),
        "start, with its answer": here(
            lambda: protocol.start(key, message, "a" * 16, **WORKER, **WAITING).parse(
                "started 1795304200234334 12 1"
            )
        ),
        "finish": here(lambda: protocol.finish(key, message, "a" * 16, "success", **WAITING)),
    }


def beat(store: Store) -> tuple[float, float]:
    """Milliseconds of one heartbeat for many leases, and of Python in it."""
    heart = Heartbeat()
    held = [
        Held(
            store, Message(str(uuid.uuid4()), 5), uuid.uuid4().hex[:16], whereabouts(),
            Lease(f"once:sync:{uuid.uuid4().hex}", 0, 60.0), "sync", None,
        )
        for _ in range(LEASES)
    ]  # fmt: skip
    store.run_many(
        [
            protocol.start(each.lease.key, each.message, each.attempt, **WORKER, **WAITING)
            for each in held
        ]
    )
    heart._held.update({each.attempt: each for each in held})
    times = []
    for _ in range(ROUNDS):
        begin, busy = time.perf_counter(), time.process_time()
        heart.beat()
        times.append((time.perf_counter() - begin, time.process_time() - busy))
    return min(took for took, _ in times) * 1e3, min(busy for _, busy in times) * 1e3


def main() -> None:
    """Measure all of it."""
    with DevServer() as server:
        store, client = Store(server.url), server.client()
        guard = Guard("sync", sync, OnceOptions(), lambda: store)
        print("Python's time, us")
        for name, took in python(guard).items():
            print(f"  {name:26}{took:8.2f}")
        rounds = [lives(client, store) for _ in range(ROUNDS)]
        print("the lock server's time, us")
        for name in rounds[0]:
            print(f"  {name:26}{min(each[name] for each in rounds):8.2f}")
        took, busy = beat(store)
        print(f"a heartbeat for {LEASES:,} leases: {took:.0f} ms, {busy:.0f} of them Python's")


if __name__ == "__main__":
    main()
