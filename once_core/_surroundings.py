"""What options hold around a task: its app's, those of the process, the environment's."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["PLACES", "process_options", "surroundings"]

PLACES = frozenset({"url", "client"})
"""Two names for one thing: the nearest layer that has either says where the store is."""

_ENVIRONMENT = {"url": "ONCE_URL", "prefix": "ONCE_PREFIX", "events": "ONCE_EVENTS"}

process_options: dict[str, object] = {}
"""What `once_core.configure` was given."""


def surroundings(app: Mapping[str, object]) -> dict[str, object]:
    """The options of all layers that are wider than a task's.

    Args:
        app: Those of its app, the nearest of these.
    """
    found: dict[str, object] = {}
    for layer in (_environment(), process_options, app):
        if layer.keys() & PLACES:
            found = {name: value for name, value in found.items() if name not in PLACES}
        found.update(layer)
    return found


def _environment() -> dict[str, object]:
    given = {name: os.environ.get(key) for name, key in _ENVIRONMENT.items()}
    return {
        # what is no number is refused where options are checked, with its name
        name: int(value) if name == "events" and value.isdigit() else value
        for name, value in given.items()
        if value
    }
