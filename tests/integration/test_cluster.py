"""A lock store on a Redis Cluster, and one behind Sentinel: what works, and what a failure costs.

The short form; `tests/cluster` runs the promises there, under load, in minutes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import redis
from _support.clusters import SLOTS, Cluster
from _support.promises import SCENES, Scene
from _support.sentinels import SentinelGroup
from _support.waiting import wait_until
from redis.crc import key_slot

from once_core import OnceOptions, checkup, once, protocol, stream
from once_core.__main__ import main
from once_core._channel import AsyncListener, Listener
from once_core._flow import Pause
from once_core.aio import AsyncStore
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.events import emit
from once_core.guard import Guard
from once_core.protocol import Message
from once_core.store import Store
from once_core.survey import survey

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 1.5
"""Seconds: "about one", by which a call has answered, on a machine that does other things, too."""

NODES = 3


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Cluster, SentinelGroup]]:
    """A Cluster and a Sentinel group; each takes seconds to start."""
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        cluster, group = Cluster(), SentinelGroup()
        for each in (cluster, group):
            stack.callback(each.stop)
        for started in [pool.submit(cluster.start), pool.submit(group.start)]:
            started.result()
        yield cluster, group


@pytest.fixture(scope="module")
def cluster(both: tuple[Cluster, SentinelGroup]) -> Cluster:
    """Three primaries, each with a replica."""
    return both[0]


@pytest.fixture(scope="module")
def sentinels(both: tuple[Cluster, SentinelGroup]) -> SentinelGroup:
    """A primary, a replica and three sentinels."""
    return both[1]


@pytest.fixture
def places(cluster: Cluster, sentinels: SentinelGroup) -> list[Cluster | SentinelGroup]:
    """Both."""
    return [cluster, sentinels]


@pytest.fixture
def store(cluster: Cluster) -> Store:
    """A lock store on the cluster."""
    return Store(cluster.url)


@pytest.fixture(scope="module")
def scenes(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, shared_server: Any
) -> Iterator[dict[str, Scene]]:
    """A worker of each binding, with locks on the cluster and all else on a plain server."""
    made: dict[str, Scene] = {}
    locks: Any = cluster
    for framework, kind in SCENES.items():
        folder = tmp_path_factory.mktemp(framework)
        made[framework] = kind(folder, shared_server, "redis", locks)
    with ThreadPoolExecutor() as pool:  # both take seconds to start
        list(pool.map(lambda each: each.worker(), made.values()))
    yield made
    for each in made.values():
        each.close()
    gc.collect()  # Celery's handles say goodbye to the result backend when they are collected


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest, scenes: dict[str, Scene]) -> Scene:
    """Either binding."""
    return scenes[request.param]


def keys_of(unit: str, count: int) -> list[str]:
    """Keys of so many units."""
    return [f"once:{unit}-{number}:" + "0" * 40 for number in range(count)]


def claimed(key: str, message_id: str = "m1", replicas: int = 0) -> protocol.Step[protocol.Claim]:
    """The claim of a message."""
    return protocol.claim(key, message_id, ttl=60, heal_after=60, replicas=replicas)


def started(key: str, message: Message) -> protocol.Step[protocol.Start]:
    """Its start."""
    return protocol.start(key, message, "a1", where="host:1:boot", lease=60, ttl=60, heal_after=60)


def lived_through(store: Store, keys: Sequence[str]) -> None:
    """Each unit is claimed, started, renewed and finished, and nothing of it is left."""
    for key in keys:
        ticket = store.run(claimed(key)).ticket
        message = Message("m1", ticket)
        assert store.run(claimed(key, "m2")).status == "waiting"
        start = store.run(started(key, message))
        assert start.status == "started"
        renewal = protocol.renew(
            key, message, "a1", where="h:1:b", lease=60, fence=start.fence, held=0
        )
        assert store.run_many([renewal]) == ["renewed"]
        finish = protocol.finish(key, message, "a1", "success", ttl=60, heal_after=60)
        assert store.run(finish).status == "finished"
        assert list(store.run(protocol.inspect(key))) == ["now"]


# One unit after the other


def test_units_of_all_slots_live_their_lives(
    places: list[Cluster | SentinelGroup], unit: str
) -> None:
    """Fifty units, on every primary, from claim to finish, on a Cluster and behind Sentinel."""
    keys = keys_of(unit, 50)

    for place in places:
        lived_through(Store(place.url), keys)

    assert {key_slot(key.encode()) * NODES // SLOTS for key in keys} == set(range(NODES))


def test_clients_that_were_handed_in(cluster: Cluster, sentinels: SentinelGroup, unit: str) -> None:
    """A RedisCluster, and a client that Sentinel's `master_for` has made."""
    group = redis.Sentinel([("127.0.0.1", each.port) for each in sentinels.sentinels])

    for client in (cluster.client(), group.master_for("locks")):
        lived_through(Store(client), keys_of(unit, 5))


