"""`@once` below the decorators of task queues, schedulers and web frameworks, each the real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from _support.meeting import Meeting
from _support.waiting import wait_until
from fastapi import Depends, FastAPI

from once_core import ConfigurationError, lease, once
from once_core.devserver import DevServer

Results = list[object]


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    """For one test."""
    made = Meeting()
    yield made
    made.end()


# APScheduler


def test_apscheduler_with_threads(shared_server: DevServer, unit: str, meeting: Meeting) -> None:
    """Two jobs of one function in a scheduler's threads: one runs, the other is skipped."""
    pytest.importorskip("apscheduler")
    from apscheduler.schedulers.background import BackgroundScheduler

    @once(key="{order}", url=shared_server.url, return_on_locked="busy")
    def check(order: str) -> str:
        return meeting.body()

    returned = _run_twice(BackgroundScheduler(), check, unit)

    assert returned == ["busy", "ran"]


def test_apscheduler_with_asyncio(shared_server: DevServer, unit: str, meeting: Meeting) -> None:
    """The same for coroutine functions in a scheduler's event loop."""
    pytest.importorskip("apscheduler")
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    @once(key="{order}", url=shared_server.url, return_on_locked="busy")
    async def check(order: str) -> str:
        return await meeting.body_async()

    async def main() -> Results:
        return await asyncio.to_thread(
            _run_twice, AsyncIOScheduler(event_loop=asyncio.get_running_loop()), check, unit
        )

    assert asyncio.run(main()) == ["busy", "ran"]


def _run_twice(scheduler: Any, function: Callable[..., object], unit: str) -> Results:
    from apscheduler.events import EVENT_JOB_EXECUTED

    returned: Results = []
    scheduler.add_listener(lambda event: returned.append(event.retval), EVENT_JOB_EXECUTED)
    for name in "ab":
        scheduler.add_job(function, args=[unit], id=name)
    scheduler.start()
    try:
        wait_until(lambda: len(returned) == 2, "both jobs have ended")
    finally:
        scheduler.shutdown()
    return sorted(returned)  # type: ignore[type-var]  # texts


# Celery and Dramatiq


