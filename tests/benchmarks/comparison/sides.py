"""What is compared: a plain task, the least lock there can be, ours, and each installed peer.

Each side is a Celery app with a queue of its own. The same module is what their workers run
(``celery -A benchmarks.comparison.sides``), told by `SETTINGS` which side they are. Peers are used
as their READMEs show, with their defaults; nothing is tuned, ours neither.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery, Task

SETTINGS = "TEST_CELERY"
"""As in `_support.celery_app`, which a worker must not import: it would make its own app."""

NOOP, WORK, NARROW = "comparison.noop", "comparison.work", "comparison.narrow"

BLOCKED = 600.0
"""Seconds for which the first run of `WORK` stays in its body: longer than any measurement."""

Define = Callable[..., Any]


@dataclass(frozen=True)
class Side:
    """One contestant.

    Attributes:
        name: As in tables and plots.
        package: On the package index; empty where there is none.
        guard: Given an app and the lock server's URL, returns what defines a guarded task.
    """

    name: str
    package: str
    guard: Callable[[Celery, str, Mapping[str, Any]], Define]

    @property
    def version(self) -> str:
        """Of the package, or empty where it is not installed or not one."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.package) if self.package else ""
        return ""


def _plain(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    def define(body: Callable[..., object], name: str) -> Any:
        return app.task(name=name, shared=False)(body)

    return define


def _based_on(app: Celery, base: type[Task], **options: object) -> Define:
    def define(body: Callable[..., object], name: str) -> Any:
        return app.task(name=name, shared=False, base=base, **options)(body)

    return define


def _bare(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    """One SET NX before the publish and one DEL after the run: a floor, not a lock to use."""
    import redis

    client = redis.Redis.from_url(store)

    class Bare(Task):
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            if not client.set(f"bare:{self.name}:{list(args)}", "1", nx=True, ex=3600):
                return None
            return super().apply_async(args, kwargs, **options)

        def after_return(self, status: str, value: Any, task_id: str, args: Any, *_: Any) -> None:
            client.delete(f"bare:{self.name}:{list(args)}")

    return _based_on(app, Bare)


def _once(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    from once_celery import OnceTask

    app.conf.update(once_url=store)
    if "patience" in settings:
        app.conf.update(once_lease=settings["patience"], once_heal_after=settings["patience"])

    def define(body: Callable[..., object], name: str) -> Any:
        once = {"scope": "running"} if name == NARROW else {}
        return _based_on(app, OnceTask, once=once)(body, name)

    return define


def _celery_once(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    from celery_once import QueueOnce

    backend = "celery_once.backends.Redis"
    app.conf.ONCE = {"backend": backend, "settings": {"url": store, "default_timeout": 3600}}
    return _based_on(app, QueueOnce, once={"graceful": True})


def _celery_singleton(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    from celery_singleton import Singleton

    app.conf.update(singleton_backend_url=store)
    return _based_on(app, Singleton)


def _celery_once_task(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    from celery_once_task import OnceTask, configure, setup_once_task_signals

    configure(redis_url=store)
    if "side" in settings:
        setup_once_task_signals()
    return _based_on(app, OnceTask)


def _py_cachify(app: Celery, store: str, settings: Mapping[str, Any]) -> Define:
    import redis
    from py_cachify import init_cachify, once

    init_cachify(sync_client=redis.Redis.from_url(store))

    def define(body: Callable[..., object], name: str) -> Any:
        return app.task(name=name, shared=False)(once(key=name + "-{number}")(body))

    return define


SIDES = (
    Side("plain", "", _plain),
    Side("SET NX + DEL", "", _bare),
    Side("once", "once-tasks", _once),
    Side("celery-once", "celery-once", _celery_once),
    Side("celery-singleton", "celery-singleton", _celery_singleton),
    Side("celery-once-task", "celery-once-task", _celery_once_task),
    Side("py-cachify", "py-cachify", _py_cachify),
)
OURS = 3
"""The first so many need no package but our own."""


def installed(*, with_peers: bool) -> tuple[Side, ...]:
    """The sides that can be measured here."""
    return SIDES[:OURS] + tuple(side for side in SIDES[OURS:] if with_peers and side.version)


def note(path: str, **facts: object) -> None:
    """Append one line, whole, whoever else writes."""
    line = json.dumps({"at": time.monotonic(), "pid": os.getpid(), **facts}) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


def notes(path: str | Path) -> list[dict[str, Any]]:
    """All lines that were noted."""
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return []


def make_app(side: Side, settings: Mapping[str, Any]) -> Celery:
    """An app with the three tasks of a side.

    Args:
        side: Which one.
        settings: ``store`` and ``broker`` are URLs, ``queue`` a name, ``notes`` the path where
            bodies note their runs; ``patience`` in seconds is our ``lease`` and ``heal_after``.
    """
    app = Celery(side.name, set_as_current=False, broker=settings["broker"])
    app.conf.update(
        result_backend=settings["broker"],
        result_expires=600,
        task_default_queue=settings["queue"],
        worker_prefetch_multiplier=4,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_pool_limit=64,
    )
    define = side.guard(app, settings["store"], settings)
    path = settings["notes"]

    def noop(number: int, region: str = "eu") -> None:
        """Nothing, so that the rest shows."""

    def work(number: int, region: str = "eu") -> None:
        """Stays in its body until it is killed; every later run of its unit ends at once."""
        first = not any(each["number"] == number for each in notes(path))
        note(path, what="run", number=number)
        if first:
            time.sleep(BLOCKED)

    def narrow(number: int) -> None:
        """20 ms of work, by many calls on one unit."""
        note(path, what="run", number=number)
        time.sleep(0.02)
        note(path, what="end", number=number)

    define(noop, NOOP)
    define(work, WORK)
    define(narrow, NARROW)
    app.finalize()
    return app


def _app_of_worker(settings: Mapping[str, Any]) -> Celery:
    from once_core.events import Event, subscribe

    def tell(event: Event) -> None:
        if event.kind == "deferred":
            note(settings["notes"], what="deferred", delay=event.delay, cause=event.cause)

    side = next(each for each in SIDES if each.name == settings["side"])
    if side.name == "once":
        subscribe(tell)
    return make_app(side, settings)


if SETTINGS in os.environ:
    app = _app_of_worker(json.loads(os.environ[SETTINGS]))
