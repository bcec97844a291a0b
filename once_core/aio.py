"""The lock store for asyncio: the same steps over an async client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import redis

from once_core._breaker import FAILURES, Breaker
from once_core._client import AsyncClient, make_async_client, masked
from once_core.store import texts

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["AsyncClientSource", "AsyncStore"]

T = TypeVar("T")

AsyncClientSource = AsyncClient | Callable[[], AsyncClient]


class AsyncStore:
    """One lock store for the tasks of event loops; each loop gets a client of its own.

    Args:
        source: A URL, an async redis-py client (then for one loop only), or a function without
            arguments that returns one.

    Example:
        >>> import asyncio
        >>> from once_core import protocol
        >>> store = AsyncStore("memory://async-example")
        >>> asyncio.run(store.run(protocol.claim("k", "m1", ttl=60, heal_after=60))).status
        'claimed'
    """

    def __init__(self, source: str | AsyncClientSource) -> None:
        self.place = masked(source) if isinstance(source, str) else "the client that was given"
        self._source = source
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self._breaker = Breaker(self.place)

    async def run(self, step: Step[T]) -> T:
        """Carry one step, in one round trip.

        Raises:
            StoreUnavailableError: The server did not answer in about a second, or refused.
        """
        self._breaker.gate()
        script, client = step.script, self._connected()
        try:
            try:
                reply = await client.evalsha(script.sha, 1, step.key, *step.args)
            except redis.exceptions.NoScriptError:
                reply = await client.eval(script.text, 1, step.key, *step.args)
        except FAILURES as error:
            raise self._breaker.failed(script.name, error) from error
        self._breaker.succeeded(script.name)
        return step.parse(texts(reply))

    async def close(self) -> None:
        """Close the connections of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None and isinstance(self._source, str):
            await client.aclose()

    def _connected(self) -> Any:  # noqa: ANN401  # redis-py types no evalsha as awaitable
        loop, source = asyncio.get_running_loop(), self._source
        client = self._clients.get(loop)
        if client is None:
            if isinstance(source, str):
                client = make_async_client(source)
            else:
                client = source() if callable(source) else source
            self._clients[loop] = client
        return client
