"""Time that passes when a test says so: no sleeping, on a real server too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from once_core import _clock, protocol
from once_core._heartbeat import heartbeat
from once_pytest import _render
from once_pytest._subject import call_of, guard_of

if TYPE_CHECKING:
    from once_pytest.harness import OnceHarness

__all__ = ["OnceClock"]

__unittest = True  # unittest shows no frames of ours

_BEYOND = 0.002
"""Seconds past the end of a lock at which it is gone for sure: records count in milliseconds."""


class OnceClock:
    """The clock of one test.

    The moments in every record of the test move into the past, and the clock of this library in
    this process moves ahead. What else reads the time (``time.time()``, a database, Celery's own
    timers) goes on as it does.

    Args:
        harness: Whose records are aged.
    """

    def __init__(self, harness: OnceHarness) -> None:
        self._harness = harness
        self._ahead = 0.0

    def __repr__(self) -> str:
        return "<OnceClock>"

    def now(self) -> float:
        """Unix time, with what was advanced."""
        return _clock.wall()

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once.

        The leases of bodies that run in this process are renewed on the way, as often as they
        would be; those of others lapse.

        Args:
            seconds: How many; not below 0.

        Raises:
            ValueError: When they are negative.

        Example:
            >>> from once_pytest import OnceHarness
            >>> with OnceHarness() as once_locks:
            ...     before = once_locks.clock.now()
            ...     once_locks.clock.advance(3600)
            ...     once_locks.clock.now() - before >= 3600
            True
        """
        __tracebackhide__ = True
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds:g} s")
        left = seconds
        while left > 0:
            # of this test's leases alone: one that another test left would cost it real time
            beat = heartbeat().interval_in(self._harness.store)
            step = left if beat is None else min(left, beat)
            self._pass(step)
            left -= step
            if beat is not None:
                heartbeat().beat()

    def advance_to_expiry(self, task: object, /, *args: object, **kwargs: object) -> None:
        """Let time pass until the lock of this call is over by itself.

        Args:
            task: The task, actor or function.
            args: Its arguments, as for the assertions.
            kwargs: The same.

        Raises:
            AssertionError: It is not locked; or its body runs in this process, which renews it.
        """
        __tracebackhide__ = True
        harness, guard = self._harness, guard_of(task)
        given = call_of(args, kwargs)
        key = harness.key(guard, given)
        held = [lock for lock in harness.locks if lock.key == key]
        if not held:
            harness.fail_for(
                f"{guard.task} is not locked, so nothing of it expires, for", guard, given
            )
        self.advance(max(each.remaining for each in held) + _BEYOND)
        left = [lock for lock in harness.locks if lock.key == key]
        if left:
            table = "\n".join(_render.locks(left))
            raise AssertionError(
                f"{guard.task} is still locked: its body runs in this process, which renews the "
                f"lease as long as it does; let it end, or kill a worker of once_worker\n{table}"
            )

    def stop(self) -> None:
        """Put the clock of this library back."""
        _clock.advance(-self._ahead)
        self._ahead = 0.0

    def _pass(self, seconds: float) -> None:
        self._harness.note_immortal()
        _clock.advance(seconds)
        self._ahead += seconds
        store = self._harness.plain
        store.run_many([protocol.age(key, seconds) for key in store.names()])
