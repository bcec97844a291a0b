"""Events in Redis, for `once watch` and the dashboard: capped, in batches, off by default.

A task pays a few microseconds: a thread of the process writes what was told since it looked last.
While the lock store is slow or away events wait for it, and nothing else does; beyond 10,000 of a
process the oldest are thrown away, and the stream says how many. After an outage some may be there
twice.
"""

from __future__ import annotations

import atexit
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from once_core._breaker import FAILURES
from once_core._host import whereabouts
from once_core._native import Wake, make_lock, start_thread
from once_core.errors import StoreUnavailableError
from once_core.events import Event, subscribe

if TYPE_CHECKING:
    from once_core.store import Store

__all__ = ["Entry", "flush", "keep", "name", "read"]

BATCH_AFTER = 0.2
"""Seconds in which events gather before they are written."""

BATCH = 500
"""Events written in one round trip."""

MOST_WAITING = 10_000
"""Events of one process that wait to be written: memory is bounded."""

MOST_TASKS = 10_000
"""Names of tasks, functions and blocks whose events one process keeps."""

PAUSE = 1.0
"""Seconds before the next try when a write has failed."""

LIFE = 7 * 24 * 3600
"""Seconds after its last event at which a stream is gone: no key lives for ever."""

LONGEST_WAIT = 0.5
"""Seconds; the client gives up on an answer after 0.8."""

_NOT_TOLD = frozenset({"renewed"})
"""Kinds that come all day and tell a reader nothing."""

_FIELDS = tuple(field.name for field in fields(Event))
_TEXTS = {field.name for field in fields(Event) if field.type == "str"}


class Entry(NamedTuple):
    """One event in a stream.

    Attributes:
        id: Its place in the stream; what comes later is greater.
        event: What was decided. Of kind ``"dropped"`` where events of a process were not written.
        where: The process that told it: ``host:pid`` and what tells it from its like.
    """

    id: str
    event: Event
    where: str


class _Stream(NamedTuple):
    """Where the events of a task go."""

    store: Store
    key: str
    length: int


_streams: dict[str, _Stream] = {}
"""By task, of those whose events are kept."""

_subscription: list[Callable[[], None]] = []
"""One a process, from its first stream on."""


def name(prefix: str = "once") -> str:
    """The key of the stream beside the records of a prefix."""
    return f"{prefix}:events"


def keep(task: str, store: Store, prefix: str, length: int) -> None:
    """Write the events of a task from now on, for ``events=``.

    Args:
        task: Its name.
        store: Where its records are.
        prefix: First part of their keys.
        length: How many events the stream keeps, of all tasks together; a few more at times.
    """
    if not _subscription:
        _subscription.append(subscribe(_take))
    if len(_streams) >= MOST_TASKS:  # lease blocks whose names hold values
        _streams.pop(next(iter(_streams)))
    _streams[task] = _Stream(store, name(prefix), length)


def flush() -> None:
    """Write at once what waits in this process, which is about to end.

    Where `atexit` runs nobody has to call it: children of pools end without.
    """
    pid = os.getpid()
    for (owner, _), writer in list(_process.items()):
        if owner == pid:
            writer.flush()


def read(
    store: Store, prefix: str = "once", *, after: str = "", count: int = 200, wait: float = 0.0
) -> list[Entry]:
    """What was told, oldest first.

    Args:
        store: The lock store.
        prefix: First part of the keys of the records.
        after: Only what came after the entry of this id; by default the last ones.
        count: How many at most.
        wait: Seconds to wait for one that comes after ``after``; at most 0.5.

    Returns:
        Entries; none where ``events=`` is not set, or nothing was told.

    Raises:
        StoreUnavailableError: The store is away, or refuses.

    Example:
        >>> from once_core import Guard, OnceOptions, Store, stream
        >>> store = Store("memory://stream-example")
        >>> guard = Guard("shop.sync", lambda: None, OnceOptions(events=1000), lambda: store)
        >>> guard.release((), {})
        False
        >>> stream.read(store)
        []
    """
    key = store.prefix + name(prefix)
    try:
        client: Any = store.client()
        if not after:
            found = client.xrevrange(key, count=count)[::-1]
        else:
            found = client.xrange(key, min=f"({after}", count=count)
            if not found and wait > 0:
                block = max(1, int(min(wait, LONGEST_WAIT) * 1000))
                answer = client.xread({key: after}, count=count, block=block)
                found = _entries_of(answer)
    except FAILURES as error:
        raise StoreUnavailableError(
            f"the events at {store.place} cannot be read ({error}); check that it runs and can be "
            "reached; `once doctor --acl` prints what its user has to be allowed",
            url=store.place,
            reason=str(error),
        ) from error
    return [_entry(*each) for each in found]


def _entries_of(answer: Any) -> list[Any]:  # noqa: ANN401  # redis-py's, of two forms
    """Of the one stream in an answer to XREAD: RESP3 gives a dict, RESP2 pairs in a list."""
    if not answer:
        return []
    parts = list(answer.values()) if isinstance(answer, dict) else [part for _, part in answer]
    found: list[Any] = parts[0]
    # RESP3 wraps the entries in one more list in some versions of redis-py
    return found[0] if found and isinstance(found[0], list) else found


