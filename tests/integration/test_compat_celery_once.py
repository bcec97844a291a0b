"""What celery-once's README and the names of its tests promise, with its import line changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from once_celery.compat import AlreadyQueued, QueueOnce
from once_core.errors import ConfigurationError, DuplicateTaskError
from once_pytest import OnceHarness
from once_pytest.clock import OnceClock

pytestmark = [
    pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning"),
    pytest.mark.once(leaks="ignore"),
]

Drain = Callable[..., Any]

ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": "redis://localhost:6379/0", "default_timeout": 60 * 60},
}


@pytest.fixture
def celery(once_celery_app: Celery) -> Celery:
    """An app that is configured as celery-once says."""
    once_celery_app.conf.ONCE = ONCE
    return once_celery_app


def test_the_example_of_the_readme(celery: Celery, once_drain: Drain) -> None:
    """A second call is refused with an error until the task is done, then accepted again."""

    @celery.task(base=QueueOnce)
    def slow_task() -> str:
        return "Done!"

    first = slow_task.delay()
    with pytest.raises(AlreadyQueued):
        slow_task.delay()
    with pytest.raises(AlreadyQueued):
        slow_task.apply_async(args=())

    once_drain()

    assert first.get(timeout=5) == "Done!"
    assert slow_task.delay().id != first.id


def test_a_direct_call_is_not_guarded(celery: Celery) -> None:
    """Calling the task as a function runs it, whatever waits, and so does ``apply``."""

    @celery.task(base=QueueOnce)
    def example(number: int) -> int:
        return number

    example.delay(10)

    assert example(10) == 10
    assert example.apply(args=(10,), once={"graceful": True}).get() == 10


def test_it_is_refused_while_it_runs(celery: Celery, once_drain: Drain) -> None:
    """The lock covers the run, too."""
    refused = []

    @celery.task(base=QueueOnce, bind=True)
    def example(self: Any) -> None:
        try:
            self.delay()
        except AlreadyQueued as error:
            refused.append(error.state)

    example.delay()
    once_drain()

    assert refused == ["running"]


def test_a_failure_clears_the_lock(celery: Celery, once_drain: Drain) -> None:
    """A task that ended with an error can be sent again."""

    @celery.task(base=QueueOnce)
    def example() -> None:
        raise ZeroDivisionError

    example.delay()
    once_drain(raises=False)

    assert example.delay().once.state == "claimed"


@pytest.mark.parametrize("at", ["task", "call"])
def test_graceful(celery: Celery, at: str) -> None:
    """A duplicate raises nothing; in place of a rejected result it is the first one's handle."""
    options = {"once": {"graceful": True}}

    @celery.task(base=QueueOnce, **(options if at == "task" else {}))
    def example(number: int) -> None: ...

    first = example.delay(10)
    second = example.apply_async(args=(10,), **(options if at == "call" else {}))

    assert second.id == first.id
    assert second.once.is_duplicate


def test_graceful_can_be_taken_back_at_a_call(celery: Celery) -> None:
    """The call goes before the task."""

    @celery.task(base=QueueOnce, once={"graceful": True})
    def example() -> None: ...

    example.delay()

    with pytest.raises(AlreadyQueued):
        example.apply_async(once={"graceful": False})


def test_all_arguments_count_by_default(celery: Celery) -> None:
    """Calls with other arguments are other work; positions, names and defaults are the same."""

    @celery.task(base=QueueOnce)
    def slow_add(a: int, b: int = 2) -> None: ...

    slow_add.delay(1, 1)
    slow_add.delay(1, 2)

    for arguments in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}):
        with pytest.raises(AlreadyQueued):
            slow_add.delay(**arguments)


def test_keys(celery: Celery) -> None:
    """Only the arguments that are named count, an omitted default too."""

    @celery.task(base=QueueOnce, once={"keys": ["a"]})
    def slow_add(a: int = 1, b: int = 1) -> None: ...

    slow_add.delay(1, 1)
    for arguments in ((1, 2), ()):
        with pytest.raises(AlreadyQueued):
            slow_add.delay(*arguments)

    assert slow_add.delay(2, 2).once.state == "claimed"


def test_no_keys(celery: Celery) -> None:
    """With an empty list there is one at a time, whatever the arguments."""

    @celery.task(base=QueueOnce, once={"keys": []})
    def slow_add(a: int, b: int) -> None: ...

    slow_add.delay(1, 1)

    with pytest.raises(AlreadyQueued):
        slow_add.delay(2, 2)


def test_keys_of_a_bound_task(celery: Celery, once_drain: Drain) -> None:
    """``self`` is no argument."""

    @celery.task(base=QueueOnce, bind=True, once={"keys": ["a"]})
    def example(self: Any, a: int) -> int:
        return a

    result = example.delay(1)
    with pytest.raises(AlreadyQueued):
        example.delay(a=1)
    once_drain()

    assert result.get(timeout=5) == 1


def test_keys_at_a_call(celery: Celery) -> None:
    """One call may be compared by other arguments than the rest."""

    @celery.task(base=QueueOnce)
    def slow_add(a: int, b: int) -> None: ...

    slow_add.apply_async((1, 1), once={"keys": ["a"]})

    with pytest.raises(AlreadyQueued):
        slow_add.apply_async((1, 2), once={"keys": ["a"]})


def test_keys_that_are_no_parameters(celery: Celery) -> None:
    """They are an error where the task is defined, and not at the first call."""

    @celery.task(base=QueueOnce, once={"keys": ["bee"]})
    def slow_add(a: int, b: int) -> None: ...

    with pytest.raises(ConfigurationError, match="no parameter"):
        slow_add.name  # noqa: B018  # Celery makes the task when it is first looked at


