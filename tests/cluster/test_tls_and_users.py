"""TLS and users with the least rights, on a Cluster and behind Sentinel."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _support.clusters import Cluster
from _support.sentinels import SentinelGroup
from redis.crc import key_slot

from once_core import protocol
from once_core.aio import AsyncStore
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.permissions import acl, missing
from once_core.protocol import Message
from once_core.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

PASSWORD = "s3cr3t"

WAITING = {"ttl": 60, "heal_after": 60}

CLAIM = protocol.claim("once:unit:" + "0" * 40, "m1", **WAITING)


def _run(*words: str, folder: Path) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of it for 127.0.0.1, and another CA."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    for name in ("ca", "other"):
        to = (f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        _run("openssl", "req", "-x509", "-days", "2", *key, *to, folder=folder)
    to = ("server.key", "-out", "server.csr", "-subj", "/CN=locks")
    _run("openssl", "req", *key, *to, folder=folder)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", encoding="utf-8")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    to = ("-in", "server.csr", "-out", "server.pem", "-days", "2")
    _run("openssl", "x509", "-req", *to, *by, folder=folder)
    return folder


@pytest.fixture(scope="module")
def cluster(certificates: Path) -> Iterator[str]:
    """Places of three primaries behind TLS, which know a user with a worker's rights.

    The servers that pip installs are built without TLS, so proxies speak it, and the nodes tell
    clients of these.
    """
    with Cluster(replicas=0) as cluster, Proxies(certificates) as proxies:
        cluster.announce({node.port: proxies.open(node.port) for node in cluster.nodes})
        for node in cluster.nodes:  # no node tells another of its users
            add_users(node, cluster=True)
        yield ",".join(f"127.0.0.1:{port}" for port in proxies.ports)


class Proxies:
    """Take TLS connections, and pass on what comes from either side; in a thread of their own."""

    def __init__(self, certificates: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._lives = threading.Event()
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.ports: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._lives.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _live(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._lives.set()
        await self._end.wait()
        for each in self._servers:
            each.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # in which they end

    def open(self, port: int) -> int:
        """The port of a new proxy for this one."""

        async def serve() -> int:
            server = await asyncio.start_server(
                lambda *outer: self._serve(port, *outer), "127.0.0.1", 0, ssl=self._context
            )
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        self.ports.append(asyncio.run_coroutine_threadsafe(serve(), self._loop).result(10))
        return self.ports[-1]

    async def _serve(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers += [writer, inner_writer]
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one of the two has gone
    writer.close()


def add_users(server: DevServer, *, cluster: bool = False) -> None:
    """As `once doctor --acl` prints them."""
    rules = acl("worker", cluster=cluster)
    server.client().execute_command(
        "ACL", "SETUSER", "worker", "reset", "resetchannels", "on", f">{PASSWORD}", *rules
    )


def lived_through(store: Store) -> set[int]:
    """Units of all primaries are claimed, started and finished; their thirds of the slots."""
    keys = [f"once:{uuid.uuid4().hex}:" + "0" * 40 for _ in range(30)]
    claims = store.run_many([protocol.claim(key, "m1", **WAITING) for key in keys])
    for key, claim in zip(keys, claims, strict=True):
        assert isinstance(claim, protocol.Claim), claim
        message = Message("m1", claim.ticket)
        start = protocol.start(key, message, "a1", where="h:1:b", lease=60, **WAITING)
        assert store.run(start).status == "started"
        finish = protocol.finish(key, message, "a1", "success", **WAITING)
        assert store.run(finish).status == "finished"
    return {key_slot(key.encode()) * 3 // 16384 for key in keys}


def test_tls_and_a_user_with_the_least_rights(cluster: str, certificates: Path) -> None:
    """`rediss+cluster://user:password@…?ssl_ca_certs=…`, sync and async, on every primary."""
    url = f"rediss+cluster://worker:{PASSWORD}@{cluster}?ssl_ca_certs={certificates}/ca.pem"

    assert lived_through(Store(url)) == {0, 1, 2}
    assert missing(Store(url), "worker") == []
    assert asyncio.run(_claim(url)) == "claimed"


async def _claim(url: str) -> str:
    store = AsyncStore(url)
    try:
        key = f"once:{uuid.uuid4().hex}:" + "0" * 40
        return (await store.run(protocol.claim(key, "m1", **WAITING))).status
    finally:
        await store.close()


@pytest.mark.parametrize("wrong", ["other.pem", ""])
def test_a_certificate_of_another_ca_is_refused(
    cluster: str, certificates: Path, wrong: str
) -> None:
    """As an outage whose error does not show the password."""
    options = f"?ssl_ca_certs={certificates}/{wrong}" if wrong else ""

    with pytest.raises(StoreUnavailableError, match=r"(?i)certificate") as caught:
        Store(f"rediss+cluster://worker:{PASSWORD}@{cluster}{options}").run(CLAIM)
    assert PASSWORD not in str(caught.value)


def test_a_user_behind_sentinel_is_needed_on_each_server() -> None:
    """Login and password go to the primary, not to the sentinels; no server tells another of its
    users, so after a failover a user is refused that the replica does not know.
    """  # noqa: D205  # a line of the page
    with SentinelGroup() as group:
        add_users(group.primary)
        url = group.url.replace("://", f"://worker:{PASSWORD}@")
        lived_through(Store(url))

        group.wait_for_failover(group.kill_primary())

        with pytest.raises(StoreUnavailableError, match="invalid username-password"):
            Store(url).run(CLAIM)
        add_users(group.primary)
        lived_through(Store(url))
