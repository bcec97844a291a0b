"""`once watch`: what it prints while a program does something."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _support.waiting import wait_until
from celery import Celery

from once_celery import OnceTask
from once_core.devserver import DevServer

SHOP = """
from celery import Celery
from once_celery import OnceTask

app = Celery("shop", broker="memory://", set_as_current=False)
app.conf.once_url = {url!r}
app.conf.once_events = {events}


@app.task(base=OnceTask, once={{"preview": ["order_id"]}}, shared=False)
def sync_order(order_id, password=""): ...
"""


INTERRUPTIBLE = """
import signal
from once_core.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)
raise SystemExit(main())
"""
"""`python -m once_core`, also where tests run in the background, which ignores Ctrl-C."""


class Watch:
    """The command, and the lines that it has printed."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, "-A", "shop", "watch", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.notes: list[str] = []
        self._threads: list[threading.Thread] = []
        self._lines: queue.Queue[str] = queue.Queue()
        for stream, take in (
            (self._process.stdout, self._lines.put),
            (self._process.stderr, self.notes.append),
        ):
            assert stream is not None
            thread = threading.Thread(target=_copy, args=(stream, take), daemon=True)
            thread.start()
            self._threads.append(thread)

    def line(self) -> str:
        """The next one."""
        return self._lines.get(timeout=30)

    def item(self) -> Any:
        """The next document."""
        return json.loads(self.line())

    def noted(self, text: str) -> bool:
        """Whether it has said so on the side."""
        return any(text in each for each in self.notes)

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=30)

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()


def _copy(stream: Any, take: Callable[[str], object]) -> None:
    with stream:
        for line in stream:
            take(line.rstrip("\n"))


@pytest.fixture
def program(tmp_path: Path, server: DevServer) -> Callable[[int], Any]:
    """Writes the program, and has it here, too."""

    def write(events: int) -> Any:
        source = SHOP.format(url=server.url, events=events)
        (tmp_path / "shop.py").write_text(source, encoding="utf-8")
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.update(once_url=server.url, once_events=events)
        return app.task(
            name="shop.sync_order",
            base=OnceTask,
            once={"preview": ["order_id"]},
            shared=False,
        )(_body)

    return write


def _body(order_id: int, password: str = "") -> None: ...


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watch]]:
    """Starts the command."""
    started: list[Watch] = []

    def start(*words: str) -> Watch:
        started.append(Watch(tmp_path, *words))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_watch_prints_what_is_decided(
    program: Callable[[int], Any], watch: Callable[..., Watch], server: DevServer
) -> None:
    """What was told before, then what comes; without the values that nobody named."""
    task = program(1000)
    first = task.delay(42, password="hunter2")
    wait_until(lambda: server.client().exists("once:events"), "the first event is written")
    watching = watch("--json")

    claimed = watching.item()
    task.delay(42, password="hunter2")
    refused = watching.item()

    assert (claimed["kind"], claimed["message_id"]) == ("claimed", first.id)
    assert (refused["kind"], refused["holder_id"]) == ("duplicate", first.id)
    assert refused["preview"] == "order_id=42"
    assert refused["where"].split(":")[1] == str(os.getpid())
    assert "hunter2" not in json.dumps([claimed, refused])
    assert watching.interrupt() == 0


def test_watch_is_for_people(
    program: Callable[[int], Any], watch: Callable[..., Watch], server: DevServer
) -> None:
    """One line an event: what, which, why, who is in the way."""
    task = program(1000)
    first = task.delay(42)
    task.delay(42)
    wait_until(lambda: server.client().exists("once:events"), "events are written")
    wait_until(lambda: server.client().xlen("once:events") == 2, "both are written")
    watching = watch("--last", "1")

    said = watching.line()

    assert "duplicate         shop.sync_order  order_id=42  " in said
    assert f"holder {first.id}" in said


def test_watch_goes_on_after_an_outage(
    program: Callable[[int], Any], watch: Callable[..., Watch], server: DevServer
) -> None:
    """Whoever watches an outage wants to see its end."""
    task = program(1000)
    task.delay(1)
    wait_until(lambda: server.client().exists("once:events"), "the first event is written")
    watching = watch("--json")
    assert watching.item()["kind"] == "claimed"

    server.kill()
    wait_until(lambda: watching.noted("cannot be read"), "it says that the store is away")
    server.restart()
    wait_until(lambda: watching.noted("it answers again"), "it says that it is back")
    task.delay(2)

    assert watching.item()["kind"] == "claimed"


def test_watch_without_events_compares_what_is_held(
    program: Callable[[int], Any], watch: Callable[..., Watch]
) -> None:
    """And says how to see more."""
    task = program(0)
    first = task.delay(42)
    watching = watch("--json", "--every", "0.05")

    begins = watching.item()
    task.release(42)
    ends = watching.item()

    assert (begins["change"], begins["state"], begins["message_id"]) == (
        "begins",
        "waiting",
        first.id,
    )
    assert (ends["change"], ends["key"]) == ("ends", begins["key"])
    assert watching.noted("set events=10000")


def test_watch_ends_by_itself_when_told(
    program: Callable[[int], Any], watch: Callable[..., Watch]
) -> None:
    """For scripts."""
    program(0).delay(1)
    watching = watch("--seconds", "0.1")

    assert "waiting" in watching.line()
    assert watching._process.wait(timeout=30) == 0


def test_children_that_end_after_each_task_are_seen(
    tmp_path: Path, server: DevServer, program: Callable[[int], Any]
) -> None:
    """A pool's child ends without `atexit`: not one `started` was ever in the stream."""
    from once_core import stream
    from once_core.store import Store

    program(1000)
    text = (tmp_path / "shop.py").read_text(encoding="utf-8")
    source = text.replace('broker="memory://"', f"broker={server.url!r}")
    (tmp_path / "shop.py").write_text(source, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "1",
             "--max-tasks-per-child", "1"],
            cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    call = "import shop; [shop.sync_order.delay(each) for each in range(3)]"
    subprocess.run([sys.executable, "-c", call], cwd=tmp_path, env=environment, check=True)

    def kinds() -> list[str]:
        entries = stream.read(Store(server.url), count=1000)
        return sorted(entry.event.kind for entry in entries)

    try:
        expected = ["claimed"] * 3 + ["finished"] * 3 + ["started"] * 3
        wait_until(lambda: kinds() == expected, "all is told", within=60)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