def test_async_stores(places: list[Cluster | SentinelGroup], unit: str) -> None:
    """The same steps by async clients."""

    async def claims(url: str) -> list[str]:
        store = AsyncStore(url)
        try:
            return [(await store.run(claimed(key))).status for key in keys_of(unit, 20)]
        finally:
            await store.close()

    for place in places:
        assert asyncio.run(claims(place.url)) == ["claimed"] * 20


def test_more_threads_than_redis_py_has_connections(
    cluster: Cluster, sentinels: SentinelGroup
) -> None:
    """redis-py 8 refuses the hundred and first connection to a node, unless it is told."""
    node: Any = Store(cluster.url).client()
    for client in (
        node.get_redis_connection(node.get_primaries()[0]),
        Store(sentinels.url).client(),
    ):
        pool: Any = client.connection_pool
        made = [pool.make_connection() for _ in range(120)]

        assert len(made) == 120


def test_one_host_of_a_cluster_is_enough(cluster: Cluster, unit: str) -> None:
    """A primary or a replica; the others are found."""
    for node in (cluster.nodes[0], cluster.nodes[-1]):
        lived_through(Store(f"redis+cluster://127.0.0.1:{node.port}"), keys_of(unit, 10))


# Many at once


def test_many_steps_are_one_packet_a_node(cluster: Cluster, store: Store, unit: str) -> None:
    """Heartbeats and claims of many calls: each primary reads a few times, not once a step."""
    keys = keys_of(unit, 300)
    store.run_many([claimed(key) for key in keys])  # which loads the script
    before = reads(cluster)

    answers = store.run_many([claimed(key, "m2") for key in keys])

    assert {getattr(each, "status", each) for each in answers} == {"waiting"}
    assert all(after - read < 60 for after, read in zip(reads(cluster), before, strict=True))
    assert [each.holder_id for each in answers if not isinstance(each, Exception)] == ["m1"] * 300


def reads(cluster: Cluster) -> list[int]:
    """How often each primary has read from its sockets."""
    return [
        int(node.client().info("stats")["total_reads_processed"]) for node in cluster.nodes[:NODES]
    ]


def test_a_slot_that_moves_away(cluster: Cluster, unit: str) -> None:
    """Steps find their key before, half way and after; alone, many at once, and async."""
    key, *others = keys_of(unit, 30)
    slot, source = key_slot(key.encode()), cluster.primary_of(key)
    target = next(node for node in cluster.nodes[:NODES] if node is not source)
    stale, many = Store(cluster.url), Store(cluster.url)
    fresh = f"{{{key}}}:x:" + "1" * 40  # in the same slot, and not there before
    assert stale.run(claimed(key)).status == "claimed"
    assert len(many.run_many([claimed(each) for each in others])) == len(others)
    told: list[str] = []

    def halfway() -> None:
        told.append(stale.run(claimed(key, "m2")).status)
        told.append(stale.run(claimed(fresh)).status)
        answers = many.run_many([claimed(each, "m2") for each in (key, fresh, *others)])
        told.extend(str(getattr(each, "status", each)) for each in answers)

    cluster.reshard(slot, target, pause=halfway)

    assert told == ["waiting", "claimed", *["waiting"] * (2 + len(others))]
    after = many.run_many([claimed(each, "m3") for each in (key, fresh, *others)])
    assert {getattr(each, "status", each) for each in after} == {"waiting"}
    assert stale.run(claimed(key, "m3")).holder_id == "m1"
    cluster.reshard(slot, source)
    assert asyncio.run(async_status(cluster.url, claimed(key, "m4"))) == "waiting"


