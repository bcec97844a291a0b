"""The lock store: carries steps to Redis and back. All rules are in `protocol` and its Lua."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import redis

from once_core._breaker import FAILURES, Breaker
from once_core._channel import Listener
from once_core._client import Client, ClientSource, Like, make_client, masked
from once_core._cluster import ClusterCarrier, ask, pipelined
from once_core._diversion import diversion
from once_core._flow import Flow, Pause
from once_core._line import Line
from once_core.errors import StoreUnavailableError

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["Carrier", "ClientSource", "Store"]

T = TypeVar("T")

GIVEN = "the client that was given"
"""Where a store is whose client was handed in."""


class Carrier(Protocol):
    """Takes steps to a server, and their replies back."""

    @property
    def client(self) -> Client:
        """For commands of one's own."""

    def node(self, step: Step[Any]) -> str:
        """Name of the node of a Cluster that has the key; empty where there is one server only."""

    def script(self, step: Step[Any]) -> object:
        """The reply to one step; raises what redis-py raises."""

    def scripts(self, steps: Sequence[Step[Any]], *, with_texts: bool = False) -> list[object]:
        """The replies to many steps, sent at once; errors of single ones among them.

        With their texts for a server that has not all of their scripts.
        """


class Store:
    """One lock store, for all threads of a process and for its forked children.

    Makes its client at the first step, so it can be created while Redis is away.

    Args:
        source: A URL (see `once_core._client`), the server of another client (`Like`), a redis-py
            client, or a function without arguments that returns one. A client keeps its own
            time-outs and retries: with redis-py's defaults a call can take a minute while the
            server is away.
        place: What it is called in messages; by default where it is.

    Example:
        >>> from once_core import protocol
        >>> store = Store("memory://example")
        >>> store.run(protocol.claim("once:demo", "m1", ttl=60, heal_after=60)).status
        'claimed'
        >>> store.run(protocol.claim("once:demo", "m2", ttl=60, heal_after=60)).holder_id
        'm1'
    """

    def __init__(self, source: str | Like | ClientSource, *, place: str = "") -> None:
        self.place = place or _place(source)
        self.prefix = ""
        """Of all keys and channels; empty but in tests."""
        self._source = source
        self._carriers: dict[int, Carrier] = {}
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
        node = ""
        try:
            carrier = self._connected()
            if (node := carrier.node(step)) or step.replicas:
                self._breaker.gate(node, step.name)
            reply = carrier.script(step) if not step.replicas else _replicated(carrier, step)
        except FAILURES as error:
            self._server = None  # it may come back as another one
            raise self._breaker.failed(step.name, error, node) from error
        self._breaker.succeeded(step.name, node)
        return step.parse(texts(reply))

    def follow(self, flow: Flow[T]) -> T:
        """Carry all steps of a flow, and wait out its pauses.

        Raises:
            StoreUnavailableError: As for `run`, where the flow does not deal with it.
        """
        listener: Listener | None = None
        answer: object = None
        error: BaseException | None = None
        try:
            while True:
                asked = flow.send(answer) if error is None else flow.throw(error)
                answer = error = None
                try:
                    if isinstance(asked, Pause):
                        listener = listener or Listener(self.client, self.prefix)
                        answer = listener.wait(asked)
                    else:
                        answer = self.run(asked)
                except BaseException as raised:  # noqa: BLE001  # for the flow to deal with
                    error = raised
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            error = None  # its traceback leads here: a circle that would keep arguments alive
            if listener is not None:
                listener.close()

    def run_many(self, steps: Sequence[Step[T]]) -> list[T | StoreUnavailableError]:
        """Carry many steps in one round trip; each has its own answer or error.

        Asks the server even while the breaker is open: heartbeats must notice that it is back.
        """
        if not steps:
            return []
        answers: list[T | StoreUnavailableError] = []
        try:
            carrier = self._connected()
            nodes = [carrier.node(step) for step in steps]
            replies = _with_missing_scripts(carrier, steps, carrier.scripts(steps))
        except FAILURES as error:
            failure = self._breaker.failed(steps[0].name, error)
            return [failure for _ in steps]
        for step, node, reply in zip(steps, nodes, replies, strict=True):
            if isinstance(reply, FAILURES):
                failure = self._breaker.failed(step.name, reply, node)
                failure.__cause__ = reply
                answers.append(failure)
            else:
                self._breaker.succeeded(step.name, node)
                answers.append(step.parse(texts(reply)))
        return answers

    def ask_again(self) -> None:
        """Ask the server with the next step, even if it has failed just now."""
        self._breaker.ask_again()

    def sibling(self) -> Store:
        """The same store over connections of its own, for a thread that shares none."""
        twin = Store(self._source)
        twin._breaker = self._breaker  # one outage, told once
        return twin

    @property
    def id(self) -> str:
        """Which server this is: part of its run id; empty where it does not say.

        A Cluster has none of its own, and who was promoted took the place of a server that had
        another. One round trip, once a process and after each outage.
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
                client = self._connected().client
                info: Any = {} if isinstance(client, redis.RedisCluster) else client.info()
                if str(info.get("master_replid2", "")).strip("0"):  # of whom it was a replica
                    info = {}
                age = float(info.get("uptime_in_seconds", 0))
                now = float(info.get("server_time_usec", 0)) / 1e6
                self._server = str(info.get("run_id", ""))[:12], now - age
            except FAILURES:
                self._server = "", 0.0  # fakeredis, an ACL without INFO: nobody can say
        return self._server

    @property
    def is_at_hand(self) -> bool:
        """Whether a thread that works behind tasks' backs may use it now.

        Not where that would make a connection in the middle of a test, which has taken the place
        of the lock store and refuses it: it is of what an earlier test has left.
        """
        is_own = not isinstance(self._source, (str, Like))
        return diversion() is None or is_own or os.getpid() in self._carriers

    def client(self) -> Client:
        """The redis-py client, for commands of one's own."""
        return self._connected().client

    def _connected(self) -> Carrier:
        pid = os.getpid()  # a forked child shares no connection with its parent
        found = self._carriers.get(pid)
        if found is None:
            # atomic: of two threads that come first, both go on with one client
            found = self._carriers.setdefault(pid, self._carrier())
        return found

    def _carrier(self) -> Carrier:
        """What takes steps to the server and back; `once_pytest` stands in between."""
        return _carrier(self._source)


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
    return source.place if isinstance(source, Like) else GIVEN


