"""The chaos test on Dramatiq: its command with processes and threads, on Redis or RabbitMQ."""

from __future__ import annotations

import random
import re
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pika
import redis
from _support import ledger
from _support.cuttable import Cuttable
from _support.dramatiq_deployment import DramatiqWorker
from _support.rabbitmq import PIKA_URL
from chaos.actors import make_broker
from chaos.broker_log import Fates, fates_in_dramatiq
from chaos.redis_broker import RedisBrokerScene
from chaos.scene import FREED, Action, Fault, Producer, Scene, Slot, Worker, is_within, nothing
from dramatiq import Broker, Message, group, pipeline
from dramatiq.common import dq_name, xq_name
from dramatiq.errors import ConnectionClosed

from once_dramatiq import holder, published

__all__ = ["RabbitmqScene", "RedisScene"]

PROCESSES = 2

TWICE = 0.004
"""Of the calls enqueue a message that was sent before, with the same id."""

_COMPLAINT = re.compile(
    r"^.*(?:found a bug in Dramatiq|Unexpected failure in \w+ of <once_dramatiq).*$", re.MULTILINE
)


class DramatiqScene(Scene):
    """Dramatiq's workers and actors, whatever the broker."""

    POOLS: ClassVar = [("processes", 3), ("processes", 3), ("processes", 3)]
    CHILDREN: ClassVar = "processes"
    BROKER: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.queue = f"once_chaos_{uuid.uuid4().hex[:12]}"
        self.settings = {
            "broker": self.BROKER,
            "url": self._broker_url(),
            "store_url": self.store.url,
            "results_url": self.results.url,
            "queue": self.queue,
            "ledger": str(self.ledger),
        }
        self.app = make_broker(self.settings, is_producer=True)

    @abstractmethod
    def _broker_url(self) -> str: ...

    def _new_worker(self, slot: Slot) -> Worker:
        return DramatiqWorker(
            self.settings,
            self.folder,
            processes=PROCESSES,
            threads=slot.concurrency,
            module="chaos.actors",
        )

    def _is_ready(self, worker: Worker) -> bool:
        return worker.log.count("Worker process is ready for action.") >= PROCESSES

    def _end_cold(self, worker: Worker) -> None:
        assert isinstance(worker, DramatiqWorker)
        worker.terminate_group()

    def producer(self, seed: str) -> Producer:
        return DramatiqProducer(seed, self.app)

    def holder(self, unit: str) -> tuple[str, str] | None:
        found = holder(self.app.get_actor(unit.partition("-")[0]), unit)
        return found and (found.state, found.message_id)

    def unsent(self) -> set[str]:
        return {each["id"] for each in ledger.entries(self.ledger, "dropped")}

    def complaints(self) -> list[str]:
        return [line for worker in self._workers for line in _COMPLAINT.findall(worker.log)]

    def free_messages(self) -> int:
        """Restart all workers.

        A message that was fetched when the connection broke stays with its process until that
        ends; so does what a consumer's thread held that died of such an error.
        """
        count = sum(self.messages())
        for slot in self._slots:
            self._kill(slot, FREED)
            self._start_worker(slot)
        self.ready()
        return count

    def close(self) -> None:
        """End every process."""
        super().close()
        self.app.close()


class RedisScene(DramatiqScene, RedisBrokerScene):
    """On a Redis that soon gives out again what dead processes held."""

    BROKER: ClassVar = "redis"
    PLAN: ClassVar = [
        Action("kill_child", 24, 0.0, 0.0),  # each takes its whole worker with it
        Action("kill_worker", 12, 0.0, 2.0),
        Action("kill_store", 11, 0.0, 1.0),
        Action("kill_store", 1, 7.0, 8.0),  # longer than a lease
        Action("empty_store", 2, 0.0, 1.4),
        Action("kill_broker", 6, 0.0, 1.5),
        Action("cut_broker", 8, 0.0, 0.0),
        Action("restart_warm", 4, 2.0, 4.0),
        Action("restart_cold", 3, 2.0, 4.0),
        Action("freeze_child", 6, 0.3, 1.4),
        Action("freeze_child", 6, 7.0, 9.0),  # longer than a lease
        Action("freeze_worker", 5, 0.3, 1.4),
        Action("freeze_worker", 3, 7.0, 9.0),  # longer than a lease
        Action("freeze_store", 6, 0.2, 1.4),
        Action("freeze_broker", 4, 0.3, 2.0),
        Action("freeze_broker", 2, 3.5, 5.0),  # all processes seem dead when it is back
    ]

    def _broker_url(self) -> str:
        return self.broker.url

    def messages(self) -> tuple[int, int]:
        names = [f"dramatiq:{each}" for each in (self.queue, dq_name(self.queue))]
        with self.broker.client() as client:
            queued = sum(client.llen(name) for name in names)
            return queued, sum(client.hlen(f"{name}.msgs") for name in names) - queued

    def fates(self) -> Fates:
        return fates_in_dramatiq(self.broker_folder)


