"""A browser without windows: keeps cookies, follows nothing, and needs no server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

ADDRESS = "203.0.113.9"
"""Where it is."""


class Browser:
    """Asks an ASGI app; each request is over when its answer is."""

    def __init__(self, app: Any, base_url: str = "http://localhost") -> None:
        transport = httpx.ASGITransport(app=app, client=(ADDRESS, 50_000))
        self._client = httpx.AsyncClient(transport=transport, base_url=base_url)

    @property
    def cookies(self) -> httpx.Cookies:
        """What it keeps."""
        return self._client.cookies

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask for a page."""
        return asyncio.run(self._client.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Send a form."""
        return asyncio.run(self._client.post(path, **options))
