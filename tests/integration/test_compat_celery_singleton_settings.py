"""celery-singleton's settings, and its `clear_locks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from once_celery import OnceTask
from once_celery.compat import Singleton, clear_locks
from once_core import protocol
from once_core._host import whereabouts
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.guard import Guard
from once_pytest import OnceHarness
from once_pytest.faults import OnceFaults

pytestmark = [
    pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning"),
    pytest.mark.once(leaks="ignore"),
]

Drain = Callable[..., Any]


@pytest.fixture
def app(once_celery_app: Celery) -> Celery:
    """An app whose locks are somewhere; without a Redis of its own it has to say where."""
    once_celery_app.conf.singleton_backend_url = "redis://localhost:6379/0"
    return once_celery_app


def test_the_place_and_the_prefix(app: Celery, once_locks: OnceHarness) -> None:
    """URL and prefix are ours; what cannot be part of our keys is left out of the prefix."""
    app.conf.singleton_backend_url = "redis://localhost:6379/5"
    app.conf.singleton_key_prefix = "SINGLETON {LOCK}_"

    @app.task(base=Singleton)
    def do_something() -> None: ...

    do_something.delay()

    assert do_something.once_guard().options.url == "redis://localhost:6379/5"
    assert [lock.key.partition(":")[0] for lock in once_locks.locks] == ["SINGLETONLOCK_"]


def test_settings_with_a_namespace(once_celery_app: Celery) -> None:
    """``CELERY_SINGLETON_…``, as Django's settings have them, is the same."""
    settings = {"CELERY_SINGLETON_LOCK_EXPIRY": 30, "CELERY_SINGLETON_KEY_PREFIX": "shop"}
    once_celery_app.config_from_object(settings, namespace="CELERY")

    @once_celery_app.task(base=Singleton)
    def do_something() -> None: ...

    options = do_something.once_guard().options
    assert (options.ttl, options.prefix) == (30.0, "shop")


def test_our_own_settings_go_before(app: Celery) -> None:
    """Who has set ``once_url`` already need not take the old setting away at the same time."""
    app.conf.once_client = lambda: None

    @app.task(base=Singleton)
    def do_something() -> None: ...

    assert do_something.once_guard().options.url is None


@pytest.mark.parametrize(
    "setting",
    [
        {"singleton_backend_class": "shop.locks.PostgresBackend"},
        {"singleton_backend_class": dict},
        {"singleton_backend_kwargs": {"db": 5}},
    ],
)
def test_other_backends_are_refused(app: Celery, setting: dict[str, object]) -> None:
    """Locks elsewhere are an error that says what to set."""
    app.conf.update(setting)

    @app.task(base=Singleton)
    def do_something() -> None: ...

    with pytest.raises(ConfigurationError, match=r"cannot be used.*once_url"):
        do_something.delay()


def test_the_usual_backend_by_name(app: Celery) -> None:
    """The default, written out, is accepted."""
    app.conf.singleton_backend_class = "celery_singleton.backends.RedisBackend"

    @app.task(base=Singleton)
    def do_something() -> None: ...

    assert do_something.delay().once.state == "claimed"


def test_clear_locks_frees_what_waits(app: Celery, once_drain: Drain) -> None:
    """Messages that are gone refuse nobody any more; one that is still there runs all the same."""
    ran = []

    @app.task(base=Singleton)
    def do_something(number: int) -> None:
        ran.append(number)

    first = do_something.delay(1)
    do_something.delay(2)

    assert clear_locks(app) == 2
    assert clear_locks(app) == 0
    assert not do_something.is_locked(2)
    assert do_something.delay(1) != first

    once_drain()

    assert ran == [1, 2, 1]


def test_clear_locks_spares_a_live_run(app: Celery, once_drain: Drain) -> None:
    """A run that goes on keeps its lease (celery-singleton lets a second one start)."""
    during = []

    @app.task(base=Singleton, bind=True)
    def do_something(self: Any) -> None:
        during.extend((clear_locks(app), self.delay().id == self.request.id))

    do_something.delay()
    once_drain()

    assert during == [0, True]


def _hold(guard: Guard, where: str) -> None:
    step = protocol.start(
        guard.key((), {}),
        protocol.Message("m1", 0, 0),
        "attempt",
        where=where,
        lease=60,
        ttl=60,
        heal_after=60,
    )
    assert guard.store.run(step).status == "started"


def test_clear_locks_frees_what_the_dead_hold(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of this machine that is gone holds nothing any more."""

    @app.task(base=Singleton)
    def do_something() -> None: ...

    host, _, namespace = whereabouts().split(":")
    _hold(do_something.once_guard(), f"{host}:{2**22 + 1}:{namespace}")

    assert clear_locks(app) == 1
    assert not do_something.is_locked()


def test_clear_locks_spares_other_machines(app: Celery) -> None:
    """Of a process elsewhere nobody here can tell whether it lives; its lease ends by itself."""

    @app.task(base=Singleton)
    def do_something() -> None: ...

    _hold(do_something.once_guard(), "elsewhere:7:0123456789")

    assert clear_locks(app) == 0
    assert do_something.is_locked()


def test_clear_locks_spares_other_tasks(app: Celery) -> None:
    """It concerns the Singleton tasks of this app; not even those whose names begin alike."""

    @app.task(base=Singleton, name="shop")
    def mine() -> None: ...

    @app.task(base=OnceTask, name="shop:other")
    def other() -> None: ...

    app.conf.once_prefix = "pre[f]ix*"
    mine.delay()
    other.delay()

    assert clear_locks(app) == 1
    assert (mine.is_locked(), other.is_locked()) == (False, True)


def test_clear_locks_says_when_it_cannot(app: Celery, once_faults: OnceFaults) -> None:
    """While the store is away it raises, and does not count nothing as success."""

    @app.task(base=Singleton)
    def do_something() -> None: ...

    do_something.delay()
    with once_faults.outage(), pytest.raises(StoreUnavailableError):
        clear_locks(app)
