"""Redis Cluster on loopback: real servers, made by commands, gone with their owner."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.retry import Retry

from _support.waiting import wait_until
from once_core.devserver import DevServer, _free_port
from once_core.errors import StoreUnavailableError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["QUICK", "SLOTS", "Cluster", "asked", "cut_off", "replication", "text_of"]

SLOTS = 16_384

QUICK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
"""Replicas are in step within a fraction of a second, and stay so."""


class Cluster:
    """Primaries with a replica each; a test kills them, cuts them off, and moves slots.

    Args:
        primaries: How many.
        replicas: How many for each of them.
        node_timeout: Milliseconds without an answer after which a node is taken for dead.
        arguments: More arguments for each server.
    """

    def __init__(
        self,
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout: int = 1000,
        arguments: Sequence[str] = (),
    ) -> None:
        self._primaries = primaries
        self._replicas = replicas
        self._arguments = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout)),
            *("--cluster-replica-validity-factor", "0", *QUICK, *arguments),
        )
        self.nodes: list[DevServer] = []
        self._buses: dict[int, int] = {}

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all nodes, and return when slots are covered and replicas in step."""
        if self.nodes:
            return self._start_again()
        self.nodes = [self._node() for _ in range(self._primaries * (1 + self._replicas))]
        first, *others = self.nodes
        for number, node in enumerate(self.nodes, 1):
            self._ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for other in others:
            bus = self._buses[other.port]
            self._ask(first, "CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        primaries, replicas = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for number, node in enumerate(primaries):
            begin, end = (SLOTS * each // self._primaries for each in (number, number + 1))
            self._ask(node, "CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        count = len(self.nodes)
        self._until(lambda info: info["cluster_known_nodes"] == str(count), "all have met")
        for number, replica in enumerate(replicas):
            of = self.node_id(primaries[number % self._primaries])
            # a replica may hear of its primary a moment after it has met all
            wait_until(lambda r=replica, i=of: self._obeys(r, i), "it replicates")  # type: ignore[misc]  # mypy: lambda's defaults
        self._until(lambda info: info["cluster_state"] == "ok", "the cluster is up")
        wait_until(self._is_in_step, "its replicas are in step")
        return self

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        """SIGKILL to all nodes; `start` brings them back, without data."""
        for node in self.nodes:
            node.kill()

    def _start_again(self) -> Self:
        for node in self.nodes:
            node.start()
        self._until(lambda info: info["cluster_state"] == "ok", "the cluster is up")
        return self

    @property
    def port(self) -> int:
        """Of its first node."""
        return self.nodes[0].port

    @property
    def url(self) -> str:
        """Of the cluster; names three of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.nodes[:3])

    def announce(self, ports: dict[int, int]) -> None:
        """Have nodes tell others and clients of other ports than their own, such as a proxy's.

        Without replicas only: those would go there, too.
        """
        for node in self.nodes:
            self._ask(node, "CONFIG", "SET", "cluster-announce-port", ports[node.port])
        wanted = set(ports.values())
        wait_until(
            lambda: all(
                {entry[2][1] for entry in asked(node, "CLUSTER", "SLOTS")} == wanted
                for node in self.nodes
            ),
            "all nodes tell of these ports",
        )

    @property
    def live(self) -> list[DevServer]:
        """Nodes whose process lives."""
        return [node for node in self.nodes if node.is_running]

    def client(self) -> Any:
        """Any: redis-py types its answers for one server."""
        nodes = [ClusterNode("127.0.0.1", each.port) for each in self.live]
        return redis.RedisCluster(startup_nodes=nodes, socket_timeout=2.0)

    def node_id(self, node: DevServer) -> str:
        """By which the others know it."""
        return str(self._ask(node, "CLUSTER", "MYID"))

    def primary_of(self, key: str) -> DevServer:
        """The node that has a key, as a live node knows it."""
        return self.owner(key_slot(key.encode()))

    def owner(self, slot: int) -> DevServer:
        """The node that has a slot, as most of the live nodes know it."""
        seen = [self._owner_as_seen(node, slot) for node in self.live]
        port = max(seen, key=seen.count)
        return next(node for node in self.nodes if node.port == port)

    def replicas_of(self, primary: DevServer) -> list[DevServer]:
        """The live nodes that replicate it."""
        wanted = self.node_id(primary)
        return [node for node in self.live if self._primary_id(node) == wanted]

    def kill_primary_of(self, key: str) -> DevServer:
        """SIGKILL to the node that has a key; returns it."""
        node = self.primary_of(key)
        node.kill()
        return node

    def wait_for_failover(self, key: str) -> DevServer:
        """Wait until a live node has this key and all slots are covered; returns it."""

        def taken_over() -> DevServer | None:
            seen = {self._owner_as_seen(node, key_slot(key.encode())) for node in self.live}
            found = [node for node in self.live if node.port in seen]
            return found[0] if len(seen) == 1 and found else None

        node = wait_until(taken_over, "a replica has taken over")
        self._until(lambda info: info["cluster_state"] == "ok", "all slots are covered")
        return node

    @contextlib.contextmanager
    def replicating_nothing(self, key: str) -> Iterator[DevServer]:
        """Until its end, what is written to the primary of this key, given, reaches no replica."""
        primary = self.primary_of(key)
        with cut_off(primary, self.replicas_of(primary)):
            yield primary

    def rejoin(self, node: DevServer) -> None:
        """Start a killed node again, and wait until all replicas are in step."""
        node.start()
        self._until(lambda info: info["cluster_state"] == "ok", "the cluster is up")
        wait_until(self._is_in_step, "its replicas are in step")

    def reshard(self, slot: int, to: DevServer, pause: Callable[[], object] | None = None) -> None:
        """Move a slot with its keys to another primary, as redis-cli does.

        Args:
            slot: Number of the slot.
            to: Who gets it.
            pause: Called when the slot is halfway: its keys are on both sides.
        """
        source = self.owner(slot)
        if source is to:
            return
        self._ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        self._ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))
        if pause is not None:
            pause()
        while keys := self._ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            for key in keys:
                self._ask(source, "MIGRATE", "127.0.0.1", to.port, key, 0, 2000)
        for node in (to, source, *self.live):
            if self._primary_id(node) == "-":
                self._ask(node, "CLUSTER", "SETSLOT", slot, "NODE", self.node_id(to))

    def _node(self) -> DevServer:
        for _ in range(20):  # a port that was free may be taken when the server comes to it
            port, bus = _free_port(), _free_port()
            arguments = (*self._arguments, "--cluster-port", str(bus))
            node = DevServer(port=port, arguments=arguments)
            if port != bus:
                with contextlib.suppress(StoreUnavailableError):
                    node.start()
                    self._buses[port] = bus
                    return node
        raise AssertionError("no two ports are free")

    @staticmethod
    def _ask(node: DevServer, *command: str | int | bytes) -> Any:
        return text_of(asked(node, *command))

    def _obeys(self, replica: DevServer, primary_id: str) -> bool:
        with contextlib.suppress(redis.ResponseError):
            self._ask(replica, "CLUSTER", "REPLICATE", primary_id)
            return True
        return False

    def _until(self, holds: Callable[[dict[str, str]], bool], what: str) -> None:
        wait_until(lambda: all(holds(self._info(node)) for node in self.live), what)

    def _info(self, node: DevServer) -> dict[str, str]:
        lines = _parsed(self._ask(node, "CLUSTER", "INFO"))
        return dict(lines)

    def _primary_id(self, node: DevServer) -> str:
        """Of a replica; of a primary ``-``."""
        mine = next(
            line for line in self._ask(node, "CLUSTER", "NODES").splitlines() if "myself" in line
        )
        return str(mine.split()[3])

    def _owner_as_seen(self, node: DevServer, slot: int) -> int:
        for begin, end, primary, *_ in asked(node, "CLUSTER", "SLOTS"):
            if begin <= slot <= end:
                return int(primary[1])
        return 0

    def _is_in_step(self) -> bool:
        return all(replication(node).get("master_link_status", "up") == "up" for node in self.live)


@contextlib.contextmanager
def cut_off(primary: DevServer, replicas: Sequence[DevServer]) -> Iterator[None]:
    """Replicas that stand still, and whose connections are closed.

    Else what is written waits in their sockets, and they would read it when they go on, also after
    the death of the primary.
    """
    for each in replicas:
        each.pause()
    try:
        asked(primary, "CLIENT", "KILL", "TYPE", "replica")
        yield
    finally:
        for each in replicas:
            each.resume()


def asked(server: DevServer, *command: str | int | bytes) -> Any:
    """What the server itself answers; redis-py's parsers know some commands in one form only."""
    connection = redis.Connection(
        port=server.port, protocol=2, socket_timeout=5.0, retry=Retry(NoBackoff(), 0)
    )
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


def text_of(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [text_of(part) for part in value] if isinstance(value, list) else value


def _parsed(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name, value


def replication(server: DevServer) -> dict[str, str]:
    return dict(_parsed(text_of(asked(server, "INFO", "replication"))))