async def async_status(url: str, step: protocol.Step[protocol.Claim]) -> str:
    """What a new async store is answered."""
    store = AsyncStore(url)
    try:
        return (await store.run(step)).status
    finally:
        await store.close()


# Replicas that have to have it


def test_what_no_replica_has_is_refused(places: list[Cluster | SentinelGroup], unit: str) -> None:
    """With `min_replicas=1`: alone, many at once, and async; who did not ask is not."""
    keys = keys_of(unit, 30)
    for place in places:
        store = Store(place.url)
        claims = [claimed(key, replicas=1) for key in keys]
        told = store.run_many(claims)
        assert {getattr(each, "status", each) for each in told} == {"claimed"}
        key = keys[0]
        isolation = (
            place.replicating_nothing(key)
            if isinstance(place, Cluster)
            else (place.replicating_nothing())
        )
        with isolation:
            for run in (store.run, lambda step, to=place.url: asyncio.run(async_status(to, step))):
                with pytest.raises(StoreUnavailableError, match="0 of min_replicas=1"):
                    run(claimed(key, "m2", replicas=1))
            assert isinstance(store.run_many(claims)[0], StoreUnavailableError)
            assert store.run(claimed(key, "m3")).status == "waiting"


def test_replicas_of_a_slot_that_moves_away(cluster: Cluster, unit: str) -> None:
    """The replica of wherever the key is by then; sync and async, known before or not."""
    key = keys_of(unit, 1)[0]
    slot, source = key_slot(key.encode()), cluster.primary_of(key)
    target = next(node for node in cluster.nodes[:NODES] if node is not source)
    stale = Store(cluster.url)
    assert stale.run(claimed(key, replicas=1)).status == "claimed"
    fresh = [f"{{{key}}}:{number}:" + "1" * 40 for number in range(2)]  # in the same slot
    told: list[str] = []

    def halfway() -> None:
        told.append(stale.run(claimed(fresh[0], replicas=1)).status)
        told.append(asyncio.run(async_status(cluster.url, claimed(fresh[1], replicas=1))))

    with Stalled(cluster.url) as later:
        assert later.status(claimed(key, "m2", replicas=1)) == "waiting"
        cluster.reshard(slot, target, pause=halfway)

        assert told == ["claimed", "claimed"]
        assert later.status(claimed(key, "m3", replicas=1)) == "waiting"
    assert stale.run(claimed(key, "m4", replicas=1)).holder_id == "m1"
    cluster.reshard(slot, source)


