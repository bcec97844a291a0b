"""The lock store: carries steps to Redis and back. All rules are in `protocol` and its Lua."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from once_core._breaker import FAILURES, Breaker
from once_core._client import Client, ClientSource, Like, make_client, masked
from once_core._clock import elapsed
from once_core.errors import StoreUnavailableError

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["ClientSource", "Store"]

T = TypeVar("T")

FRESH = 0.01
"""Seconds after its last use in which a connection is not asked whether it is still good."""


class Store:
    """One lock store, for all threads of a process and for its forked children.

    Makes its client at the first step, so it can be created while Redis is away.

    Args:
        source: A URL (see `once_core._client`), the server of another client (`Like`), a redis-py
            client, or a function without arguments that returns one. A client keeps its own
            time-outs and retries: with redis-py's defaults a call can take a minute while the
            server is away.

    Example:
        >>> from once_core import protocol
        >>> store = Store("memory://example")
        >>> store.run(protocol.claim("once:demo", "m1", ttl=60, heal_after=60)).status
        'claimed'
        >>> store.run(protocol.claim("once:demo", "m2", ttl=60, heal_after=60)).holder_id
        'm1'
    """

    def __init__(self, source: str | Like | ClientSource) -> None:
        self.place = _place(source)
        self._source = source
        self._carriers: dict[int, _Line | _ClientCarrier] = {}
        self._server: tuple[str, float] | None = None
        self._breaker = Breaker(self.place)
        self.ghosts = Ghosts()
        self.strangers: set[str] = set()
        """Ids of other stores that were reported already."""

    def run(self, step: Step[T]) -> T:
        """Carry one step, in one round trip.

        Raises:
            StoreUnavailableError: The server did not answer in about a second, or refused.
        """
        self._breaker.gate()
        try:
            reply = self._connected().script(step)
        except FAILURES as error:
            self._server = None  # it may come back as another one
            raise self._breaker.failed(step.script.name, error) from error
        self._breaker.succeeded(step.script.name)
        return step.parse(texts(reply))

    def run_many(self, steps: Sequence[Step[T]]) -> list[T | StoreUnavailableError]:
        """Carry many steps in one round trip; each has its own answer or error.

        Asks the server even while the breaker is open: heartbeats must notice that it is back.
        """
        if not steps:
            return []
        answers: list[T | StoreUnavailableError] = []
        try:
            replies = self._connected().scripts(steps)
        except FAILURES as error:
            failure = self._breaker.failed(steps[0].script.name, error)
            return [failure for _ in steps]
        for step, reply in zip(steps, replies, strict=True):
            if isinstance(reply, FAILURES):
                answers.append(self._breaker.failed(step.script.name, reply))
            else:
                self._breaker.succeeded(step.script.name)
                answers.append(step.parse(texts(reply)))
        return answers

    def sibling(self) -> Store:
        """The same store over connections of its own, for a thread that shares none."""
        twin = Store(self._source)
        twin._breaker = self._breaker  # one outage, told once
        return twin

    @property
    def id(self) -> str:
        """Which server this is: part of its run id; empty where it does not say.

        One round trip, once a process and after each outage.
        """
        return self._identity()[0]

    def is_other(self, claimed_in: str, ticket: int) -> bool:
        """Whether a ticket was given out by another server, and not by this one's earlier life.

        Args:
            claimed_in: The `id` that the producer saw.
            ticket: Microseconds of its server's clock, as tickets are.
        """
        mine, started_at = self._identity()
        return bool(claimed_in and mine and claimed_in != mine and ticket / 1e6 > started_at)

    def _identity(self) -> tuple[str, float]:
        if self._server is None:
            try:
                info: Any = self._connected().client.info("server")
                age = float(info.get("uptime_in_seconds", 0))
                now = float(info.get("server_time_usec", 0)) / 1e6
                self._server = str(info.get("run_id", ""))[:12], now - age
            except FAILURES:
                self._server = "", 0.0  # fakeredis, an ACL without INFO: nobody can say
        return self._server

    def client(self) -> Client:
        """The redis-py client, for commands of one's own."""
        return self._connected().client

    def _connected(self) -> _Line | _ClientCarrier:
        pid = os.getpid()  # a forked child shares no connection with its parent
        found = self._carriers.get(pid)
        if found is None:
            # atomic: of two threads that come first, both go on with one client
            found = self._carriers.setdefault(pid, _carrier(self._source))
        return found


class Ghosts:
    """Claims of this process that may be in the store although nobody heard the answer.

    Known by a nonce, so that the next claim of the same key takes its own ghost over at once
    instead of being refused by it for a minute. Bounded: what is forgotten heals.
    """

    MOST = 10_000

    def __init__(self) -> None:
        self._nonces: dict[str, str] = {}

    def add(self, key: str, nonce: str) -> None:
        """Remember a claim that may be a ghost."""
        if len(self._nonces) < self.MOST:
            self._nonces[key] = nonce

    def take(self, key: str) -> str:
        """The nonce of our ghost of this key, for one thread alone; or an empty text."""
        return self._nonces.pop(key, "")


