"""A producer that is counted: sends each of its arguments, such as ``work:unit``, by delay()."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def task_of(module: Any, name: str) -> Any:
    if hasattr(module, "app"):
        return module.app.tasks[name].delay
    return module.broker.get_actor(name).send


if __name__ == "__main__":
    counted = importlib.import_module(sys.argv[1])
    for call in sys.argv[2:]:
        task, _, unit = call.partition(":")
        task_of(counted, task)(unit)
