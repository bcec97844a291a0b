"""Where the locks of tests live: fakeredis, a server of our own, or one that somebody names."""

from __future__ import annotations

import importlib.util
import os
import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import redis
    import redis.asyncio

    from once_core.devserver import DevServer

__all__ = ["Place", "place"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1", None, "")


class Place:
    """A server, or for ``"fake"`` one for each test. Made once a session; starts when needed.

    Args:
        kind: ``"fake"``, ``"spawn"`` or a URL.
        binary: Of the server to spawn; found if empty.

    Attributes:
        is_fake: Whether only this process sees the locks.
        is_ours: Whether nobody else uses the server.
    """

    def __init__(self, kind: str, binary: str = "") -> None:
        self.kind = kind
        self.is_fake = kind == "fake"
        self.is_ours = kind in ("fake", "spawn")
        self._binary = binary
        self._server: DevServer | None = None

    @cached_property
    def url(self) -> str:
        """Of the server; empty for fakes."""
        if self.is_fake:
            return ""
        if self.kind != "spawn":
            return self.kind
        from once_core.devserver import DevServer

        self._server = DevServer(binary=self._binary) if self._binary else DevServer()
        self._server.start()
        return self._server.url

    def close(self) -> None:
        """Stop the server if it is ours."""
        if self._server is not None:
            self._server.stop()

    def open(self) -> Opened:
        """What one test gets of it."""
        return Opened(self)


class Opened:
    """The part of a place that belongs to one test.

    Attributes:
        base: Of all its keys; empty where it has a server of its own.
        prefix: Of those of its locks.
    """

    def __init__(self, of: Place) -> None:
        self.place = of
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        self.base = "" if of.is_fake else f"once-test:{worker}:{uuid.uuid4().hex[:8]}:"
        self.prefix = f"{self.base}locks:" if self.base else ""
        self._server: object = None

    def client(self) -> redis.Redis:
        """A client, with the time-outs that this library has."""
        if self.place.is_fake:
            fakeredis = _fakeredis()
            self._server = self._server or fakeredis.FakeServer()
            made: redis.Redis = fakeredis.FakeRedis(server=self._server)
            return made
        from once_core._client import make_client

        return make_client(self.place.url)  # type: ignore[return-value]  # no Cluster's URL

    def async_client(self) -> redis.asyncio.Redis:
        """The same for asyncio; to be made in the loop that uses it."""
        if self.place.is_fake:
            fakeredis = _fakeredis()
            self._server = self._server or fakeredis.FakeServer()
            made: redis.asyncio.Redis = fakeredis.FakeAsyncRedis(server=self._server)
            return made
        from once_core._client import make_async_client

        return make_async_client(self.place.url)  # type: ignore[return-value]  # see above


def place(kind: str, *, binary: str = "", allow_remote: bool = False) -> Place:
    """The place that a user named.

    Args:
        kind: ``"fake"``, ``"spawn"``, or a ``redis://`` URL.
        binary: Of the server to spawn.
        allow_remote: Whether a URL may be of another machine.

    Raises:
        ValueError: Saying what it may be.
    """
    if kind in ("fake", "spawn"):
        return Place(kind, binary)
    parts = urlsplit(kind)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(
            f"--once-redis={kind!r} is none of fake, spawn or a redis://, rediss:// or unix:// URL"
        )
    if parts.hostname not in _LOOPBACK and not allow_remote:
        raise ValueError(
            f"--once-redis names the host {parts.hostname!r}, which is not this machine: tests "
            "write there (keys once-test:*, which they delete); say --once-redis-allow-remote if "
            "that is what you want"
        )
    return Place(kind)


def _fakeredis() -> Any:  # noqa: ANN401  # has no types
    if importlib.util.find_spec("fakeredis") is None or importlib.util.find_spec("lupa") is None:
        raise ImportError(
            "once_pytest needs fakeredis with Lua: pip install 'once-tasks[pytest]', or run on a "
            "real server with --once-redis=spawn"
        )
    import fakeredis

    return fakeredis