@pytest.mark.parametrize("bind", [False, True])
def test_celery_shared_task(
    shared_server: DevServer, unit: str, meeting: Meeting, bind: bool
) -> None:
    """`@shared_task` above `@once`, bound tasks too; the other order is refused."""
    celery = pytest.importorskip("celery")
    app = celery.Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    options: dict[str, Any] = {"url": shared_server.url, "return_on_locked": "busy"}

    if bind:

        @celery.shared_task(bind=True, name=f"check-{unit}")
        @once(**options)
        def check(self: Any, order: str) -> str:
            return meeting.body() if self.request.id else ""
    else:

        @celery.shared_task(name=f"check-{unit}")
        @once(**options)
        def check(order: str) -> str:
            return meeting.body()

    task = app.tasks[f"check-{unit}"]
    results: Results = []
    threads = [
        threading.Thread(target=lambda: results.append(task.apply((unit,)).get())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(results) == ["busy", "ran"]  # type: ignore[type-var]  # texts
    with pytest.raises(ConfigurationError, match=r"Write @app\.task or @shared_task above @once"):
        once(task)
    with pytest.raises(ConfigurationError, match=r"base=OnceTask"):
        once(key=[])(check)
    app.close()


# as errors, warnings of Celery's end the threads of its pool, and nobody hears of it
@pytest.mark.filterwarnings("default")
def test_celery_worker(shared_server: DevServer, unit: str, meeting: Meeting) -> None:
    """A real worker runs one of two messages and ends the other as skipped."""
    celery = pytest.importorskip("celery")
    from celery.contrib.testing.worker import start_worker

    app = celery.Celery(
        f"shop-{unit}", broker=shared_server.url, backend=shared_server.url, set_as_current=False
    )
    app.conf.update(task_default_queue=unit, broker_connection_retry_on_startup=True)

    @app.task(name="check")
    @once(url=shared_server.url, return_on_locked="busy")
    def check(order: str) -> str:
        return meeting.body()

    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False):
        sent = [check.delay(unit) for _ in range(2)]
        results = sorted(each.get(timeout=30) for each in sent)
    app.close()

    assert results == ["busy", "ran"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_dramatiq_actor(shared_server: DevServer, unit: str, meeting: Meeting, kind: str) -> None:
    """`@dramatiq.actor` above `@once`; the other order is refused."""
    dramatiq = pytest.importorskip("dramatiq")
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.middleware import AsyncIO
    from dramatiq.results import Results as ResultsMiddleware
    from dramatiq.results.backends import StubBackend

    backend = StubBackend()
    broker = StubBroker(middleware=[AsyncIO(), ResultsMiddleware(backend=backend)])
    options: dict[str, Any] = {"url": shared_server.url, "return_on_locked": "busy"}

    if kind == "sync":

        @dramatiq.actor(broker=broker, store_results=True)
        @once(**options)
        def check(order: str) -> str:
            return meeting.body()
    else:

        @dramatiq.actor(broker=broker, store_results=True)
        @once(**options)
        async def check(order: str) -> str:
            return await meeting.body_async()

    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        sent = [check.send(unit) for _ in range(2)]
        results = sorted(
            each.get_result(backend=backend, block=True, timeout=30_000) for each in sent
        )
    finally:
        _close_loop_of_dramatiq()
        worker.stop()
        broker.close()

    assert results == ["busy", "ran"]
    with pytest.raises(ConfigurationError, match=r"Write @dramatiq\.actor above @once"):
        once(check)


def _close_loop_of_dramatiq() -> None:
    """Dramatiq ends its loop without closing what its coroutines opened in it."""
    from dramatiq.asyncio import get_event_loop_thread

    thread = get_event_loop_thread()
    assert thread is not None
    thread.run_coroutine(thread.loop.shutdown_asyncgens())


# FastAPI


@pytest.fixture
def api(shared_server: DevServer, unit: str, meeting: Meeting) -> FastAPI:
    """Routes and dependencies, sync and async."""
    made, url = FastAPI(), shared_server.url

    @made.get("/sync/{order}")
    @once(key="{order}", name=f"{unit}-sync", url=url, return_on_locked="busy")
    def check(order: str, note: str = "") -> str:
        return meeting.body()

    @made.get("/async/{order}")
    @once(key="{order}", name=f"{unit}-async", url=url, return_on_locked="busy")
    async def check_later(order: str, note: str = "") -> str:
        return await meeting.body_async()

    def held_in_a_thread() -> Iterator[int]:
        with lease(f"{unit}-dependency", url=url, wait_up_to=30) as held:
            yield held.fence

    async def held_in_the_loop() -> AsyncIterator[int]:
        async with lease(f"{unit}-dependency", url=url, wait_up_to=30) as held:
            yield held.fence

    @made.get("/dependency/sync")
    def needs(fence: int = Depends(held_in_a_thread)) -> int:  # noqa: FAST002  # text knows no locals
        return fence

    @made.get("/dependency/async")
    async def needs_later(fence: int = Depends(held_in_the_loop)) -> int:  # noqa: FAST002  # see above
        return fence

    @made.get("/dependency/fails")
    def fails(fence: int = Depends(held_in_a_thread)) -> int:  # noqa: FAST002  # text knows no locals
        raise ValueError(fence)

    return made


def _get(api: FastAPI, *paths: str) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await asyncio.gather(*(client.get(path, timeout=60) for path in paths))

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_fastapi_route(api: FastAPI, unit: str, kind: str) -> None:
    """Below a route's decorator it keeps the parameters, and of two requests one is skipped."""
    answers = _get(api, f"/{kind}/{unit}", f"/{kind}/{unit}?note=other")
    parameters = api.openapi()["paths"][f"/{kind}/{{order}}"]["get"]["parameters"]

    assert sorted(each.json() for each in answers) == ["busy", "ran"]
    assert [each["name"] for each in parameters] == ["order", "note"]


def test_fastapi_dependency(api: FastAPI, unit: str, shared_server: DevServer) -> None:
    """`lease()` in dependencies of both kinds: requests have their turns, errors free it."""
    answers = _get(
        api,
        *["/dependency/sync", "/dependency/async", "/dependency/fails"] * 3,
    )
    fences = [each.json() for each in answers if each.status_code == 200]

    assert [each.status_code for each in answers] == [200, 200, 500] * 3
    assert len(set(fences)) == 6
    assert not lease(f"{unit}-dependency", url=shared_server.url).is_locked()
