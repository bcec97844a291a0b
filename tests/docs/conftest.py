from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import _state


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    """Examples define tasks as users do: shared, so that Celery gives them to every later app."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)
