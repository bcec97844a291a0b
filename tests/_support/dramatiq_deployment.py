"""A Dramatiq broker, results, a lock store and real workers: what one test scene consists of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
from dramatiq import Broker, Worker
from dramatiq.common import dq_name, xq_name
from dramatiq.results import ResultMissing

from _support import ledger
from _support.dramatiq_app import SETTINGS, make_broker
from _support.rabbitmq import PIKA_URL
from _support.waiting import wait_until
from once_core.devserver import DevServer

TESTS = Path(__file__).parent.parent


class DramatiqWorker:
    """The `dramatiq` command in a process group of its own, to be killed and frozen."""

    def __init__(
        self,
        settings: Mapping[str, object],
        folder: Path,
        *,
        processes: int = 1,
        threads: int = 4,
        module: str = "_support.dramatiq_main",
        command: tuple[str, ...] = ("-m", "dramatiq"),
        environment: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self._log = folder / f"worker-{time.monotonic_ns()}.log"
        self._processes = processes
        arguments = [
            sys.executable, *command, module,
            "--processes", str(processes), "--threads", str(threads), "--verbose", *options,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                arguments,
                env={
                    **os.environ,
                    SETTINGS: json.dumps(settings),
                    "PYTHONPATH": str(TESTS),
                    "dramatiq_restart_delay": "500",
                    **(environment or {}),
                },
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ready(self) -> DramatiqWorker:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"the worker ended:\n{self.log[-4000:]}"
            return self.log.count("Worker process is ready for action.") >= self._processes

        wait_until(is_ready, "the worker is ready", within=40)
        return self

    def kill(self) -> float:
        """SIGKILL to the master and all its processes; returns when."""
        self._signal(signal.SIGKILL)
        self.process.wait(10)
        return time.monotonic()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM to the master alone, which passes it on: a warm shutdown."""
        self.process.send_signal(signal.SIGTERM)

    def terminate_group(self) -> None:
        """SIGTERM to all at once, as systemd does: workers get it twice and end at once."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


class ThreadWorker:
    """The same in threads of this process, for messages of a `StubBroker`."""

    def __init__(self, broker: Broker, threads: int) -> None:
        broker.emit_after("process_boot")  # as the command does; time limits need it
        self._worker = Worker(broker, worker_timeout=100, worker_threads=threads)
        self._worker.start()

    def kill(self) -> None:
        """End when all bodies have; what waits stays in its queue."""
        self._worker.stop(timeout=10_000)


@dataclass
class DramatiqDeployment:
    """One scene; its queue, units and ledger are its own.

    Attributes:
        broker: ``redis`` (on the lock store's server), ``rabbitmq`` or ``stub``.
        store: Server of lock store and results, and of the broker where that is Redis.
        conf: More settings of `make_broker`.
    """

    folder: Path
    store: DevServer
    broker: str = "redis"
    threads: int = 4
    conf: dict[str, Any] = field(default_factory=dict)
    workers: list[DramatiqWorker | ThreadWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = self.folder / f"ledger-{uuid.uuid4().hex}"
        self.queue = f"once_test_{uuid.uuid4().hex[:12]}"
        self.settings: dict[str, Any] = {
            "broker": self.broker,
            "url": PIKA_URL if self.broker == "rabbitmq" else self.store.url,
            "store_url": self.store.url,
            "queue": self.queue,
            "ledger": str(self.ledger),
            **self.conf,
        }
        self.app = make_broker(self.settings)

    def task(self, name: str) -> Any:
        """An actor; named as for Celery, so that tests can be shared."""
        return self.app.get_actor(name)

    def worker(self, **options: Any) -> DramatiqWorker:
        """Start one more worker and wait until it is ready."""
        chosen = {"threads": self.threads, **options}
        worker = DramatiqWorker(self.settings, self.folder, **chosen)
        self.workers.append(worker)
        return worker.ready()

    def start(self) -> None:
        """Start the worker that suits the broker."""
        if self.broker == "stub":
            self.workers.append(ThreadWorker(self.app, self.threads))
        else:
            self.worker(environment={"dramatiq_worker_timeout": "100"})

    def result(self, message: Any, *, within: float = 20.0) -> Any:
        """The result of a message, once it is there."""
        return message.get_result(
            backend=self.app.get_results_backend(), block=True, timeout=round(within * 1000)
        )

    def has_result(self, message: Any) -> bool:
        try:
            message.get_result(backend=self.app.get_results_backend())
        except ResultMissing:
            return False
        return True

    def runs(self, unit: str | None = None) -> list[ledger.Run]:
        return ledger.runs(self.ledger, unit)

    def noted(self) -> list[dict[str, Any]]:
        """What callbacks and later steps were given."""
        return ledger.entries(self.ledger, "noted")

    def let_go(self, unit: str) -> None:
        """Open the gate: held bodies of this unit end."""
        ledger.gate(self.ledger, unit).touch()

    def hold(self, unit: str, task: str = "work") -> Any:
        """Have a body run until the gate of its unit is opened."""
        message = self.task(task).send(unit, -1)
        wait_until(lambda: self.runs(unit), "the first body runs")
        return message

    def keys(self) -> list[str]:
        """Keys of the lock store that are once's."""
        return sorted(key.decode() for key in self.store.client().keys("once:*"))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self.broker == "rabbitmq":
            # not by the broker's own connection, which the test may have cut
            with pika.BlockingConnection(pika.URLParameters(PIKA_URL)) as connection:
                channel = connection.channel()
                for name in (self.queue, dq_name(self.queue), xq_name(self.queue)):
                    channel.queue_delete(name)
        self.app.close()
