"""The harness: locks of a test's own, and everything one can ask of them. No pytest in here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from once_core import protocol
from once_core._diversion import divert
from once_core.guard import Holder, holders
from once_pytest._assertions import Assertions
from once_pytest._places import Place
from once_pytest._recorder import Recorder
from once_pytest._store import AsyncStoreOfTest, StoreOfTest
from once_pytest._strict import refuse
from once_pytest._subject import Calls, call_of, guard_of
from once_pytest.clock import OnceClock
from once_pytest.faults import OnceFaults
from once_pytest.race import OnceRace

if TYPE_CHECKING:
    import redis
    import redis.asyncio
    from typing_extensions import Self

    from once_core._diversion import Diversion
    from once_core.aio import AsyncStore
    from once_core.events import Event
    from once_core.guard import Guard
    from once_core.store import Store

__all__ = ["HeldLock", "OnceHarness", "current"]

__unittest = True  # unittest shows no frames of ours


@dataclass(frozen=True)
class HeldLock:
    """One lock that is held; times in seconds.

    Attributes:
        task: Name of the task.
        key: Key of its unit of work.
        state: ``"running"``, ``"waiting"`` or ``"kept"``.
        message_id: Who holds it.
        remaining: Until it is over if nothing renews it.
        age: Since when.
        where: ``host:pid`` of a running one.
        fence: Number of its lease.
        suppressed: Publishes it has refused.
        has_end: Whether its key ends by itself in Redis, as every key has to.
        arguments: Of its call by name; None where another process has sent it.
    """

    task: str
    key: str
    state: str
    message_id: str
    remaining: float
    age: float
    where: str = ""
    fence: int = 0
    suppressed: int = 0
    has_end: bool = True
    arguments: Mapping[str, object] | None = field(default=None, compare=False)
    guard: Guard | None = field(default=None, compare=False, repr=False)


class OnceHarness(Assertions):
    """Locks of a test's own, from its start to its end.

    While it is open, every task, actor and function under guard in this process has its lock
    here, wherever its configuration says. One may be open at a time; all threads see it.

    Args:
        place: Where the locks live; fakeredis by default.
        is_bypassed: Whether tasks run as if they were under no guard.
        is_strict: Whether a store of another server must not be connected to meanwhile.

    Attributes:
        clock: Lets time pass.
        faults: What can go wrong between a task and its store.
        race: Has several calls contend.

    Example:
        >>> from celery import Celery
        >>> from once_celery import OnceTask
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> @app.task(base=OnceTask, name="shop.sync_order")
        ... def sync_order(order_id): ...
        >>> with OnceHarness() as once_locks:
        ...     _ = sync_order.delay(42)
        ...     once_locks.assert_task_locked(sync_order, 42, state="waiting")
        ...     [(lock.task, lock.arguments) for lock in once_locks.locks]
        [('shop.sync_order', {'order_id': 42})]
    """

    def __init__(
        self,
        place: Place | None = None,
        *,
        is_bypassed: bool = False,
        is_strict: bool = True,
    ) -> None:
        self.opened = (place or Place("fake")).open()
        self.is_bypassed = is_bypassed
        self.is_strict = is_strict
        self.recorder = Recorder()
        self.clock = OnceClock(self)
        self.faults = OnceFaults(self)
        self.race = OnceRace(self)
        self.acknowledged: set[tuple[str, str]] = set()
        """Locks of which the test has said that they are held: key and state."""
        self._seen_immortal: set[str] = set()
        self._before: Diversion | None = None
        self._outer: OnceHarness | None = None
        self._holds: list[Hold] = []

    @cached_property
    def store(self) -> StoreOfTest:
        """The lock store of the test."""
        return StoreOfTest(self.opened.client, self.opened.prefix)

    @cached_property
    def plain(self) -> StoreOfTest:
        """The same, untouched by faults and races: for the harness itself."""
        return StoreOfTest(self.opened.client, self.opened.prefix)

    @cached_property
    def async_store(self) -> AsyncStoreOfTest:
        """The same store for asyncio."""
        return AsyncStoreOfTest(self.store, self.opened.async_client)

    def __repr__(self) -> str:
        return f"<OnceHarness on {self.opened.place.kind}>"

    # Opening and closing

    def start(self) -> Self:
        """Open it."""
        global _current  # one at a time, for all threads
        self.plain.client().ping()  # says here, and not in a task, what is wrong with the place
        self._before = divert(_Diverted(self))
        self._outer, _current = _current, self
        self.recorder.start()
        return self

    def stop(self) -> None:
        """Close it, and delete what is left of its records."""
        global _current  # noqa: PLW0603  # see `start`
        self.faults.stop()
        divert(self._before)
        _current = self._outer
        self.recorder.stop()
        self.clock.stop()
        self._delete()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _delete(self) -> None:
        client: redis.Redis = self.plain.client()  # type: ignore[assignment]  # no Cluster's
        for key in list(client.scan_iter(match=f"{self.opened.base}*", count=1000)):
            client.unlink(key)

    def _delete_records(self) -> None:
        client = self.plain.client()
        for key in self.plain.names():
            client.unlink(self.opened.prefix + key)

    # What there is

    @property
    def locks(self) -> list[HeldLock]:
        """Everything that is held now, by key; who runs before who waits."""
        return [lock for key in self.plain.names() for lock in self._held(key)]

    @property
    def events(self) -> list[Event]:
        """Every event since the start, the first one first."""
        return list(self.recorder.events)

    @property
    def leaked(self) -> list[HeldLock]:
        """What is held and the test has not said it is, by an assertion or by `hold`."""
        mine = {hold.message_id for hold in self._holds}
        return [
            lock
            for lock in self.locks
            if (lock.key, lock.state) not in self.acknowledged and lock.message_id not in mine
        ]

    @property
    def immortal(self) -> list[str]:
        """Keys without an end, now or when the clock was advanced; there must be none."""
        return sorted({*self._seen_immortal, *self._immortal_now()})

    def note_immortal(self) -> None:
        """Remember the keys that have no end: the clock is about to give them one."""
        self._seen_immortal.update(self._immortal_now())

    def _immortal_now(self) -> list[str]:
        client: redis.Redis = self.plain.client()  # type: ignore[assignment]  # no Cluster's
        return [key for key in self.plain.written() if client.pttl(self.opened.prefix + key) == -1]

    def client(self) -> redis.Redis:
        """A redis-py client of the server, for commands of one's own."""
        return self.opened.client()

    def async_client(self) -> redis.asyncio.Redis:
        """The same for asyncio; to be made in the loop that uses it."""
        return self.opened.async_client()

    def key(self, guard: Guard, given: Calls) -> str:
        """The key of a call, which is not noted as one of the program's."""
        with self.recorder.silence():
            return guard.key(given.args, given.kwargs)

    def _held(self, key: str) -> Iterator[HeldLock]:
        found = self.recorder.calls(key)
        task = found[0].guard.task if found else key.rsplit(":", 2)[-2]
        fields = self.plain.run(protocol.inspect(key))
        client: redis.Redis = self.plain.client()  # type: ignore[assignment]  # no Cluster's
        has_end = client.pttl(self.opened.prefix + key) != -1
        for each in holders(fields):
            yield HeldLock(
                task,
                key,
                each.state,
                each.message_id,
                each.remaining,
                each.age,
                _short(each),
                each.fence,
                each.suppressed,
                has_end,
                found[0].arguments if found else None,
                found[0].guard if found else None,
            )

    # What a test may do

    def hold(
        self, task: object, /, *args: object, state: str = "running", **kwargs: object
    ) -> Hold:
        """Have somebody else hold the lock of a call, until the end of a ``with`` block or test.

        Args:
            task: The task, actor or function.
            args: Its arguments, or one `call`.
            state: ``"running"``: a worker elsewhere, which does not renew its lease; or
                ``"waiting"``: a message that was sent.
            kwargs: Its arguments by name.

        Raises:
            ValueError: For another state.
            AssertionError: Somebody holds it already.

        Example:
            >>> from once_core import Guard, OnceOptions
            >>> guard = Guard("sync", lambda number: None, OnceOptions(), lambda: None)
            >>> with OnceHarness() as once_locks:
            ...     with once_locks.hold(guard, 1):
            ...         held = guard.is_locked((1,), {})
            ...     held, guard.is_locked((1,), {})
            (True, False)
        """
        __tracebackhide__ = True
        if state not in ("running", "waiting"):
            raise ValueError(f'state={state!r} must be "running" or "waiting"')
        guard, given = guard_of(task), call_of(args, kwargs)
        key = guard.key(given.args, given.kwargs)
        message_id = f"held-by-test-{uuid.uuid4().hex[:6]}"
        options = guard.options
        life: dict[str, Any] = {"ttl": options.ttl, "heal_after": options.heal_after}
        message, attempt = protocol.Message(message_id), uuid.uuid4().hex[:16]
        status: str
        end: protocol.Step[Any]
        if state == "waiting":
            claim = self.plain.run(protocol.claim(key, message_id, **life))
            status = claim.status
            end = protocol.withdraw(key, message._replace(ticket=claim.ticket))
        else:
            life["queued"] = False
            life["limit"] = options.limit
            place: dict[str, Any] = {"where": "held-by-test:0:", "lease": options.lease}
            status = self.plain.run(protocol.start(key, message, attempt, **place, **life)).status
            life.pop("limit")
            end = protocol.finish(key, message, attempt, "success", **life)
        if status not in ("claimed", "started"):
            self.fail_for(
                f"{guard.task} cannot be held by the test, for somebody has it, for", guard, given
            )
        self._holds.append(Hold(self.plain, key, message_id, end))
        return self._holds[-1]

    def release_all(self) -> int:
        """Free everything that is held, as ``once release`` would.

        Returns:
            How many units of work.
        """
        held = {lock.key for lock in self.locks}
        for key in held:
            self.plain.run(protocol.release(key))
        return len(held)

    def forget(self) -> None:
        """Delete all records, and what was noted of this test until now."""
        self._delete_records()
        self.recorder.events.clear()
        self.acknowledged.clear()

    def dump(self) -> dict[str, tuple[dict[bytes, bytes], int]]:
        """All records and the ms that they live, for `load`."""
        client: redis.Redis = self.plain.client()  # type: ignore[assignment]  # no Cluster's
        found = {}
        for key in self.plain.names():
            full = self.opened.prefix + key
            found[key] = (client.hgetall(full), client.pttl(full))
        return found  # type: ignore[return-value]  # a sync client's

    def load(self, saved: Mapping[str, tuple[dict[bytes, bytes], int]], *, passed: float) -> None:
        """Put the records back as they were, aged by what has passed on the test's clock.

        Args:
            saved: By `dump`.
            passed: Seconds since.
        """
        client = self.plain.client()
        self._delete_records()
        for key, (fields, life) in saved.items():
            client.hset(self.opened.prefix + key, mapping=fields)  # type: ignore[arg-type]  # its own
            client.pexpire(self.opened.prefix + key, max(life, 1))
        self.plain.run_many([protocol.age(key, passed) for key in saved])


