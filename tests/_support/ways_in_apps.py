"""Apps that are put together in other ways than `celery_app`: as users do it, one way each.

A module of its own, for `shared_task` adds a task to every app of its process. Run by workers
(`-A _support.ways_in_apps`) and by programs in processes of their own, never by a test's.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery, Task, shared_task

from _support.celery_app import SETTINGS, _run_body
from once_celery import OnceTask

try:
    import pydantic
except ImportError:  # not with every version of Celery
    pydantic = None  # type: ignore[assignment]

settings = json.loads(os.environ[SETTINGS])
path = str(settings.pop("ledger"))


def make(main: str, **options: Any) -> Celery:
    """An app with a queue of its own, as programs of their own have."""
    made = Celery(main, **{"set_as_current": False, **options})
    queue = f"{settings['task_default_queue']}-{main}"
    own = {"once_lease": 3, "worker_hijack_root_logger": False, "task_default_queue": queue}
    made.conf.update({**settings, **own})
    return made


def body(task: Any, unit: str, seconds: float = 0.0) -> object:
    """What sample tasks do."""
    return _run_body(path, task, unit, seconds)


# Apps whose every task is under guard: by `task_cls`, and by `app.Task`
by_task_cls = make("by_task_cls", task_cls="once_celery:OnceTask")
by_app_task = make("by_app_task")
by_app_task.Task = OnceTask

for each in (by_task_cls, by_app_task):

    @each.task(name=f"{each.main}.work", bind=True, shared=False)
    def work(self: Any, unit: str, seconds: float = 0.0) -> object:
        """A task that says nothing of once."""
        return body(self, unit, seconds)

    @each.task(name=f"{each.main}.free", bind=True, shared=False, once=False)
    def free(self: Any, unit: str, seconds: float = 0.0) -> object:
        """One that is not under guard."""
        return body(self, unit, seconds)


@shared_task(name="shared", base=OnceTask, bind=True)
def shared(self: Any, unit: str, seconds: float = 0.0) -> object:
    """A task of every app of this process."""
    return body(self, unit, seconds)


class ClassBased(OnceTask):
    """A task as a class, with options and state of its own."""

    name = "class_based"
    once = {"key": ["unit"], "scope": "until_done"}  # noqa: RUF012  # as users write it

    def run(self, unit: str, seconds: float = 0.0, note: str = "") -> object:
        return body(self, unit, seconds)


class Derived(ClassBased):
    """One that changes an option of its base."""

    name = "derived"
    once = {"key": [], "scope": "until_done"}  # noqa: RUF012  # as users write it


class Abstract(OnceTask):
    """A house's own base class, with hooks and a `__call__`."""

    abstract = True
    once = {"key": ["unit"]}  # noqa: RUF012  # as users write it

    def __call__(self, *args: object, **kwargs: object) -> object:
        return {"called": super().__call__(*args, **kwargs)}


app = make("tests", set_as_current=True)
app.register_task(ClassBased())
app.register_task(Derived())


@app.task(name="of_a_base", base=Abstract, bind=True, shared=False)
def of_a_base(self: Any, unit: str, seconds: float = 0.0) -> object:
    """A task of that base class."""
    return body(self, unit, seconds)


@app.task(name="unbound", base=OnceTask, shared=False)
def unbound(unit: str, seconds: float = 0.0) -> object:
    """A task without self."""
    return body(unbound, unit, seconds)


class Mixed(OnceTask, Task):
    """A mixin before Celery's own base."""

    abstract = True


@app.task(name="mixed", base=Mixed, bind=True, shared=False)
def mixed(self: Any, unit: str, seconds: float = 0.0) -> object:
    """A task of it."""
    return body(self, unit, seconds)


if pydantic is not None:

    class Order(pydantic.BaseModel):
        """What the callers of a pydantic task pass in three ways."""

        x: int
        y: str = "default"

    @app.task(name="modelled", base=OnceTask, bind=True, pydantic=True, shared=False)
    def modelled(self: Any, order: Order, seconds: float = 0.0) -> object:
        """A task whose argument is a model."""
        return body(self, f"modelled-{order.x}", seconds)


# Beside it, another that has the shared tasks too
other = make("other")
other.conf.once_prefix = "other"
