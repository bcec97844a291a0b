"""What celery-singleton's README and the names of its tests promise, with the import changed."""

from __future__ import annotations

import copy
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from once_celery.compat import DuplicateTaskError, Singleton
from once_core.errors import ConfigurationError
from once_pytest.clock import OnceClock

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


def test_the_quick_start(app: Celery, once_drain: Drain) -> None:
    """A duplicate gets the handle of the first, until that is done."""

    @app.task(base=Singleton)
    def do_stuff(*args: Any, **kwargs: Any) -> str:
        return "I just woke up"

    async_result = do_stuff.delay(1, 2, 3, a="b")
    async_result2 = do_stuff.delay(1, 2, 3, a="b")
    assert async_result == async_result2

    once_drain()

    assert async_result2.get(timeout=5) == "I just woke up"


def test_how_it_works(app: Celery, once_drain: Drain) -> None:
    """Other arguments are other work, and what is done may come again."""

    @app.task(base=Singleton)
    def do_stuff(*args: Any) -> None: ...

    a = do_stuff.delay(1, 2, 3)
    b = do_stuff.delay(1, 2, 3)
    assert a == b
    c = do_stuff.delay(4, 5, 6)
    assert a != c

    once_drain()
    a.get(timeout=5)

    assert do_stuff.delay(1, 2, 3) != a


def test_it_is_refused_while_it_runs(app: Celery, once_drain: Drain) -> None:
    """The handle of the running one answers the call."""
    during = []

    @app.task(base=Singleton, bind=True)
    def do_stuff(self: Any) -> None:
        during.append(self.delay().id == self.request.id)

    do_stuff.delay()
    once_drain()

    assert during == [True]


def test_a_failure_releases_the_lock(app: Celery, once_drain: Drain) -> None:
    """A task that ended with an error can be sent again."""

    @app.task(base=Singleton)
    def fails() -> None:
        raise ZeroDivisionError

    first = fails.delay()
    once_drain(raises=False)

    assert fails.delay() != first


@pytest.mark.parametrize("unique_on", ["username", ["username"], ("username",)])
def test_unique_on(app: Celery, unique_on: Any) -> None:
    """Only the parameters that are named count, by position or by name."""

    @app.task(base=Singleton, unique_on=unique_on)
    def do_something(username: str, otherarg: Any = None) -> None: ...

    task1 = do_something.delay(username="bob", otherarg=99)
    task2 = do_something.delay("bob", otherarg=100)

    assert task1 == task2
    assert do_something.delay("alice") != task1


def test_unique_on_a_default(app: Celery) -> None:
    """A parameter that is left out counts with its default."""

    @app.task(base=Singleton, unique_on=["otherarg"])
    def do_something(username: str, otherarg: int = 1) -> None: ...

    assert do_something.delay("bob") == do_something.delay("alice", otherarg=1)


@pytest.mark.parametrize("unique_on", [None, []])
def test_without_unique_on_all_arguments_count(app: Celery, unique_on: Any) -> None:
    """An empty list is none; and a name or a position makes no difference any more."""

    @app.task(base=Singleton, unique_on=unique_on)
    def do_something(username: str, otherarg: int = 1) -> None: ...

    first = do_something.delay("bob")

    assert do_something.delay("bob", 2) != first
    assert do_something.delay(username="bob", otherarg=1) == first


def test_unique_on_what_is_no_parameter(app: Celery) -> None:
    """The README's own slip (``user_id``) is an error where the task is defined."""

    @app.task(base=Singleton, unique_on=["user_id"])
    def do_something(username: str) -> None: ...

    with pytest.raises(ConfigurationError, match="'user_id', which is no parameter"):
        do_something.name  # noqa: B018  # Celery makes the task when it is first looked at


def test_raise_on_duplicate(app: Celery) -> None:
    """The error names the task that is there."""

    @app.task(base=Singleton, raise_on_duplicate=True)
    def do_something(username: str) -> None: ...

    task1 = do_something.delay("bob")
    with pytest.raises(DuplicateTaskError) as caught:
        do_something.delay("bob")

    assert caught.value.task_id == task1.id


