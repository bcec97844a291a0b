from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from once_core import _breaker, _heartbeat, _lease, _line, attempt
from once_core.guard import Guard
from once_core.options import OnceOptions

if TYPE_CHECKING:
    from once_core.events import Event
    from once_pytest import OnceHarness


class Clock:
    """The clock of this host, which goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock in the place of the host's, for what needs no lock.

    Those are the schedule of the heartbeat, the breaker and the line: their tests decide about
    each beat and each pause themselves, and `once_clock` would beat on its way. Where locks take
    part, it is `once_clock`.
    """
    clock = Clock()
    for module in (_breaker, _heartbeat, _lease, _line, attempt):
        monkeypatch.setattr(module, "elapsed", clock)
    return clock


@pytest.fixture
def told(once_locks: OnceHarness) -> list[Event]:
    """Every event of this process, while the test runs."""
    return once_locks.recorder.events


def sync(order_id: object, note: object = "") -> None:
    """The task of these tests."""


@pytest.fixture
def guarded(once_locks: OnceHarness) -> Callable[..., Guard]:
    """Makes guards of one task, whose locks are those of `once_locks`."""

    def no_other_store() -> NoReturn:
        raise AssertionError("a store was asked for that is not the test's")

    def make(**options: Any) -> Guard:
        return Guard("shop.sync", sync, OnceOptions(**options), no_other_store)

    return make


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> _heartbeat.Heartbeat:
    """The heartbeat of this process, without its thread; `once_clock` has it beat."""
    table = _heartbeat.Heartbeat()
    monkeypatch.setattr(_heartbeat, "start_thread", lambda function: None)
    monkeypatch.setitem(_heartbeat._process, os.getpid(), table)
    return table