def _entry(entry_id: Any, content: Any) -> Entry:  # noqa: ANN401  # text or bytes
    texts = {_text(key): _text(value) for key, value in content.items()}
    try:
        told = json.loads(texts.get("e", ""))
        known = {key: value for key, value in told.items() if key in _FIELDS}  # a newer says more
        event = _checked(Event(**known))
    except (ValueError, TypeError, AttributeError):
        event = Event("unreadable", reason="this entry of the stream is none of ours")
    return Entry(_text(entry_id), event, texts.get("b", ""))


def _checked(event: Event) -> Event:
    for field in _FIELDS:
        value = getattr(event, field)
        expected = str if field in _TEXTS else (int, float, type(None))
        if not isinstance(value, expected):
            raise TypeError(field)
    return event


def _text(value: Any) -> str:  # noqa: ANN401  # text or bytes
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _take(event: Event) -> None:
    """The subscriber: into the stream of its task; what is of no task into all of them."""
    if event.kind in _NOT_TOLD:
        return
    stream = _streams.get(event.task)
    if stream is not None:
        _writer(stream.store).add(stream, event)
    elif not event.task:
        for each in {stream[:2]: stream for stream in _streams.values()}.values():
            _writer(each.store).add(each, event)


class _Writer:
    """What waits to be written to one store, and the thread that writes it.

    Args:
        store: Where to; it gets connections of the thread's own, see `Heartbeat`.
    """

    def __init__(self, store: Store) -> None:
        self._pid = os.getpid()
        self._store = store.sibling()
        self._waiting: deque[tuple[_Stream, Event]] = deque(maxlen=MOST_WAITING)
        self._batch: list[tuple[_Stream, Event]] = []
        self._dropped = 0
        self._lock = make_lock()
        self._wake = Wake()
        self._is_woken = False
        self._runs = False

    def add(self, stream: _Stream, event: Event) -> None:
        if len(self._waiting) == MOST_WAITING:
            self._dropped += 1
        self._waiting.append((stream, event))  # of a full one the oldest goes
        if not self._is_woken:
            self._is_woken = True
            self._start()
            self._wake.set()

    def _start(self) -> None:
        if self._runs:
            return
        self._runs = True
        try:
            start_thread(self._run)
        except RuntimeError:  # the interpreter is ending: `flush` writes what there is
            self._runs = False
        atexit.register(self.flush)

    def _run(self) -> None:
        nap = Wake()  # never woken
        while True:
            self._wake.wait(LIFE)
            nap.wait(BATCH_AFTER)
            self._is_woken = False
            while self._is_behind:
                if not self._write():
                    nap.wait(PAUSE)

    @property
    def _is_behind(self) -> bool:
        return bool(self._batch or self._waiting)

    def flush(self) -> None:
        """Write what waits; the process is ending, so a store that is away is asked twice."""
        # a forked child that ends by itself would write what is its parent's to write
        while os.getpid() == self._pid and self._is_behind and (self._write() or self._write()):
            pass

    def _write(self) -> bool:
        """Write one batch, and say whether that worked; if not, it is the next one again."""
        with self._lock:  # the thread, and whoever ends the process
            return self._write_next()

    def _write_next(self) -> bool:
        while len(self._batch) < BATCH and self._waiting:
            self._batch.append(self._waiting.popleft())
        if not self._store.is_at_hand:
            return False
        try:
            self._send()
        except FAILURES:
            return False
        except Exception:  # noqa: BLE001  # nothing of this may end the thread, or be heard of
            self._dropped += len(self._batch)  # it would fail again and again
            self._batch = []
            return True
        self._batch, self._dropped = [], 0
        return True

    def _send(self) -> None:
        client: Any = self._store.client()
        pipeline = client.pipeline(transaction=False)
        told = list(self._batch)
        if self._dropped:
            told.insert(0, (told[0][0], _missing(self._dropped, told[0][1].at)))
        where = whereabouts()
        for stream, event in told:
            content = {"e": _compact(event), "b": where}
            key = self._store.prefix + stream.key
            pipeline.xadd(key, content, maxlen=stream.length, approximate=True)
        for key in {self._store.prefix + stream.key for stream, _ in told}:
            pipeline.expire(key, LIFE)
        # an EXPIRE that is refused must not have all be written once more
        replies = pipeline.execute(raise_on_error=False)
        errors = [each for each in replies[: len(told)] if isinstance(each, Exception)]
        if errors:
            raise errors[0]


def _missing(dropped: int, at: float) -> Event:
    reason = f"{dropped} events of this process were not written: the lock store was slow"
    return Event("dropped", reason=reason, at=at)


def _compact(event: Event) -> str:
    told = {field: getattr(event, field) for field in _FIELDS}
    given = {field: value for field, value in told.items() if value not in (None, "")}
    return json.dumps(given, separators=(",", ":"), default=str)  # an id may be a UUID


_process: dict[tuple[int, Store], _Writer] = {}
"""By process and store."""


def _writer(store: Store) -> _Writer:
    """The writer of this process to a store; a forked child has its own."""
    place = os.getpid(), store
    found = _process.get(place)
    if found is None:
        # atomic: of two threads that come first, both go on with one writer
        found = _process.setdefault(place, _Writer(store))
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_process.clear)
    return found
