"""Dramatiq actors that neither pile up nor overlap.

This package binds `once_core` to Dramatiq: a middleware that claims a unit of work
when a message is enqueued and holds its lease while the actor runs. It imports
Dramatiq; `once_core` never does.
"""

from __future__ import annotations

__all__: list[str] = []
