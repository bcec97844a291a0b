"""A Flask application with a Celery app, as Flask's documentation has people write it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flask
from celery import Celery, Task

from once_celery import OnceTask, current_lease

SETTINGS = "TEST_CELERY"
"""As in `celery_app`, whose import would make that app of these settings."""


def make_flask_task(flask_app: flask.Flask) -> type[Task]:
    """The task class of Flask's documentation: it calls `run`, and nothing of its parents."""

    class FlaskTask(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> object:
            with flask_app.app_context():
                return self.run(*args, **kwargs)

    return FlaskTask


def celery_init_app(flask_app: flask.Flask) -> Celery:
    """The function of Flask's documentation, but for the current app, which is the tests' own."""
    made = Celery(flask_app.name, task_cls=make_flask_task(flask_app), set_as_current=False)
    made.config_from_object(flask_app.config["CELERY"])
    flask_app.extensions["celery"] = made
    return made


def make_project(settings: Mapping[str, object]) -> Celery:
    """The whole of it, with one task.

    Args:
        settings: Celery's; ``gate`` is the path of a file for which bodies wait.
    """
    conf = dict(settings)
    gate = Path(str(conf.pop("gate")))
    flask_app = flask.Flask("shop")
    flask_app.config.update(CELERY=conf, SHOP="in context")
    celery_app = celery_init_app(flask_app)

    class FlaskOnceTask(OnceTask, celery_app.Task):
        abstract = True

    @celery_app.task(
        base=FlaskOnceTask,
        name="ship",
        shared=False,
        once={"scope": "running", "on_overlap": "skip"},
    )
    def ship(order_id: str) -> list[object]:
        """Say what it sees."""
        deadline = time.monotonic() + 30
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return [flask.current_app.config["SHOP"], current_lease().fence > 0]

    return celery_app


if SETTINGS in os.environ:
    celery_app = make_project(json.loads(os.environ[SETTINGS]))
