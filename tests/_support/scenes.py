"""Scenes that tests share: real workers that are started once, and bodies held at a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from _support.ledger import gate
from _support.waiting import wait_until

if TYPE_CHECKING:
    from _support.deployment import Deployment

PREFORK = "prefork+redis"
EVERYWHERE = [PREFORK, "threads+redis", "solo+redis", "prefork+rabbitmq"]

everywhere = pytest.mark.parametrize("scene", EVERYWHERE, indirect=True)


def hold(scene: Deployment, unit: str, task: str = "work") -> Any:
    """Have a body run until the gate of its unit is opened."""
    handle = scene.task(task).delay(unit, -1)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    return handle


def hold_and_wait(scene: Deployment, unit: str, task: str = "work") -> tuple[Any, Any]:
    """The same, with one more message that waits behind it."""
    running = hold(scene, unit, task)
    return running, scene.task(task).delay(unit, -1)


def let_go(scene: Deployment, unit: str) -> None:
    """Open the gate: held bodies of this unit end."""
    gate(scene.ledger, unit).touch()


def ids(scene: Deployment, unit: str) -> list[str]:
    """Ids of the messages that ran, in the order of their starts."""
    return [run.message_id for run in scene.runs(unit)]
