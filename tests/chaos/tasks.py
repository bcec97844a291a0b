"""The tasks of the chaos test, and what its workers note beside their bodies' runs."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

from _support import ledger
from _support.celery_app import SETTINGS
from celery import Celery, signals

from once_celery import OnceTask
from once_core.events import Event, subscribe

QUEUE = "chaos"

LEASE = 6.0
"""Seconds. Longer than in other tests: a renewal that meets a dead store is tried again after a
second, and a lease of three would lapse in outages that a lease of a minute does not notice."""

HEAL_AFTER = 4.0
"""Seconds, so that copies of messages that wait in a backlog are part of the chaos."""

LATE: dict[str, Any] = {"acks_late": True, "reject_on_worker_lost": True}
"""Of tasks whose messages the broker gives out again whatever dies."""


def make_app(settings: Mapping[str, object]) -> Celery:
    """An app with the tasks; ``ledger`` among the settings is where bodies note their runs."""
    conf = dict(settings)
    path = str(conf.pop("ledger"))
    app = Celery("chaos", set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        once_lease=LEASE,
        once_heal_after=HEAL_AFTER,
        worker_prefetch_multiplier=2,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=1,
        broker_connection_max_retries=None,
        result_expires=3600,
        **conf,
    )
    _add_tasks(app, path)
    return app


def _run_body(path: str, task: Any, unit: str, seconds: float, payload: object = None) -> None:
    run = uuid.uuid4().hex
    request = task.request
    ledger.note(
        path,
        "start",
        run=run,
        unit=unit,
        group=os.getpgid(0),
        id=request.id,
        retries=request.retries,
        payload=payload,
    )
    try:
        time.sleep(seconds)
    finally:
        ledger.note(path, "end", run=run, unit=unit)


def _add_tasks(app: Celery, path: str) -> None:
    def task(kind: str, **options: Any) -> Any:
        once = {"key": "{unit}", **options.pop("once", {})}
        # unshared: else every app of this process gets the tasks of every other
        return app.task(
            name=kind, base=OnceTask, bind=True, once=once, shared=False, max_retries=9, **options
        )

    def body(self: Any, unit: str, seconds: float = 0.0) -> str:
        _run_body(path, self, unit, seconds)
        return unit

    task("late", **LATE)(body)
    task("early")(body)
    task("done", once={"scope": "until_done"}, **LATE)(body)

    @task("retry", **LATE)
    def retry(self: Any, unit: str, seconds: float = 0.0, times: int = 1) -> str:
        _run_body(path, self, unit, seconds)
        if self.request.retries < times:
            raise self.retry(countdown=seconds)
        return unit

    def newest(self: Any, unit: str, seconds: float = 0.0, payload: str = "") -> str:
        _run_body(path, self, unit, seconds, payload)
        return unit

    task("replace", once={"on_duplicate": "replace"}, **LATE)(newest)
    debounced = {"on_duplicate": "replace", "debounce": 0.5, "debounce_max": 2}
    task("debounce", once=debounced, **LATE)(newest)

    @app.task(name="tail", shared=False, **LATE)
    def tail(_before: object, canvas: str) -> str:
        """Ends a canvas; not under guard."""
        ledger.note(path, "canvas", canvas=canvas)
        return canvas


def _watch(path: str) -> None:
    """Note what Celery does with messages, and, for whoever has to debug, what once decides."""

    def received(request: Any, **_: object) -> None:
        ledger.note(path, "received", id=request.id, group=os.getpgid(0))

    def begun(task_id: str, **_: object) -> None:
        ledger.note(path, "begun", id=task_id, group=os.getpgid(0))

    signals.task_received.connect(received, weak=False)
    signals.task_prerun.connect(begun, weak=False)

    def decided(event: Event) -> None:
        ledger.note(f"{path}-events", "event", key=event.key, text=str(event))

    subscribe(decided)


if SETTINGS in os.environ:
    _settings = json.loads(os.environ[SETTINGS])
    app = make_app(_settings)
    _watch(str(_settings["ledger"]))
