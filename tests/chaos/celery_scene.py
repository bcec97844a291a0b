"""The chaos test on Celery: prefork and threads, on Redis."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from _support.workers import CeleryWorker
from celery import chain, chord
from chaos.broker_log import Fates, fates_in_kombu
from chaos.redis_broker import RedisBrokerScene
from chaos.scene import Action, Fault, Producer, Slot, Worker, is_within, send_signal
from chaos.tasks import QUEUE, make_app
from kombu.exceptions import OperationalError

__all__ = ["CeleryScene"]

BROKER = {
    "visibility_timeout": 5,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # else a worker that dies in the middle of a sweep ends all sweeps for five minutes
    "unacked_mutex_expire": 3,
    "socket_timeout": 4,
    "socket_connect_timeout": 1,
}

_UNSENT = re.compile(
    r"(?:Task \w+\[|Chord callback for ')([0-9a-f-]+)"
    r"(?:\]|') raised(?: unexpected)?: OperationalError"
)


class CeleryScene(RedisBrokerScene):
    """Celery's workers, broker and app."""

    POOLS: ClassVar = [("prefork", 4), ("prefork", 4), ("threads", 4)]
    CHILDREN: ClassVar = "prefork"
    PLAN: ClassVar = [
        Action("kill_child", 90, 0.0, 0.0),
        Action("kill_worker", 14, 0.0, 2.0),
        Action("kill_store", 11, 0.0, 1.0),
        Action("kill_store", 1, 7.0, 8.0),  # longer than a lease
        Action("empty_store", 2, 0.0, 1.4),
        Action("kill_broker", 6, 0.0, 1.5),
        Action("restart_warm", 4, 2.0, 4.0),
        Action("restart_cold", 3, 2.0, 4.0),
        Action("freeze_child", 6, 0.3, 1.4),
        Action("freeze_child", 6, 7.0, 9.0),  # longer than a lease
        Action("freeze_worker", 5, 0.3, 1.4),
        Action("freeze_worker", 3, 7.0, 9.0),  # longer than a lease
        Action("freeze_main", 3, 0.3, 8.0),
        Action("freeze_store", 6, 0.2, 1.4),
        Action("freeze_broker", 4, 0.3, 3.0),
        Action("freeze_broker", 1, 5.0, 6.0),  # longer than its clients wait for an answer
    ]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = {
            "broker_url": self.broker.url,
            "result_backend": self.results.url,
            "once_url": self.store.url,
            "broker_transport_options": BROKER,
            "ledger": str(self.ledger),
        }
        self.app = make_app(self.settings)

    def _new_worker(self, slot: Slot) -> Worker:
        return CeleryWorker(
            self.settings,
            self.folder,
            app="chaos.tasks",
            pool=slot.pool,
            concurrency=slot.concurrency,
        )

    def _is_ready(self, worker: Worker) -> bool:
        return " ready." in worker.log

    def _end_cold(self, worker: Worker) -> None:
        worker.process.send_signal(signal.SIGQUIT)

    def freeze_main(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to a prefork worker's main process, while its children go on."""
        slot = self._slot(draw, "prefork")
        if slot is None:
            return None
        pid = slot.group
        fault = self._note(Fault("freeze main", time.monotonic(), pid=pid))
        slot.is_frozen = True
        send_signal(pid, signal.SIGSTOP)

        def thaw() -> None:
            send_signal(pid, signal.SIGCONT)
            slot.is_frozen = False
            fault.until = time.monotonic()

        return thaw

    def producer(self, seed: str) -> Producer:
        return CeleryProducer(seed, self.app)

    def holder(self, unit: str) -> tuple[str, str] | None:
        found = self.app.tasks[unit.partition("-")[0]].holder(unit)
        return found and (found.state, found.message_id)

    def messages(self) -> tuple[int, int]:
        with self.broker.client() as client:
            return client.llen(QUEUE), client.hlen("unacked")

    def fates(self) -> Fates:
        return fates_in_kombu(self.broker_folder)

    def unsent(self) -> set[str]:
        found: set[str] = set()
        for worker in self._workers:
            found.update(_UNSENT.findall(worker.log))
        return found

    def close(self) -> None:
        """End every process."""
        self.app.backend.result_consumer.stop()
        self.app.close()
        super().close()


class CeleryProducer(Producer):
    """Calls tasks; sends chains and chords."""

    UNITS: ClassVar = {"late": 16, "early": 8, "done": 8, "retry": 6, "replace": 4, "debounce": 3}
    BROKER_AWAY: ClassVar = (OperationalError,)

    def __init__(self, seed: str, app: Any) -> None:
        super().__init__(seed)
        self._tasks = app.tasks

    def call(self, kind: str, unit: str, seconds: float, **rest: Any) -> tuple[str, str]:
        handle = self._tasks[kind].delay(unit, seconds, **rest)
        return handle.once.state, handle.once.holder_id

    def send_canvas(self, name: str, works: list[tuple[str, float]], *, is_wide: bool) -> list[str]:
        late, tail = self._tasks["late"], self._tasks["tail"]
        members = [late.si(unit, seconds) for unit, seconds in works]
        if is_wide:
            result = chord(members, tail.s(name)).apply_async()
            ids = [each.id for each in result.parent.children]
            return [result.id, *ids, result.parent.id]
        result = chain(*members, tail.s(name)).apply_async()
        ids = []
        while result is not None:
            ids.append(result.id)
            result = result.parent
        return ids

    def is_accident(self, error: Exception) -> bool:
        return is_within(error, "kombu")
