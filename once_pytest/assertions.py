"""The assertions as functions: they look at the harness that is open."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from once_pytest._assertions import Assertions
from once_pytest._key_assertions import KeyAssertions
from once_pytest.harness import current

__all__ = [
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
]

__unittest = True  # unittest shows no frames of ours

P = ParamSpec("P")


def _of_current(method: Callable[Concatenate[Assertions, P], None]) -> Callable[P, None]:
    @wraps(method)
    def assertion(*args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        harness = current()
        if harness is None:
            raise AssertionError(
                f"{method.__name__}() needs the fixture once_locks, which keeps the locks of a "
                "test apart: def test_it(once_locks): … (in a unittest.TestCase: OnceTestMixin)"
            )
        method(harness, *args, **kwargs)

    return assertion


_keys = KeyAssertions()

assert_deferred = _of_current(Assertions.assert_deferred)
assert_different_keys = _keys.assert_different_keys
assert_duplicate = _of_current(Assertions.assert_duplicate)
assert_idempotent = _keys.assert_idempotent
assert_no_locks = _of_current(Assertions.assert_no_locks)
assert_ran = _of_current(Assertions.assert_ran)
assert_same_key = _keys.assert_same_key
assert_task_locked = _of_current(Assertions.assert_task_locked)
assert_task_not_locked = _of_current(Assertions.assert_task_not_locked)
assert_valid_options = _keys.assert_valid_options
