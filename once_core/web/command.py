"""``once web``: serves the dashboard by itself."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import secrets
import sys
from typing import TYPE_CHECKING

from once_core.errors import ConfigurationError
from once_core.web import LOOPBACK

if TYPE_CHECKING:
    from once_core.cli.output import Output
    from once_core.cli.program import Program

__all__ = ["web_command", "web_parser"]


def web_parser(parser: argparse.ArgumentParser) -> None:
    """The options of ``once web``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8787, help="port to listen at (8787)")
    parser.add_argument(
        "--token", default="",
        help="that opens it; better in ONCE_WEB_TOKEN, which `ps` does not show",
    )  # fmt: skip
    parser.add_argument(
        "--allow-release", action="store_true", help="let people free units of work"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME",
        help="a name under which browsers may reach it, beside localhost; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="below which a proxy shows it, such as /once",
    )


def web_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """Serve the dashboard until somebody ends it.

    Raises:
        ConfigurationError: It may not be served like that, or Starlette, Jinja or uvicorn is not
            installed.
    """
    try:
        import uvicorn

        from once_core.web._pages import Dashboard
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "starlette", "uvicorn"):
            raise
        raise ConfigurationError(
            f'once web needs {error.name}: pip install "once-tasks[web]"'
        ) from error
    places = program.places()  # says what is wrong before anything is served
    token, invitation = _token(parsed)
    hosts = _hosts(parsed)
    dashboard = Dashboard(program, allow_release=parsed.allow_release)
    app = dashboard.app(token, hosts, invitation)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    link = f"http://{host}:{parsed.port}/"
    output.data({"url": link, "stores": [store.place for store, _ in places]})
    output.line(f"Looking at {', '.join(store.place for store, _ in places)}")
    if parsed.root_path:
        output.line(f"Behind your proxy: {link} is its {parsed.root_path.rstrip('/')}/")
    opens = f"?token={invitation}   (opens it once)" if invitation else ""
    output.line(f"{link}{opens}")
    if not token:
        output.line("Everybody on this machine can look; --token asks for one.", "dim")
    sys.stdout.flush()  # into a pipe nothing else would come for long
    # what is logged is what is released; no line a request, for a query can be a key
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    uvicorn.run(
        app,
        host=parsed.host,
        port=parsed.port,
        root_path=parsed.root_path.rstrip("/"),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # a browser that listens to events does not go by itself
        lifespan="off",
    )
    return 0


def _token(parsed: argparse.Namespace) -> tuple[str | None, str]:
    """The token, and what opens the dashboard once in its place."""
    token = parsed.token or os.environ.get("ONCE_WEB_TOKEN", "")
    if not token and not _is_loopback(parsed.host):
        raise ConfigurationError(
            f"--host {parsed.host} can be reached from other machines, and there is no token: set "
            "ONCE_WEB_TOKEN, or give --token",
            option="token",
        )
    if not token and parsed.allow_release:
        token = secrets.token_urlsafe()  # to look is for everybody on this machine, to free is not
    return token or None, secrets.token_urlsafe() if token else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(parsed: argparse.Namespace) -> list[str]:
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    is_any = host in ("0.0.0.0", "[::]")  # noqa: S104  # no name of a host
    return [*LOOPBACK, *([] if is_any else [host]), *parsed.allowed_host]
