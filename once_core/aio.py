"""The lock store for asyncio: the same steps over an async client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from once_core._breaker import FAILURES, Breaker
from once_core._channel import AsyncListener
from once_core._client import AsyncClient, make_async_client, masked, sentinels_of
from once_core._cluster import ask_async, node_of_async
from once_core._diversion import diversion
from once_core._flow import Flow, Pause
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
        self.prefix = ""
        """Of all keys and channels; empty but in tests."""
        self._source = source
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}
        self._closing: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}
        self._breaker = Breaker(self.place)

    async def run(self, step: Step[T]) -> T:
        """Carry one step, in one round trip.

        Raises:
            StoreUnavailableError: The server did not answer in about a second, or refused.
        """
        self._breaker.gate()
        name, client = step.name, await self._connected()
        node = ""
        try:
            if (node := await node_of_async(client, step)) or step.replicas:
                self._breaker.gate(node, name)
            reply = await ask_async(client, step)
        except FAILURES as error:
            raise self._breaker.failed(name, error, node) from error
        self._breaker.succeeded(name, node)
        return step.parse(texts(reply))

    async def follow(self, flow: Flow[T]) -> T:
        """Carry all steps of a flow, and wait out its pauses.

        Raises:
            StoreUnavailableError: As for `run`, where the flow does not deal with it.
        """
        listener: AsyncListener | None = None
        answer: object = None
        error: BaseException | None = None
        try:
            while True:
                asked = flow.send(answer) if error is None else flow.throw(error)
                answer = error = None
                try:
                    if isinstance(asked, Pause):
                        if listener is None:
                            client = await self._connected()
                            listener = AsyncListener(lambda: client, self.prefix)  # noqa: B023  # made once
                        answer = await listener.wait(asked)
                    else:
                        answer = await self.run(asked)
                except BaseException as raised:  # noqa: BLE001  # for the flow to deal with
                    error = raised
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            error = None  # its traceback leads here: a circle that would keep arguments alive
            if listener is not None:
                await listener.close()

    async def close(self) -> None:
        """Close the connections of the running loop; a loop that ends does it by itself."""
        closing = self._closing.pop(asyncio.get_running_loop(), None)
        if closing is not None:
            await closing.aclose()

    async def _connected(self) -> Any:  # noqa: ANN401  # redis-py types no evalsha as awaitable
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._new_client()
            # `asyncio.run` and every server close the asynchronous generators of their loop
            closing = self._until_closed(loop, client)
            await closing.__anext__()
            self._closing[loop] = closing
            # `list` first: other threads have loops of their own, and add theirs meanwhile
            for other in [each for each in list(self._clients) if each.is_closed()]:
                self._clients.pop(other, None)  # one that ended without
                self._closing.pop(other, None)
        return client

    def _new_client(self) -> Any:  # noqa: ANN401  # see above
        source = self._source
        if not isinstance(source, str):
            return source() if callable(source) else source
        test = diversion()
        if test is not None and not source.startswith("memory:"):
            test.connecting(self.place)
        return make_async_client(source)

    async def _until_closed(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Any,  # noqa: ANN401  # see above
    ) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            self._closing.pop(loop, None)
            is_ours = isinstance(self._source, str) or callable(self._source)
            if is_ours:
                for each in (*sentinels_of(client), client):
                    await each.aclose()
