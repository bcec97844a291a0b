"""Waiting for a word on a channel, sync and async: only an accelerator for who asks anyway."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis

from once_core._breaker import FAILURES
from once_core._clock import elapsed

if TYPE_CHECKING:
    from once_core._flow import Pause

__all__ = ["AsyncListener", "Listener"]

MOST_LISTENERS = 128
"""Connections for listening, of one process: whoever waits beside them asks now and then."""

TRIES = 3
"""After so many failures it asks now and then, and listens no more."""

SLICE = 0.5
"""Seconds of one look at the connection: below our read time-out, and short for who is stopped."""


_listening: dict[int, int] = {}
"""How many listen, by process: a fork inherits none of them."""


def _count(more: int) -> None:
    _listening[os.getpid()] = _listening.get(os.getpid(), 0) + more


class Listener:
    """Hears words on a channel. The first wait returns at once, when it has begun to listen.

    For what was said before that, whoever waits has to look again.

    Args:
        client: Makes the client; asked when it is first needed.
        prefix: Of channels, as of keys.
    """

    def __init__(self, client: Callable[[], Any], prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._channel: Any = None
        self._failures = 0

    def wait(self, pause: Pause) -> bool:
        """Whether something came before the pause was over.

        Where the server refuses subscriptions, or is away, it is a short sleep instead.
        """
        end = elapsed() + pause.seconds
        try:
            channel = self._channel
            if channel is None:
                channel = self._open()
                channel.subscribe(self._prefix + pause.channel)
                return bool(channel.get_message(timeout=SLICE))
            while (left := end - elapsed()) > 0:
                message = channel.get_message(timeout=min(left, SLICE))
                if message is not None and message["type"] == "message":
                    return True
        except FAILURES:
            self.close()
            time.sleep(self._pause(end))
        return False

    def _open(self) -> Any:  # noqa: ANN401  # redis-py types no pubsub
        if self._failures >= TRIES:
            raise redis.ConnectionError("it will not be heard")
        if _listening.get(os.getpid(), 0) >= MOST_LISTENERS:
            self._failures = min(self._failures, TRIES - 2)  # a seat may be free the next time
            raise redis.ConnectionError("enough others listen")
        client = self._client()
        if not hasattr(client, "pubsub"):  # of a Cluster, for asyncio, before redis-py 8
            raise redis.ConnectionError("it hears nothing")
        self._channel = client.pubsub()
        _count(1)
        return self._channel

    def _pause(self, end: float) -> float:
        """Seconds to sleep where nothing can be heard: it is polling after all, and backs off."""
        self._failures += 1
        most: float = min(1.0, 0.05 * 2.0 ** min(self._failures, 10))
        drawn = most * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
        return max(0.0, min(end - elapsed(), drawn))

    def close(self) -> None:
        """Listen no more."""
        channel, self._channel = self._channel, None
        if channel is not None:
            _count(-1)
            channel.close()


class AsyncListener(Listener):
    """The same for asyncio; its methods are awaited."""

    async def wait(self, pause: Pause) -> bool:  # type: ignore[override]  # awaited
        """As that of `Listener`."""
        end = elapsed() + pause.seconds
        try:
            channel = self._channel
            if channel is None:
                channel = self._open()
                await channel.subscribe(self._prefix + pause.channel)
                return bool(await channel.get_message(timeout=SLICE))
            while (left := end - elapsed()) > 0:
                message = await channel.get_message(timeout=min(left, SLICE))
                if message is not None and message["type"] == "message":
                    return True
        except FAILURES:
            await self.close()
            await asyncio.sleep(self._pause(end))
        return False

    async def close(self) -> None:  # type: ignore[override]  # awaited
        """As that of `Listener`."""
        channel, self._channel = self._channel, None
        if channel is not None:
            _count(-1)
            await channel.aclose()
