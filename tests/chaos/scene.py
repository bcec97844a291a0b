"""Servers, workers and producers of the chaos test, and everything that is done to them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from _support import ledger
from _support.waiting import wait_until
from _support.workers import CeleryWorker
from celery import chain, chord
from chaos.tasks import QUEUE, make_app
from kombu.exceptions import OperationalError

from once_celery import StoreUnavailableError
from once_core.devserver import DevServer

FOREVER = float("inf")

ENDED = "worker ended by itself"
"""Celery gives up when all its children die before they are up."""

UNITS = {"late": 16, "early": 8, "done": 8, "retry": 6, "replace": 4, "debounce": 3}
"""How many units of work there are of each kind of task."""

IN_CANVASES = 6
"""How many units of the kind ``late`` are triggered by chains and chords too."""

PUBLISHING = {"replace": 0.08, "debounce": 0.08}
"""Kinds whose every call sends a message are called less often than others."""

POOLS = [("prefork", 4), ("prefork", 4), ("threads", 4)]

BROKER = {
    "visibility_timeout": 5,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # else a worker that dies in the middle of a sweep ends all sweeps for five minutes
    "unacked_mutex_expire": 3,
    "socket_timeout": 4,
    "socket_connect_timeout": 1,
}

# `always` could postpone a write behind an answer; then a kill would lose what was answered
ARGUMENTS = ["--appendfsync", "no", "--auto-aof-rewrite-percentage", "0"]


AFTER_RESTART = "kill worker after its restart"


_UNSENT = re.compile(
    r"(?:Task \w+\[|Chord callback for ')([0-9a-f-]+)"
    r"(?:\]|') raised(?: unexpected)?: OperationalError"
)


@dataclass
class Fault:
    """Something that was done to a process, from when until when.

    A killed process stays dead for ever; a killed server comes back. What is killed is dead at
    some time between `at` and `done`.
    """

    what: str
    at: float
    done: float = FOREVER
    until: float = FOREVER
    pid: int = 0
    group: int = 0
    came_back_empty: bool = False
    ran: list[str] = field(default_factory=list)

    @property
    def is_kill(self) -> bool:
        return self.what.startswith("kill")

    @property
    def is_deadly(self) -> bool:
        """Whether what ran in it, or was acknowledged by it, may be gone."""
        return self.is_kill or "restart" in self.what or self.what == ENDED

    def hits(self, pid: int, group: int) -> bool:
        return pid == self.pid or group == self.group


@dataclass
class Trigger:
    """One call of `delay`."""

    unit: str
    at: float
    done: float
    state: str
    holder: str = ""
    payload: str = ""
    error: str = ""

    @property
    def is_owed(self) -> bool:
        """Whether a run has to follow that starts after it."""
        return self.state in ("claimed", "refreshed", "replaced", "waiting", "moved")

    @property
    def was_sent(self) -> bool:
        return self.state in ("claimed", "refreshed", "replaced")

    def is_beside(self, other: Trigger) -> bool:
        """Whether the two calls were made at the same time."""
        return self.at <= other.done and other.at <= self.done


@dataclass
class Canvas:
    """One chain or chord, the ids of all its messages, the last one first, and of its group."""

    name: str
    at: float
    ids: list[str]


class Slot:
    """A place for a worker: whenever one dies, another takes it."""

    def __init__(self, pool: str, concurrency: int) -> None:
        self.pool = pool
        self.concurrency = concurrency
        self.worker: CeleryWorker | None = None
        self.is_frozen = False
        self.is_ending = False

    @property
    def is_up(self) -> bool:
        return self.worker is not None and not (self.is_frozen or self.is_ending)

    @property
    def group(self) -> int:
        assert self.worker is not None
        return self.worker.process.pid


class Scene:
    """All processes of one run. Only one thread, the test's, does things to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self.faults: list[Fault] = []
        self.immortal: set[str] = set()
        self.most_messages = 0
        self.workers_started = 0
        self._ledger_read = 0
        self._bodies: dict[str, dict[str, Any]] = {}
        self._slots = [Slot(*each) for each in POOLS]
        self._workers: list[CeleryWorker] = []
        self._exit = contextlib.ExitStack()
        self.store = self._exit.enter_context(DevServer(persist=True, arguments=ARGUMENTS))
        self.broker = self._exit.enter_context(DevServer(persist=True, arguments=ARGUMENTS))
        self.results = self._exit.enter_context(DevServer())
        self.settings = {
            "broker_url": self.broker.url,
            "result_backend": self.results.url,
            "once_url": self.store.url,
            "broker_transport_options": BROKER,
            "ledger": str(self.ledger),
        }
        self.app = make_app(self.settings)

    def start(self) -> None:
        """Start all workers; they need not be ready."""
        for slot in self._slots:
            self._start_worker(slot)

    def ready(self) -> None:
        """Wait until all workers are ready."""

        def are_ready() -> bool:
            self.supervise()
            return all(slot.worker and " ready." in slot.worker.log for slot in self._slots)

        wait_until(are_ready, "all workers are ready", within=60)

    def close(self) -> None:
        """End every process."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.thaw()
            worker.kill()
        self.app.backend.result_consumer.stop()
        self.app.close()
        self._exit.close()

    @property
    def broker_folder(self) -> Path:
        folder = self.broker._folder
        assert folder is not None
        return folder / "data"

    def unsent(self) -> set[str]:
        """Ids of messages and groups whose callbacks the broker did not take from Celery."""
        found: set[str] = set()
        for worker in self._workers:
            found.update(_UNSENT.findall(worker.log))
        return found

    def _start_worker(self, slot: Slot) -> None:
        slot.worker = CeleryWorker(
            self.settings,
            self.folder,
            app="chaos.tasks",
            pool=slot.pool,
            concurrency=slot.concurrency,
        )
        slot.is_frozen = slot.is_ending = False
        self.workers_started += 1
        self._workers.append(slot.worker)

    def supervise(self) -> None:
        """Start workers in the place of those that ended by themselves."""
        for slot in self._slots:
            worker = slot.worker
            if worker is None or slot.is_ending or worker.process.poll() is None:
                continue
            self._kill(slot, ENDED)
            self._start_worker(slot)

    # What runs now

    def running(self) -> list[dict[str, Any]]:
        """Bodies that run, as far as their notes tell."""
        try:
            with self.ledger.open("rb") as notes:
                notes.seek(self._ledger_read)
                data = notes.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._ledger_read += len(data)
        for line in data.splitlines():
            entry = ledger.json.loads(line)
            if entry["kind"] == "start":
                self._bodies[entry["run"]] = entry
            elif entry["kind"] == "end":
                self._bodies.pop(entry["run"], None)
        for run, entry in list(self._bodies.items()):
            if _is_gone(entry["pid"]):
                del self._bodies[run]
        return list(self._bodies.values())

    def _note(self, fault: Fault) -> Fault:
        hit = [each for each in self.running() if fault.hits(each["pid"], each["group"])]
        fault.ran = [each["unit"] for each in hit]
        self.faults.append(fault)
        return fault

    # What can be done: each returns what ends it, or None where there was nothing to do it to

    def kill_child(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to a pool's child in the middle of a body."""
        pid = self._child(draw)
        if pid is None:
            return None
        fault = self._note(Fault("kill child", time.monotonic(), pid=pid))
        _signal(pid, signal.SIGKILL)
        fault.done = time.monotonic()
        return _nothing

    def kill_worker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to a worker with all its children; another one takes its place."""
        slot = self._slot(draw)
        if slot is None:
            return None
        self._kill(slot, "kill worker")
        return lambda: self._start_worker(slot)

    def restart_warm(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGTERM: bodies may finish; whatever has not ended in time is killed."""
        return self._restart(draw, "warm restart", signal.SIGTERM)

    def restart_cold(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGQUIT: bodies are interrupted, and messages given back as far as Celery does."""
        return self._restart(draw, "cold restart", signal.SIGQUIT)

    def _restart(
        self, draw: random.Random, what: str, number: signal.Signals
    ) -> Callable[[], None] | None:
        slot = self._slot(draw)
        if slot is None:
            return None
        self._note(Fault(what, time.monotonic(), group=slot.group))
        assert slot.worker is not None
        slot.worker.process.send_signal(number)
        slot.is_ending = True

        def again() -> None:
            self._kill(slot, AFTER_RESTART)
            self._start_worker(slot)

        return again

    def freeze_child(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to a pool's child alone."""
        pid = self._child(draw)
        if pid is None:
            return None
        fault = self._note(Fault("freeze child", time.monotonic(), pid=pid))
        _signal(pid, signal.SIGSTOP)

        def thaw() -> None:
            _signal(pid, signal.SIGCONT)
            fault.until = time.monotonic()

        return thaw

    def freeze_worker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to a worker with all its children."""
        slot = self._slot(draw)
        if slot is None:
            return None
        fault = self._note(Fault("freeze worker", time.monotonic(), group=slot.group))
        worker = slot.worker
        assert worker is not None
        slot.is_frozen = True
        worker.freeze()

        def thaw() -> None:
            worker.thaw()
            slot.is_frozen = False
            fault.until = time.monotonic()

        return thaw

    def freeze_main(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to a prefork worker's main process, while its children go on."""
        slot = self._slot(draw, "prefork")
        if slot is None:
            return None
        pid = slot.group
        fault = self._note(Fault("freeze main", time.monotonic(), pid=pid))
        slot.is_frozen = True
        _signal(pid, signal.SIGSTOP)

        def thaw() -> None:
            _signal(pid, signal.SIGCONT)
            slot.is_frozen = False
            fault.until = time.monotonic()

        return thaw

    def kill_store(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to the lock store; it comes back with its data."""
        return self._kill_server(self.store, "kill store")

    def empty_store(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to the lock store; it comes back with nothing."""
        return self._kill_server(self.store, "kill store", empty=True)

    def kill_broker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to the broker; it comes back with its data."""
        return self._kill_server(self.broker, "kill broker")

    def freeze_store(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to the lock store."""
        return self._freeze_server(self.store, "freeze store")

    def freeze_broker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to the broker."""
        return self._freeze_server(self.broker, "freeze broker")

    def _kill_server(
        self, server: DevServer, what: str, *, empty: bool = False
    ) -> Callable[[], None] | None:
        if self._is_away(server):
            return None
        fault = self._note(Fault(what, time.monotonic(), came_back_empty=empty))
        server.kill()

        def again() -> None:
            server.restart(empty=empty)
            fault.until = time.monotonic()

        return again

    def _freeze_server(self, server: DevServer, what: str) -> Callable[[], None] | None:
        if self._is_away(server):
            return None
        fault = self._note(Fault(what, time.monotonic()))
        server.pause()

        def thaw() -> None:
            server.resume()
            fault.until = time.monotonic()

        return thaw

    def _is_away(self, server: DevServer) -> bool:
        name = "store" if server is self.store else "broker"
        return any(each.until == FOREVER and each.what.endswith(name) for each in self.faults)

    def _kill(self, slot: Slot, what: str) -> None:
        assert slot.worker is not None
        fault = self._note(Fault(what, time.monotonic(), group=slot.group))
        fault.done = slot.worker.kill()
        slot.worker = None

    def _slot(self, draw: random.Random, pool: str = "") -> Slot | None:
        up = [each for each in self._slots if each.is_up and pool in ("", each.pool)]
        return draw.choice(up) if up else None

    def _child(self, draw: random.Random) -> int | None:
        """A child that runs a body."""
        up = {each.group for each in self._slots if each.is_up and each.pool == "prefork"}
        frozen = {each.pid for each in self.faults if each.until == FOREVER and not each.is_kill}
        busy = {each["pid"] for each in self.running() if each["group"] in up} - frozen
        return draw.choice(sorted(busy)) if busy else None

    # What can be seen from outside

    def look(self) -> None:
        """Count messages, and look for keys that would live for ever."""
        if not self._is_away(self.broker):
            with contextlib.suppress(redis.RedisError, OSError):
                self.most_messages = max(self.most_messages, sum(self.messages()))
        if not self._is_away(self.store):
            with contextlib.suppress(redis.RedisError, OSError):
                self.immortal |= {key for key, left in self.keys().items() if left == -1}

    def messages(self) -> tuple[int, int]:
        """How many messages are in the queue, and how many with workers."""
        with self.broker.client() as client:
            return client.llen(QUEUE), client.hlen("unacked")

    def keys(self) -> dict[str, int]:
        """Keys of the lock store that are once's, and the milliseconds they live on."""
        with self.store.client() as client:
            names = sorted(client.scan_iter("once:*", count=1000))
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.pttl(name)
            return {key.decode(): left for key, left in zip(names, pipeline.execute(), strict=True)}


def _is_of_kombu(error: Exception) -> bool:
    """Whether kombu tripped over a connection that was closed under it (an AttributeError)."""
    return "/kombu/" in traceback.extract_tb(error.__traceback__)[-1].filename


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def _nothing() -> None:
    pass


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Producer(threading.Thread):
    """Triggers random units at a steady rate, until it is told to stop."""

    def __init__(self, scene: Scene, seed: str, rate: float) -> None:
        super().__init__(name="producer", daemon=True)
        self.triggers: list[Trigger] = []
        self.canvases: list[Canvas] = []
        self.unexpected: list[str] = []
        self._scene = scene
        self._draw = random.Random(seed)
        self._rate = rate
        self._stop_now = threading.Event()
        self._payload = 0
        self._canvas = 0
        self._seed = seed

    def stop(self) -> None:
        self._stop_now.set()
        self.join(30)
        assert not self.is_alive(), "a producer hangs in delay()"

    def run(self) -> None:
        kinds = [(kind, number) for kind, count in UNITS.items() for number in range(count)]
        weights = [PUBLISHING.get(kind, 1.0) for kind, _ in kinds]
        due = time.monotonic()
        while not self._stop_now.is_set():
            kind, number = self._draw.choices(kinds, weights)[0]
            if self._draw.random() < 0.004:
                self._send_canvas()
            self.triggers.append(self.trigger(kind, number))
            due = max(due + 1 / self._rate, time.monotonic() - 1)
            self._stop_now.wait(max(0.0, due - time.monotonic()))

    def trigger(self, kind: str, number: int) -> Trigger:
        """One call of `delay`, with whatever becomes of it."""
        unit = f"{kind}-{number}"
        seconds = self._seconds()
        options: dict[str, object] = {}
        payload = ""
        if kind == "retry":
            options["times"] = self._draw.choice([0, 1, 1, 2])
        if kind in PUBLISHING:
            self._payload += 1
            options["payload"] = payload = f"{self._seed}-{self._payload}"
        at = time.monotonic()
        trigger = Trigger(unit, at, at, "", payload=payload)
        try:
            handle = self._scene.app.tasks[kind].delay(unit, seconds, **options)
        except StoreUnavailableError as error:
            trigger.state, trigger.error = "store away", str(error)
        except OperationalError as error:
            trigger.state, trigger.error = "broker away", str(error)
        except Exception as error:  # noqa: BLE001  # a finding, not the end of the test
            trigger.error = f"{type(error).__name__}: {error}"
            trigger.state = "broker away" if _is_of_kombu(error) else "error"
            if trigger.state == "error":
                self.unexpected.append(f"{unit}: {traceback.format_exc()}")
        else:
            trigger.state, trigger.holder = handle.once.state, handle.once.holder_id
        trigger.done = time.monotonic()
        return trigger

    def _seconds(self) -> float:
        kind = self._draw.random()
        if kind < 0.85:
            return self._draw.uniform(0.01, 0.4)
        if kind < 0.98:
            return self._draw.uniform(0.4, 1.5)
        return self._draw.uniform(5.0, 9.0)

    def _send_canvas(self) -> None:
        self._canvas += 1
        name = f"{self._seed}-{self._canvas}"
        late, tail = self._scene.app.tasks["late"], self._scene.app.tasks["tail"]
        units = [f"late-{number}" for number in self._draw.sample(range(IN_CANVASES), 3)]
        members = [late.si(unit, self._seconds() / 4) for unit in units]
        at = time.monotonic()
        try:
            if self._draw.random() < 0.5:
                result = chord(members, tail.s(name)).apply_async()
                members = [each.id for each in result.parent.children]
                ids = [result.id, *members, result.parent.id]
            else:
                result = chain(*members, tail.s(name)).apply_async()
                ids = []
                while result is not None:
                    ids.append(result.id)
                    result = result.parent
        except OperationalError:
            return  # of either server; some of it may have been sent, and nobody counts on it
        except Exception as error:  # noqa: BLE001  # see `trigger`
            if not _is_of_kombu(error):
                self.unexpected.append(f"canvas {name}: {traceback.format_exc()}")
            return
        self.canvases.append(Canvas(name, at, ids))
