"""What sync and async stores share about failure: which errors count, and a circuit breaker."""

from __future__ import annotations

import re

import redis

from once_core._clock import elapsed
from once_core.errors import StoreUnavailableError
from once_core.events import emit

__all__ = ["FAILURES", "Breaker"]

# redis-py raises RedisClusterException, which is no RedisError, when no node answers
FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)
"""Everything by which a server or the network says no (time-outs and refusals alike)."""

FAILURES_IN_A_ROW = 3
OPEN_FOR = 1.0
"""After so many failures in a row, answer at once for so many seconds, then ask again."""


LONGEST_REASON = 300
"""Characters; some errors of redis-py show a whole client."""

_REFUSED = re.compile("^NoPermissionError|ACL failure in script|executing the script can't run")
"""What servers say against a command in a script has no kind of its own."""


class Breaker:
    """Counts failures of one store and speaks of an outage once, at its start and its end.

    A server that refuses some steps and takes others (full, read-only) is down until the steps
    it refused succeed again.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._in_a_row = 0
        self._open_until = 0.0
        self._down: dict[str, str] = {}

    @property
    def is_down(self) -> bool:
        """Whether something failed that has not succeeded since."""
        return bool(self._down)

    def gate(self) -> None:
        """Raise at once while it is known that asking would only cost time.

        Raises:
            StoreUnavailableError: While the breaker is open.
        """
        if self._in_a_row < FAILURES_IN_A_ROW:
            return
        now = elapsed()
        if now < self._open_until:
            reason = next(iter(self._down.values()), "it failed just now")
            raise self._error(f"{reason}; not asked again for a second")
        self._open_until = now + OPEN_FOR  # this caller asks; the others go on being told

    def ask_again(self) -> None:
        """The next step is sent, whatever has failed just now."""
        self._in_a_row = 0

    def succeeded(self, step: str) -> None:
        """A step was answered."""
        self._in_a_row = 0
        if not self._down:
            return
        self._down.pop("", None)
        self._down.pop(step, None)
        if not self._down:
            emit("store_recovered", reason=f"the lock store at {self._place} answers again")

    def failed(self, step: str, error: BaseException) -> StoreUnavailableError:
        """A step was not answered, or refused; returns the error to raise."""
        is_refusal = isinstance(error, redis.ResponseError)
        if not is_refusal:
            self._in_a_row += 1
            self._open_until = elapsed() + OPEN_FOR
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        was_down = bool(self._down)
        self._down[step if is_refusal else ""] = reason
        unavailable = self._error(reason)
        if not was_down:
            emit("store_unavailable", reason=str(unavailable))
        return unavailable

    def _error(self, reason: str) -> StoreUnavailableError:
        todo = "check that it runs and can be reached"
        if _REFUSED.search(reason):
            todo = "`once doctor --acl` prints what its user has to be allowed"
        return StoreUnavailableError(
            f"the lock store at {self._place} is not available ({reason}); {todo}, "
            'or set on_store_error="run" to go on without the lock',
            url=self._place,
            reason=reason,
        )
