from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from _support.shop import Shop
from _support.waiting import wait_until
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from once_core.devserver import DevServer
from once_core.store import Store
from once_core.web import make_app

CHROMIUM = "/usr/bin/chromium"
"""Debian's: `apt-get install chromium`."""

TOKEN = "a token of the shop"

Open = Callable[..., Page]


class Served:
    """A dashboard on a port of its own, in a thread of the test's."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve())

    def __enter__(self) -> str:
        self._thread.start()
        wait_until(lambda: self._server.started, "the dashboard serves")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def shop(server: DevServer) -> Shop:
    """With a server of its own, so that what its page says is its alone."""
    return Shop(Store(server.url), events=1000)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visit(shop: Shop, chromium: Browser) -> Iterator[Open]:
    """Opens the dashboard of the shop in a window of its own; no page may complain of anything."""
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    with contextlib.ExitStack() as stack:
        options = {"token": TOKEN, "allow_release": True}
        address = stack.enter_context(Served(make_app(shop.program, **options)))

        def visit(*, width: int = 1280, is_signed_in: bool = True, **wanted: Any) -> Page:
            context = chromium.new_context(
                base_url=address, viewport={"width": width, "height": 800}, **wanted
            )
            stack.callback(context.close)
            context.set_default_timeout(20_000)
            page = context.new_page()
            page.on("console", listen)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto("/")
            if is_signed_in:
                page.get_by_label("Token").fill(TOKEN)
                page.get_by_role("button", name="Sign in").click()
                page.get_by_role("heading", name="Overview", level=1).wait_for()
            return page

        yield visit
    # the browser tells of each: signing in begins with a 401, and a unit that is free is a 404
    assert [each for each in complaints if not re.search(r"status of 40[14] ", each)] == []
