"""What servers say while nobody is there to answer: an outage, at once, and it passes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from _support.clusters import Cluster, asked
from _support.sentinels import SentinelGroup
from _support.waiting import wait_until
from redis.crc import key_slot

from once_core import protocol
from once_core.aio import AsyncStore
from once_core.errors import StoreUnavailableError
from once_core.store import Store

PATIENCE = 1.5
"""Seconds: "about one", on a machine that does other things, too."""


def claim() -> protocol.Step[protocol.Claim]:
    """The claim of a unit of its own."""
    key = f"once:{uuid.uuid4().hex}:" + "0" * 40
    return protocol.claim(key, "m1", ttl=60, heal_after=60)


def refused(run: Callable[[], Any], within: float = 10.0) -> list[str]:
    """Reasons for which steps were refused until the servers have settled; each in time."""
    reasons: list[str] = []
    end = time.monotonic() + within
    while time.monotonic() < end:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            run()
        assert time.monotonic() - began < PATIENCE
        reasons.append(str(caught.value.reason))
        if "ClusterDown" in reasons[-1] or "MasterNotFound" in reasons[-1]:
            break
    return reasons


def passes(store: Store) -> bool:
    """Whether steps pass again."""
    store.ask_again()
    try:
        return all(store.run(claim()).status == "claimed" for _ in range(20))
    except StoreUnavailableError:
        return False


def asked_again(store: Store, step: protocol.Step[Any]) -> Callable[[], Any]:
    """Asks the servers, and not the breaker."""

    def run() -> Any:
        store.ask_again()
        return store.run(step)

    return run


def test_a_cluster_that_lacks_slots() -> None:
    """CLUSTERDOWN, until the node is back; by sync and async clients."""
    with Cluster(replicas=0) as cluster:
        store, step = Store(cluster.url), claim()
        dead = cluster.primary_of(step.key)
        other = next(node for node in cluster.nodes if node is not dead)
        alive = next(each for each in iter(claim, None) if cluster.primary_of(each.key) is other)
        assert store.run(step).status == "claimed"
        dead.kill()
        wait_until(lambda: b"state:fail" in asked(other, "CLUSTER", "INFO"), "it is down")

        assert "ClusterDown" in refused(asked_again(store, alive))[-1]
        # an async client first asks the node of the first slots, which may be the dead one
        assert refused(lambda: asyncio.run(once_async(cluster.url, alive)), within=1.0)
        refused(asked_again(store, step), within=1.0)

        dead.start()
        wait_until(lambda: passes(store), "it goes on")


async def once_async(url: str, step: protocol.Step[Any]) -> Any:
    """A step by a new async store."""
    store = AsyncStore(url)
    try:
        return await store.run(step)
    finally:
        await store.close()


def test_sentinels_that_know_no_primary() -> None:
    """All servers are dead: there is none to be named, until one is back."""
    with SentinelGroup() as group:
        store = Store(group.url)
        assert passes(store)
        group.kill()

        assert "MasterNotFound" in refused(asked_again(store, claim()))[-1]

        group.start()
        wait_until(lambda: passes(store), "it goes on", within=40)


def test_a_failover_that_people_asked_for() -> None:
    """The primary lives on as a replica: who still asks it is not left there."""
    with SentinelGroup() as group:
        store, old = Store(group.url), group.primary
        assert passes(store)
        asked(group.sentinels[0], "SENTINEL", "FAILOVER", "locks")
        group.wait_for_failover(old)

        wait_until(lambda: passes(store), "it goes on", within=10)
        assert old.is_running
    with Cluster() as cluster:
        store, step = Store(cluster.url), claim()
        assert store.run(step).status == "claimed"
        before = cluster.primary_of(step.key)
        asked(cluster.replicas_of(before)[0], "CLUSTER", "FAILOVER")
        wait_until(lambda: cluster.primary_of(step.key) is not before, "another has its key")

        wait_until(lambda: passes(store), "it goes on", within=10)
        assert store.run(step).holder_id == "m1"
        assert before.is_running


def test_a_frozen_primary_is_not_waited_for_twice() -> None:
    """It takes connections and answers nothing: a call gives up once, and not for each try."""
    with Cluster() as cluster:
        store, step = Store(cluster.url), claim()
        assert store.run(step).status == "claimed"
        frozen = cluster.primary_of(step.key)
        frozen.pause()

        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="Timeout"):
            store.run(step)
        assert time.monotonic() - began < PATIENCE

        wait_until(lambda: passes(store), "a replica has taken over")
        frozen.resume()


def test_slots_that_nobody_has_cost_their_own_units_only() -> None:
    """Where a Cluster answers for the others: heartbeats of those go on."""
    with Cluster(replicas=0, arguments=("--cluster-require-full-coverage", "no")) as cluster:
        steps = [claim() for _ in range(30)]
        lacking = {key_slot(step.key.encode()) for step in steps[:3]}
        for node in cluster.nodes:
            asked(node, "CLUSTER", "DELSLOTS", *lacking)

        answers = Store(cluster.url).run_many(steps)

        lost = [isinstance(each, StoreUnavailableError) for each in answers]
        assert lost == [key_slot(step.key.encode()) in lacking for step in steps]