@pytest.mark.parametrize(("at_the_task", "raises"), [(None, True), (False, False), (True, True)])
def test_raise_on_duplicate_in_the_configuration(
    app: Celery, at_the_task: bool | None, raises: bool
) -> None:
    """It holds for all tasks that say nothing themselves."""
    app.conf.singleton_raise_on_duplicate = True

    @app.task(base=Singleton, raise_on_duplicate=at_the_task)
    def do_something() -> None: ...

    first = do_something.delay()

    if raises:
        with pytest.raises(DuplicateTaskError):
            do_something.delay()
    else:
        assert do_something.delay() == first


def test_the_error_survives_pickling(app: Celery) -> None:
    """A task may raise it in a worker (celery-singleton's kills the worker)."""

    @app.task(base=Singleton, raise_on_duplicate=True)
    def do_something() -> None: ...

    first = do_something.delay()
    with pytest.raises(DuplicateTaskError) as caught:
        do_something.delay()

    for each in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert (type(each), each.task_id) == (DuplicateTaskError, first.id)


@pytest.mark.parametrize(("task", "app_wide"), [(10, None), (None, 10), (10, 3600)])
def test_lock_expiry_while_it_waits(
    app: Celery, once_clock: OnceClock, task: int | None, app_wide: int | None
) -> None:
    """A message that never runs is forgotten after the expiry; the task goes before the app."""
    app.conf.singleton_lock_expiry = app_wide

    @app.task(base=Singleton, lock_expiry=task)
    def do_something() -> None: ...

    task1 = do_something.delay()
    once_clock.advance(5)
    assert do_something.delay() == task1
    once_clock.advance(6)

    assert do_something.delay() != task1


@pytest.mark.parametrize("raises", [False, True])
def test_lock_expiry_while_it_runs(
    app: Celery, once_clock: OnceClock, once_drain: Drain, raises: bool
) -> None:
    """After the expiry a new call is another task, as in the README, but never beside the first.

    The README's example in spirit: it runs for 12 seconds, and is called again after 11.
    """
    steps: list[Any] = []

    @app.task(base=Singleton, lock_expiry=10, raise_on_duplicate=raises, bind=True)
    def runs_for_12_seconds(self: Any) -> None:
        steps.append("starts")
        if len(steps) == 1:
            once_clock.advance(5)
            with pytest.raises(DuplicateTaskError) if raises else _nothing():
                steps.append(self.delay().id != self.request.id)
            once_clock.advance(6)
            steps.append(self.delay().id != self.request.id)
            with pytest.raises(DuplicateTaskError) if raises else _nothing():
                steps.append(self.delay().once.state)
            once_clock.advance(1)
        steps.append("ends")

    runs_for_12_seconds.delay()
    once_drain()

    refused = [] if raises else [False]
    waits = [] if raises else ["waiting"]
    assert steps == ["starts", *refused, True, *waits, "ends", "starts", "ends"]


class _nothing:  # noqa: N801  # stands for a context manager that expects nothing
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_retry_runs(app: Celery, once_drain: Drain) -> None:
    """The task's own lock does not refuse its retry (celery-singleton loses it)."""
    attempts = []

    @app.task(base=Singleton, bind=True, autoretry_for=(OSError,), retry_backoff=True)
    def do_something(self: Any) -> None:
        attempts.append(self.request.retries)
        if self.request.retries < 2:
            raise OSError

    result = do_something.delay()
    once_drain()

    assert attempts == [0, 1, 2]
    assert result.state == "SUCCESS"


def test_arguments_that_are_no_json(app: Celery) -> None:
    """UUIDs and their like give keys without an encoder of one's own."""
    app.conf.singleton_json_encoder_class = "shop.Encoder"

    @app.task(base=Singleton)
    def do_something(identity: uuid.UUID) -> None: ...

    identity = uuid.uuid4()

    assert do_something.delay(identity) == do_something.delay(identity)


def test_a_broker_that_is_away_leaves_no_lock(app: Celery, monkeypatch: Any) -> None:
    """What could not be published refuses nobody."""

    @app.task(base=Singleton)
    def do_something() -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(app.amqp, "send_task_message", _refuse)
        with pytest.raises(ConnectionError):
            do_something.delay()

    assert do_something.delay().once.state == "claimed"


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError
