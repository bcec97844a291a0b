"""What `once doctor` finds in what a server says of itself, and in the options of a task."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime, timezone
from typing import Any

import pytest
import redis
from _support.waiting import wait_until

from once_core import Guard, OnceOptions, Store, checkup, protocol
from once_core.backlog import Overdue
from once_core.checkup import of_replicas, of_store, of_units, warn_at_start
from once_core.finding import CODES
from once_core.task_checkup import (
    of_guard,
    of_periodic,
    of_results,
    of_retries,
    of_time_limit,
    of_unguarded,
)
from once_pytest import OnceHarness

GOOD = {
    "redis_version": "7.2.4",
    "maxmemory": 100,
    "maxmemory_policy": "noeviction",
    "used_memory": 50,
    "role": "master",
    "connected_slaves": 0,
    "aof_enabled": 1,
    "cluster_enabled": 0,
    "rdb_last_bgsave_status": "ok",
    "aof_last_write_status": "ok",
}


class Server:
    """Says of itself what a test wants."""

    def __init__(self, clock: float = 0.0, **facts: object) -> None:
        self._facts = {**GOOD, **facts}
        self._clock = clock

    def ping(self) -> bool:
        return True

    def info(self) -> dict[str, object]:
        if "error" in self._facts:
            raise redis.exceptions.NoPermissionError(str(self._facts["error"]))
        return self._facts

    def time(self) -> tuple[int, int]:
        return int(time.time() + self._clock), 0


def store_of(server: object) -> Store:
    """A lock store on such a server."""
    client: Any = server
    return Store(lambda: client, place="lock.example:6379/0")


def codes_of(server: Server) -> dict[str, str]:
    """Codes and levels of what is found."""
    return {each.code: each.level for each in of_store(store_of(server)) if each.level != "ok"}


def test_of_a_good_server_nothing_is_said() -> None:
    """A server of its own, with noeviction and a log of its writes."""
    assert codes_of(Server()) == {}


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"redis_version": "6.0.16"}, {"server-old": "error"}),
        ({"maxmemory_policy": "allkeys-lru"}, {"evicts-keys": "warning"}),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, {"evicts-keys": "note"}),
        ({"used_memory": 95}, {"memory-nearly-full": "warning"}),
        ({"role": "slave"}, {"replica": "error"}),
        ({"connected_slaves": 2}, {"has-replicas": "note"}),
        ({"cluster_enabled": 1}, {"cluster-node": "error"}),
        ({"aof_enabled": 0}, {"no-aof": "note"}),
        ({"rdb_last_bgsave_status": "err"}, {"writes-fail": "warning"}),
        ({"aof_last_write_status": "err"}, {"writes-fail": "warning"}),
        ({"clock": 60.0}, {"clock-skew": "note"}),
        ({"error": "NOPERM"}, {"info-refused": "note"}),
    ],
)
def test_what_a_server_says(facts: dict[str, Any], found: dict[str, str]) -> None:
    """One thing wrong, one finding, which says what to do."""
    assert codes_of(Server(**facts)) == found
    assert all(each.advice for each in of_store(store_of(Server(**facts))) if each.level != "ok")


@pytest.mark.parametrize(("wanted", "there", "found"), [(0, 0, 0), (1, 1, 0), (2, 1, 1)])
def test_a_task_wants_more_replicas_than_there_are(wanted: int, there: int, found: int) -> None:
    """Its lock store will count as away."""
    store = store_of(Server(connected_slaves=there))
    guard = Guard("shop.sync", print, OnceOptions(min_replicas=wanted), lambda: store)

    assert [each.code for each in of_replicas([guard] * 3)] == ["too-few-replicas"] * found
    refused = store_of(Server(error="NOPERM"))
    guard = Guard("shop.sync", print, OnceOptions(min_replicas=wanted), lambda: refused)
    assert list(of_replicas([guard])) == []


def test_locks_in_memory_are_no_locks() -> None:
    """`memory://` is for tests: another process knows nothing of them."""
    assert [each.code for each in of_store(Store("memory://test-checkup"))] == ["memory-store"]


def test_a_server_that_is_away() -> None:
    """An error, and nothing else is asked."""
    found = list(of_store(Store("redis://127.0.0.1:1/0")))

    assert [(each.level, each.code) for each in found] == [("error", "store-away")]


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Has so many units of one task wait; answers what is found in the store."""
    monkeypatch.setattr(checkup, "MANY_UNITS", 5)
    store = Store(f"memory://{uuid.uuid4().hex}")

    def wait(*, units: int, refused: bool = False) -> list[str]:
        for number in range(units):
            key = f"once:shop.sync:{number:040x}"
            for message in ("m1", "m2")[: 1 + (refused and number == 0)]:
                store.run(protocol.claim(key, message, ttl=60, heal_after=60))
        return [each.code for each in of_units(store, "once", Overdue())]

    yield wait
    store.client().close()


def test_keys_that_never_repeat_are_noted(waiting: Callable[..., list[str]]) -> None:
    """Many units wait, and not one has refused a call."""
    assert waiting(units=6) == ["keys-never-repeat"]


def test_one_refusal_shows_that_keys_repeat(waiting: Callable[..., list[str]]) -> None:
    """As few units, or units that refuse calls, are as they should be."""
    assert waiting(units=5) == []
    assert waiting(units=6, refused=True) == []


# Tasks


def guard(function: Callable[..., object], **options: Any) -> Guard:
    """A task under guard."""
    return Guard("shop.sync", function, OnceOptions(**options), lambda: Store("memory://none"))


def codes(function: Callable[..., object], **options: Any) -> list[str]:
    """What is found of a task."""
    return [each.code for each in of_guard(guard(function, **options))]


def _by_order(order_id: int) -> None: ...


def _at_moment(order_id: int, requested_now: float) -> None: ...


def _since(order_id: int, begin: datetime) -> None: ...


def _since_dotted(order_id: int, begin: datetime | None = None) -> None: ...


def _on_day(order_id: uuid.UUID, day: date) -> None: ...


def _made_now(order_id: int, at: Any = datetime.now()) -> None: ...  # noqa: B008, DTZ005  # the mistake


def _made_in_zone(order_id: int, at: Any = datetime.now(timezone.utc)) -> None: ...  # noqa: B008  # the same


def _made_random(order_id: int, token: Any = uuid.uuid4()) -> None: ...  # noqa: B008  # the same


def _constant(
    order_id: int,
    at: Any = datetime(1970, 1, 1, tzinfo=timezone.utc),
    space: Any = uuid.NAMESPACE_DNS,
    empty: Any = uuid.UUID(int=0),  # noqa: B008  # a constant
) -> None: ...


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (_at_moment, "volatile-argument"),
        (_since, "datetime-argument"),
        (_since_dotted, "datetime-argument"),
        (_made_now, "default-made-at-import"),
        (_made_in_zone, "default-made-at-import"),
        (_made_random, "default-made-at-import"),
    ],
)
def test_arguments_with_another_value_at_each_call(
    function: Callable[..., object], code: str
) -> None:
    """Found by name, default or annotation; the advice is what to type, and it helps."""
    (found,) = of_guard(guard(function))

    assert found.code == code
    assert "once={'key': ['order_id']}" in found.advice
    assert codes(function, key=["order_id"]) == ["ok"]


@pytest.mark.parametrize("function", [_by_order, _on_day])
def test_arguments_that_identify_the_work(function: Callable[..., object]) -> None:
    """A number, a UUID, a day: those of a thousand sound programs."""
    assert codes(function) == ["ok"]


def test_constants_are_no_moments() -> None:
    """A default that every process has is part of the key like any other."""
    assert codes(_constant) == ["ok"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"lease": 2}, "lease-short"),
        ({"lease": 3600}, "lease-long"),
        ({"ttl": 10}, "ttl-below-heal-after"),
        ({"on_overlap": "skip"}, "overlap-gives-up"),
    ],
)
def test_options_of_a_task(options: dict[str, Any], code: str) -> None:
    """Each is found, and nothing is found of the defaults."""
    assert codes(_by_order, **options) == [code]
    assert codes(_by_order) == ["ok"]


def test_ttl_and_the_longest_run() -> None:
    """What waits behind one run must be remembered until that ends."""
    short = guard(_by_order, ttl=60)

    assert [each.code for each in of_time_limit(short, 600)] == ["ttl-below-time-limit"]
    assert list(of_time_limit(short, 60)) == []
    assert list(of_time_limit(short, None)) == []
    assert list(of_time_limit(guard(_by_order, ttl=60, scope="running"), 600)) == []


