"""Test that tasks are keyed and locked as you think: without a server, without sleeping.

```
def test_an_order_is_synced_once(once_locks):
    sync_order.delay(42)
    sync_order.delay(42)

    assert_task_locked(sync_order, 42, state="waiting")
    assert_duplicate(sync_order, 42)
```

pytest loads the fixtures by its entry point, or with ``-p once_pytest``; other test runners use
`OnceTestMixin` or `OnceHarness`. Importing this imports neither pytest, Redis, Celery nor
Dramatiq: what needs them is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from once_pytest._subject import call
    from once_pytest.assertions import (
        assert_deferred,
        assert_different_keys,
        assert_duplicate,
        assert_idempotent,
        assert_no_locks,
        assert_ran,
        assert_same_key,
        assert_task_locked,
        assert_task_not_locked,
        assert_valid_options,
    )
    from once_pytest.case import OnceTestMixin
    from once_pytest.clock import OnceClock
    from once_pytest.faults import Fault, OnceFaults
    from once_pytest.harness import HeldLock, OnceHarness
    from once_pytest.race import Contender, OnceRace

__all__ = [
    "Contender",
    "Fault",
    "HeldLock",
    "OnceClock",
    "OnceFaults",
    "OnceHarness",
    "OnceRace",
    "OnceTestMixin",
    "assert_deferred",
    "assert_different_keys",
    "assert_duplicate",
    "assert_idempotent",
    "assert_no_locks",
    "assert_ran",
    "assert_same_key",
    "assert_task_locked",
    "assert_task_not_locked",
    "assert_valid_options",
    "call",
]

# In this order: the second imports from the first, which pytest wants to see first.
pytest_plugins = ["once_pytest._fixtures", "once_pytest._plugin"]
"""Read by pytest where this is a plugin, and by nobody else."""

_PLACES = {
    "call": "_subject",
    "OnceTestMixin": "case",
    "OnceClock": "clock",
    "Fault": "faults",
    "OnceFaults": "faults",
    "HeldLock": "harness",
    "OnceHarness": "harness",
    "Contender": "race",
    "OnceRace": "race",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"once_pytest.{_PLACES.get(name, 'assertions')}")
    return getattr(module, name)
