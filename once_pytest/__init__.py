"""A pytest plugin for programs whose tasks are limited by this library.

pytest loads it by its entry point. It is the place for fixtures and assertions that
say what was published, refused and run, without a server. At import it needs pytest
alone, so that it is harmless in test suites that use neither Celery nor Dramatiq.
"""

from __future__ import annotations

__all__: list[str] = []