def test_ttl_and_retries() -> None:
    """Forgotten before the first retry is wrong; before the last one, worth a note."""
    short = guard(_by_order, ttl=60)

    assert [each.level for each in of_retries(short, 90, 90)] == ["warning"]
    assert [each.level for each in of_retries(short, 30, 900)] == ["note"]
    assert list(of_retries(short, 30, 60)) == []


def test_results_and_those_who_look_for_them() -> None:
    """A duplicate that shares, or that is refused after the end, finds no result any more."""
    sharing = guard(_by_order, on_duplicate="share", ttl=600)
    keeping = guard(_by_order, keep_for=600)

    assert [each.code for each in of_results(sharing, 60, "")] == ["results-expire-early"]
    assert [each.code for each in of_results(keeping, 60, "")] == ["results-expire-early"]
    assert [*of_results(sharing, 600, ""), *of_results(keeping, 600, "")] == []
    assert [*of_results(sharing, None, ""), *of_results(guard(_by_order), 1, "")] == []


@pytest.mark.parametrize(
    ("options", "period", "code"),
    [
        ({}, 60, "periodic-backs-up"),
        ({"scope": "until_done"}, 60, None),
        ({"scope": "until_done"}, 86400, "ttl-below-period"),
        ({"scope": "until_done", "ttl": 172800}, 86400, None),
        ({"scope": "running"}, 60, None),
        ({}, None, None),
    ],
)
def test_periodic_tasks(options: dict[str, Any], period: float | None, code: str | None) -> None:
    """Which scope and which ttl suit a clock."""
    found = of_periodic("nightly", "shop.sync", guard(_by_order, **options), period)

    assert (found.code if found else None) == code


def test_a_periodic_task_without_guard() -> None:
    """It piles up whenever it is slower than its period."""
    found = of_periodic("nightly", "shop.sync", None, 60)

    assert found is not None
    assert found.code == "periodic-unguarded"


def test_tasks_that_look_as_if_they_want_a_guard() -> None:
    """One line for all of them, and a few names."""
    names = [f"shop.sync_{number}" for number in range(9)]

    (found,) = of_unguarded([*names, "shop.mail"], "base=OnceTask")

    assert found.code == "unguarded-task"
    assert found.about.endswith("shop.sync_4 and 4 more")
    assert list(of_unguarded(["shop.mail", "shop.syncopate"], "")) == []


# At the start of a worker


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
        ({"role": "slave"}, "it is a replica"),
    ],
)
def test_a_worker_says_what_loses_locks(
    caplog: pytest.LogCaptureFixture, facts: dict[str, Any], told: str
) -> None:
    """One WARNING for a server, however many tasks have it."""
    store = store_of(Server(**facts))

    warn_at_start(lambda: [store, store, store])

    wait_until(lambda: caplog.records, "it is told")
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert caplog.records[0].name == "once"
    assert told in caplog.text


class Refusing(Server):
    """Is away."""

    def info(self) -> dict[str, object]:
        raise redis.exceptions.ConnectionError("refused")


@pytest.mark.parametrize(
    "server",
    [
        Server(),
        Server(maxmemory_policy="allkeys-lru", maxmemory=0),
        Server(aof_enabled=0, connected_slaves=1),
        Refusing(),
    ],
    ids=["good", "no maxmemory", "notes only", "away"],
)
def test_a_worker_says_nothing_else(caplog: pytest.LogCaptureFixture, server: Server) -> None:
    """Nor does it fail."""
    checkup._warn(lambda: [store_of(server)])

    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def _looking() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "once-checkup"]


def test_a_worker_does_not_wait_for_a_server_that_hangs() -> None:
    """It is looked at beside whatever the worker does."""
    is_asked, answers = threading.Event(), threading.Event()

    def stores() -> list[Store]:
        is_asked.set()
        answers.wait(30)
        return []

    warn_at_start(stores)

    assert is_asked.wait(30)
    (thread,) = _looking()
    answers.set()
    thread.join(30)


def test_in_tests_no_server_is_looked_at() -> None:
    """A worker in a test's own process must not ask the server of its configuration."""
    asked: list[str] = []

    def stores() -> list[Store]:
        asked.append("asked")
        return []

    with OnceHarness():
        warn_at_start(stores)
        for thread in _looking():
            thread.join(30)

    assert asked == []


def test_codes_are_kebab_case_and_named_once() -> None:
    """Programs ignore them by name."""
    assert len(set(CODES)) == len(CODES)
    assert all(code == code.lower() and "_" not in code for code in CODES)
