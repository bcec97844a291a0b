"""What is held in a lock store: found by SCAN, read in batches, never all at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import redis

from once_core import protocol
from once_core._breaker import FAILURES
from once_core._clock import elapsed
from once_core.errors import StoreUnavailableError
from once_core.guard import Holder, holders

if TYPE_CHECKING:
    from once_core.store import Store

__all__ = ["Unit", "is_record", "survey", "task_in"]

PAGE = 1000
"""Keys that the server looks at in one go, which takes it less than a millisecond."""

BATCH = 200
"""Records read in one round trip."""

REMEMBERED = 100_000
"""Keys of which it is known that they were shown: memory is bounded."""

_IN_SCRIPT = "attempt to"
"""In what Lua says of a record whose fields are not as ours are."""

_RECORD = re.compile(r"[^\s{}]{1,400}:[0-9a-z]{26,64}")


@dataclass(frozen=True)
class Unit:
    """One unit of work that has a record.

    Attributes:
        key: Its key.
        task: Name of its task as the key has it: what is no letter, digit or ``_.:-`` is ``_``.
        holders: Who runs, who waits, what keeps it; empty where only marks are left.
        fields: The record, as `protocol.inspect` answers.
        broken: Why nobody can read it; empty for a record that is in order.
    """

    key: str
    task: str
    holders: tuple[Holder, ...]
    fields: Mapping[str, str]
    broken: str = ""

    @property
    def state(self) -> str:
        """That of its first holder; ``"marks"`` where nobody holds it, or ``"broken"``."""
        nobody = "broken" if self.broken else "marks"
        return self.holders[0].state if self.holders else nobody

    @property
    def age(self) -> float:
        """Seconds since when the first of its holders has it."""
        return max((holder.age for holder in self.holders), default=0.0)


def is_record(key: str) -> bool:
    """Whether a key looks like one of ours."""
    return _RECORD.fullmatch(key) is not None


def task_in(key: str, prefix: str = "once") -> str:
    """The name of the task in a key.

    Example:
        >>> task_in("once:shop.sync:order-7:" + "0" * 40)
        'shop.sync'
        >>> task_in("once:lease:nightly:" + "0" * 40)
        'lease:nightly'
    """
    rest = key.removeprefix(f"{prefix}:").rpartition(":")[0]
    if rest.startswith("lease:"):
        return rest
    return rest.partition(":")[0]


def survey(store: Store, prefix: str = "once", *, until: float | None = None) -> Iterator[Unit]:
    """Every unit of work with a record, in no order; bounded memory, and no command that blocks.

    Records that come or go meanwhile may or may not be among them.

    Args:
        store: The lock store; of a Cluster all primaries are asked.
        prefix: First part of the keys.
        until: A time of `once_core._clock.elapsed` at which to stop, wherever it is by then: among
            ten million keys of others there may be none of ours. By default it goes to the end.

    Raises:
        StoreUnavailableError: The store is away.

    Example:
        >>> from once_core.store import Store
        >>> store = Store("memory://survey-example")
        >>> key = "once:shop.sync:" + "0" * 40
        >>> _ = store.run(protocol.claim(key, "m1", ttl=60, heal_after=60))
        >>> [(unit.task, unit.state) for unit in survey(store)]
        [('shop.sync', 'waiting')]
    """
    keys = _keys(store, prefix, until)
    while batch := list(islice(keys, BATCH)):
        answers = store.run_many([protocol.inspect(key) for key in batch])
        for key, answer in zip(batch, answers, strict=True):
            if isinstance(answer, StoreUnavailableError):
                if _IN_SCRIPT not in str(answer.reason):
                    raise answer
                yield Unit(key, task_in(key, prefix), (), {}, str(answer.reason))
            elif len(answer) > 1:  # more than the time: it was not gone meanwhile
                yield Unit(key, task_in(key, prefix), tuple(holders(answer)), answer)


def _keys(store: Store, prefix: str, until: float | None) -> Iterator[str]:
    seen: set[int] = set()
    pages = _pages(store, f"{store.prefix}{prefix}:*")
    while True:
        try:
            page = next(pages, None)
        except FAILURES as error:
            raise StoreUnavailableError(
                f"the lock store at {store.place} cannot be listed ({error}); check that it runs "
                "and can be reached; `once doctor --acl` prints what its user has to be allowed",
                url=store.place,
                reason=str(error),
            ) from error
        if page is None or (until is not None and elapsed() > until):
            return
        for found in page:
            text = found.decode() if isinstance(found, bytes) else str(found)
            key = text.removeprefix(store.prefix)
            number = hash(key)  # SCAN may name a key twice; this takes less memory than the key
            if is_record(key) and number not in seen:
                if len(seen) < REMEMBERED:  # beyond that a key may be shown twice
                    seen.add(number)
                yield key


def _pages(store: Store, pattern: str) -> Iterator[list[Any]]:
    """What each SCAN answers, empty ones too; of a Cluster, primary after primary."""
    client: Any = store.client()
    is_cluster = isinstance(client, redis.RedisCluster)
    nodes: list[Any] = client.get_primaries() if is_cluster else [None]
    for node in nodes:
        given = {} if node is None else {"target_nodes": node}
        cursor: Any = 0
        while True:
            cursor, page = client.scan(cursor, match=pattern, count=PAGE, _type="hash", **given)
            if isinstance(cursor, dict):  # of a Cluster: by node
                cursor = next(iter(cursor.values()))
            yield page
            if not cursor:
                break
