"""`@once` below the decorators of taskiq, arq and darq, each the real one.

Not among the tests that run everywhere: they bring hiredis, and old versions of it
(`tox -e libraries`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import darq
import pytest
import taskiq
from _support.meeting import Meeting
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func
from darq.connections import RedisSettings as DarqSettings
from darq.worker import Worker as DarqWorker

from once_core import ConfigurationError, once
from once_core.devserver import DevServer

Results = list[object]


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    """For one test."""
    made = Meeting()
    yield made
    made.end()


# taskiq


def test_taskiq(shared_server: DevServer, unit: str, meeting: Meeting) -> None:
    """`@broker.task` above `@once`: of two messages one runs, the other ends as skipped."""
    broker = taskiq.InMemoryBroker()

    @broker.task
    @once(key="{order}", url=shared_server.url, return_on_locked="busy")
    async def check(order: str) -> str:
        return await meeting.body_async()

    async def main() -> Results:
        await broker.startup()
        sent = [await check.kiq(unit), await check.kiq(unit)]
        results = [await each.wait_result(timeout=30) for each in sent]
        await broker.shutdown()
        return sorted(each.return_value for each in results)

    assert asyncio.run(main()) == ["busy", "ran"]
    with pytest.raises(ConfigurationError, match=r"Write @broker\.task above @once"):
        once(check)


# arq


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arq(server: DevServer, unit: str, meeting: Meeting) -> None:
    """A function under `@once` is one of arq's as it is; its context is no part of the key."""

    @once(key="{order}", url=server.url, return_on_locked="busy")
    async def check(ctx: dict[str, Any], order: str) -> str:
        return await meeting.body_async()

    async def main() -> Results:
        pool = await create_pool(RedisSettings(port=server.port))
        jobs = [await pool.enqueue_job(check.__qualname__, unit) for _ in range(2)]
        worker = Worker([check], redis_pool=pool, burst=True, poll_delay=0.02, handle_signals=False)
        await worker.main()
        results = [await job.result(timeout=30) for job in jobs if job is not None]
        await worker.close()
        return sorted(results)

    assert asyncio.run(main()) == ["busy", "ran"]
    with pytest.raises(ConfigurationError, match="takes a function"):
        once(func(check))


# darq


def test_darq(server: DevServer, unit: str, meeting: Meeting) -> None:
    """`@app.task` of darq above `@once`."""
    app = darq.Darq(redis_settings=DarqSettings(host="127.0.0.1", port=server.port), burst=True)

    @app.task
    @once(key="{order}", url=server.url, return_on_locked="busy")
    async def check(order: str) -> str:
        return await meeting.body_async()

    async def main() -> Results:
        await app.connect()
        jobs = [await check.delay(unit) for _ in range(2)]
        worker = DarqWorker(app)
        await worker.async_run()
        results = [await job.result(timeout=30) for job in jobs]
        await worker.close()
        await app.disconnect()
        return sorted(results)

    assert asyncio.run(main()) == ["busy", "ran"]
    with pytest.raises(ConfigurationError, match=r"Write @app\.task.* above @once"):
        once(check)
