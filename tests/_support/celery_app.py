"""The app that test workers run, and that tests and other producers share with them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping

from celery import Celery

from _support import canvas_tasks, ledger, ways_in_tasks, ways_out_tasks
from once_celery import OnceOptions, OnceTask

SETTINGS = "TEST_CELERY"
"""Environment variable with the settings of `make_app` as JSON."""


def make_app(settings: Mapping[str, object]) -> Celery:
    """An app with all sample tasks.

    Args:
        settings: Celery's settings; ``ledger`` is the path where bodies note their runs.
    """
    conf = {
        "once_lease": 3,
        "worker_prefetch_multiplier": 2,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_timeout": 1,
        "result_expires": 600,
        **settings,
    }
    path = str(conf.pop("ledger"))
    app = Celery("tests", set_as_current=False)
    app.conf.update(conf)
    _add_tasks(app, path)
    return app


def _run_body(path, task, unit, seconds=0.0, payload=None):
    request = task.request
    return ledger.run_body(path, request.id, request.retries, unit, seconds, payload)


def _add_tasks(app: Celery, path: str) -> None:  # noqa: C901  # a list of sample tasks
    _body = functools.partial(_run_body, path)

    def task(**options):
        def define(function):
            # unshared: else every app of this process gets the tasks of every other
            return app.task(name=function.__name__, shared=False, **options)(function)

        return define

    @task(base=OnceTask, bind=True)
    def work(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, acks_late=True)
    def work_late(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, acks_late=True, reject_on_worker_lost=True)
    def work_requeued(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"scope": "until_done"})
    def until_done(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"scope": "queued"})
    def queued(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"scope": "running"})
    def running(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"scope": "window", "window": 2})
    def window(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"scope": "until_done", "keep_for": 2})
    def kept(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"on_duplicate": "raise"})
    def raising(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"on_duplicate": "share", "lease": 30})
    def sharing(self, unit, seconds=0.0, fails=False):
        value = _body(self, unit, seconds)
        if fails:
            raise RuntimeError(f"on purpose: {unit}")
        return value

    @task(base=OnceTask, bind=True, once={"key": ["unit"], "on_duplicate": "replace"})
    def replacing(self, unit, seconds=0.0, payload=None):
        return _body(self, unit, seconds, payload)

    @task(
        base=OnceTask,
        bind=True,
        once={"key": ["unit"], "on_duplicate": "replace", "debounce": 1, "debounce_max": 3},
    )
    def debounced(self, unit, seconds=0.0, payload=None):
        return _body(self, unit, seconds, payload)

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def keyed(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"on_overlap": "skip"})
    def skipping(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once={"on_overlap": "raise"})
    def failing_on_overlap(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, max_retries=5, once={"key": ["unit"]})
    def retrying(self, unit, times=1, countdown=0.2, seconds=0.0):
        _body(self, unit, seconds)
        if self.request.retries < times:
            raise self.retry(countdown=countdown)
        return f"after {self.request.retries}"

    @task(base=OnceTask, bind=True, max_retries=5, acks_late=True, once={"key": ["unit"]})
    def retrying_late(self, unit, times=1, countdown=0.2, seconds=0.0):
        _body(self, unit, seconds)
        if self.request.retries < times:
            raise self.retry(countdown=countdown)
        return f"after {self.request.retries}"

    @task(base=OnceTask, bind=True, max_retries=5, once={"key": ["unit"]})
    def retrying_quietly(self, unit, times=1, countdown=0.2):
        _body(self, unit)
        if self.request.retries < times:
            self.retry(countdown=countdown, throw=False)
        return f"after {self.request.retries}"

    @task(
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

    @task(base=OnceTask, bind=True, max_retries=5)
    def retrying_elsewhere(self, unit, other, seconds=0.0):
        """Its retry has other arguments, so it is another unit of work."""
        _body(self, unit, seconds)
        if not self.request.retries:
            raise self.retry(args=(other, other), countdown=0.1)
        return f"after {self.request.retries}"

    @task(base=OnceTask, bind=True, running_lock=False)
    def only_queue_lock(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, queue_lock=False)
    def only_running_lock(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, queue_lock=False, running_lock=False)
    def no_locks(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True, once=OnceOptions(scope="until_done", key=["unit"]))
    def by_instance(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask, bind=True)
    def failing(self, unit):
        _body(self, unit)
        raise RuntimeError(f"on purpose: {unit}")

    @task(base=OnceTask, bind=True)
    def gated_failing(self, unit):
        _body(self, unit, -1)
        raise RuntimeError(f"on purpose: {unit}")

    @task(base=OnceTask, bind=True)
    def dying(self, unit, seconds=0.2):
        """Dies with its process the first time a unit runs."""
        first = not ledger.runs(path, str(unit))
        _body(self, unit, seconds)
        if first:
            os.kill(os.getpid(), 9)

    @task(base=OnceTask, bind=True, acks_late=True, reject_on_worker_lost=True)
    def dying_requeued(self, unit, seconds=0.2):
        """The same, given out again by the broker."""
        first = not ledger.runs(path, str(unit))
        _body(self, unit, seconds)
        if first:
            os.kill(os.getpid(), 9)

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def replacing_itself(self, unit, seconds=0.0, final=False):
        _body(self, unit, seconds)
        if not final:
            raise self.replace(self.si(unit, 0.0, final=True))
        return "final"

    @task(base=OnceTask, bind=True, once={"key": ["unit"], "scope": "queued"})
    def queued_retrying(self, unit, seconds=0.0):
        if not self.request.retries:
            self.retry(countdown=0, throw=False)
        return _body(self, unit, seconds)

    class Polling(OnceTask):
        """Calls itself again from a hook, three times in all."""

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            if len(ledger.runs(path, args[0])) < 3:
                self.apply_async(args, countdown=0.2)

    @task(base=Polling, bind=True, once={"scope": "until_done"})
    def polling(self, unit):
        return _body(self, unit)

    @task(base=OnceTask, bind=True, expires=5)
    def expiring(self, unit):
        return _body(self, unit)

    @task()
    def collect(values):
        return values

    @task(bind=True)
    def plain(self, unit, seconds=0.0):
        return _body(self, unit, seconds)

    @task(base=OnceTask)
    def noop(number=0):
        return None

    @task()
    def plain_noop(number=0):
        return None

    ways_out_tasks.add(task, _body, path)
    ways_in_tasks.add(task, _body, path)
    canvas_tasks.add(task, _body)


if SETTINGS in os.environ:
    app = make_app(json.loads(os.environ[SETTINGS]))
