"""The commands of ``once``: the same as ``celery once …`` and ``python -m once_core …``."""

from __future__ import annotations

__all__: list[str] = []
