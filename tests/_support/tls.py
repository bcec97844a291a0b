"""TLS for servers that have none: those that pip installs are built without it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing_extensions import Self


def _run(*words: str, folder: Path) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=60)


def make_certificates(folder: Path) -> Path:
    """Put a CA, a certificate of it for 127.0.0.1 alone, and another CA into a folder."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    for name in ("ca", "other"):
        to = (f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        _run("openssl", "req", "-x509", "-days", "2", *key, *to, folder=folder)
    to = ("server.key", "-out", "server.csr", "-subj", "/CN=locks")
    _run("openssl", "req", *key, *to, folder=folder)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", encoding="utf-8")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    to = ("-in", "server.csr", "-out", "server.pem", "-days", "2")
    _run("openssl", "x509", "-req", *to, *by, folder=folder)
    return folder


class Proxies:
    """Take TLS connections, and pass on what comes from either side; in a thread of their own."""

    def __init__(self, certificates: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._lives = threading.Event()
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.ports: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._lives.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _live(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._lives.set()
        await self._end.wait()
        for each in self._servers:
            each.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # in which they end

    def open(self, port: int) -> int:
        """The port of a new proxy for this one."""

        async def serve() -> int:
            server = await asyncio.start_server(
                lambda *outer: self._serve(port, *outer), "127.0.0.1", 0, ssl=self._context
            )
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        self.ports.append(asyncio.run_coroutine_threadsafe(serve(), self._loop).result(10))
        return self.ports[-1]

    async def _serve(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers += [writer, inner_writer]
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one of the two has gone
    writer.close()
