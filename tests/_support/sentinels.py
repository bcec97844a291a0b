"""Sentinel on loopback: a primary, replicas and three sentinels, gone with their owner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import redis

from _support.clusters import QUICK, asked, cut_off, replication, text_of
from _support.waiting import wait_until
from once_core._orphans import keeper, write_owner
from once_core.devserver import DevServer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SERVICE", "SentinelGroup"]

SERVICE = "locks"
"""What the sentinels watch."""


class _Sentinel(DevServer):
    """One sentinel. Its settings are in a file, which it writes to itself."""

    def __init__(self, primary: int, *, down_after: int, failover_timeout: int) -> None:
        super().__init__()
        self._settings = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {SERVICE} {down_after}",
            f"sentinel failover-timeout {SERVICE} {failover_timeout}",
        )

    def _launch(self, binary: str) -> None:
        folder = self._require_started()
        file = folder / "sentinel.conf"
        head = (f"port {self.port}", "bind 127.0.0.1", f"dir {folder / 'data'}")
        file.write_text("\n".join((*head, *self._settings)) + "\n")
        self._process = keeper().run([binary, str(file), "--sentinel"], folder)
        write_owner(folder, server=self._process.pid, port=self.port)


class SentinelGroup:
    """A primary with replicas, and three sentinels of which two must agree.

    Args:
        replicas: How many.
        down_after: Milliseconds without an answer after which the primary is taken for dead.
    """

    def __init__(self, *, replicas: int = 1, down_after: int = 1000) -> None:
        self._replicas = replicas
        self._down_after = down_after
        self.servers: list[DevServer] = []
        self.sentinels: list[DevServer] = []

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all, and return when the sentinels know each other and the replicas."""
        if self.servers:
            for each in self.servers:
                each.start()
            return self
        primary = DevServer(arguments=QUICK).start()
        self.servers.append(primary)
        for _ in range(self._replicas):
            arguments = (*QUICK, "--replicaof", "127.0.0.1", str(primary.port))
            self.servers.append(DevServer(arguments=arguments).start())
        wait_until(self._is_in_step, "its replicas are in step")
        for _ in range(3):
            sentinel = _Sentinel(primary.port, down_after=self._down_after, failover_timeout=3000)
            self.sentinels.append(sentinel.start())
        wait_until(self._has_met, "the sentinels know each other")
        return self

    def stop(self) -> None:
        """End all."""
        for each in (*self.sentinels, *self.servers):
            each.stop()

    def kill(self) -> None:
        """SIGKILL to all servers but the sentinels; `start` brings them back, without data."""
        for each in self.servers:
            each.kill()

    @contextlib.contextmanager
    def replicating_nothing(self) -> Iterator[DevServer]:
        """Until its end, what is written to the primary, given, reaches no replica."""
        primary = self.primary
        with cut_off(primary, [each for each in self.servers if each is not primary]):
            yield primary

    @property
    def port(self) -> int:
        """Of its first sentinel."""
        return self.sentinels[0].port

    @property
    def url(self) -> str:
        """Of the service that the sentinels watch."""
        places = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{places}/0/{SERVICE}"

    @property
    def primary(self) -> DevServer:
        """The server that most sentinels name."""
        seen = [asked(each, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1] for each in
                self.sentinels if each.is_running]  # fmt: skip
        port = int(max(seen, key=seen.count))
        return next(each for each in self.servers if each.port == port)

    def client(self) -> redis.Redis:
        """A client of the primary."""
        return self.primary.client()

    def kill_primary(self) -> DevServer:
        """SIGKILL to the primary; returns it."""
        primary = self.primary
        primary.kill()
        return primary

    def wait_for_failover(self, old: DevServer) -> DevServer:
        """Wait until all sentinels name another primary, which takes writes; returns it."""

        def taken_over() -> DevServer | None:
            found = self.primary
            if found is old or not found.is_running:
                return None
            return found if replication(found)["role"] == "master" else None

        return wait_until(taken_over, "a replica has taken over")

    def rejoin(self, server: DevServer) -> None:
        """Start a killed server again, and wait until it is a replica that is in step."""
        server.start()
        wait_until(
            lambda: (
                replication(server)["role"] == "slave" and self._is_in_step() and self._has_met()
            ),
            "it is a replica again",
        )

    def _is_in_step(self) -> bool:
        return all(
            replication(each).get("master_link_status", "up") == "up" for each in self.servers
        )

    def _has_met(self) -> bool:
        for each in self.sentinels:
            flat = [text_of(part) for part in asked(each, "SENTINEL", "MASTER", SERVICE)]
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            if (facts["num-other-sentinels"], facts["num-slaves"]) != ("2", str(self._replicas)):
                return False
        return True
