"""One vocabulary for both frameworks, so that the same tests hold both to the same promises."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import celery
import dramatiq.errors
import kombu.exceptions
from dramatiq.results import ResultFailure

import once_celery
import once_dramatiq
from _support import ledger, promise_tasks
from _support.deployment import Deployment
from _support.dramatiq_deployment import DramatiqDeployment, DramatiqWorker
from _support.promise_tasks import PREFIX
from _support.waiting import wait_until
from _support.workers import CeleryWorker
from once_core.devserver import DevServer
from once_core.guard import Holder
from once_core.publish import OncePublish

WORKER_MODULE = "_support.promise_main"

Once = Mapping[str, object] | bool | None


class Scene(Protocol):
    """Deployment of one framework. Tasks are those of `promise_tasks`, by their short names.

    Attributes:
        deployment: With the broker, the results and the workers.
        locks: Server of the lock store.
        unavailable: What a publish raises when the lock store is away.
        connection_error: What the framework's users catch when its broker is away.
    """

    deployment: Deployment | DramatiqDeployment
    locks: DevServer
    unavailable: type[Exception]
    connection_error: type[Exception]

    @abstractmethod
    def send(
        self, task: str, *args: object, once: Once = None, delay: float = 0.0, **kwargs: object
    ) -> Any:
        """Trigger a task, with options for this call, to be run after so many seconds."""

    @abstractmethod
    def message_id(self, handle: Any) -> str:
        """Id under which the result of a call is."""

    @abstractmethod
    def published(self, handle: Any) -> OncePublish:
        """What became of a call."""

    @abstractmethod
    def result(self, handle: Any) -> object:
        """Result of a call, once it is there."""

    @abstractmethod
    def failure(self, handle: Any) -> str:
        """Name of the error with which a call failed, once it has."""

    @abstractmethod
    def is_locked(self, task: str, *args: object, **kwargs: object) -> bool:
        """Whether the unit of work of this call is held."""

    @abstractmethod
    def holder(self, task: str, *args: object, **kwargs: object) -> Holder | None:
        """Who holds the unit of work of this call."""

    @abstractmethod
    def release(self, task: str, *args: object, **kwargs: object) -> bool:
        """Free the unit of work of this call by hand."""

    @abstractmethod
    def group(self, task: str, *calls: tuple[object, ...]) -> Callable[[], list[object]]:
        """Trigger a group of calls; what it returns waits for their results, in their order."""

    @abstractmethod
    def chained(self, task: str, unit: str) -> object:
        """Result of the task that comes after a call, and is given its result."""

    @abstractmethod
    def queued(self) -> int:
        """How many messages the broker holds (not those that a worker has taken)."""

    @abstractmethod
    def lose_messages(self) -> None:
        """Take all messages from the broker, unseen by once."""

    @abstractmethod
    def worker(self) -> CeleryWorker | DramatiqWorker:
        """Start one more worker and wait until it is ready."""

    def runs(self, unit: str) -> list[ledger.Run]:
        """Every body of a unit that started, in the order of their starts."""
        return self.deployment.runs(unit)

    def ids(self, unit: str) -> list[str]:
        """Of the messages that ran, in the order of their starts."""
        return [run.message_id for run in self.runs(unit)]

    def has_ended(self, unit: str, count: int) -> list[ledger.Run]:
        """Wait until so many bodies of a unit have ended; all that have started."""
        return wait_until(
            lambda: (
                (runs := self.runs(unit))
                and len([run for run in runs if run.end]) >= count
                and runs
            ),
            f"{count} bodies have ended",
        )

    def hold(self, task: str, unit: str) -> Any:
        """Have a body run until `let_go`."""
        before = len(self.runs(unit))
        handle = self.send(task, unit, -1)
        wait_until(lambda: len(self.runs(unit)) > before, "the body runs")
        return handle

    def let_go(self, unit: str) -> None:
        """Held bodies of this unit end, and later ones do not wait."""
        ledger.gate(self.deployment.ledger, unit).touch()

    def kill_workers(self) -> float:
        """SIGKILL to all; returns when."""
        return max(worker.kill() for worker in self.deployment.workers)

    def log(self) -> str:
        """Of all workers."""
        return "".join(worker.log for worker in self.deployment.workers)

    def close(self) -> None:
        """End the workers."""
        self.deployment.close()


class CeleryScene(Scene):
    """Celery, with prefork workers."""

    unavailable = once_celery.StoreUnavailableError
    connection_error = kombu.exceptions.OperationalError

    def __init__(self, folder: Path, server: DevServer, broker: str, locks: DevServer) -> None:
        self.locks = locks
        conf: dict[str, object] = {"result_backend": server.url}
        if broker == "redis":
            conf["broker_url"] = server.url
        self.deployment = Deployment(folder, locks, broker=broker, concurrency=4, conf=conf)
        promise_tasks.add_to_celery(self.deployment.app, self.deployment.settings)

    def _task(self, name: str) -> Any:
        return self.deployment.task(PREFIX + name)

    def send(
        self, task: str, *args: object, once: Once = None, delay: float = 0.0, **kwargs: object
    ) -> Any:
        return self._task(task).apply_async(args, kwargs, once=once, countdown=delay or None)

    def message_id(self, handle: Any) -> str:
        return str(handle.id)

    def published(self, handle: Any) -> OncePublish:
        return handle.once

    def result(self, handle: Any) -> object:
        return handle.get(timeout=20)

    def failure(self, handle: Any) -> str:
        return type(handle.get(timeout=20, propagate=False)).__name__

    def is_locked(self, task: str, *args: object, **kwargs: object) -> bool:
        return self._task(task).is_locked(*args, **kwargs)

    def holder(self, task: str, *args: object, **kwargs: object) -> Holder | None:
        return self._task(task).holder(*args, **kwargs)

    def release(self, task: str, *args: object, **kwargs: object) -> bool:
        return self._task(task).release(*args, **kwargs)

    def group(self, task: str, *calls: tuple[object, ...]) -> Callable[[], list[object]]:
        sent = celery.group(self._task(task).si(*each) for each in calls)()
        return lambda: sent.get(timeout=20)

    def chained(self, task: str, unit: str) -> object:
        return celery.chain(self._task(task).si(unit), self._task("then").s())().get(timeout=20)

    def queued(self) -> int:
        return self.deployment.queued()

    def lose_messages(self) -> None:
        queue = str(self.deployment.settings["task_default_queue"])
        with self.deployment.app.connection_for_write() as connection:
            connection.default_channel.queue_purge(queue)

    def worker(self) -> CeleryWorker:
        return self.deployment.worker(app=WORKER_MODULE)


class DramatiqScene(Scene):
    """Dramatiq, with one process of several threads a worker."""

    unavailable = once_dramatiq.StoreUnavailableError
    # before Dramatiq 2.1 it has the shorter name
    connection_error = (
        getattr(dramatiq.errors, "BrokerConnectionError", None) or dramatiq.errors.ConnectionError
    )

    def __init__(self, folder: Path, server: DevServer, broker: str, locks: DevServer) -> None:
        self.locks = locks
        conf = {"once": {"url": locks.url}}
        self.deployment = DramatiqDeployment(folder, server, broker=broker, conf=conf)
        promise_tasks.add_to_dramatiq(self.deployment.app, self.deployment.settings)

    def _actor(self, name: str) -> Any:
        return self.deployment.task(PREFIX + name)

    def send(
        self, task: str, *args: object, once: Once = None, delay: float = 0.0, **kwargs: object
    ) -> Any:
        options = {} if once is None else {"once": once}
        due = round(delay * 1000) or None
        return self._actor(task).send_with_options(args=args, kwargs=kwargs, delay=due, **options)

    def message_id(self, handle: Any) -> str:
        return str(handle.message_id)

    def published(self, handle: Any) -> OncePublish:
        return once_dramatiq.published(handle)

    def result(self, handle: Any) -> object:
        return self.deployment.result(handle)

    def failure(self, handle: Any) -> str:
        try:
            self.deployment.result(handle)
        except ResultFailure as failure:
            return failure.orig_exc_type
        return ""

    def is_locked(self, task: str, *args: object, **kwargs: object) -> bool:
        return once_dramatiq.is_locked(self._actor(task), *args, **kwargs)

    def holder(self, task: str, *args: object, **kwargs: object) -> Holder | None:
        return once_dramatiq.holder(self._actor(task), *args, **kwargs)

    def release(self, task: str, *args: object, **kwargs: object) -> bool:
        return once_dramatiq.release(self._actor(task), *args, **kwargs)

    def group(self, task: str, *calls: tuple[object, ...]) -> Callable[[], list[object]]:
        messages = [self._actor(task).message(*each) for each in calls]
        sent = dramatiq.group(messages, broker=self.deployment.app).run()
        return lambda: list(sent.get_results(block=True, timeout=20_000))

    def chained(self, task: str, unit: str) -> object:
        messages = [self._actor(task).message(unit), self._actor("then").message()]
        sent = dramatiq.pipeline(messages, broker=self.deployment.app).run()
        return sent.get_result(block=True, timeout=20_000)

    def queued(self) -> int:
        broker, queue = self.deployment.app, self.deployment.queue
        if self.deployment.broker == "rabbitmq":
            return sum(broker.get_queue_message_counts(queue))
        return int(broker.client.hlen(f"dramatiq:{queue}.msgs"))

    def lose_messages(self) -> None:
        self.deployment.app.flush(self.deployment.queue)

    def worker(self) -> DramatiqWorker:
        return self.deployment.worker(module=WORKER_MODULE)


SCENES: dict[str, type[CeleryScene | DramatiqScene]] = {
    "celery": CeleryScene,
    "dramatiq": DramatiqScene,
}
"""Implementations by the framework's name."""


