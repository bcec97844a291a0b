from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import pytest

import once_core
from once_core import opentelemetry, prometheus


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """Examples say what holds for a process, and this process goes on."""
    before = dramatiq.broker.global_broker
    yield
    dramatiq.broker.global_broker = before
    once_core.configure()
    for module in (prometheus, opentelemetry):
        module.measure()()  # ends what a page has begun
