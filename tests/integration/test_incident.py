"""An incident, diagnosed by commands alone; docs/howto/on-call.md walks through the same.

One program, one worker, four things that go wrong: a worker is killed, a queue is purged, a call to
somebody else's service never returns, and a ``ttl`` is too short. No command is told what happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _support.waiting import wait_until

from once_core.devserver import DevServer

SHOP = """
import os
import socket

from celery import Celery
from once_celery import OnceTask

app = Celery("shop", broker=os.environ["SHOP_URL"], backend=os.environ["SHOP_URL"])
app.conf.once_events = 10_000
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True


@app.task(base=OnceTask, once={"preview": ["order_id"], "warn_after": 1, "on_overlap": "skip"})
def charge(order_id):
    with socket.create_connection(("127.0.0.1", int(os.environ["BANK"]))) as bank:
        bank.recv(1)


@app.task(base=OnceTask)
def sync_order(order_id): ...


@app.task(base=OnceTask, once={"ttl": 60, "scope": "until_done"}, time_limit=1800)
def rebuild_index(): ...
"""

CALLS = {
    "charge": "import shop; print(shop.charge.delay(7).id)",
    "sync": "import shop; [shop.sync_order.delay(n) for n in (1, 2, 3)]; shop.sync_order.delay(1)",
}


class Site:
    """The program where it is deployed, and a shell there."""

    def __init__(self, folder: Path, server: DevServer, bank: int) -> None:
        (folder / "shop.py").write_text(SHOP, encoding="utf-8")
        self._folder = folder
        self._env = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "SHOP_URL": server.url,
            "BANK": str(bank),
            "ONCE_URL": "",
        }
        self._workers: list[subprocess.Popen[bytes]] = []

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def call(self, name: str) -> str:
        """Some code of the program calls tasks; what it prints."""
        done = self._run("-c", CALLS[name])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def celery(self, *words: str) -> None:
        """One of Celery's own commands."""
        done = self._run("-m", "celery", "-A", "shop", *words)
        assert done.returncode == 0, done.stderr

    def once(self, *words: str) -> tuple[int, str]:
        """What a person on call types; the exit code and what is printed."""
        done = self._run("-m", "once_core", "-A", "shop", *words)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    def json(self, *words: str) -> Any:
        """The same for a script."""
        return json.loads(self.once(*words, "--json")[1])

    def worker(self) -> subprocess.Popen[bytes]:
        """A worker with one child."""
        with (self._folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "1"],
                cwd=self._folder,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._workers.append(process)
        return process

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL, with all its children."""
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)

    def close(self) -> None:
        """End what runs."""
        for each in self._workers:
            if each.poll() is None:
                self.kill(each)


@pytest.fixture
def bank() -> Iterator[int]:
    """The port of a service that takes calls and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def site(tmp_path: Path, server: DevServer, bank: int) -> Iterator[Site]:
    """The deployment."""
    made = Site(tmp_path, server, bank)
    yield made
    made.close()


def _rows(site: Site, *words: str) -> list[Any]:
    found: list[Any] = site.json("ls", *words)
    return found


@pytest.mark.slow
def test_an_incident_is_diagnosed_by_commands_alone(site: Site) -> None:
    """Each cause is named by a command that is not told of it, with what to do."""
    worker = site.worker()
    message_id = site.call("charge")
    wait_until(lambda: _rows(site, "--state", "running"), "it runs", within=60)

    # a call to elsewhere is stuck: it runs for long, and its worker is well
    (row,) = wait_until(lambda: _rows(site, "--older", "1"), "it has run for long")
    assert (row["task"], row["state"]) == ("shop.charge", "running")
    code, said = site.once("explain", "charge", "7")
    assert code == 1
    assert f"would WAIT: message {message_id} has run for" in said or "would END" in said
    assert "made of   order_id=7 (int)" in said
    assert "lease of 1 min 00 s renewed" in said
    assert "does not renew" not in said
    host, pid = site.json("explain", "charge", "7")["holders"][0]["where"].split(":")[:2]
    assert Path(f"/proc/{pid}/cmdline").read_bytes()  # where `py-spy dump --pid` has to look
    kinds = _told(site)
    assert ("slow", "shop.charge") in kinds

    # the worker is killed: its process is gone, and the next message may start
    site.kill(worker)
    code, said = site.once("explain", "charge", "7")
    assert "would START" in said
    assert f"at {host}:{pid}, but that process is gone" in said

    # a queue is purged: units wait for messages that nobody has
    site.call("sync")
    waiting = _rows(site, "--task", "sync_order", "--state", "waiting")
    assert [row["holders"][0]["suppressed"] for row in waiting].count(1) == 1
    assert _finding(site, "waits-without-message") is None
    site.celery("purge", "-f")
    found = wait_until(lambda: _finding(site, "waits-without-message"), "it is noticed", within=60)
    assert found["about"] == "shop.sync_order"
    assert "3 units of work wait" in found["text"]
    assert "queue 'celery' is empty" in found["text"]
    code, said = site.once("explain", "sync_order", "1")
    assert code == 1
    assert "would be REFUSED: one waits to run" in said
    assert "its queue was purged" in said
    assert site.once("release", "sync_order", "1", "--yes")[0] == 0
    assert site.once("explain", "sync_order", "1")[0] == 0

    # a ttl is too short
    code, said = site.once("doctor")
    assert code == 1
    assert "ttl=60 s is shorter than its time limit of 1800 s" in said
    assert "[ttl-below-time-limit]" in said
    assert "-> once={'ttl': 3600}" in said


def _told(site: Site) -> set[tuple[str, str]]:
    code, said = site.once("watch", "--json", "--seconds", "0.1", "--last", "1000")
    assert code == 0
    told = [json.loads(line) for line in said.splitlines()]
    return {(each["kind"], each.get("task", "")) for each in told}


def _finding(site: Site, code: str) -> Any:
    found = [each for each in site.json("doctor") if each["code"] == code]
    return found[0] if found else None
