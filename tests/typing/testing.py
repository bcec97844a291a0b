"""The public API of `once_pytest` as tests write it. Nobody runs this: mypy checks it, strictly."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping

import redis
from celery import Celery
from dramatiq import Broker
from typing_extensions import assert_type

from once_core import Event, Guard, OnceOptions, Store
from once_pytest import (
    Contender,
    Fault,
    HeldLock,
    OnceClock,
    OnceFaults,
    OnceHarness,
    OnceRace,
    OnceTestMixin,
    assert_deferred,
    assert_different_keys,
    assert_duplicate,
    assert_idempotent,
    assert_no_locks,
    assert_ran,
    assert_same_key,
    assert_task_locked,
    assert_task_not_locked,
    assert_valid_options,
    call,
)
from once_pytest.drain import Drained, drain
from once_pytest.worker import WorkerProcess, start_worker


def sync_order(order_id: int, lang: str = "en") -> str:
    """A body."""
    return f"{order_id} {lang}"


task = Guard("shop.sync_order", sync_order, OnceOptions(), lambda: Store("redis://cache"))


# Assertions, as functions.
def test_waits(once_locks: OnceHarness) -> None:
    """Look at a lock in every way that there is."""
    assert_task_locked(task, 42)
    assert_task_locked(task, 42, lang="en", state="waiting", ttl=(0, 60.5), within=1, holder="m1")
    assert_task_locked(task, call(42, lang="en"), state="running")
    assert_task_locked(task, ...)
    assert_task_not_locked(task, 42, within=0.5)
    assert_no_locks()
    assert_ran(task, 42, times=2)
    assert_ran(task, ..., times=(1, 3))
    assert_duplicate(task, 42)
    assert_duplicate(task, 42, times=1)
    assert_deferred(task, 42, times=(0, float("inf")))

    assert_task_locked()  # type: ignore[call-arg]  # nothing to look at
    assert_task_locked(task, 42, ttl=60)  # type: ignore[arg-type]  # two bounds
    assert_task_locked(task, 42, state=3)  # type: ignore[arg-type]  # no argument of the task
    assert_ran(task, 42, times="twice")  # type: ignore[arg-type]  # no number


def test_keys() -> None:
    """Compare calls; no lock is needed."""
    assert_same_key(task, call(42), call(order_id=42), call(42, "en"))
    assert_different_keys(task, call(42), call("42"))
    assert_type(assert_valid_options(task), OnceOptions)
    assert_idempotent(sync_order, 42, times=2, state=lambda: {42: "done"})
    assert_type(call(42).args, tuple[object, ...])
    assert_type(call(42).kwargs, dict[str, object])


# The harness, which has the same as methods.
def test_harness(once_locks: OnceHarness) -> None:
    """Read it, and stand in for somebody else."""
    assert_type(once_locks.locks, list[HeldLock])
    assert_type(once_locks.leaked, list[HeldLock])
    assert_type(once_locks.events, list[Event])
    assert_type(once_locks.client(), redis.Redis)
    assert_type(once_locks.release_all(), int)
    with once_locks.hold(task, 42, state="waiting") as theirs:
        once_locks.assert_task_locked(task, 42, holder=theirs)
        assert_type(theirs.message_id, str)
    theirs.end()
    once_locks.forget()


def table(locks: list[HeldLock]) -> list[str]:
    """What a person would like to see."""
    for lock in locks:
        assert_type(lock.remaining, float)
        assert_type(lock.arguments, Mapping[str, object] | None)
        lock.state = "running"  # type: ignore[misc]  # what is held is not changed here
    return [f"{each.task} {each.state} {each.message_id} {each.age:.1f}" for each in locks]


with OnceHarness(is_bypassed=True, is_strict=False) as opened:
    assert_type(opened, OnceHarness)


# Time, faults and races.
def test_clock(once_clock: OnceClock) -> None:
    """Let time pass."""
    once_clock.advance(30)
    once_clock.advance_to_expiry(task, 42, lang="en")
    assert_type(once_clock.now(), float)


def test_faults(once_faults: OnceFaults) -> None:
    """Everything that can go wrong."""
    with once_faults.outage() as fault:
        assert_type(fault, Fault)
        assert_type(fault.hits, int)
    once_faults.latency(0.2).end()
    once_faults.lose_request("claim", times=2)
    once_faults.lose_reply()
    once_faults.refuse("READONLY", step="finish")
    once_faults.noscript()
    once_faults.failover().end()


def test_race(once_race: OnceRace) -> None:
    """Contend."""
    calls: dict[str, Callable[[], object]] = {"A": lambda: sync_order(1), "B": lambda: None}

    def check(told: Mapping[str, Contender]) -> None:
        assert_type(told["A"].error, BaseException | None)
        assert_type(told["A"].steps, list[str])

    assert_type(once_race.run(sync_order, 42, n=8), list[Contender])
    assert_type(once_race.steps("A B B A", calls), dict[str, Contender])
    assert_type(once_race.explore(calls, check, setup=lambda: None, most=50), int)


# Queues and workers.
def test_queue(once_drain: Callable[..., Drained], app: Celery, clock: OnceClock) -> None:
    """Run what is queued."""
    assert_type(once_drain(app, raises=False).delivered, int)
    assert_type(drain(app, clock=clock, until_idle=False, max_tasks=5).left, int)


def test_worker(once_worker: Callable[..., WorkerProcess], broker: Broker) -> None:
    """Start a real one, and kill it."""
    assert_type(once_worker(broker), WorkerProcess)
    worker = start_worker(broker, on_event=lambda event: event.kind)
    assert_type(worker.wait_for("started", within=5), Event)
    assert_type(worker.is_alive, bool)
    worker.freeze()
    worker.thaw()
    worker.kill()


# unittest.
class SyncTests(OnceTestMixin, unittest.TestCase):
    """The same without pytest."""

    once_leaks = "ignore"

    def test_waits(self) -> None:
        """Look at a lock."""
        self.assert_task_locked(task, 42, state="waiting")
        self.assert_same_key(task, call(42), call(order_id=42))
        self.once_clock.advance(30)
        assert_type(self.once_locks.locks, list[HeldLock])
        assert_type(self.once_drain(Celery(), max_tasks=5), Drained)
        self.assert_task_locked(task, 42, ttl="short")  # type: ignore[arg-type]  # two bounds
