"""celery-once-task's `OnceTask`, `configure`, signals and boot step, on the locks of once.

In place of ``from celery_once_task import OnceTask``; the rest stays as it is. See "Coming from
celery-once-task" in the docs for what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from celery.bootsteps import StartStopStep
from celery.exceptions import Reject

from once_celery._replaced import shown, warn_caller
from once_celery.compat._translated import TranslatedTask, Words

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "OnceTask",
    "OnceTaskLocked",
    "OnceTaskUnlockBootStep",
    "configure",
    "reset_config",
    "setup_once_task_signals",
    "teardown_once_task_signals",
]

_OPTIONS = {"redis_url": "url", "queue_lock_timeout": "ttl"}
_configured: Words = {}


class Settings(TypedDict, total=False):
    """What `configure` takes."""

    redis_url: str
    queue_lock_timeout: float
    running_lock_timeout: float


class OnceTaskLocked(Reject):  # type: ignore[misc]  # Celery has no types
    """Never raised: a message that would overlap comes back later. For ``except`` clauses."""


class OnceTask(TranslatedTask):
    """Base class of tasks of which at most one waits and at most one runs.

    Takes ``queue_lock`` and ``running_lock``, as `once_celery.OnceTask` does itself.
    """

    abstract = True
    library = "celery-once-task"

    @classmethod
    def app_words(cls) -> Words:
        """What `configure` was given."""
        return dict(_configured)


def configure(**settings: Unpack[Settings]) -> None:
    """Say where the locks of these tasks are, and how long anything waiting is remembered.

    Args:
        settings: ``redis_url``, ``queue_lock_timeout`` (seconds) and ``running_lock_timeout``,
            which has no effect: a lease is renewed for as long as its run lives.

    Raises:
        TypeError: For other names.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     configure(queue_lock_timeout=600)
        >>> print(said[0].message)
        once_celery.compat: configure is celery-once-task's; write app.conf.once_ttl = 600
        >>> reset_config()
    """
    unknown = settings.keys() - Settings.__annotations__.keys()
    if unknown:
        raise TypeError(f"configure() got unexpected keyword arguments: {', '.join(unknown)}")
    given: Mapping[str, Any] = settings
    words = {_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS}
    text = shown(words, "app.conf.once_{} = {!r}") or "nothing: a lease is renewed while it runs"
    warn_caller(f"configure is celery-once-task's; write {text}")
    _configured.update(words)


def reset_config() -> None:
    """Forget what `configure` was given."""
    _configured.clear()


def setup_once_task_signals() -> None:
    """Do nothing: the signals of once install themselves."""
    _leave_out("setup_once_task_signals()")


def teardown_once_task_signals() -> None:
    """Do nothing; see `setup_once_task_signals`."""
    _leave_out("teardown_once_task_signals()")


class OnceTaskUnlockBootStep(StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Do nothing: each run frees its own lease when it ends, and those of dead processes end."""

    def include_if(self, parent: object) -> bool:  # noqa: ARG002  # Celery passes it
        """Not: there is nothing to do when a worker starts or stops."""
        _leave_out('app.steps["worker"].add(OnceTaskUnlockBootStep)')
        return False


def _leave_out(what: str) -> None:
    warn_caller(f"{what} is celery-once-task's; leave it out, nothing has to be set up")