@pytest.mark.parametrize(
    ("task", "call", "default", "seconds"),
    [
        ({}, {}, 3600, 3600),
        ({}, {}, 60, 60),
        ({"timeout": 36000}, {}, 60, 36000),
        ({"timeout": 36000}, {"timeout": 60}, 3600, 60),
    ],
)
def test_timeout(
    celery: Celery,
    once_clock: OnceClock,
    task: dict[str, int],
    call: dict[str, int],
    default: int,
    seconds: int,
) -> None:
    """A message that never runs is forgotten after the time-out: call over task over app."""
    celery.conf.ONCE = {**ONCE, "settings": {"default_timeout": default}}

    @celery.task(base=QueueOnce, once={**task, "heal_after": 1e6})
    def example() -> None: ...

    example.apply_async(once=call)
    once_clock.advance(seconds - 5)
    with pytest.raises(AlreadyQueued):
        example.delay()
    once_clock.advance(10)

    assert example.delay().once.state == "claimed"


def test_a_run_longer_than_the_timeout_is_not_overlapped(
    celery: Celery, once_clock: OnceClock, once_drain: Drain
) -> None:
    """The time-out is for what waits; a run keeps its lease for as long as it lives."""
    refused = []

    @celery.task(base=QueueOnce, bind=True, once={"timeout": 60})
    def long_running_task(self: Any) -> None:
        once_clock.advance(3600)
        try:
            self.delay()
        except AlreadyQueued:
            refused.append(True)

    long_running_task.delay()
    once_drain()

    assert refused == [True]


def test_unlock_before_run(celery: Celery, once_drain: Drain) -> None:
    """The next call is accepted as soon as the body begins, and refused until then."""
    during = []

    @celery.task(base=QueueOnce, bind=True, once={"unlock_before_run": True})
    def slow_task(self: Any, again: bool = True) -> None:
        if self.request.retries == 0 and not during:
            during.append(self.delay().once.state)

    slow_task.delay()
    with pytest.raises(AlreadyQueued):
        slow_task.delay()
    once_drain()

    assert during == ["claimed"]


def test_unlock_before_run_and_a_retry(celery: Celery, once_drain: Drain) -> None:
    """While the retry waits other calls are refused, where celery-once let them through."""

    @celery.task(base=QueueOnce, bind=True, once={"unlock_before_run": True})
    def slow_task(self: Any) -> None:
        if self.request.retries == 0:
            raise self.retry(countdown=600)

    slow_task.delay()
    once_drain(until_idle=False)

    with pytest.raises(AlreadyQueued):
        slow_task.delay()


def test_unlock_before_run_at_a_call_has_no_effect(celery: Celery, once_drain: Drain) -> None:
    """As in celery-once it is for the task alone."""
    during = []

    @celery.task(base=QueueOnce, bind=True, once={"graceful": True})
    def slow_task(self: Any) -> None:
        during.append(self.delay().once.state)

    slow_task.apply_async(once={"unlock_before_run": True})
    once_drain()

    assert during == ["running"]


def test_a_retry_runs(celery: Celery, once_drain: Drain) -> None:
    """The lock is kept between the attempts, and refuses other calls meanwhile."""
    attempts, refused = [], []

    @celery.task(base=QueueOnce, bind=True)
    def example(self: Any) -> None:
        attempts.append(self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=600)

    example.delay()
    once_drain(until_idle=False)
    try:
        example.delay()
    except AlreadyQueued as error:
        refused.append(error.state)
    once_drain()

    assert (attempts, refused) == ([0, 1, 2], ["waiting"])


def test_the_error(celery: Celery) -> None:
    """It is one of ours, tells when to come back, and survives pickling and copying."""

    @celery.task(base=QueueOnce)
    def example() -> None: ...

    first = example.delay()
    with pytest.raises(DuplicateTaskError) as caught:
        example.delay()
    error = caught.value

    for each in (error, pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert isinstance(each, AlreadyQueued)
        assert 0 < each.countdown <= 3600
        assert each.holder_id == first.id
        assert "was not sent" in each.message


def test_a_base_class_of_ones_own(celery: Celery, once_drain: Drain) -> None:
    """The README's way to Flask: a subclass that runs the body in a context."""
    steps = []

    class ContextQueueOnce(QueueOnce):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            steps.append("enter")
            try:
                return super().__call__(*args, **kwargs)
            finally:
                steps.append("exit")

    @celery.task(base=ContextQueueOnce)
    def example_task(value: int) -> None:
        steps.append("body")

    example_task.delay(1)
    with pytest.raises(AlreadyQueued):
        example_task.delay(1)
    once_drain()

    assert steps == ["enter", "body", "exit"]


def test_arguments_that_change_in_transit(celery: Celery, once_drain: Drain) -> None:
    """A tuple, or a dict with numbers for keys, is freed too (celery-once leaks such locks)."""

    @celery.task(base=QueueOnce)
    def example(pair: Any, table: Any) -> None: ...

    example.delay((1, 2), {1: "a"})
    once_drain()

    assert not example.is_locked([1, 2], {"1": "a"})


def test_once_can_be_switched_off(celery: Celery, once_locks: OnceHarness) -> None:
    """The options of once itself go beside the old ones, and False is off."""

    @celery.task(base=QueueOnce, once={"keys": ["a"], "on_duplicate": "skip"})
    def mixed(a: int, b: int) -> None: ...

    @celery.task(base=QueueOnce, once=False)
    def off() -> None: ...

    assert mixed.delay(1, 1).id == mixed.delay(1, 2).id
    assert off.delay().id != off.delay().id
