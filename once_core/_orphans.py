"""Sees to it that no server of `once_core.devserver` outlives its owner.

Three nets, for each alone has a hole: the process that started a server ends it in
atexit (not after SIGKILL); Linux kills it with that process (other systems do not); and
who starts a server looks for those whose owners are dead.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Keeper", "is_alive", "keeper", "make_folder", "reap", "write_owner"]

#: Folders are named PREFIX + owner's pid + "-" + random.
_FOLDER_PREFIX = "once-devserver-"
#: Where there is /proc, and a signal for children whose parent died.
_ON_LINUX = sys.platform.startswith("linux")

# Run by a Python of its own, which then becomes the server and keeps its pid. The same
# few lines in Popen's preexec_fn would run Python between fork and exec, where a lock
# held by another thread at the time of the fork blocks for ever. The signal survives
# exec. The second look at the parent is for an owner that died before prctl.
_TRAMPOLINE = """
import os, signal, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
except (ImportError, OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this server is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class _Server(Protocol):
    def stop(self) -> None: ...


class Keeper:
    """What one process keeps: its servers, and the thread that forks them.

    Linux sends the signal of `_TRAMPOLINE` when the *thread* that forked ends:

        request thread      starts a server ............. ends: the server is killed
        main thread                          uses it ................. refused

    So all servers are forked by one thread that lives as long as its process. A daemon
    thread, for the interpreter waits for others before it runs what atexit holds.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        # Strong references: a server that was let go of ends with the process.
        self.servers: set[_Server] = set()
        self._orders: queue.SimpleQueue[
            tuple[Sequence[str], Path, Future[subprocess.Popen[bytes]]]
        ] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="once-devserver", daemon=True).start()
        atexit.register(self.stop_all)

    def run(self, command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        """Start the command in the folder; Linux kills it with this process."""
        done: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((command, folder, done))
        try:
            return done.result()
        except BaseException:
            # Interrupted while waiting (Ctrl-C): nobody else knows of this process.
            done.add_done_callback(_kill_started)
            raise

    def stop_all(self) -> None:
        """Stop every server of this process."""
        # A forked child runs its parent's atexit handlers when it ends.
        if self.owner == os.getpid():
            for server in tuple(self.servers):
                server.stop()

    def _serve(self) -> None:
        while True:
            command, folder, done = self._orders.get()
            try:
                done.set_result(_fork_server(command, folder))
            except BaseException as error:  # noqa: BLE001 - raised in the caller by run()
                done.set_exception(error)


_kept: Keeper | None = None


def keeper() -> Keeper:
    """Return this process's keeper; a fork gets one of its own."""
    global _kept  # noqa: PLW0603 - threads do not survive a fork; each process has one
    if _kept is None or _kept.owner != os.getpid():
        _kept = Keeper()
    return _kept


def _fork_server(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    # A frozen program's sys.executable is that program, not a Python.
    if _ON_LINUX and sys.executable and not hasattr(sys, "frozen"):
        trampoline = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE]
        command = [*trampoline, str(os.getpid()), *command]
    with (folder / "log").open("ab") as log:
        # A session of its own: Ctrl-C is for the owner, which may still need a server.
        return subprocess.Popen(  # noqa: S603 - no shell, and the caller names the binary
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )


def _kill_started(done: Future[subprocess.Popen[bytes]]) -> None:
    if done.exception() is None:
        done.result().kill()
        done.result().wait()


def make_folder() -> Path:
    """Make the folder of a server, with the folder ``data`` and the file ``log``."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-")).resolve()
    (folder / "data").mkdir()
    (folder / "log").touch()
    write_owner(folder)
    return folder


def write_owner(folder: Path, *, server: int = 0, port: int = 0) -> None:
    """Note in the folder that its server, pid and port given, is this process's."""
    facts = {
        "owner": os.getpid(),
        "born": _born(os.getpid()),
        "where": _where(),
        "server": server,
        "port": port,
    }
    # By rename: another process may be reading it to see whether we live.
    (folder / "owner.new").write_text(json.dumps(facts))
    (folder / "owner.new").replace(folder / "owner.json")


def reap() -> None:
    """End servers whose owners are dead, and remove their folders.

    Where Linux kills a server with its owner this finds folders only.
    """
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{_FOLDER_PREFIX}*-*"):
        # Unreadable, half written, somebody else's, gone since: not ours to judge.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads((folder / "owner.json").read_text())
            if folder.lstat().st_uid != os.getuid() or facts["where"] != _where():
                continue
            if is_alive(facts["owner"]) and _born(facts["owner"]) == facts["born"]:
                continue
            if _is_server_of(folder, facts["server"], facts["port"]):
                os.kill(facts["server"], signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def _is_server_of(folder: Path, pid: int, port: int) -> bool:
    """Tell whether the process is the server of this folder, not a reused pid."""
    if not pid or not is_alive(pid):
        return False
    data = folder / "data"
    if _ON_LINUX:
        # Servers change to their --dir, and overwrite their command line.
        return Path(f"/proc/{pid}/cwd").readlink() == data
    client = redis.Redis(port=port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
    with contextlib.closing(client), contextlib.suppress(redis.RedisError):
        is_pid = client.info("server")["process_id"] == pid
        return bool(is_pid and str(data) in str(client.config_get("dir")))
    return False


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process."""
    if sys.platform == "win32":  # There, os.kill(pid, 0) ends the process.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> str:
    """When the process started, in the system's own measure; "" where unknown."""
    if not _ON_LINUX:
        return ""
    try:
        # After the name in brackets, which may hold anything: field 22 of the whole.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _where() -> str:
    """Name the place where pids mean what they mean here: host and pid namespace."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()