def _carrier(source: str | Like | ClientSource) -> Carrier:
    if not isinstance(source, (str, Like)):
        return _over(source() if callable(source) else source)
    test = diversion()
    if test is not None and not _place(source).startswith("memory:"):
        test.connecting(_place(source))
    client = source.make() if isinstance(source, Like) else make_client(source)
    if type(client) is redis.Redis and type(client.connection_pool) is redis.ConnectionPool:
        return Line(client)
    return _over(client)


def _over(client: Client) -> Carrier:
    if isinstance(client, redis.RedisCluster):
        return ClusterCarrier(client)
    return _ClientCarrier(client)


class _ClientCarrier:
    """Over any redis-py client of one server: Sentinel's, fakeredis, the user's own."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def node(self, _step: Step[Any]) -> str:
        return ""

    def script(self, step: Step[Any]) -> object:
        return ask(self.client, step)

    def scripts(self, steps: Sequence[Step[Any]], *, with_texts: bool = False) -> list[object]:
        if type(self.client).__module__.startswith("fakeredis"):  # no replicas to wait for
            steps = [replace(step, replicas=0) for step in steps]
        return pipelined(self.client, steps, with_texts=with_texts)


def _replicated(carrier: Carrier, step: Step[Any]) -> object:
    """The reply to a step that replicas have to have."""
    [reply] = _with_missing_scripts(carrier, [step], carrier.scripts([step]))
    if isinstance(reply, Exception):
        raise reply
    return reply


def _with_missing_scripts(
    carrier: Carrier, steps: Sequence[Step[Any]], replies: Sequence[object]
) -> list[object]:
    """Send steps again whose script the server had not."""
    answers = list(replies)
    missing = [
        at for at, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)
    ]
    if missing:
        again = carrier.scripts([steps[at] for at in missing], with_texts=True)
        for at, reply in zip(missing, again, strict=True):
            answers[at] = reply
    return answers


def texts(reply: Any) -> Any:  # noqa: ANN401  # whatever a script returned
    """A reply, or the parts of one, as text whether or not the client decodes."""
    if isinstance(reply, bytes):
        return reply.decode()
    return [texts(part) for part in reply] if isinstance(reply, list) else reply
