"""The Django app that brings the checks of `once_celery.django.checks`; nothing else needs it."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from once_celery.django.checks import TAG, check_deployment, check_loading, check_tasks, is_loaded

__all__ = ["OnceConfig"]


class OnceConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Put ``"once_celery.django"`` into ``INSTALLED_APPS`` to have ``manage.py check`` look."""

    name = "once_celery.django"
    label = "once_celery"
    verbose_name = "once"

    def ready(self) -> None:
        """Register the checks."""
        register(check_tasks, TAG)
        register(check_deployment, TAG, deploy=True)
        if not is_loaded():
            register(check_loading, TAG)  # later somebody may have loaded it by chance
