"""celery-once-task's Django app: reads its three settings, and nothing else."""

from __future__ import annotations

from django import conf
from django.apps import AppConfig

from once_celery.compat.celery_once_task import Settings, configure

__all__ = ["OnceTaskAppConfig"]


class OnceTaskAppConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """For ``INSTALLED_APPS``: hands ``CELERY_ONCE_REDIS_URL`` and its like to `configure`."""

    name = "once_celery.compat.celery_once_task"
    label = "celery_once_task"
    verbose_name = "celery-once-task"

    def ready(self) -> None:
        """Read the settings."""
        names = {name: f"CELERY_ONCE_{name.upper()}" for name in Settings.__annotations__}
        found = {
            name: getattr(conf.settings, setting)
            for name, setting in names.items()
            if hasattr(conf.settings, setting)
        }
        if found:
            configure(**found)
