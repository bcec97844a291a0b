"""A Django project as Celery's documentation has people write it."""

from __future__ import annotations

from .celery import app as celery_app

__all__ = ["celery_app"]
