"""The fixtures. Imports pytest alone until they are used."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from celery import Celery
    from dramatiq import Broker

    from once_pytest._places import Place
    from once_pytest.clock import OnceClock
    from once_pytest.drain import Drained
    from once_pytest.faults import OnceFaults
    from once_pytest.harness import OnceHarness
    from once_pytest.race import OnceRace
    from once_pytest.worker import WorkerProcess

__all__ = [
    "FAILED",
    "HARNESS",
    "marked",
    "once_celery_app",
    "once_clock",
    "once_drain",
    "once_dramatiq_broker",
    "once_faults",
    "once_locks",
    "once_options",
    "once_race",
    "once_server",
    "once_worker",
]

HARNESS: pytest.StashKey[OnceHarness] = pytest.StashKey()
FAILED: pytest.StashKey[bool] = pytest.StashKey()


def marked(item: pytest.Item, name: str, default: Any) -> Any:  # noqa: ANN401  # its values
    """What the marker of a test says, the nearest one first."""
    for marker in item.iter_markers("once"):
        if name in marker.kwargs:
            return marker.kwargs[name]
    return default


@pytest.fixture(scope="session")
def once_server(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where the locks of this session's tests live: see ``--once-redis``."""
    from once_pytest._places import place

    config = request.config
    kind = config.getoption("--once-redis") or config.getini("once_redis")
    try:
        made = place(
            kind,
            binary=config.getoption("--once-redis-server"),
            allow_remote=config.getoption("--once-redis-allow-remote"),
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    yield made
    made.close()


@pytest.fixture(scope="session")
def once_options() -> Mapping[str, object]:
    """Options for `once_celery_app` and `once_dramatiq_broker`; override it to give your own."""
    return {}


@pytest.fixture
def once_locks(request: pytest.FixtureRequest, once_server: Place) -> Iterator[OnceHarness]:
    """Locks of the test's own, whatever the configuration of its tasks says.

    A `OnceHarness`: the table of locks, the events, the assertions as methods.
    """
    import redis

    from once_core.errors import OnceError
    from once_pytest import _strict
    from once_pytest._leaks import leak_text
    from once_pytest.harness import OnceHarness

    item: pytest.Item = request.node
    if marked(item, "server", "") == "spawn" and once_server.is_fake:
        pytest.skip("it needs a real server: run with --once-redis=spawn")
    _strict.raise_as(pytest.fail.Exception)
    harness = OnceHarness(
        once_server,
        is_bypassed=marked(item, "bypass", False),  # noqa: FBT003  # a default
        is_strict=marked(item, "strict", True),  # noqa: FBT003  # a default
    )
    harness.race.replay(request.config.getoption("--once-schedule"))
    try:
        harness.start()
    except ImportError as error:
        raise pytest.UsageError(str(error)) from None
    item.stash[HARNESS] = harness
    if request.instance is not None:
        request.instance.once_locks = harness  # for the methods of a unittest.TestCase
    leaks, text = "error", ""
    try:
        yield harness
        leaks = marked(item, "leaks", request.config.getini("once_leaks"))
        text = leak_text(harness, is_error=leaks != "ignore")
    except (redis.RedisError, OnceError) as error:
        leaks, text = "error", f"the lock server of this test cannot be reached any more: {error}"
    finally:
        with suppress(redis.RedisError):
            harness.stop()
    if not text or item.stash.get(FAILED, False):  # one error is enough
        return
    if leaks == "warn":
        request.node.warn(pytest.PytestWarning(text))
    else:
        pytest.fail(text, pytrace=False)


@pytest.fixture
def once_clock(once_locks: OnceHarness) -> OnceClock:
    """Lets time pass for locks: ``advance(30)``, ``advance_to_expiry(task, …)``."""
    return once_locks.clock


@pytest.fixture
def once_faults(once_locks: OnceHarness) -> OnceFaults:
    """What can go wrong between a task and its lock: ``outage()``, ``lose_reply("claim")``."""
    return once_locks.faults


@pytest.fixture
def once_race(once_locks: OnceHarness) -> OnceRace:
    """Has calls contend: ``run(task, 1, n=8)``, ``explore({"A": …, "B": …}, check)``."""
    return once_locks.race


@pytest.fixture
def once_celery_app(
    once_locks: OnceHarness, once_server: Place, once_options: Mapping[str, object]
) -> Iterator[Celery]:
    """A Celery app for the test, in memory or on the session's server; override it with yours."""
    _need("celery")
    from once_pytest._apps import AppOfTest

    name = f"once-test-{uuid.uuid4().hex[:8]}"
    url = once_server.url
    app = AppOfTest(
        name,
        broker=url or "memory://",
        backend=url or "cache+memory://",
        set_as_current=False,
    )
    app.conf.update(
        task_default_queue=name,
        broker_connection_retry_on_startup=True,
        **{f"once_{option}": value for option, value in once_options.items()},
    )
    if url:
        prefix = {"global_keyprefix": once_locks.opened.base + "broker:"}
        app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    yield app
    app.close()


@pytest.fixture
def once_dramatiq_broker(
    once_locks: OnceHarness, once_server: Place, once_options: Mapping[str, Any]
) -> Iterator[Broker]:
    """A Dramatiq broker with our middleware for the test; override it with yours.

    It is the global broker meanwhile, which actors have that name none, and results are read from.
    """
    _need("dramatiq")
    from once_pytest._brokers import global_broker, new_broker

    broker = new_broker(once_server.url, once_locks.opened.base, once_options)
    with global_broker(broker):
        yield broker
    broker.close()


@pytest.fixture
def once_drain(
    request: pytest.FixtureRequest, once_clock: OnceClock
) -> Iterator[Callable[..., Drained]]:
    """Runs what is queued, in the test's thread: ``once_drain()``, or ``once_drain(app)``.

    Without a target it drains `once_celery_app` or `once_dramatiq_broker`, whichever the test
    uses. See `once_pytest.drain.drain` for its options.
    """
    from once_pytest import drain as drains

    with ExitStack() as stack:
        known: list[object] = []

        def know(target: Any) -> None:  # noqa: ANN401  # of either framework
            if not any(each is target for each in known):
                known.append(target)
                stack.enter_context(drains.dated(target, once_clock))

        def drain(target: object = None, **options: Any) -> Drained:
            __tracebackhide__ = True
            found: Any = target if target is not None else _target(request)
            know(found)
            return drains.drain(found, clock=once_clock, **options)

        for name in _used(request):
            know(request.getfixturevalue(name))
        yield drain


@pytest.fixture
def once_worker(
    request: pytest.FixtureRequest, once_locks: OnceHarness, once_server: Place
) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts real workers that can be killed and frozen: ``once_worker(app, pool="prefork")``."""
    if once_server.is_fake:
        pytest.skip("a real worker needs a real server: run with --once-redis=spawn")
    from once_pytest.worker import start_worker

    started: list[WorkerProcess] = []

    def start(target: object = None, **options: Any) -> WorkerProcess:
        __tracebackhide__ = True
        found: Any = target if target is not None else _target(request)
        options.setdefault("on_event", once_locks.recorder.events.append)
        try:
            started.append(start_worker(found, **options))
        except NotImplementedError as error:
            pytest.skip(str(error))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def _target(request: pytest.FixtureRequest) -> object:
    __tracebackhide__ = True
    names = _used(request)
    if len(names) != 1:
        raise TypeError(
            "say what is meant, for the test uses "
            + (
                "both once_celery_app and once_dramatiq_broker"
                if names
                else "neither of once_celery_app and once_dramatiq_broker"
            )
            + ": give the Celery app or the Dramatiq broker"
        )
    found: object = request.getfixturevalue(names[0])
    return found


def _used(request: pytest.FixtureRequest) -> list[str]:
    names = ("once_celery_app", "once_dramatiq_broker")
    return [name for name in names if name in request.node.fixturenames]


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'once-tasks[{package}]'")
