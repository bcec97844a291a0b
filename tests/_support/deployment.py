"""A broker, a result backend, a lock store and an app: what one test scene consists of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _support import ledger
from _support.celery_app import make_app
from _support.rabbitmq import AMQP_URL
from _support.workers import CeleryWorker
from once_core.devserver import DevServer


@dataclass
class Deployment:
    """One scene; its queue, units and ledger are its own.

    Attributes:
        broker: ``redis`` (on the lock store's server) or ``rabbitmq``.
        store: Server of lock store and results, and of the broker where that is Redis.
    """

    folder: Path
    store: DevServer
    broker: str = "redis"
    pool: str = "prefork"
    concurrency: int = 2
    conf: dict[str, object] = field(default_factory=dict)
    workers: list[CeleryWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = self.folder / f"ledger-{uuid.uuid4().hex}"
        broker_url = AMQP_URL if self.broker == "rabbitmq" else self.store.url
        self.settings: dict[str, object] = {
            "broker_url": broker_url,
            "result_backend": self.store.url,
            "once_url": self.store.url,
            "task_default_queue": f"once-test-{uuid.uuid4().hex[:12]}",
            "ledger": str(self.ledger),
            **self.conf,
        }
        self.app = make_app(self.settings)

    def task(self, name: str) -> Any:
        return self.app.tasks[name]

    def worker(self, **options: Any) -> CeleryWorker:
        """Start one more worker and wait until it is ready."""
        chosen = {"pool": self.pool, "concurrency": self.concurrency, **options}
        worker = CeleryWorker(self.settings, self.folder, **chosen)
        self.workers.append(worker)
        return worker.ready()

    def runs(self, unit: str | None = None) -> list[ledger.Run]:
        return ledger.runs(self.ledger, unit)

    def queued(self) -> int:
        """How many messages the queue holds (not those a worker has taken)."""
        with self.app.connection_for_write() as connection:
            queue = self.app.amqp.queues[str(self.settings["task_default_queue"])]
            try:
                found = queue(connection.default_channel).queue_declare(passive=True)
            except connection.channel_errors:
                return 0  # Redis forgets an empty list
            return int(found.message_count)

    def keys(self) -> list[str]:
        """Keys of the lock store that are once's."""
        return sorted(key.decode() for key in self.store.client().keys("once:*"))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()  # a warm shutdown takes up to ten seconds on RabbitMQ
        if self.broker == "rabbitmq":
            with self.app.connection_for_write() as connection:
                queue = self.app.amqp.queues[str(self.settings["task_default_queue"])]
                queue(connection.default_channel).delete()
        # Celery never closes the socket on which it waits for results
        self.app.backend.result_consumer.stop()
        self.app.close()
