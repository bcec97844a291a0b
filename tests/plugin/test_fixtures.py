"""What each fixture gives, in memory and on a server; and that a project can override them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]

TESTS = """
import asyncio
import os
import threading

import dramatiq
import pytest
from once_celery import OnceTask
from once_pytest import *
from shop import *

SEEN = []


def test_locks_is_a_table(once_locks):
    handle = sync_order.delay(42)
    lock, = once_locks.locks
    assert (lock.task, lock.state, lock.arguments) == (
        "shop.sync_order", "waiting", {"order_id": 42, "lang": "en"})
    assert lock.message_id == handle.id and 3590 < lock.remaining <= 3600 and lock.age < 10
    assert (lock.suppressed, lock.where, lock.key.startswith("once:")) == (0, "", True)
    sync_order.delay(42)
    assert once_locks.locks[0].suppressed == 1
    once_locks.assert_duplicate(sync_order, 42)
    assert_task_locked(sync_order, 42)


def test_events_are_recorded(once_locks):
    sync_order.delay(42)
    sync_order.delay(42)
    assert [each.kind for each in once_locks.events] == ["claimed", "duplicate"]
    assert_task_locked(sync_order, 42)


def test_the_next_test_has_a_store_of_its_own(once_locks):
    assert (once_locks.locks, once_locks.events) == ([], [])
    assert not sync_order.delay(42).once.is_duplicate
    assert once_locks.release_all() == 1


def test_both_frameworks_and_a_thread_meet_in_it(once_locks):
    send_mail.send(7)
    thread = threading.Thread(target=sync_order.delay, args=(42,))
    thread.start()
    thread.join()
    assert_task_locked(send_mail, 7)
    assert_task_locked(sync_order, 42)


def test_clients_see_the_same_records(once_locks):
    sync_order.delay(42)
    key = once_locks.opened.prefix + once_locks.locks[0].key
    assert once_locks.client().exists(key) == 1

    async def look():
        client = once_locks.async_client()
        try:
            return await client.exists(key)
        finally:
            await client.aclose()

    assert asyncio.run(look()) == 1
    assert_task_locked(sync_order, 42)


def test_async_code_needs_no_plugin(once_locks):
    async def view():
        await asyncio.to_thread(sync_order.delay, 42)
        assert_task_locked(sync_order, 42, within=5)
        async with asyncio.TaskGroup() if hasattr(asyncio, "TaskGroup") else _none():
            send_mail.send(1)

    class _none:
        async def __aenter__(self): ...
        async def __aexit__(self, *error): ...

    asyncio.run(view())
    assert_task_locked(send_mail, 1)


def test_others_can_hold(once_locks):
    with once_locks.hold(sync_order, 42):
        assert sync_order.is_locked(42)
        assert_task_locked(sync_order, 42, state="running")
    assert not sync_order.is_locked(42)
    waiting = once_locks.hold(sync_order, 42, state="waiting")
    assert sync_order.delay(42).once.holder_id == waiting.message_id
    waiting.end()
    assert_no_locks()


def test_forget(once_locks):
    sync_order.delay(42)
    once_locks.forget()
    assert (once_locks.locks, once_locks.events) == ([], [])


@pytest.mark.once(bypass=True)
def test_bypassed_tasks_run_under_no_guard(once_locks, once_celery_app, once_dramatiq_broker):
    @once_celery_app.task(base=OnceTask, name="bypassed")
    def bypassed(x): ...

    @dramatiq.actor(broker=once_dramatiq_broker, once=True, actor_name="bypassed")
    def actor(x): ...

    assert bypassed.delay(1).id != bypassed.delay(1).id
    assert actor.send(1).message_id != actor.send(1).message_id
    assert once_locks.locks == []


def test_celery_app(once_celery_app, once_locks):
    assert once_celery_app.main.startswith("once-test-")

    @once_celery_app.task(base=OnceTask, name="of.this.test")
    def task(x): ...
    assert not task.delay(1).once.is_duplicate
    assert_task_locked(task, 1)


def test_celery_app_of_the_next_test_is_another(once_celery_app, once_locks):
    assert "of.this.test" not in once_celery_app.tasks


def define(app, number):
    @app.task(base=OnceTask, name="same.name")
    def task(): SEEN.append(number)
    app.finalize()
    return task


def test_tasks_of_one_test(once_celery_app):
    define(once_celery_app, 1)()
    assert SEEN == [1]


def test_are_none_of_another(once_celery_app):
    define(once_celery_app, 2)()
    assert SEEN == [1, 2]


def test_dramatiq_broker(once_dramatiq_broker, once_locks):
    @dramatiq.actor(broker=once_dramatiq_broker, once=True)
    def actor(x): ...
    actor.send(1)
    assert_task_locked(actor, 1)


def test_dramatiq_broker_of_the_next_test_is_another(once_dramatiq_broker):
    assert not once_dramatiq_broker.actors.keys() - {"once", "once_settle"}


