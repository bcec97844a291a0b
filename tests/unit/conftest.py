from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from once_core import _breaker, _heartbeat, _line, attempt, events, lease
from once_core.guard import Guard
from once_core.options import OnceOptions
from once_core.store import Store


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
    """A clock in the place of the host's, wherever this library reads it."""
    clock = Clock()
    for module in (_breaker, _heartbeat, _line, attempt, lease):
        monkeypatch.setattr(module, "elapsed", clock)
    return clock


@pytest.fixture
def told() -> Iterator[list[events.Event]]:
    """Every event of this process, while the test runs."""
    seen: list[events.Event] = []
    stop = events.subscribe(seen.append)
    yield seen
    stop()


@pytest.fixture
def store_url() -> str:
    """A lock store of the test's own."""
    return f"memory://{uuid.uuid4().hex}"


def sync(order_id: object, note: object = "") -> None:
    """The task of these tests."""


@pytest.fixture
def guarded(store_url: str) -> Callable[..., Guard]:
    """Makes guards of one task that share a store, which `store=` replaces."""
    shared = Store(store_url)

    def make(*, store: Any = shared, **options: Any) -> Guard:
        return Guard("shop.sync", sync, OnceOptions(**options), lambda: store)

    return make


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> _heartbeat.Heartbeat:
    """The heartbeat of this process, without its thread."""
    table = _heartbeat.Heartbeat()
    monkeypatch.setattr(_heartbeat, "start_thread", lambda function: None)
    monkeypatch.setattr(attempt, "heartbeat", lambda: table)
    return table
