"""What py-cachify's README and documentation promise of `once` and `lock`, with ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from once_core import OverlapError, lease, once

pytestmark = pytest.mark.once(leaks="ignore")


@pytest.fixture(autouse=True)
def locks(once_locks: object) -> None:
    """Locks of the test's own; `configure` would say where they are."""


def test_once_returns_none_while_another_runs() -> None:
    """A second call with the same key returns None, and one with another key runs."""

    @once(key="job-{number}")
    def job(number: int, inner: int | None = None) -> Any:
        return "ran" if inner is None else job(inner)

    assert job(1) == "ran"
    assert job(1, inner=1) is None
    assert job(1, inner=2) == "ran"


def test_once_returns_a_value_of_ones_own() -> None:
    """``return_on_locked`` is what a skipped call returns."""

    @once(key="job-{number}", return_on_locked="locked")
    def job(number: int, again: bool = False) -> Any:
        return job(number) if again else "ran"

    assert job(1, again=True) == "locked"


def test_once_raises() -> None:
    """``raise_on_locked`` raises; the error has another name."""

    @once(key="job-{number}", raise_on_locked=True)
    def job(number: int, again: bool = False) -> Any:
        return job(number) if again else "ran"

    with pytest.raises(OverlapError):
        job(1, again=True)
    assert job(1) == "ran"


def test_once_with_coroutines() -> None:
    """The same decorator takes coroutine functions; questions are awaited then."""

    @once(key="job-{number}", return_on_locked="locked")
    async def job(number: int, again: bool = False) -> Any:
        assert await job.is_locked(number)
        return await job(number) if again else "ran"

    async def main() -> tuple[Any, ...]:
        return (await job(1), await job(1, again=True), await job.is_locked(number=1))

    assert asyncio.run(main()) == ("ran", "locked", False)


def test_is_locked_and_release() -> None:
    """They take the arguments of the call, by position or by name."""

    @once(key="job-{number}")
    def job(number: int) -> list[bool]:
        before = job.is_locked(number=number)
        return [before, job.release(number=number), job.is_locked(number)]

    assert job(5) == [True, True, False]
    assert not job.is_locked(5)


def test_values_with_separators_do_not_collide() -> None:
    """Two calls whose texts would join to the same key are two (py-cachify takes them for one)."""

    @once(key="x-{a}-{b}")
    def job(a: Any, b: Any, inner: tuple[Any, Any] | None = None) -> Any:
        return "ran" if inner is None else job(*inner)

    assert job("1-2", 3, inner=(1, "2-3")) == "ran"


def test_below_a_celery_task(once_celery_app: Celery, once_drain: Callable[..., Any]) -> None:
    """It decorates the body of a plain Celery task, as in py-cachify's tutorial."""
    ran = []

    @once_celery_app.task
    @once(key="job-{number}", return_on_locked=None)
    def job(number: int) -> None:
        ran.append(number)

    job.delay(1)
    job.delay(1)
    once_drain()

    assert ran == [1, 1]


def test_the_example_of_the_readme_with_a_block() -> None:
    """``from once_core import lease as lock``: the lock as a context manager, sync and async."""
    lock = lease

    async def main() -> bool:
        async_lock = lock("resource_key")
        async with async_lock:
            return async_lock.is_locked()

    assert asyncio.run(main())
    with lock("resource_key"):
        assert lock("resource_key").is_locked()
    assert not lock("resource_key").is_locked()


def test_lock_as_a_decorator_that_waits() -> None:
    """What ``lock(key=..., nowait=False, timeout=10)`` was, `once` does with ``"wait"``."""

    @once(key="critical_function_lock-{arg}", on_overlap="wait", wait_up_to=10)
    async def critical_function(arg: int) -> int:
        ran.append(arg)
        return arg

    ran: list[int] = []

    async def main() -> None:
        await asyncio.gather(*(critical_function(arg=5) for _ in range(3)))
        assert not await critical_function.is_locked(arg=5)
        assert not await critical_function.release(arg=5)

    asyncio.run(main())

    assert ran == [5, 5, 5]
