"""The tasks of the chaos test, and what its workers note beside their bodies' runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from _support import ledger
from _support.celery_app import SETTINGS
from celery import Celery, signals
from chaos.bodies import HEAL_AFTER, LEASE, note_events, noted_body, options

from once_celery import OnceTask

QUEUE = "chaos"

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
    with noted_body(path, task.request.id, task.request.retries, unit, payload):
        time.sleep(seconds)


def _add_tasks(app: Celery, path: str) -> None:
    def task(kind: str, **chosen: Any) -> Any:
        # unshared: else every app of this process gets the tasks of every other
        return app.task(
            name=kind,
            base=OnceTask,
            bind=True,
            once=options(kind),
            shared=False,
            max_retries=9,
            **chosen,
        )

    def body(self: Any, unit: str, seconds: float = 0.0) -> str:
        _run_body(path, self, unit, seconds)
        return unit

    task("late", **LATE)(body)
    task("early")(body)
    task("done", **LATE)(body)

    @task("retry", **LATE)
    def retry(self: Any, unit: str, seconds: float = 0.0, times: int = 1) -> str:
        _run_body(path, self, unit, seconds)
        if self.request.retries < times:
            raise self.retry(countdown=seconds)
        return unit

    def newest(self: Any, unit: str, seconds: float = 0.0, payload: str = "") -> str:
        _run_body(path, self, unit, seconds, payload)
        return unit

    task("replace", **LATE)(newest)
    task("debounce", **LATE)(newest)

    @app.task(name="tail", shared=False, **LATE)
    def tail(_before: object, canvas: str) -> str:
        """Ends a canvas; not under guard."""
        ledger.note(path, "canvas", canvas=canvas)
        return canvas


def _watch(path: str) -> None:
    """Note what Celery does with messages."""

    def received(request: Any, **_: object) -> None:
        ledger.note(path, "received", id=request.id, group=os.getpgid(0))

    def begun(task_id: str, **_: object) -> None:
        ledger.note(path, "begun", id=task_id, group=os.getpgid(0))

    signals.task_received.connect(received, weak=False)
    signals.task_prerun.connect(begun, weak=False)


if SETTINGS in os.environ:
    _settings = json.loads(os.environ[SETTINGS])
    app = make_app(_settings)
    _watch(str(_settings["ledger"]))
    note_events(str(_settings["ledger"]))
