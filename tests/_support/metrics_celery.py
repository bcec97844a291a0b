"""The sample tasks, counted for Prometheus: what the workers and producers of a test import."""

from __future__ import annotations

from _support.celery_app import app
from once_core.prometheus import measure

__all__ = ["app"]

measure()
