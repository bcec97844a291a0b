"""What a worker's process does for a Dramatiq broker."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from once_core.errors import ConfigurationError

if TYPE_CHECKING:
    from dramatiq import Broker

__all__ = ["runner"]

_IDLE_MS = 100
"""Milliseconds after which an idle consumer looks again."""

_POLL = 0.02


def runner(
    broker: Any,  # noqa: ANN401  # a Dramatiq broker; the caller has looked
    concurrency: int,
    pool: str | None,
    queues: Sequence[str] | None,
) -> Callable[[Callable[[], None]], int]:
    """The function that runs a worker of this broker; in the fork.

    Raises:
        ConfigurationError: Another process cannot reach it, or options that cannot be.
    """
    from dramatiq.brokers.stub import StubBroker

    if pool is not None or concurrency < 1:
        raise ConfigurationError(
            f"pool={pool!r} with concurrency={concurrency!r} cannot be: Dramatiq's workers have "
            "threads and no pool, and one thread at least"
        )
    pool_of_client = getattr(getattr(broker, "client", None), "connection_pool", None)
    connection = getattr(pool_of_client, "connection_class", object)
    if isinstance(broker, StubBroker) or connection.__module__.startswith("fakeredis"):
        raise ConfigurationError(
            "once_worker needs a broker that another process can reach, and this "
            f"{type(broker).__name__} lives in the test's own: use a RedisBroker on a real server, "
            "such as the one that --once-redis=spawn starts"
        )
    return lambda ready: _run(broker, concurrency, queues, ready)


def _run(
    broker: Broker, concurrency: int, queues: Sequence[str] | None, ready: Callable[[], None]
) -> int:
    from dramatiq import Worker

    is_stopping = False

    def stop(*_: object) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _become_another(broker)
    broker.emit_after("process_boot")
    chosen = set(queues) if queues is not None else None
    worker = Worker(broker, queues=chosen, worker_timeout=_IDLE_MS, worker_threads=concurrency)
    worker.start()
    while not all(each.consumer is not None for each in worker.consumers.values()):
        time.sleep(_POLL)
    ready()
    while not is_stopping:
        time.sleep(_POLL)
    worker.stop()
    return 0


def _become_another(broker: Any) -> None:  # noqa: ANN401  # brokers differ
    """See that the broker answers, under a name of our own.

    What a worker holds is kept under its broker's id: two forks with the same one would take
    each other's messages for their own, and those of a killed one would never be given out again.
    """
    if hasattr(broker, "broker_id"):
        broker.broker_id = str(uuid.uuid4())
    if hasattr(broker, "client"):
        broker.client.ping()
