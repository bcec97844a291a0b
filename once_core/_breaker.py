"""What sync and async stores share about failure: which errors count, and a circuit breaker."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import redis

from once_core._clock import elapsed
from once_core._replicas import TooFewReplicasError
from once_core.errors import StoreUnavailableError
from once_core.events import emit
from once_core.protocol import ON_REPLICAS

__all__ = ["FAILURES", "Breaker"]

# redis-py raises RedisClusterException, which is no RedisError, when no node answers
FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)
"""Everything by which a server or the network says no (time-outs and refusals alike)."""

FAILURES_IN_A_ROW = 3
OPEN_FOR = 1.0
"""After so many failures in a row, answer at once for so many seconds, then ask again."""

FORGOTTEN_AFTER = 3.0
"""Seconds without another failure after which a node of a Cluster is no outage: others answer."""


LONGEST_REASON = 300
"""Characters; some errors of redis-py show a whole client."""

_REFUSED = re.compile("^NoPermissionError|ACL failure in script|executing the script can't run")
"""What servers say against a command in a script has no kind of its own."""


@dataclass
class _Node:
    """What failed at one node, and has not succeeded since.

    Attributes:
        reasons: By the step that it refused; under an empty name why it did not answer.
    """

    in_a_row: int = 0
    open_until: float = 0.0
    failed_at: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)


class Breaker:
    """Counts failures of one store and speaks of an outage once, at its start and its end.

    A server that refuses some steps and takes others (full, read-only) is down until the steps
    it refused succeed again. Of a Cluster each node is counted by itself, by its name: one that is
    dead has no call refused that others would answer.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._nodes: dict[str, _Node] = {}

    def gate(self, node: str = "", step: str = "") -> None:
        """Raise at once while it is known that asking would only cost time.

        Args:
            node: Name of the node of a Cluster.
            step: Name of the step; replicas that are away count for those alone that need them.

        Raises:
            StoreUnavailableError: While the breaker is open.
        """
        if step.endswith(ON_REPLICAS):
            self.gate(node + ON_REPLICAS)
        known = self._nodes.get(node)
        if known is None or known.in_a_row < FAILURES_IN_A_ROW:
            return
        now = elapsed()
        if now < known.open_until:
            reason = next(iter(known.reasons.values()), "it failed just now")
            raise self._error(f"{reason}; not asked again for a second")
        known.open_until = now + OPEN_FOR  # this caller asks; the others go on being told

    def ask_again(self) -> None:
        """The next step is sent, whatever has failed just now."""
        for each in list(self._nodes.values()):
            each.in_a_row = 0

    def succeeded(self, step: str, node: str = "") -> None:
        """A step was answered."""
        if not self._nodes:
            return
        answered = {node, node + ON_REPLICAS} if step.endswith(ON_REPLICAS) else {node}
        for known in [self._nodes[name] for name in answered if name in self._nodes]:
            known.in_a_row = 0
            known.reasons.pop("", None)
            known.reasons.pop(step, None)
        for name, each in list(self._nodes.items()):
            # another may have taken its place: then nobody asks it again
            is_old = elapsed() - each.failed_at > FORGOTTEN_AFTER
            is_gone = name not in answered and (is_old or not name)
            if is_gone or not each.reasons:
                self._nodes.pop(name, None)
        if not self._nodes:
            emit("store_recovered", reason=f"the lock store at {self._place} answers again")

    def failed(self, step: str, error: BaseException, node: str = "") -> StoreUnavailableError:
        """A step was not answered, or refused; returns the error to raise."""
        was_down = bool(self._nodes)
        needs_replicas = isinstance(error, TooFewReplicasError)
        name = node + ON_REPLICAS if needs_replicas else node
        known = self._nodes.setdefault(name, _Node())
        known.failed_at = elapsed()
        is_refusal = isinstance(error, redis.ResponseError) and not needs_replicas
        if not is_refusal:
            known.in_a_row += 1
            known.open_until = known.failed_at + OPEN_FOR
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        known.reasons[step if is_refusal else ""] = reason
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