class Scenes:
    """One scene of each kind with a running worker; who kills it leaves another.

    Args:
        folder: Makes a folder of this name.
        server: Broker and lock store.
        rabbitmq: Asked before a scene is made on RabbitMQ.
    """

    def __init__(
        self,
        folder: Callable[[str], Path],
        server: DevServer,
        rabbitmq: Callable[[], object],
    ) -> None:
        self._folder = folder
        self._server = server
        self._rabbitmq = rabbitmq
        self._made: dict[tuple[str, str], Scene] = {}

    def of(self, framework: str, broker: str) -> Scene:
        """The scene of this kind."""
        if broker == "rabbitmq":
            self._rabbitmq()
        kind = framework, broker
        if kind not in self._made:
            folder = self._folder("-".join(kind))
            self._made[kind] = SCENES[framework](folder, self._server, broker, self._server)
            self._made[kind].worker()
        return self._made[kind]

    @contextmanager
    def lent(self, kind: tuple[str, str], unit: str) -> Iterator[Scene]:
        """A scene for one test: at its end held bodies go on, and no key may lack a TTL."""
        scene = self.of(*kind)
        yield scene
        scene.let_go(unit)
        client = self._server.client()
        assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []

    def close(self) -> None:
        """End all of them."""
        for each in self._made.values():
            each.close()
        gc.collect()  # Celery's handles say goodbye to the result backend when they are collected
