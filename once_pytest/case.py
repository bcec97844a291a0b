"""The toolkit for `unittest.TestCase`, Django's among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from once_pytest._assertions import Assertions
from once_pytest._key_assertions import KeyAssertions
from once_pytest._leaks import leak_text
from once_pytest.harness import OnceHarness

if TYPE_CHECKING:
    from once_pytest.clock import OnceClock
    from once_pytest.drain import Drained
    from once_pytest.faults import OnceFaults
    from once_pytest.race import OnceRace

__all__ = ["OnceTestMixin"]

__unittest = True  # unittest shows no frames of ours

P = ParamSpec("P")


def _of_harness(
    method: Callable[Concatenate[Assertions, P], None],
) -> Callable[Concatenate[OnceTestMixin, P], None]:
    @wraps(method)
    def assertion(self: OnceTestMixin, /, *args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        method(self.once_locks, *args, **kwargs)

    return assertion


_keys = KeyAssertions()


class OnceTestMixin:
    """Gives each test of a `unittest.TestCase` locks of its own, and the assertions.

    Name it first: ``class SyncTests(OnceTestMixin, TestCase)``. In Django's `TestCase` no
    transaction ever commits, so what is sent by ``transaction.on_commit`` is sent only under
    ``with self.captureOnCommitCallbacks(execute=True)``.

    Attributes:
        once_leaks: ``"error"``: a lock that a test leaves behind, and of which it has not said
            that it is held, fails it; or ``"ignore"``.

    Example:
        >>> import unittest
        >>> from celery import Celery
        >>> from once_celery import OnceTask
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> @app.task(base=OnceTask, name="shop.sync_order")
        ... def sync_order(order_id): ...
        >>> class SyncTests(OnceTestMixin, unittest.TestCase):
        ...     def test_waits(self):
        ...         sync_order.delay(42)
        ...         self.assert_task_locked(sync_order, 42)
        >>> SyncTests("test_waits").run().wasSuccessful()
        True
    """

    once_leaks: str = "error"
    _once_harness: OnceHarness | None = None
    _once_has_failed = False

    assert_deferred = _of_harness(Assertions.assert_deferred)
    assert_different_keys = staticmethod(_keys.assert_different_keys)
    assert_duplicate = _of_harness(Assertions.assert_duplicate)
    assert_idempotent = staticmethod(_keys.assert_idempotent)
    assert_no_locks = _of_harness(Assertions.assert_no_locks)
    assert_ran = _of_harness(Assertions.assert_ran)
    assert_same_key = staticmethod(_keys.assert_same_key)
    assert_task_locked = _of_harness(Assertions.assert_task_locked)
    assert_task_not_locked = _of_harness(Assertions.assert_task_not_locked)
    assert_valid_options = staticmethod(_keys.assert_valid_options)

    def setUp(self) -> None:
        """Open the harness; called by unittest."""
        super().setUp()  # type: ignore[misc]  # of the TestCase beside us
        self._once_harness = OnceHarness().start()
        self.addCleanup(self._close_once)  # type: ignore[attr-defined]  # see above

    @property
    def once_locks(self) -> OnceHarness:
        """The harness: the table of locks, the events."""
        __tracebackhide__ = True
        if self._once_harness is None:
            raise AssertionError(
                f"the setUp() of {type(self).__name__} has to call super().setUp(), which opens "
                "the locks of the test"
            )
        return self._once_harness

    @property
    def once_clock(self) -> OnceClock:
        """Lets time pass."""
        return self.once_locks.clock

    @property
    def once_faults(self) -> OnceFaults:
        """What can go wrong between a task and its lock."""
        return self.once_locks.faults

    @property
    def once_race(self) -> OnceRace:
        """Has calls contend."""
        return self.once_locks.race

    def once_drain(self, target: object, **options: Any) -> Drained:
        """Run what is queued, in this thread.

        Args:
            target: The Celery app or the Dramatiq broker.
            options: See `once_pytest.drain.drain`.
        """
        __tracebackhide__ = True
        from once_pytest.drain import drain

        found: Any = target
        return drain(found, clock=self.once_clock, **options)

    def _callTestMethod(self, method: object) -> object:  # noqa: N802  # unittest's, for 3.8 and on
        __tracebackhide__ = True
        try:
            return super()._callTestMethod(method)  # type: ignore[misc]  # see `setUp`
        except BaseException:
            self._once_has_failed = True  # one error is enough
            raise

    def _close_once(self) -> None:
        __tracebackhide__ = True
        harness, self._once_harness = self.once_locks, None
        try:
            text = leak_text(
                harness,
                is_error=self.once_leaks == "error",
                way_out='once_leaks = "ignore" in the class',
            )
        finally:
            harness.stop()
        if text and not self._once_has_failed:
            raise AssertionError(text)
