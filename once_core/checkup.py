"""What is wrong with a lock store, before it hurts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any

import redis

from once_core._breaker import FAILURES
from once_core._diversion import diversion
from once_core.backlog import Overdue
from once_core.events import logger
from once_core.finding import Finding
from once_core.survey import survey

if TYPE_CHECKING:
    from once_core.guard import Guard
    from once_core.store import Store

__all__ = ["of_replicas", "of_store", "of_units", "warn_at_start"]

OLDEST_SERVER = (6, 2)
SKEW = 2.0
"""Seconds by which the clocks of this machine and of the server may differ before it is said."""

NEARLY_FULL = 0.9
"""Of its memory that a server may use before it is said."""

MANY_UNITS = 1000
"""Waiting units of one task, none of which ever refused a call, before it is said."""

SAMPLE = 20_000
"""Records that are looked at."""


def of_store(store: Store) -> Iterator[Finding]:
    """What is known of a lock server. CONFIG is closed on managed servers, so INFO has to do.

    Args:
        store: The lock store.

    Example:
        >>> from once_core.store import Store
        >>> [finding.code for finding in of_store(Store("memory://checkup-example"))]
        ['memory-store']
    """
    place = store.place
    if place.startswith("memory:"):
        yield Finding(
            "warning",
            "memory-store",
            place,
            "its locks are in the memory of one process: another process knows nothing of them",
            "give url= a server that producers and workers share, such as redis://localhost:6379/0",
        )
        return
    try:
        client: Any = store.client()
        client.ping()
    except FAILURES as error:
        text = f"it does not answer: {error}"
        yield Finding("error", "store-away", place, text, "start it, or mend the URL")
        return
    try:
        infos = _infos(place, client)
    except FAILURES as error:
        text = f"INFO is refused ({error}), so little is known of it"
        yield Finding(
            "note", "info-refused", place, text, "ACL SETUSER <the user of the URL> +info"
        )
        return
    for each, info in infos.items():
        yield from _version(each, info)
        yield from _eviction(each, info)
        yield from _role(each, info)
        if not isinstance(client, redis.RedisCluster):
            yield from _cluster(each, info)
        yield from _persistence(each, info)
    yield from _clock(place, client)


def warn_at_start(stores: Callable[[], Iterable[Store]]) -> None:
    """Say in the log of a worker that its lock server throws keys away, or takes none.

    In a thread of its own: neither a server that is away nor one that hangs may hold up a worker,
    and of such a server this says nothing.

    Nor is any server looked at in a test that has taken the place of the lock store.

    Args:
        stores: Finds the lock stores.
    """
    if diversion() is None:
        Thread(target=_warn, args=(stores,), name="once-checkup", daemon=True).start()


def _warn(stores: Callable[[], Iterable[Store]]) -> None:
    try:
        for store in {id(each): each for each in stores()}.values():
            if store.place.startswith("memory:"):
                continue
            for place, info in _infos(store.place, store.client()).items():
                for found in (*_eviction(place, info), *_role(place, info)):
                    if found.level in ("warning", "error"):
                        logger.warning(
                            "%s: %s; %s (once doctor: %s)",
                            found.about, found.text, found.advice, found.code,
                        )  # fmt: skip
    except Exception:  # noqa: BLE001  # a worker goes on, whatever is wrong with what it is told
        logger.debug("the lock store was not looked at", exc_info=True)


def _infos(place: str, client: Any) -> dict[str, Mapping[str, Any]]:  # noqa: ANN401  # redis-py's answers, of many types
    """What each primary says of itself, by its place."""
    if not isinstance(client, redis.RedisCluster):
        return {place: client.info()}
    cluster: Any = client
    found: Mapping[str, Any] = cluster.info(target_nodes=redis.RedisCluster.PRIMARIES)
    if "redis_version" in found:  # there is one only
        return {place: found}
    return {f"{place} ({name})": info for name, info in found.items()}


def _version(place: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(info.get("redis_version", ""))
    name = "Valkey" if "valkey_version" in info or info.get("server_name") == "valkey" else "Redis"
    shown = str(info.get("valkey_version", version))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST_SERVER:
        text = f"{name} {shown} is older than 6.2, which nobody tests"
        yield Finding("error", "server-old", place, text, "upgrade it")
    else:
        yield Finding("ok", "ok", place, f"{name} {shown} answers")


def _eviction(place: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    policy, limit = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    if policy and policy != "noeviction":
        yield Finding(
            "warning" if limit else "note",
            "evicts-keys",
            place,
            f"when memory runs out it evicts keys (maxmemory-policy {policy}), and a lock that is "
            "evicted is no lock" + ("" if limit else "; maxmemory is not set, so it will not yet"),
            "use a server of its own for locks, with maxmemory-policy noeviction",
        )
    elif limit and used > NEARLY_FULL * limit:
        yield Finding(
            "warning",
            "memory-nearly-full",
            place,
            f"it uses {used / limit:.0%} of its maxmemory ({limit} bytes); when it is full it "
            "refuses every claim, and calls raise StoreUnavailableError",
            f"CONFIG SET maxmemory {2 * limit}, or take away what else is stored there",
        )


def _role(place: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    replicas = int(info.get("connected_slaves", 0))
    if info.get("role") == "slave":
        host, port = info.get("master_host", "its primary"), info.get("master_port", 6379)
        text = "it is a replica, which takes no locks"
        yield Finding("error", "replica", place, text, f"name the primary: redis://{host}:{port}/0")
    elif replicas:
        yield Finding(
            "note",
            "has-replicas",
            place,
            f"it has {replicas} replicas; a failover may lose the last locks written",
            "where two runs at once would do harm, let what they write to check lease.fence",
        )


def of_replicas(guards: Iterable[Guard]) -> Iterator[Finding]:
    """Whether lock stores have the replicas that the options of their tasks ask for.

    Args:
        guards: Of the tasks.

    Example:
        >>> from once_core import Guard, OnceOptions
        >>> from once_core.store import Store
        >>> store = Store("memory://replicas-example")
        >>> list(of_replicas([Guard("shop.sync", print, OnceOptions(), lambda: store)]))
        []
    """
    most: dict[Store, Guard] = {}
    for guard in guards:
        before = most.setdefault(guard.store, guard)
        if guard.options.min_replicas > before.options.min_replicas:
            most[guard.store] = guard
    for store, guard in most.items():
        wanted = guard.options.min_replicas
        if wanted and not store.place.startswith("memory:"):
            yield from _replicas(store, wanted, guard.task)


def _replicas(store: Store, wanted: int, task: str) -> Iterator[Finding]:
    try:
        infos = _infos(store.place, store.client())
    except FAILURES:
        return  # said of the store
    for place, info in infos.items():
        found = int(info.get("connected_slaves", 0))
        if found < wanted:
            yield Finding(
                "error",
                "too-few-replicas",
                place,
                f"{task} has min_replicas={wanted}, but there are {found}: it counts as a lock "
                "store that is away",
                "start the replicas that are missing, or lower min_replicas",
            )


def _cluster(place: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    if int(info.get("cluster_enabled", 0)):
        yield Finding(
            "error",
            "cluster-node",
            place,
            "it is a node of a Cluster, and answers for its own keys only: those of other nodes "
            "raise StoreUnavailableError (MOVED)",
            "write redis+cluster:// in the place of redis:// in the URL",
        )


def _persistence(place: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    failed = [
        name for name in ("rdb_last_bgsave_status", "aof_last_write_status")
        if info.get(name, "ok") != "ok"
    ]  # fmt: skip
    if failed:
        yield Finding(
            "warning",
            "writes-fail",
            place,
            f"it cannot save to its disk ({', '.join(failed)}: err), and then refuses every claim "
            "(MISCONF) unless stop-writes-on-bgsave-error is off",
            "look at its log and at the space on its disk",
        )
    if not int(info.get("aof_enabled", 0)):
        yield Finding(
            "note",
            "no-aof",
            place,
            "it does not log its writes (appendonly no): after a restart the locks of what waits "
            "are those of its last snapshot, if it makes any",
            "CONFIG SET appendonly yes; without it bodies that run take their leases again, and "
            "what waits may get a second message",
        )


def _clock(place: str, client: Any) -> Iterator[Finding]:  # noqa: ANN401  # see `_infos`
    try:
        seconds, micros = client.time()
    except FAILURES:
        return
    skew = abs(seconds + micros / 1e6 - time.time())
    if skew > SKEW:
        yield Finding(
            "note",
            "clock-skew",
            place,
            f"its clock and that of this machine differ by {skew:.0f} s; locks go by the server's, "
            "and times in logs by this machine's",
            "let both follow the same time server",
        )


def of_units(store: Store, prefix: str, overdue: Overdue) -> Iterator[Finding]:
    """What the records of a store say of keys: a sample of them.

    Args:
        store: The lock store.
        prefix: First part of the keys.
        overdue: Counts those whose message is due.

    Raises:
        StoreUnavailableError: The store is away.
    """
    waiting: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for unit in islice(survey(store, prefix), SAMPLE):
        if unit.broken:
            yield Finding(
                "warning",
                "record-unreadable",
                unit.key,
                f"this record cannot be read ({unit.broken}), so each call of it raises "
                "StoreUnavailableError: something else has written to it",
                f"DEL {unit.key}, if nothing of it runs",
            )
        waiting[unit.task] += any(each.state == "waiting" for each in unit.holders)
        refused[unit.task] += sum(each.suppressed for each in unit.holders)
        overdue.add(unit)
    for task, count in waiting.items():
        if count > MANY_UNITS and not refused[task]:
            yield Finding(
                "note",
                "keys-never-repeat",
                task,
                f"{count} units of work wait, and none of them has ever refused a call: it may be "
                "that no two calls have the same key",
                f"look at two of them with `once ls --task {task} --limit 2`; leave out of key= "
                "what differs",
            )