def test_fixtures_are_parts_of_the_harness(
    once_locks, once_clock, once_faults, once_race, once_server
):
    assert once_locks.clock is once_clock
    assert once_locks.faults is once_faults
    assert once_locks.race is once_race
    assert once_locks.opened.place is once_server


def test_subtest_of_a_pattern(once_locks):
    for number in (1, 2):
        sync_order.delay(number)
    assert_task_locked(sync_order, ..., "en")


@pytest.mark.once(server="spawn")
def test_wants_a_server(once_locks, once_server):
    assert once_server.url
    assert once_locks.client().info("server")
"""

WARNINGS = [
    "-W",
    "error",
    "-W",
    "ignore:.*utcnow:DeprecationWarning",
    "-W",
    "ignore::ImportWarning",
]


@pytest.fixture(scope="module", params=["fake", "spawn"])
def told(request: pytest.FixtureRequest, run_once: Run) -> Any:
    """A run that uses all fixtures."""
    return request.param, run_once(
        {"test_it.py": TESTS}, f"--once-redis={request.param}", *WARNINGS
    )


def test_fixtures_do_what_they_say(told: Any) -> None:
    """The same tests are green in memory and on a spawned server."""
    kind, suite = told

    wrong = {name: each for name, each in suite.outcomes.items() if each != ["passed"]}
    if kind == "fake":
        # pytest folds skips into one line, without the test's name
        suite.lines.fnmatch_lines(["SKIPPED * it needs a real server: run with --once-redis=spawn"])

    assert (wrong, suite.status) == ({}, 0), suite.text


CONFTEST = """
import pytest
from celery import Celery
from dramatiq.brokers.stub import StubBroker
from once_dramatiq import OnceMiddleware

@pytest.fixture(scope="session")
def once_options():
    return {"lease": 7, "ttl": 70}
"""

OVERRIDDEN = """
import dramatiq
import pytest
from celery import Celery
from dramatiq.brokers.stub import StubBroker
from once_celery import OnceTask
from once_dramatiq import OnceMiddleware
from once_pytest import *


def test_options_of_celery(once_celery_app):
    task = once_celery_app.task(base=OnceTask, name="t")(body)
    options = assert_valid_options(task)
    assert (options.lease, options.ttl) == (7, 70)


def test_options_of_dramatiq(once_dramatiq_broker):
    actor = dramatiq.actor(broker=once_dramatiq_broker, once=True)(body)
    options = assert_valid_options(actor)
    assert (options.lease, options.ttl) == (7, 70)


class TestOwnApp:
    @pytest.fixture
    def once_celery_app(self, once_locks):
        return Celery("mine", broker="memory://", set_as_current=False)

    @pytest.fixture
    def once_dramatiq_broker(self, once_locks):
        broker = StubBroker()
        broker.add_middleware(OnceMiddleware())
        return broker

    def test_celery(self, once_celery_app, once_locks):
        task = once_celery_app.task(base=OnceTask, name="t2")(body)
        task.delay(1)
        assert_task_locked(task, 1)
        assert once_celery_app.main == "mine"

    def test_dramatiq(self, once_dramatiq_broker, once_locks):
        actor = dramatiq.actor(broker=once_dramatiq_broker, once=True)(body)
        actor.send(1)
        assert_task_locked(actor, 1)


class TestOwnLocks:
    @pytest.fixture(autouse=True)
    def _locks(self, once_locks):
        self.mine = once_locks

    def test_autouse(self):
        assert_no_locks()
        assert self.mine.locks == self.once_locks.locks == []


def body(x): ...
"""


def test_apps_brokers_and_options_are_overridable(run: Run) -> None:
    """A project's own fixtures of these names take the place of ours."""
    suite = run({"conftest.py": CONFTEST, "test_it.py": OVERRIDDEN})

    assert suite.status == 0, suite.text
    assert len(suite.outcomes) == 5


def test_the_ini_names_the_server_too(run: Run) -> None:
    """``once_redis`` in the ini, and the command line is stronger."""
    text = "def test_it(once_server, once_locks): print('kind:', once_server.kind)"
    ini = "[pytest]\nonce_redis = spawn\n"

    by_ini = run({"pytest.ini": ini, "test_it.py": text}, "-s", shop=False)
    by_line = run({"test_it.py": text}, "-s", "--once-redis=fake", shop=False)

    by_ini.lines.fnmatch_lines(["*kind: spawn*"])
    by_line.lines.fnmatch_lines(["*kind: fake*"])


def test_a_server_that_cannot_be_started_is_named(run: Run) -> None:
    """A binary that is none is an error with its path, not a hang."""
    suite = run(
        {"test_it.py": "def test_it(once_locks): pass"},
        "--once-redis=spawn",
        "--once-redis-server=/nowhere/redis-server",
        shop=False,
    )

    assert suite.outcomes == {"test_it": ["error"]}
    assert "/nowhere/redis-server" in suite.text
