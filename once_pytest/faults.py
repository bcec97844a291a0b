"""What can go wrong between a task and its lock store, on purpose."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import redis

from once_core._client import READ_TIMEOUT
from once_core._scripts import STEPS

if TYPE_CHECKING:
    from typing_extensions import Self

    from once_pytest._store import StoreOfTest
    from once_pytest.harness import OnceHarness

__all__ = ["Fault", "OnceFaults"]

__unittest = True  # unittest shows no frames of ours

Carry = Callable[[], object]
Strike = Callable[["Fault", str, Carry], object]


class Fault:
    """One thing that goes wrong, from the call that made it until `end`, or a ``with`` block's.

    Args:
        store: Whose steps it strikes.
        what: Its name, and where it was made.
        strike: Gets the fault, the name of a step and what carries it; answers, or raises.
        then: Called when it ends.

    Attributes:
        hits: Steps that it has struck so far.
    """

    def __init__(
        self, store: StoreOfTest, what: str, strike: Strike, then: Callable[[], object]
    ) -> None:
        self.hits = 0
        self._store = store
        self._what = what
        self._strike = strike
        self._then = then
        store.gates.insert(0, self._gate)  # nearest to the server: races are outside of it

    def end(self) -> None:
        """All is well again."""
        if self._gate in self._store.gates:
            self._store.gates.remove(self._gate)
            self._then()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def _gate(self, step: str, carry: Carry) -> object:
        __tracebackhide__ = True
        return self._strike(self, step, carry)

    def __repr__(self) -> str:
        return f"<Fault {self._what}, {self.hits} hits>"


class OnceFaults:
    """Makes faults; all of them end with the test.

    They strike below the circuit breaker and the retries of this library, where redis-py would
    raise: product code meets what it would meet. Steps are named as in the docs of the record:
    claim, start, renew, finish, withdraw, confirm, inspect, release.

    Args:
        harness: Whose store is struck.
    """

    def __init__(self, harness: OnceHarness) -> None:
        self._harness = harness

    def __repr__(self) -> str:
        return "<OnceFaults>"

    def outage(self) -> Fault:
        """The store is away: nothing is heard, nothing is lost.

        Example:
            >>> from once_core import Guard, OnceOptions, StoreUnavailableError
            >>> from once_pytest import OnceHarness
            >>> with OnceHarness() as once_locks:
            ...     guard = Guard("sync", lambda number: None, OnceOptions(), lambda: None)
            ...     with once_locks.faults.outage():
            ...         try:
            ...             guard.is_locked((1,), {})
            ...         except StoreUnavailableError:
            ...             print("away")
            ...     guard.is_locked((1,), {})
            away
            False
        """
        why = f"outage() at {_caller()}"

        def strike(fault: Fault, _step: str, _carry: Carry) -> object:
            __tracebackhide__ = True
            fault.hits += 1
            raise redis.ConnectionError(_injected(why))

        return self._make(why, strike)

    def latency(self, seconds: float) -> Fault:
        """Every answer is late; one that takes longer than our time-out is heard and lost.

        Args:
            seconds: By how much; really waited for, up to the time-out of 0.8 s.
        """
        why = f"latency({seconds:g}) at {_caller()}"

        def strike(fault: Fault, _step: str, carry: Carry) -> object:
            __tracebackhide__ = True
            fault.hits += 1
            answer = carry()
            time.sleep(min(seconds, READ_TIMEOUT))
            if seconds >= READ_TIMEOUT:
                raise redis.TimeoutError(_injected(why))
            return answer

        return self._make(why, strike)

    def lose_request(self, step: str = "", *, times: int = 1) -> Fault:
        """The connection breaks before the server has heard it.

        Args:
            step: Only this step; empty for any.
            times: How often.

        Raises:
            ValueError: There is no such step.
        """
        __tracebackhide__ = True
        why = f"lose_request({step!r}) at {_caller()}"

        def lose(_carry: Carry) -> object:
            __tracebackhide__ = True
            raise redis.ConnectionError(_injected(why))

        return self._limited(why, step, times, lose)

    def lose_reply(self, step: str = "", *, times: int = 1) -> Fault:
        """The server does it, and the connection breaks before the answer is here.

        The caller sees an error, and the lock is there: the ghost that every lock has to survive.

        Args:
            step: Only this step; empty for any.
            times: How often.

        Raises:
            ValueError: There is no such step.
        """
        __tracebackhide__ = True
        why = f"lose_reply({step!r}) at {_caller()}"

        def lose(carry: Carry) -> object:
            __tracebackhide__ = True
            carry()
            raise redis.ConnectionError(_injected(why))

        return self._limited(why, step, times, lose)

    def refuse(
        self, error: str = "OOM command not allowed when used memory > 'maxmemory'.", step: str = ""
    ) -> Fault:
        """The server answers with an error, until this ends.

        Args:
            error: Its words, such as ``"READONLY You can't write against a read only replica."``
            step: Only this step; empty for any.

        Raises:
            ValueError: There is no such step.
        """
        __tracebackhide__ = True
        why = f"refuse() at {_caller()}"

        def refuse(_carry: Carry) -> object:
            __tracebackhide__ = True
            raise redis.ResponseError(f"{error} ({_injected(why)})")

        return self._limited(why, step, sys.maxsize, refuse)

    def noscript(self) -> None:
        """The server forgets all scripts, as after a restart or a failover."""
        __tracebackhide__ = True
        self._refuse_others("noscript")
        self._harness.opened.client().script_flush()

    def failover(self) -> Fault:
        """A replica takes over that never saw what is written from now until this ends.

        The first step after that finds its connection broken; then the records are as they were
        at this call, aged by what has passed.
        """
        self._refuse_others("failover")
        why = f"failover() at {_caller()}"
        saved, began = self._harness.dump(), self._harness.clock.now()

        def strike(fault: Fault, _step: str, carry: Carry) -> object:
            __tracebackhide__ = True
            fault.hits += 1
            return carry()

        def promote() -> None:
            self._harness.load(saved, passed=self._harness.clock.now() - began)
            self.noscript()
            self.lose_request()

        return self._make(why, strike, promote)

    def _refuse_others(self, what: str) -> None:
        __tracebackhide__ = True
        if not self._harness.opened.place.is_ours:
            raise RuntimeError(
                f"{what}() makes the server forget the scripts of all its users; use it with "
                "--once-redis=fake or spawn"
            )

    def stop(self) -> None:
        """End all that were made."""
        self._harness.store.gates.clear()  # without what would happen at their ends

    def _limited(self, why: str, step: str, times: int, act: Callable[[Carry], object]) -> Fault:
        __tracebackhide__ = True
        wanted = "" if step.upper() == "EVALSHA" else step
        if wanted and wanted not in STEPS:
            raise ValueError(f"there is no step {step!r}; there are {', '.join(STEPS)}")

        def strike(fault: Fault, name: str, carry: Carry) -> object:
            __tracebackhide__ = True
            if fault.hits >= times or (wanted and name != wanted):
                return carry()
            fault.hits += 1
            return act(carry)

        return self._make(why, strike)

    def _make(self, why: str, strike: Strike, then: Callable[[], object] | None = None) -> Fault:
        __tracebackhide__ = True
        store = self._harness.store
        return Fault(store, why, strike, then or store.ask_again)


def _injected(why: str) -> str:
    return f"injected by once_faults.{why}"


def _caller() -> str:
    """File and line of the test."""
    frame = sys._getframe(1)  # noqa: SLF001  # as `warnings` does
    here = str(Path(__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
