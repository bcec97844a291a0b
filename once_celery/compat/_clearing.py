"""Freeing what no living process holds, of all units of work of a task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from once_core import protocol
from once_core._breaker import FAILURES
from once_core.errors import StoreUnavailableError
from once_core.events import emit
from once_core.guard import Guard
from once_core.keys import KeySpec
from once_core.lost import bury

if TYPE_CHECKING:
    from once_celery.task import OnceTask

__all__ = ["clear"]

_DIGEST = re.compile(r"[0-9a-f]{40}")
_WHY = "clear_locks"


def clear(task: OnceTask) -> int:
    """Free the units of work of a task that nobody alive runs; answers how many.

    Raises:
        StoreUnavailableError: The lock store is away.
    """
    guard = task.once_guard()
    return sum(_free(guard, key) for key in list(_keys(guard)))


def _keys(guard: Guard) -> Iterator[str]:
    """Its records, of all arguments; found by SCAN, which blocks nobody."""
    prefix = guard.options.prefix
    name = guard.options.name or guard.task
    usual = KeySpec(name, _nothing).key((), {}, prefix=prefix() if callable(prefix) else prefix)
    head = f"{guard.store.prefix}{usual.rpartition(':')[0]}:"
    pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", head) + "*"
    client: Any = guard.store.client()
    try:
        for found in client.scan_iter(match=pattern, count=1000):
            key = found.decode() if isinstance(found, bytes) else str(found)
            # of a task whose name goes on after a colon it would be longer
            if _DIGEST.fullmatch(key.removeprefix(head)):
                yield key.removeprefix(guard.store.prefix)
    except FAILURES as error:
        raise StoreUnavailableError(
            f"the lock store {guard.store.place} did not answer: {error}; nothing more was freed",
            url=guard.store.place,
            reason=str(error),
        ) from error


def _nothing() -> None: ...


def _free(guard: Guard, key: str) -> bool:
    """Free one record unless its run lives, or may live: elsewhere nobody here can tell."""
    fields = guard.store.run(protocol.inspect(key))
    running = fields.get("x0i")
    if running is not None and not bury(guard, key, running, f"{_WHY}: its process is gone"):
        return False
    freed = running is not None
    for part in ("w", "n"):
        if f"{part}t" in fields:
            message_id = fields[f"{part}i"]
            told = protocol.Message(
                message_id, int(fields[f"{part}t"]), int(fields.get(f"{part}r", 0))
            )
            # not `release`: what starts in this moment keeps its lease
            if guard.store.run(protocol.withdraw(key, told)) == "withdrawn":
                freed = True
                emit("withdrawn", task=guard.task, key=key, message_id=message_id, reason=_WHY)
    return freed
