"""TLS and users with the least rights, on a Cluster and behind Sentinel."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from _support.clusters import Cluster
from _support.sentinels import SentinelGroup
from _support.tls import Proxies, make_certificates
from redis.crc import key_slot

from once_core import protocol
from once_core.aio import AsyncStore
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.permissions import acl, missing
from once_core.protocol import Message
from once_core.store import Store

PASSWORD = "s3cr3t"

WAITING = {"ttl": 60, "heal_after": 60}

CLAIM = protocol.claim("once:unit:" + "0" * 40, "m1", **WAITING)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of it for 127.0.0.1, and another CA."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


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
