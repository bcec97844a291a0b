"""The names of celery-once, celery-singleton and celery-once-task, on the locks of once.

For programs that come from one of them: change the import line, and the rest goes on working.
Each name says once, in a DeprecationWarning, what to write instead.

The modules are exact stand-ins: `once_celery.compat.celery_once` for ``celery_once``,
`once_celery.compat.celery_singleton` for ``celery_singleton``, and
`once_celery.compat.celery_once_task` for ``celery_once_task``, whose task class has the name of
ours and is therefore not here.
"""

from __future__ import annotations

from once_celery.compat.celery_once import AlreadyQueued, QueueOnce
from once_celery.compat.celery_once_task import (
    OnceTaskLocked,
    OnceTaskUnlockBootStep,
    configure,
    setup_once_task_signals,
    teardown_once_task_signals,
)
from once_celery.compat.celery_singleton import DuplicateTaskError, Singleton, clear_locks

__all__ = [
    "AlreadyQueued",
    "DuplicateTaskError",
    "OnceTaskLocked",
    "OnceTaskUnlockBootStep",
    "QueueOnce",
    "Singleton",
    "clear_locks",
    "configure",
    "setup_once_task_signals",
    "teardown_once_task_signals",
]
