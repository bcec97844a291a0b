"""The dashboard: what is held and waits, how often it runs and is refused, and why.

Pages made on the server, for any ASGI host; `once web` serves them alone. Needs
``pip install "once-tasks[web]"``, and only where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from once_core.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from once_core.cli.program import Program

__all__ = ["LOOPBACK", "make_app"]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""What a browser on the same machine calls this machine."""


def make_app(
    program: Program | str,
    *,
    token: str | None = None,
    allow_release: bool = False,
    allowed_hosts: Sequence[str] = LOOPBACK,
) -> ASGIApp:
    """Make the dashboard as an ASGI app, to be mounted in your own or served as it is.

    Works under any path it is mounted at. Blocking calls to the lock store are made in threads.
    While the store is away its pages say so with a 503, and it needs no restart.

    Args:
        program: What ``-A`` names: ``"shop"``, ``"shop:app"``.
        token: Of at least 16 characters, asked for by a login form, or as ``Authorization:
            Bearer``. None leaves it to whoever mounts the app to let nobody in who may not look.
        allow_release: Whether units of work may be freed here; the name of ``scope["user"]``
            stands in the event and the log line of each release.
        allowed_hosts: Names under which browsers may reach it, without ports; others are
            answered with a 400. This is what keeps a stranger's page, whose name was made to
            point to this machine (DNS rebinding), from reading it.

    Returns:
        An ASGI app without a lifespan of its own.

    Raises:
        ConfigurationError: The program cannot be loaded, the token is too short, or Starlette or
            Jinja is not installed.

    Example:
        >>> from once_core.cli.program import Program
        >>> from once_core.store import Store
        >>> store = Store("memory://web-example")
        >>> app = make_app(Program("shop", find_store=lambda: store), token="a long secret token")
        >>> import asyncio, httpx
        >>> async def status(**headers):
        ...     there = httpx.ASGITransport(app=app)
        ...     async with httpx.AsyncClient(
        ...         transport=there, base_url="http://localhost"
        ...     ) as client:
        ...         return (await client.get("/", headers=headers)).status_code
        >>> asyncio.run(status()), asyncio.run(status(Authorization="Bearer a long secret token"))
        (401, 200)
        >>> asyncio.run(status(Host="rebound.example"))
        400
    """
    try:
        from once_core.web._pages import Dashboard
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "starlette"):
            raise
        raise ConfigurationError(
            f'the dashboard needs {error.name}: pip install "once-tasks[web]"'
        ) from error
    if isinstance(program, str):
        from once_core.cli.program import load

        program = load(program)
    return Dashboard(program, allow_release=allow_release).app(token, allowed_hosts)
