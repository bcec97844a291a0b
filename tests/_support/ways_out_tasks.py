"""Sample tasks for every way out of a run, and what their tests share."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject

from _support import ledger
from _support.waiting import wait_until
from once_celery import OnceTask

if TYPE_CHECKING:
    from _support.deployment import Deployment
    from _support.workers import CeleryWorker

LEASE = 30.0
"""Seconds: so long that a unit which is free sooner was freed by its end, not by its lease."""

AT_ONCE = 8.0
"""Seconds: much less than `LEASE`, and enough for a busy machine and one deferral."""

OPTIONS = {"key": ["unit"], "lease": LEASE}


class Leaving(OnceTask):
    """Raises in the hook that the task's second argument names."""

    abstract = True

    def before_start(self, task_id: str, args: list, kwargs: dict) -> None:
        if args[1:2] == ["before_start"]:
            raise RuntimeError("on purpose: before_start")
        if args[1:2] == ["Ignore in before_start"]:
            raise Ignore
        if args[1:2] == ["Retry in before_start"] and not self.request.retries:
            raise self.retry(countdown=0.1)
        if args[1:2] == ["SIGKILL in before_start"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if args[1:2] == ["hang in before_start"]:
            time.sleep(30)

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        if self.request.id and list(args or ())[1:2] == ["slow to defer"]:
            logging.getLogger("tests").warning("slow to defer %s", self.request.id)
            time.sleep(30)
        return super().apply_async(args, kwargs, *rest, **options)

    def on_success(self, retval: object, task_id: str, args: list, kwargs: dict) -> None:
        if args[1:2] == ["on_success"]:
            raise RuntimeError("on purpose: on_success")

    def after_return(
        self, status: str, retval: object, task_id: str, args: list, kwargs: dict, einfo: object
    ) -> None:
        if args[1:2] == ["after_return"]:
            raise RuntimeError("on purpose: after_return")


def leave(task: Any, how: str, deliveries: int) -> object:  # noqa: C901, PLR0912  # a list of ways out
    """End a body in the way that is named.

    Args:
        task: With the request of the run.
        how: The way out.
        deliveries: How often this message has run, with this run.
    """
    match how:
        case "failure":
            raise RuntimeError("on purpose: failure")
        case "Ignore":
            raise Ignore
        case "Reject(requeue=False)":
            raise Reject("on purpose", requeue=False)
        case "Reject(requeue=True)":
            raise Reject("on purpose", requeue=True)
        case "Reject(requeue=True) once":
            if deliveries == 1:
                raise Reject("on purpose", requeue=True)
        case "MemoryError":
            raise MemoryError
        case "SystemExit":
            raise SystemExit(3)
        case "max_retries":
            raise task.retry(countdown=0, max_retries=0)
        case "Retry":
            if not task.request.retries:
                raise task.retry(countdown=0.1)
        case "Retry quietly":
            if not task.request.retries:
                task.retry(countdown=0, throw=False)
                time.sleep(1)
        case "unserialisable result":
            return object()
        case "SIGKILL":
            if deliveries == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        case "deaf":
            _go_on_whatever_is_raised()
    return how


def _go_on_whatever_is_raised() -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except BaseException:  # noqa: BLE001  # the point of it
            continue


def add(task: Callable[..., Any], body: Callable[..., object], path: str) -> None:
    """Define the tasks.

    Args:
        task: Decorator of the sample tasks.
        body: Notes a run, and works until the gate of its unit is open.
        path: Of the ledger.
    """

    def run(self: Any, unit: str, how: str, seconds: float) -> object:
        body(self, unit, seconds)
        mine = [each for each in ledger.runs(path, unit) if each.message_id == self.request.id]
        return leave(self, how, len(mine))

    @task(base=Leaving, bind=True, once=OPTIONS)
    def leaving(self: Any, unit: str, how: str = "success", seconds: float = 0.0) -> object:
        return run(self, unit, how, seconds)

    @task(base=Leaving, bind=True, acks_late=True, once=OPTIONS)
    def leaving_late(self: Any, unit: str, how: str = "success", seconds: float = 0.0) -> object:
        return run(self, unit, how, seconds)

    @task(base=Leaving, bind=True, acks_late=True, reject_on_worker_lost=True, once=OPTIONS)
    def leaving_requeued(
        self: Any, unit: str, how: str = "success", seconds: float = 0.0
    ) -> object:
        return run(self, unit, how, seconds)

    @task(base=Leaving, bind=True, retry_on_worker_lost=True, default_retry_delay=3, once=OPTIONS)
    def leaving_retried(self: Any, unit: str, how: str = "success", seconds: float = 0.0) -> object:
        return run(self, unit, how, seconds)

    @task(base=Leaving, bind=True, rate_limit="30/m", once=OPTIONS)
    def leaving_slowly(self: Any, unit: str, how: str = "success", seconds: float = 0.0) -> object:
        return run(self, unit, how, seconds)


class Relay:
    """Workers that die one after the other: each test ends the last one and leaves another.

    Starting a worker is what costs time here; so the successor in one test is the victim of the
    next. In whatever order they run, each finds one that is ready.
    """

    def __init__(self, make: Callable[..., Deployment]) -> None:
        self._make = make
        self._made: dict[str, Deployment] = {}

    def scene(self, pool: str, **conf: object) -> tuple[Deployment, CeleryWorker]:
        """A scene of this pool and configuration, and its living worker."""
        name = f"{pool} {conf}"
        if name not in self._made:
            self._made[name] = self._make(pool=pool, concurrency=6, conf=conf)
        scene = self._made[name]
        living = [each for each in scene.workers if each.process.poll() is None]
        return scene, living[-1] if living else scene.worker()

    def close(self) -> None:
        """End all of them."""
        for scene in self._made.values():
            scene.close()


def is_free(task: Any, unit: str, *, within: float = AT_ONCE) -> None:
    """The unit is free, and that soon."""
    wait_until(lambda: not task.is_locked(unit), "the unit is free", within=within)


def runs_when_triggered(scene: Deployment, task: Any, unit: str) -> None:
    """The next trigger is accepted and followed by a run."""
    handle = task.delay(unit)
    assert handle.once.state in {"claimed", "refreshed"}
    assert handle.get(timeout=20) == "success"
    assert scene.runs(unit)[-1].message_id == handle.id
    is_free(task, unit)