class RabbitmqScene(DramatiqScene):
    """On a RabbitMQ that others use too: it stays up, but connections to it break."""

    BROKER: ClassVar = "rabbitmq"
    PLAN: ClassVar = [
        *(each for each in RedisScene.PLAN if not each.method.endswith("_broker")),
        Action("cut_broker", 20, 0.0, 0.0),
    ]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._held: dict[tuple[int, str], int] = {}

    def _broker_url(self) -> str:
        parts = urlsplit(PIKA_URL)
        self._proxy = Cuttable(parts.hostname or "", parts.port or 5672)
        place = f"127.0.0.1:{self._proxy.port}"
        return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{place}").geturl()

    def cut_broker(self, draw: random.Random) -> Callable[[], None] | None:
        """All connections to the broker break; new ones work."""
        fault = self._note(Fault("cut broker", time.monotonic()))
        self._proxy.cut()
        self._held.clear()  # it is given out again, and noted again
        fault.until = time.monotonic()
        return nothing

    def messages(self) -> tuple[int, int]:
        """Those with workers only as far as they are delayed: RabbitMQ does not tell."""
        queued = 0
        with pika.BlockingConnection(pika.URLParameters(PIKA_URL)) as connection:
            for name in (self.queue, dq_name(self.queue)):
                channel = connection.channel()
                queued += channel.queue_declare(name, passive=True).method.message_count
        return queued, self._delayed()

    def _delayed(self) -> int:
        """What waits in the hands of consumers, by their notes."""
        self.running()  # takes them in
        up = {slot.group for slot in self._slots if slot.worker is not None}
        return sum(group in up for group in self._held.values())

    def _heed(self, entry: dict[str, Any]) -> None:
        super()._heed(entry)
        if entry["kind"] == "delayed":
            self._held[entry["pid"], entry["id"]] = entry["group"]
        elif entry["kind"] == "acked" and entry["delayed"]:
            self._held.pop((entry["pid"], entry["id"]), None)

    def fates(self) -> Fates:
        """Nobody notes them."""
        return Fates()

    def close(self) -> None:
        """End every process, and leave nothing in RabbitMQ."""
        super().close()
        self._proxy.close()
        with pika.BlockingConnection(pika.URLParameters(PIKA_URL)) as connection:
            channel = connection.channel()
            for name in (self.queue, dq_name(self.queue), xq_name(self.queue)):
                channel.queue_delete(name)


class DramatiqProducer(Producer):
    """Sends messages, some with a delay, and some of them twice; pipelines and groups."""

    UNITS: ClassVar = {
        "late": 16, "delayed": 6, "coroutine": 4, "done": 8, "retry": 6, "replace": 4,
        "debounce": 3,
    }  # fmt: skip
    BROKER_AWAY: ClassVar = (
        redis.RedisError,
        ConnectionClosed,
        pika.exceptions.AMQPError,
        OSError,
    )

    def __init__(self, seed: str, broker: Broker) -> None:
        super().__init__(seed)
        self._broker = broker
        self._sent: dict[str, Message[Any]] = {}

    def call(self, kind: str, unit: str, seconds: float, **rest: Any) -> tuple[str, str]:
        # drawn whatever comes of it: the seed alone decides
        again, delay = self._draw.random() < TWICE, round(self._draw.uniform(100, 1500))
        sent = self._sent.get(unit)
        if again and sent is not None:
            told = published(self._broker.enqueue(sent))
            return told.state, told.holder_id
        actor, delay = self._broker.get_actor(kind), delay if kind == "delayed" else None
        message = actor.send_with_options(args=(unit, seconds), kwargs=rest, delay=delay)
        told = published(message)
        if not told.is_duplicate and "payload" not in rest:
            self._sent[unit] = message
        return told.state, told.holder_id

    def send_canvas(self, name: str, works: list[tuple[str, float]], *, is_wide: bool) -> list[str]:
        late, tail = self._broker.get_actor("late"), self._broker.get_actor("tail")
        members = [late.message_with_options(args=work, pipe_ignore=not is_wide) for work in works]
        end = tail.message_with_options(args=(name,), pipe_ignore=True)
        if is_wide:
            wide = group(members, broker=self._broker)
            wide.add_completion_callback(end)
            wide.run()
        else:
            pipeline([*members, end], broker=self._broker).run()
        return [end.message_id, *(each.message_id for each in members)]

    def is_accident(self, error: Exception) -> bool:
        # Dramatiq too: it forgets a channel that it has forgotten before (KeyError)
        return is_within(error, "pika") or is_within(error, "dramatiq/brokers")
