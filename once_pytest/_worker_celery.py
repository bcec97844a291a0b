"""What a worker's process does for a Celery app."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from once_core.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["runner"]

_POOLS = ("solo", "threads", "prefork")

_WAKE = 0.1
"""Seconds; an idle event loop sleeps on through SIGTERM, on RabbitMQ for up to ten."""


def runner(
    app: Any,  # noqa: ANN401  # a Celery app; has no types
    concurrency: int,
    pool: str | None,
    queues: Sequence[str] | None,
) -> Callable[[Callable[[], None]], int]:
    """The function that runs a worker of this app; in the fork.

    Raises:
        ConfigurationError: Another process cannot reach its broker, or options that cannot be.
    """
    pool = pool or ("solo" if concurrency == 1 else "prefork")
    if pool not in _POOLS or (pool == "solo" and concurrency != 1) or concurrency < 1:
        raise ConfigurationError(
            f"pool={pool!r} with concurrency={concurrency!r} cannot be: give one of "
            f"{', '.join(_POOLS)}; solo runs one body at a time"
        )
    with app.connection_for_read() as connection:
        if connection.transport.driver_type == "memory":
            raise ConfigurationError(
                "once_worker needs a broker that another process can reach, and the memory:// of "
                "this app is not: set broker_url to a redis:// URL, such as that of the server "
                "that --once-redis=spawn starts"
            )
    if app.conf.task_always_eager:
        raise ConfigurationError(
            "this app has task_always_eager, so that its calls run in the test and never reach a "
            "worker; set task_always_eager=False for tests with once_worker"
        )
    return lambda ready: _run(app, concurrency, pool, queues, ready)


def _run(
    app: Celery,
    concurrency: int,
    pool: str,
    queues: Sequence[str] | None,
    ready: Callable[[], None],
) -> int:
    from celery import signals
    from celery.utils.nodenames import gethostname
    from kombu.asynchronous import set_event_loop

    set_event_loop(None)  # of a worker that runs in the test's own process
    _forget_results(app)
    # that somebody listens keeps Celery from setting up logging, which is done
    signals.setup_logging.connect(_logging_is_set_up, weak=False)

    def consumes(sender: Any, **_: object) -> None:  # noqa: ANN401  # a consumer; has no types
        sender.timer.call_repeatedly(_WAKE, lambda: None)
        ready()

    signals.worker_ready.connect(consumes, weak=False)
    worker = app.Worker(
        hostname=f"once-{os.getpid()}@{gethostname()}",
        concurrency=concurrency,
        pool=pool,
        queues=list(queues) if queues is not None else None,
        loglevel="INFO",
        quiet=True,
        no_color=True,
        redirect_stdouts=False,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _logging_is_set_up(**_: object) -> None: ...


def _forget_results(app: Celery) -> None:
    """Let go of the connection over which the test hears of results.

    Brokers' connections know that they were forked; that of results would be shared by both.
    """
    consumer: Any = getattr(app.backend, "result_consumer", None)
    if hasattr(consumer, "_pubsub"):
        consumer._pubsub = None  # noqa: SLF001  # no public way, and closing it would end the test's
        consumer.subscribed_to = set()