class Hold:
    """A lock that a test holds in the place of somebody else."""

    def __init__(self, store: Store, key: str, message_id: str, end: protocol.Step[Any]) -> None:
        self.key = key
        self.message_id = message_id
        self._store = store
        self._end = end

    def end(self) -> None:
        """Free it, if it is held still; what waits behind it goes on waiting."""
        self._store.run(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


class _Diverted:
    """What the harness puts in the place of this process's lock stores."""

    def __init__(self, harness: OnceHarness) -> None:
        self.is_bypassed = harness.is_bypassed
        self._harness = harness

    def store(self, find: Callable[[], Store]) -> Store:  # noqa: ARG002  # theirs is not asked
        return self._harness.store

    def async_store(self, find: Callable[[], AsyncStore]) -> AsyncStore:  # noqa: ARG002  # as above
        return self._harness.async_store

    def connecting(self, place: str) -> None:
        if self._harness.is_strict:
            refuse(place)

    def derived(
        self, guard: Guard, key: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        self._harness.recorder.derived(guard, key, args, kwargs)


_current: OnceHarness | None = None


def current() -> OnceHarness | None:
    """The harness that is open, or None."""
    return _current


def _short(holder: Holder) -> str:
    """``host:pid`` without the namespace."""
    return holder.where.rpartition(":")[0] if holder.where.count(":") > 1 else holder.where
