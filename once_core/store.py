"""The lock store: carries steps to Redis and back. All rules are in `protocol` and its Lua."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from once_core._breaker import FAILURES, Breaker
from once_core._client import Client, ClientSource, Like, make_client, masked
from once_core._line import Line
from once_core.errors import StoreUnavailableError

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["ClientSource", "Store"]

T = TypeVar("T")


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
        self._carriers: dict[int, Line | _ClientCarrier] = {}
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
            carrier = self._connected()
            replies = _with_missing_scripts(carrier, steps, carrier.scripts(steps))
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

    def _connected(self) -> Line | _ClientCarrier:
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


def _carrier(source: str | Like | ClientSource) -> Line | _ClientCarrier:
    if not isinstance(source, (str, Like)):
        return _ClientCarrier(source() if callable(source) else source)
    client = source.make() if isinstance(source, Like) else make_client(source)
    if type(client) is redis.Redis and type(client.connection_pool) is redis.ConnectionPool:
        return Line(client)
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
        return replies

    def _one(self, step: Step[Any]) -> object:
        try:
            return self.script(step)
        except FAILURES as error:
            return error


def _with_missing_scripts(
    carrier: Line | _ClientCarrier, steps: Sequence[Step[Any]], replies: Sequence[object]
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
