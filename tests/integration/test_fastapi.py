"""FastAPI: what a call does to the event loop while the lock store is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from _support.waiting import wait_until
from celery import Celery
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from once_celery import OnceTask, StoreUnavailableError
from once_core.devserver import DevServer

STALL = 3.0
"""Seconds; about 1.2 on a machine with nothing else to do."""


@dataclass
class Loop:
    """What the event loop went through, seen by a task that only wants to tick.

    Attributes:
        responses: In the order of the requests.
        ticks: How often it ticked during the requests.
        stall: Longest time between two ticks.
        took: Seconds for all requests.
    """

    responses: list[httpx.Response] = field(default_factory=list)
    ticks: int = 0
    stall: float = 0.0
    took: float = 0.0

    async def tick(self) -> None:
        """Until it is cancelled."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            self.stall, self.ticks, before = max(self.stall, now - before), self.ticks + 1, now


@pytest.fixture
def celery_app(server: DevServer) -> Iterator[Celery]:
    """A broker that is there, and a lock store that can be taken away."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.once_url = server.url
    app.task(base=OnceTask, name="sync_order", shared=False)(sync_order)
    yield app
    app.close()


def sync_order(order_id: int) -> None:
    """Body of the task."""


@pytest.fixture
def api(celery_app: Celery) -> FastAPI:
    """An application as the guide for FastAPI has it."""
    task, made = celery_app.tasks["sync_order"], FastAPI()

    @made.exception_handler(StoreUnavailableError)
    async def store_is_away(request: Request, error: StoreUnavailableError) -> JSONResponse:
        return JSONResponse({"detail": "try again"}, status_code=503, headers={"Retry-After": "1"})

    @made.post("/direct/{order_id}")
    async def direct(order_id: int) -> str:
        return task.delay(order_id).once.state

    @made.post("/to-thread/{order_id}")
    async def to_thread(order_id: int) -> str:
        return (await asyncio.to_thread(task.delay, order_id)).once.state

    @made.post("/def/{order_id}")
    def plain(order_id: int) -> str:
        return task.delay(order_id).once.state

    return made


def run(api: FastAPI, send: Callable[[httpx.AsyncClient], Awaitable[list[Any]]]) -> Loop:
    """Send requests to the application, without a network, and watch its loop."""

    async def main() -> Loop:
        loop = Loop()
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            ticker = asyncio.create_task(loop.tick())
            await asyncio.sleep(0)  # lest its first tick come late
            begin = time.monotonic()
            loop.responses = await send(client)
            loop.took = time.monotonic() - begin
            await asyncio.sleep(0.05)  # a stall is seen at the tick after it
            ticker.cancel()
        return loop

    return asyncio.run(main())


def post(*paths: str) -> Callable[[httpx.AsyncClient], Awaitable[list[httpx.Response]]]:
    """One request after the other."""

    async def send(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(path) for path in paths]

    return send


def post_at_once(*paths: str) -> Callable[[httpx.AsyncClient], Awaitable[list[httpx.Response]]]:
    """All requests at the same time."""

    async def send(client: httpx.AsyncClient) -> list[httpx.Response]:
        return list(await asyncio.gather(*(client.post(path) for path in paths)))

    return send


def statuses(loop: Loop) -> list[int]:
    """Codes of the responses."""
    return [response.status_code for response in loop.responses]


@pytest.mark.parametrize("route", ["direct", "to-thread", "def"])
def test_a_route_sends_once(api: FastAPI, route: str) -> None:
    """While the store is there: the second call is told that one waits."""
    loop = run(api, post(f"/{route}/1", f"/{route}/1"))

    assert [response.json() for response in loop.responses] == ["claimed", "waiting"]


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_a_call_in_async_code_stalls_the_loop_for_about_a_second(
    api: FastAPI, server: DevServer, away: str
) -> None:
    """No longer: neither the first call nor those that follow. Each is answered by a 503."""
    run(api, post("/direct/1"))
    server.pause() if away == "frozen" else server.stop()

    loop = run(api, post(*(f"/direct/{number}" for number in range(6))))

    assert statuses(loop) == [503] * 6
    assert loop.responses[0].headers["Retry-After"] == "1"
    assert loop.stall <= STALL


def test_a_store_that_was_never_there_stalls_the_loop_no_longer(
    api: FastAPI, server: DevServer
) -> None:
    """The first connection of a process is made while the server does not answer."""
    server.pause()

    loop = run(api, post("/direct/1"))

    assert statuses(loop) == [503]
    assert loop.stall <= STALL


def test_after_three_failures_calls_fail_at_once(api: FastAPI, server: DevServer) -> None:
    """A hundred requests at the same time cost the loop no more than the first three."""
    run(api, post("/direct/1"))
    server.pause()

    loop = run(api, post_at_once(*(f"/direct/{number}" for number in range(100))))

    assert statuses(loop) == [503] * 100
    assert loop.took <= 3 * STALL


@pytest.mark.parametrize("route", ["to-thread", "def"])
def test_a_call_in_a_thread_does_not_stall_the_loop(
    api: FastAPI, server: DevServer, route: str
) -> None:
    """The loop goes on ticking while the call waits for the store."""
    run(api, post(f"/{route}/1"))
    server.pause()

    loop = run(api, post(f"/{route}/2"))

    assert statuses(loop) == [503]
    assert loop.took >= 0.5  # it did wait
    assert loop.ticks >= 10


def test_requests_are_accepted_again_when_the_store_is_back(
    api: FastAPI, server: DevServer
) -> None:
    """Nothing has to be restarted."""
    server.pause()
    assert statuses(run(api, post("/direct/1"))) == [503]

    server.resume()

    wait_until(
        lambda: statuses(run(api, post("/to-thread/2"))) == [200], "it is accepted", within=20
    )
