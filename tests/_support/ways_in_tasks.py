"""Sample tasks for every way in, and what their tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Celery

from _support import ledger
from _support.waiting import wait_until
from once_celery import OnceTask

if TYPE_CHECKING:
    from _support.deployment import Deployment

CARRIED = (
    "root_id", "parent_id", "group", "group_index", "stamps", "stamped_headers", "shadow",
    "timelimit", "expires", "reply_to", "ignore_result", "replaced_task_nesting", "origin",
    "argsrepr", "kwargsrepr",
)  # fmt: skip
"""What a message carries of Celery's own, as its request has it."""

ROUTE = ("exchange", "routing_key", "priority")


def carried(task: Any) -> dict[str, object]:
    """What came with the message whose body runs."""
    request = task.request
    info = request.delivery_info or {}
    headers = {name: value for name, value in (request.headers or {}).items() if name != "once"}
    headers.pop("redelivered", None)  # of kombu's Redis transport
    return {
        **{name: request.get(name) for name in CARRIED},
        **{name: info.get(name) for name in ROUTE},
        "headers": headers,
        "callbacks": len(request.callbacks or ()),
        "errbacks": len(request.errbacks or ()),
        "chain": len(request.chain or ()),
        "chord": bool(request.chord),
    }


def add(task: Callable[..., Any], body: Callable[..., Any], path: str) -> None:  # noqa: C901  # a list
    """Define the tasks: `task` is the app's decorator, `body` what a sample task does.

    Args:
        task: Defines a task of the app.
        body: Notes its run at `path`.
        path: Of the ledger.
    """

    def note_carried(self: Any, unit: str) -> None:
        facts = carried(self)
        ledger.note(path, "carried", unit=unit, id=self.request.id, facts=facts)

    @task(base=OnceTask, bind=True, max_retries=5, once={"key": ["unit"]})
    def carrying(self: Any, unit: str, seconds: float = 0.0, times: int = 0) -> str:
        """Notes what its message carried; retries as often as it is told."""
        note_carried(self, unit)
        body(self, unit, seconds)
        if self.request.retries < times:
            raise self.retry(countdown=0.05)
        return f"done {unit}"

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def becoming(self: Any, unit: str, name: str, other: str, seconds: float = 0.0) -> Any:
        """Becomes another task, under its own id."""
        body(self, unit, seconds)
        return self.replace(self.app.tasks[name].si(other))

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def growing_its_chord(self: Any, unit: str, other: str, seconds: float = 0.0) -> str:
        """Adds one more member to the chord that it is in."""
        body(self, unit)
        self.add_to_chord(self.app.tasks["work"].si(other, seconds))
        return f"done {unit}"

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def publishing(self: Any, unit: str, other: str, seconds: float = 0.0) -> list[str]:
        """Publishes another task from its body."""
        body(self, unit)
        told = self.app.tasks["work"].delay(other, seconds).once
        return [told.state, told.holder_id]

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def calling(self: Any, unit: str, name: str, other: str) -> Any:
        """Calls another task as a function."""
        body(self, unit)
        return self.app.tasks[name](other)

    @task(base=OnceTask, bind=True, once={"key": ["unit"]})
    def applying(self: Any, unit: str, name: str, other: str) -> Any:
        """Runs another task in its own process with `apply()`."""
        body(self, unit)
        return self.app.tasks[name].apply((other,)).get(disable_sync_subtasks=False)

    @task(base=OnceTask, bind=True, once={"key": ["number"]})
    def countdown(self: Any, number: int, unit: str) -> list[int]:
        """Calls itself as a function until its number is 0."""
        body(self, f"{unit}-{number}")
        return [number, *(self(number - 1, unit) if number else [])]

    @task(base=OnceTask)
    def noting_error(failed_id: str) -> None:
        """An errback that is told which message failed."""
        ledger.note(path, "error", failed_id=failed_id)


def carried_by(scene: Deployment, unit: str, message_id: str) -> list[dict[str, Any]]:
    """What a message carried, each time that its body ran."""
    found = ledger.entries(scene.ledger, "carried")
    return [each["facts"] for each in found if (each["unit"], each["id"]) == (unit, message_id)]


def record(scene: Deployment, unit: str, task: str = "work", *args: object) -> dict[str, str]:
    """The record of a unit of work as it is in Redis."""
    key = scene.task(task).once_guard().key((unit, *args), {})
    found = scene.store.client().hgetall(key)
    return {name.decode(): value.decode() for name, value in found.items()}


def until_free(scene: Deployment, unit: str, task: str = "work", *args: object) -> None:
    """Wait until nothing of a unit waits or runs."""
    is_locked = scene.task(task).is_locked
    wait_until(lambda: not is_locked(unit, *args), "the unit is free")


def foreign(scene: Deployment) -> Celery:
    """A program that knows the broker and the tasks' names, and nothing else."""
    names = ("broker_url", "result_backend", "task_default_queue")
    app = Celery("foreign", set_as_current=False)
    app.conf.update({name: scene.settings[name] for name in names})
    return app


def is_logged(scene: Deployment, kind: str, message_id: str) -> bool:
    """Whether a worker of this scene told of such a decision about this message."""
    logs = "\n".join(worker.log for worker in scene.workers)
    return any(kind in line and f"message_id={message_id}" in line for line in logs.splitlines())


def take(scene: Deployment, unit: str, task: str = "work", *args: object) -> Any:
    """Have a message of a unit wait, in a queue that nobody reads."""
    handle = scene.task(task).apply_async((unit, *args), queue=f"nobody-{unit}")
    assert not handle.once.is_duplicate
    return handle