class Stalled:
    """An async store that was there before something changed."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._store = AsyncStore(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._store.close())
        self._loop.close()

    def status(self, step: protocol.Step[protocol.Claim]) -> str:
        """What a step is answered."""
        return self._loop.run_until_complete(self._store.run(step)).status


# Celery and Dramatiq


def test_publish_run_duplicate_and_retry(scene: Scene, unit: str) -> None:
    """One runs, one waits, the third is refused; a retry keeps its unit."""
    running = scene.hold("work", unit)
    waiting = scene.send("work", unit)
    refused = scene.send("work", unit)
    retried = scene.send("retrying", f"{unit}-retried", fails=1)

    assert scene.published(refused).holder_id == scene.message_id(waiting)
    scene.let_go(unit)
    assert scene.result(waiting) == f"done {unit}"
    assert scene.ids(unit) == [scene.message_id(running), scene.message_id(waiting)]
    assert scene.result(retried) == f"done {unit}-retried"
    assert [run.retries for run in scene.runs(f"{unit}-retried")] == [0, 1]
    wait_until(lambda: not scene.is_locked("work", unit), "the unit is free")
    assert "other_store" not in scene.log()


def test_many_calls_at_once(scenes: dict[str, Scene], unit: str) -> None:
    """Claims of all slots in one go; of equal ones the first is sent."""
    celery: Any = scenes["celery"]
    task = celery._task("work")
    calls = [((f"{unit}-{number % 30}",), None) for number in range(40)]

    results = task.apply_async_many(calls)

    assert [each.once.is_duplicate for each in results] == [False] * 30 + [True] * 10
    assert results[0].get(timeout=20) == f"done {unit}-0"
    wait_until(lambda: all(scene_runs(celery, f"{unit}-{each}") for each in range(30)), "all ran")


def scene_runs(scene: Scene, unit: str) -> bool:
    """Whether a body of this unit has ended."""
    return any(run.end for run in scene.runs(unit))


# Functions


def test_functions_wait_for_their_turn(cluster: Cluster, unit: str) -> None:
    """`@once(on_overlap="wait")`, sync and async: one after the other."""
    running, most = [0], [0]

    def body() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1

    @once(name="account", key=["unit"], on_overlap="wait", url=cluster.url)
    def plain(unit: str) -> None:
        body()

    @once(name="account", key=["unit"], on_overlap="wait", url=cluster.url)
    async def eventual(unit: str) -> None:
        body()

    async def three() -> None:
        await asyncio.gather(*(eventual(unit) for _ in range(3)))

    with ThreadPoolExecutor() as pool:
        done = [pool.submit(plain, unit) for _ in range(3)]
        asyncio.run(three())
        for each in done:
            each.result(20)

    assert most == [1]


def test_a_waiter_hears_of_the_end_on_any_node(cluster: Cluster, unit: str) -> None:
    """What a script says on the node of its key reaches who listens on another."""
    channel = f"once:{unit}"
    speakers = [node.client() for node in cluster.nodes[:NODES]]
    listener = Listener(Store(cluster.url).client)
    listener.wait(Pause(channel, 1.0))

    for speaker in speakers:

        def spoken(speaker: Any = speaker) -> bool:
            speaker.publish(channel, "now")
            return listener.wait(Pause(channel, 0.2))

        wait_until(spoken, "it is heard", within=5)
    listener.close()


def test_async_waiting_where_redis_py_cannot_listen(unit: str) -> None:
    """Before redis-py 8 its async cluster client has no pubsub: then waiting is by asking."""

    async def waited() -> bool:
        listener = AsyncListener(object)
        try:
            return await listener.wait(Pause(f"once:{unit}", 0.05))
        finally:
            await listener.close()

    assert asyncio.run(waited()) is False


# What people look at


def test_commands_see_all_primaries(
    cluster: Cluster, store: Store, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """ls, stats and show, of units on every primary; doctor speaks of each of them."""
    keys = keys_of(unit, 40)
    store.run_many([claimed(key) for key in keys])

    def told(*words: str) -> Any:
        main([*words, "--url", cluster.url, "--json"])
        return json.loads(capsys.readouterr().out)

    assert {each.key for each in survey(store)} >= set(keys)
    listed = json.dumps(told("ls", "--task", unit, "--limit", "0"))
    assert all(key in listed for key in keys)
    assert f"{unit}-7" in json.dumps(told("stats"))
    shown = told("show", keys[7])
    assert "m1" in json.dumps(shown)
    found = list(checkup.of_store(store))
    assert len([each for each in found if each.code == "ok"]) == NODES
    assert [each.code for each in found if each.level in ("warning", "error")] == []


def test_a_call_is_explained(scenes: dict[str, Scene], unit: str) -> None:
    """Why it would not be sent, from the record on its node."""
    from once_core.explain import explain

    scene: Any = scenes["celery"]
    scene.hold("until_done", unit)
    told = explain(scene._task("until_done").once_guard(), (unit,), {})
    scene.let_go(unit)

    assert (told.publish, told.run) == ("refused", "waits")


def test_events_are_kept(store: Store, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to the node that has the stream, and read from it, also by who waits for more."""
    monkeypatch.setattr(stream, "_streams", {})
    monkeypatch.setattr(stream, "_process", {})
    options = OnceOptions(events=100, prefix=unit)
    guard = Guard(f"{unit}.sync", lambda order_id: None, options, lambda: store)
    assert guard.store is store

    emit("claimed", task=guard.task, key="k", message_id="m1")
    emit("finished", task=guard.task, key="k", message_id="m1")

    wait_until(lambda: len(stream.read(store, unit)) == 2, "both are written")
    first, second = stream.read(store, unit)
    assert [first.event.kind, second.event.kind] == ["claimed", "finished"]
    assert stream.read(store, unit, after=first.id) == [second]
    assert stream.read(store, unit, after=second.id, wait=0.1) == []


def test_workers_and_producers_on_one_cluster_are_no_strangers(cluster: Cluster) -> None:
    """Each may have another node as its first: that is no other Redis."""
    worker = Store(cluster.url)
    for node in cluster.nodes[:NODES]:
        run_id = str(node.client().info("server")["run_id"])[:12]
        assert not worker.is_other(run_id, 1 << 60)
    assert worker.id == ""


