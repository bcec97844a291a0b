"""Dramatiq brokers for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

from once_dramatiq import OnceMiddleware

__all__ = ["global_broker", "new_broker"]


def new_broker(url: str, prefix: str, options: Mapping[str, Any]) -> dramatiq.Broker:
    """A broker with our middleware and results.

    Args:
        url: Of a Redis; empty for a `StubBroker`.
        prefix: Of its keys there.
        options: For `OnceMiddleware`.
    """
    from dramatiq.results import Results

    broker: dramatiq.Broker
    if url:
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.results.backends import RedisBackend

        made: Any = RedisBroker
        broker = made(url=url, namespace=f"{prefix}dramatiq")
        backend: Any = RedisBackend(url=url, namespace=f"{prefix}results")
    else:
        from dramatiq.results.backends import StubBackend

        broker, backend = StubBroker(), StubBackend()
    results: Any = Results
    broker.add_middleware(results(backend=backend))
    broker.add_middleware(OnceMiddleware(**options))
    broker.emit_after("process_boot")
    return broker


@contextmanager
def global_broker(broker: dramatiq.Broker) -> Iterator[None]:
    """Around a test in which this is the broker of who names none."""
    before = dramatiq.broker.global_broker  # `get_broker()` would make one
    dramatiq.set_broker(broker)
    try:
        yield
    finally:
        dramatiq.broker.global_broker = before
