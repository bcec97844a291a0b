"""The lock store of a test, and what stands between it and its server."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from once_core.aio import AsyncStore
from once_core.store import Store

if TYPE_CHECKING:
    import redis

    from once_core._client import AsyncClient, Client
    from once_core.protocol import Step
    from once_core.store import Carrier

__all__ = ["AsyncStoreOfTest", "Gate", "StoreOfTest"]

T = TypeVar("T")

__unittest = True  # unittest shows no frames of ours

_RECORD = re.compile(r".+:[0-9a-f]{26,64}")

Gate = Callable[[str, Callable[[], object]], object]
"""Lets a step pass: gets its name and what carries it, and answers in its place or calls it."""


class StoreOfTest(Store):
    """A store whose keys are a test's own, and whose steps pass through gates.

    Args:
        client: Makes clients of its server.
        prefix: Of all its keys; empty on a server of the test's own.
    """

    def __init__(self, client: Callable[[], Client], prefix: str) -> None:
        super().__init__(client, place="this test's own place")
        self.prefix = prefix
        self.gates: list[Gate] = []
        """The last one is met first."""

    def _carrier(self) -> Carrier:
        return _Wire(super()._carrier(), self)

    def sibling(self) -> Store:
        """Itself: what is injected has to reach renewals too."""
        return self

    def plain(self) -> StoreOfTest:
        """The same records, past all gates."""
        return StoreOfTest(self.client, self.prefix)

    def names(self) -> list[str]:
        """Names of all records, without the test's prefix; not what a test has written itself."""
        return [key for key in self.written() if _RECORD.fullmatch(key)]

    def written(self) -> list[str]:
        """Names of all keys under the prefix, without it."""
        client: redis.Redis = self.client()  # type: ignore[assignment]  # never a Cluster's
        found: list[Any] = list(client.scan_iter(match=f"{self.prefix}*", count=1000))
        texts = [key.decode() if isinstance(key, bytes) else str(key) for key in found]
        return sorted(key.removeprefix(self.prefix) for key in texts)


class AsyncStoreOfTest(AsyncStore):
    """The same for asyncio; its steps are the sync store's, and pass through the same gates.

    Args:
        store: That one.
        client: Makes clients of its server, in the loop that uses them.
    """

    def __init__(self, store: StoreOfTest, client: Callable[[], AsyncClient]) -> None:
        super().__init__(client)
        self.prefix = store.prefix
        self._sync = store

    async def run(self, step: Step[T]) -> T:
        """Carry one step; nobody else is in the loop of a test who would be kept waiting."""
        __tracebackhide__ = True
        return self._sync.run(step)


class _Wire:
    """A carrier around another one."""

    def __init__(self, carrier: Carrier, store: StoreOfTest) -> None:
        self.client = carrier.client
        self._carrier = carrier
        self._store = store

    def node(self, step: Step[Any]) -> str:
        return self._carrier.node(step)

    def script(self, step: Step[Any]) -> object:
        __tracebackhide__ = True
        step = self._own(step)
        return self._pass(step.script.name, lambda: self._carrier.script(step))

    def scripts(self, steps: Sequence[Step[Any]], *, with_texts: bool = False) -> list[object]:
        __tracebackhide__ = True
        own = [self._own(step) for step in steps]
        found: Any = self._pass(
            steps[0].script.name, lambda: self._carrier.scripts(own, with_texts=with_texts)
        )
        replies: list[object] = found
        return replies

    def _own(self, step: Step[Any]) -> Step[Any]:
        return replace(step, key=self._store.prefix + step.key)

    def _pass(self, name: str, carry: Callable[[], object]) -> object:
        __tracebackhide__ = True
        for gate in list(self._store.gates):
            carry = _through(gate, name, carry)
        return carry()


def _through(gate: Gate, name: str, carry: Callable[[], object]) -> Callable[[], object]:
    def through() -> object:
        __tracebackhide__ = True
        return gate(name, carry)

    return through
