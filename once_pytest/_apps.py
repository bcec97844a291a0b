"""Celery apps for tests."""

from __future__ import annotations

from typing import Any

from celery import Celery

__all__ = ["AppOfTest"]


class AppOfTest(Celery):  # type: ignore[misc]  # Celery has no types
    """An app whose tasks are its own: Celery gives those of any app to all apps of a process."""

    def task(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  # Celery has no types
        """As that of Celery, but not shared."""
        if len(args) == 1 and callable(args[0]):
            return super().task(**{"shared": False, **options})(args[0])
        return super().task(*args, **{"shared": False, **options})
