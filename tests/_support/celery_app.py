"""The app that test workers run; configured by the environment, so that producers can share it."""

from __future__ import annotations

import json
import os
import time
import uuid

from _support import ledger
from celery import Celery

from once_celery import OnceTask, current_lease

LEDGER = os.environ.get("TEST_LEDGER", "")

app = Celery(
    "tests",
    broker=os.environ.get("TEST_BROKER", "memory://"),
    backend=os.environ.get("TEST_BACKEND") or None,
    set_as_current=False,
)
app.conf.update(
    once_url=os.environ.get("TEST_STORE") or None,
    once_lease=3,
    worker_prefetch_multiplier=2,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
    broker_connection_timeout=1,
    worker_send_task_events=False,
    result_expires=600,
)
app.conf.update(json.loads(os.environ.get("TEST_CONF", "{}")))


def _body(task, unit, seconds=0.0, payload=None):
    """Note the start, work for a while, note the end."""
    lease = current_lease()
    run = uuid.uuid4().hex
    ledger.note(
        LEDGER,
        "start",
        run=run,
        unit=str(unit),
        id=task.request.id,
        retries=task.request.retries,
        fence=lease.fence if lease else None,
        payload=payload,
    )
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.01, max(0.0, end - time.monotonic())))
    finally:
        ledger.note(LEDGER, "end", run=run, unit=str(unit), lost=lease.lost if lease else None)
    return payload if payload is not None else f"done {unit}"


@app.task(base=OnceTask, bind=True)
def work(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, acks_late=True)
def work_late(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, acks_late=True, reject_on_worker_lost=True)
def work_requeued(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"scope": "until_done"})
def until_done(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"scope": "queued"})
def queued(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"scope": "running"})
def running(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"scope": "window", "window": 2})
def window(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"scope": "until_done", "keep_for": 2})
def kept(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"on_duplicate": "raise"})
def raising(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"key": ["unit"], "on_duplicate": "replace"})
def replacing(self, unit, seconds=0.0, payload=None):
    return _body(self, unit, seconds, payload)


@app.task(
    base=OnceTask,
    bind=True,
    once={"key": ["unit"], "on_duplicate": "replace", "debounce": 1, "debounce_max": 3},
)
def debounced(self, unit, seconds=0.0, payload=None):
    return _body(self, unit, seconds, payload)


@app.task(base=OnceTask, bind=True, once={"on_overlap": "skip"})
def skipping(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, once={"on_overlap": "raise"})
def failing_on_overlap(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask, bind=True, max_retries=5, once={"key": ["unit"]})
def retrying(self, unit, times=1, countdown=0.2, seconds=0.0):
    _body(self, unit, seconds)
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return f"after {self.request.retries}"


@app.task(base=OnceTask, bind=True, max_retries=5, acks_late=True, once={"key": ["unit"]})
def retrying_late(self, unit, times=1, countdown=0.2, seconds=0.0):
    _body(self, unit, seconds)
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return f"after {self.request.retries}"


@app.task(base=OnceTask, bind=True, max_retries=5, once={"key": ["unit"]})
def retrying_quietly(self, unit, times=1, countdown=0.2):
    _body(self, unit)
    if self.request.retries < times:
        self.retry(countdown=countdown, throw=False)
    return f"after {self.request.retries}"


@app.task(
    base=OnceTask,
    bind=True,
    autoretry_for=(ZeroDivisionError,),
    retry_backoff=False,
    default_retry_delay=0.2,
    max_retries=3,
)
def autoretrying(self, unit, times=1):
    _body(self, unit)
    if self.request.retries < times:
        raise ZeroDivisionError(unit)
    return f"after {self.request.retries}"


@app.task(base=OnceTask, bind=True)
def failing(self, unit):
    _body(self, unit)
    raise RuntimeError(f"on purpose: {unit}")


@app.task(base=OnceTask, bind=True)
def dying(self, unit, seconds=0.2):
    """Dies with its process the first time a unit runs."""
    first = not ledger.runs(LEDGER, str(unit))
    _body(self, unit, seconds)
    if first:
        os.kill(os.getpid(), 9)


@app.task(base=OnceTask, bind=True, acks_late=True, reject_on_worker_lost=True)
def dying_requeued(self, unit, seconds=0.2):
    """The same, given out again by the broker."""
    first = not ledger.runs(LEDGER, str(unit))
    _body(self, unit, seconds)
    if first:
        os.kill(os.getpid(), 9)


@app.task(bind=True)
def plain(self, unit, seconds=0.0):
    return _body(self, unit, seconds)


@app.task(base=OnceTask)
def noop(number=0):
    return None


@app.task
def plain_noop(number=0):
    return None