def _place(source: str | Like | ClientSource) -> str:
    if isinstance(source, str):
        return masked(source)
    return source.place if isinstance(source, Like) else "the client that was given"


def _carrier(source: str | Like | ClientSource) -> _Line | _ClientCarrier:
    if not isinstance(source, (str, Like)):
        return _ClientCarrier(source() if callable(source) else source)
    client = source.make() if isinstance(source, Like) else make_client(source)
    if type(client) is redis.Redis and type(client.connection_pool) is redis.ConnectionPool:
        return _Line(client)
    return _ClientCarrier(client)


class _ClientCarrier:
    """Over any redis-py client: Sentinel, Cluster, fakeredis, the user's own."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def script(self, step: Step[Any]) -> object:
        script, client = step.script, self.client
        try:
            return client.evalsha(script.sha, 1, step.key, *step.args)
        except redis.exceptions.NoScriptError:
            return client.eval(script.text, 1, step.key, *step.args)

    def scripts(self, steps: Sequence[Step[Any]]) -> list[object]:
        if isinstance(self.client, redis.RedisCluster):
            return [self._one(step) for step in steps]  # its pipelines refuse EVALSHA
        pipeline = self.client.pipeline(transaction=False)
        for step in steps:
            pipeline.evalsha(step.script.sha, 1, step.key, *step.args)
        replies: list[object] = pipeline.execute(raise_on_error=False)
        return _with_missing_scripts(self, steps, replies)

    def _one(self, step: Step[Any]) -> object:
        try:
            return self.script(step)
        except FAILURES as error:
            return error


class _Line:
    """Over plain connections of our own, without `execute_command` and its pool.

    What those add to each call costs as much as the script itself (measured: a publish takes
    1.40 times a plain one with them, 1.32 without).
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._pool = client.connection_pool
        self._idle: deque[Any] = deque()

    def script(self, step: Step[Any]) -> object:
        script = step.script
        try:
            return self._call((("EVALSHA", script.sha, 1, step.key, *step.args),))[0]
        except redis.exceptions.NoScriptError:
            return self._call((("EVAL", script.text, 1, step.key, *step.args),))[0]

    def scripts(self, steps: Sequence[Step[Any]]) -> list[object]:
        commands = [("EVALSHA", step.script.sha, 1, step.key, *step.args) for step in steps]
        replies = self._call(commands, raises=False)
        return _with_missing_scripts(self, steps, replies)

    def _call(
        self, commands: Sequence[tuple[str | int, ...]], *, raises: bool = True
    ) -> list[object]:
        connection = self._take()
        try:
            packed = b"".join([_packed(command) for command in commands])
            connection.send_packed_command([packed], check_health=False)
            replies = [self._read(connection, raises=raises) for _ in commands]
        except redis.ResponseError:
            self._put(connection)
            raise
        except BaseException:
            # a time-out, or a soft time limit in the middle of it: the answer may yet come
            connection.disconnect()
            self._put(connection)
            raise
        self._put(connection)
        return replies

    @staticmethod
    def _read(connection: Any, *, raises: bool) -> object:  # noqa: ANN401  # redis-py's, many kinds
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            if raises:
                raise
            return error

    def _take(self) -> Any:  # noqa: ANN401  # redis-py's connections, of many kinds
        """A connected connection; one that went stale while idle is not an outage."""
        try:
            connection, used_at = self._idle.pop()
        except IndexError:
            connection = self._pool.make_connection()
        else:
            if connection._sock is not None:  # noqa: SLF001  # redis-py 5 has no is_connected
                if elapsed() - used_at < FRESH or self._is_good(connection):
                    return connection
                connection.disconnect()
        try:
            connection.connect()
        except BaseException:
            self._put(connection)
            raise
        return connection

    @staticmethod
    def _is_good(connection: Any) -> bool:  # noqa: ANN401  # see `_take`
        try:
            return not connection.can_read(0)
        except FAILURES:  # it raises at the end of file
            return False

    def _put(self, connection: Any) -> None:  # noqa: ANN401  # see `_take`
        self._idle.append((connection, elapsed()))


def _with_missing_scripts(
    carrier: _Line | _ClientCarrier, steps: Sequence[Step[Any]], replies: Sequence[object]
) -> list[object]:
    """Send again, one by one and with their text, the steps whose script the server had not."""
    answers = list(replies)
    for index, reply in enumerate(replies):
        if isinstance(reply, redis.exceptions.NoScriptError):
            answers[index] = carrier.script(steps[index])
    return answers


def texts(reply: Any) -> Any:  # noqa: ANN401  # whatever a script returned
    """A reply, or the parts of one, as text whether or not the client decodes."""
    if isinstance(reply, bytes):
        return reply.decode()
    return [texts(part) for part in reply] if isinstance(reply, list) else reply


def _packed(command: Sequence[str | int]) -> bytes:
    """A command as Redis wants it; redis-py's own packing takes ten times as long."""
    words = [word if type(word) is str else str(word) for word in command]
    text = "".join([f"${len(word)}\r\n{word}\r\n" for word in words])
    if not text.isascii():
        text = "".join([f"${len(word.encode())}\r\n{word}\r\n" for word in words])
    return f"*{len(words)}\r\n{text}".encode()
