from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import pytest
from celery import _state

import once_core


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    """Examples define tasks as users do: shared, so that Celery gives them to every later app."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """Examples say what holds for a process, and this process goes on."""
    before = dramatiq.broker.global_broker
    yield
    dramatiq.broker.global_broker = before
    once_core.configure()