@pytest.mark.parametrize("many", [False, True])
def test_a_primary_that_became_a_replica_is_left(server: DevServer, unit: str, many: bool) -> None:
    """Behind a name that leads to the primary: the next step goes by the name once more."""
    store, watcher = Store(f"{server.url}?client_name={unit}"), server.client()
    step = claimed(keys_of(unit, 1)[0])

    def connections() -> list[Any]:
        return [each for each in watcher.client_list() if each["name"] == unit]

    assert store.run(step).status == "claimed"
    assert len(connections()) == 1
    watcher.replicaof("127.0.0.1", 1)
    if many:
        assert "ReadOnlyError" in str(store.run_many([step])[0])
    else:
        with pytest.raises(StoreUnavailableError, match="ReadOnlyError"):
            store.run(step)

    wait_until(lambda: not connections(), "its connection is closed")
    watcher.replicaof("NO", "ONE")
    assert store.run(step).status in ("waiting", "claimed")


# Failures. They leave the cluster and the sentinels without a replica, so they come last


def test_a_sentinel_failover(sentinels: SentinelGroup, unit: str) -> None:
    """Refused within about a second until a replica takes over; then it goes on, as no stranger."""
    producer, key = Store(sentinels.url), keys_of(unit, 1)[0]
    claimed_in = producer.id
    assert len(claimed_in) == 12
    assert producer.run(claimed(key)).status == "claimed"
    sentinels.primary.client().wait(1, 5000)  # it is with the replica
    old = sentinels.kill_primary()

    slowest = refused_until_it_answers(producer, claimed(key, "m2"))
    sentinels.wait_for_failover(old)

    assert slowest < PATIENCE
    assert producer.run(claimed(key, "m3")).holder_id == "m1"
    now = int(time.time() * 1e6)
    assert not Store(sentinels.url).is_other(claimed_in, now)
    lived_through(producer, keys_of(f"{unit}-after", 5))


def test_a_dead_primary_costs_its_own_units_only(cluster: Cluster, unit: str) -> None:
    """Steps for it fail within about a second, those of others pass; all pass after the failover.

    A worker whose heartbeat renews many leases keeps those on other nodes.
    """
    store, sleeper = Store(cluster.url), Store(cluster.url)
    keys = keys_of(unit, 60)
    for each in (store, sleeper):
        each.run_many([claimed(key) for key in keys])
    for node in cluster.nodes[:NODES]:
        node.client().wait(1, 5000)  # it is with the replica
    eventual = Stalled(cluster.url)
    assert eventual.status(claimed(keys[0], "m2", replicas=1)) == "waiting"
    dead = cluster.primary_of(keys[0])
    its_own = {key for key in keys if cluster.primary_of(key) is dead}
    cluster.kill_primary_of(keys[0])

    began = time.monotonic()
    answers = store.run_many([claimed(key, "m2") for key in keys])
    lasted = time.monotonic() - began
    lost = {key for key, answer in zip(keys, answers, strict=True)
            if isinstance(answer, StoreUnavailableError)}  # fmt: skip
    slowest = refused_until_it_answers(store, claimed(keys[0], "m2"))
    cluster.wait_for_failover(keys[0])

    assert lost == its_own
    assert max(lasted, slowest) < PATIENCE
    for each in (store, sleeper):  # one that has not asked meanwhile is not refused at all
        after = each.run_many([claimed(key, "m3") for key in keys])
        assert {getattr(answer, "holder_id", answer) for answer in after} == {"m1"}
    with eventual, pytest.raises(StoreUnavailableError, match="0 of min_replicas=1"):
        eventual.status(claimed(keys[0], "m3", replicas=1))  # who took over has no replica itself
    lived_through(store, keys_of(f"{unit}-after", 12))


def refused_until_it_answers(store: Store, step: protocol.Step[Any]) -> float:
    """Seconds of the slowest of the calls that were refused; there has to be one."""
    slowest: list[float] = []

    def answers() -> bool:
        store.ask_again()  # not the breaker, which answers at once
        began = time.monotonic()
        try:
            store.run(step)
        except StoreUnavailableError:
            slowest.append(time.monotonic() - began)
            return False
        return True

    wait_until(answers, "it answers again", within=20)
    return max(slowest)
