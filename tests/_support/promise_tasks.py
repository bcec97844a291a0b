"""Tasks of the same names and options for both frameworks: what the shared promise tests run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dramatiq
from celery import Celery, current_task

from _support import dramatiq_app, ledger
from once_celery import OnceTask

PREFIX = "promise."
"""Of the tasks' names, which others of the same app have too."""

LEASE = 1
"""Seconds; of the task whose body outlasts it."""

WINDOW = 1
"""Seconds in which a window, or `keep_for`, refuses."""

DEBOUNCE = 1
"""Seconds."""

INSTEAD = "another did it"
"""What a duplicate ends with."""


def key_of(unit: str, *_args: object, **_kwargs: object) -> str:
    """A key made by a function of the arguments as they were given."""
    return f"of-{unit}"


OPTIONS: dict[str, dict[str, Any]] = {
    "work": {},
    "brief": {"lease": LEASE},
    "patient": {"lease": 60},
    "until_done": {"scope": "until_done"},
    "queued": {"scope": "queued"},
    "running": {"scope": "running"},
    "window": {"scope": "window", "window": WINDOW},
    "kept": {"keep_for": WINDOW},
    "raising": {"on_duplicate": "raise"},
    "replacing": {"on_duplicate": "replace"},
    "debounced": {"on_duplicate": "replace", "debounce": DEBOUNCE, "debounce_max": 2 * DEBOUNCE},
    "sharing": {"on_duplicate": "share", "key": None},
    "skipping": {"scope": "running", "on_overlap": "skip"},
    "strict": {"scope": "running", "on_overlap": "raise"},
    "instead": {"return_on_duplicate": INSTEAD},
    "healing": {"heal_after": 1},
    "retrying": {},
    "all_arguments": {"key": None},
    "by_template": {"key": "of-{unit}"},
    "by_function": {"key": key_of},
    "importing": {"name": "account"},
    "updating": {"name": "account"},
}
"""Options of the tasks; the unit of work of most is their first argument."""

RETRY_DELAY = 1.0
"""Seconds, at most."""


def _body(
    path: str, who: Callable[[], tuple[str, int]]
) -> Callable[[str, float, object, int], object]:
    def work(unit: str, seconds: float = 0.0, payload: object = None, fails: int = 0) -> object:
        """Fails so many times, then succeeds."""
        message_id, retries = who()
        value = ledger.run_body(path, message_id, retries, unit, seconds, payload)
        if retries < fails:
            raise RuntimeError(f"on purpose: {unit}")
        return value

    return work


def _then(before: object) -> list[object]:
    """What comes after another task."""
    return ["then", before]


def _once(name: str) -> dict[str, Any]:
    return {"key": ["unit"], **OPTIONS[name]}


def add_to_celery(app: Celery, settings: Mapping[str, Any]) -> None:
    """Define the tasks."""
    path = str(settings["ledger"])

    def who() -> tuple[str, int]:
        return current_task.request.id, current_task.request.retries

    for name in OPTIONS:
        options: dict[str, Any] = {}
        if name == "retrying":
            options = {
                "autoretry_for": (RuntimeError,),
                "default_retry_delay": RETRY_DELAY,
                "max_retries": 3,
            }
        define = app.task(
            name=PREFIX + name, shared=False, base=OnceTask, once=_once(name), **options
        )
        define(_body(path, who))
    app.task(name=PREFIX + "then", shared=False)(_then)


def add_to_dramatiq(broker: dramatiq.Broker, settings: Mapping[str, Any]) -> None:
    """Declare the actors."""
    path = str(settings["ledger"])
    common = {"broker": broker, "queue_name": settings["queue"], "store_results": True}

    def who() -> tuple[str, int]:
        return dramatiq_app.message_id(), dramatiq_app.retries()

    for name in OPTIONS:
        delay = round(RETRY_DELAY * 1000)
        retries = {"max_retries": 3 if name == "retrying" else 0}
        dramatiq.actor(
            actor_name=PREFIX + name,
            once=_once(name),
            min_backoff=delay,
            max_backoff=delay,
            **retries,
            **common,
        )(_body(path, who))
    dramatiq.actor(actor_name=PREFIX + "then", max_retries=0, **common)(_then)
