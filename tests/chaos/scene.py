"""Servers, workers and producers of the chaos test, and everything that is done to them.

What differs between the frameworks is in `celery_scene` and `dramatiq_scene`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import redis
from _support import ledger
from _support.waiting import wait_until
from chaos.broker_log import Fates

from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError

FOREVER = float("inf")

ENDED = "worker ended by itself"
"""Celery gives up when all its children die before they are up, Dramatiq when one of them dies."""

# `always` could postpone a write behind an answer; then a kill would lose what was answered
ARGUMENTS = ["--appendfsync", "no", "--auto-aof-rewrite-percentage", "0"]


AFTER_RESTART = "kill worker after its restart"
FREED = "kill worker that keeps messages"

IN_CANVASES = 6
"""How many units of the kind ``late`` are triggered by canvases too."""


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
    """One call of `delay` or `send`."""

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
    """Tasks one after the other or side by side, with one at the end, and the ids of all."""

    name: str
    at: float
    ids: list[str]


class Action(NamedTuple):
    """Something that is done now and then.

    Attributes:
        method: Of the scene.
        count: How often in two minutes.
        shortest: How long it lasts at least, in seconds.
        longest: And at most.
    """

    method: str
    count: int
    shortest: float
    longest: float


class Worker(Protocol):
    """A worker with all its processes, in a group of their own."""

    process: Any

    @property
    def log(self) -> str: ...

    def kill(self) -> float: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


class Slot:
    """A place for a worker: whenever one dies, another takes it."""

    def __init__(self, pool: str, concurrency: int) -> None:
        self.pool = pool
        self.concurrency = concurrency
        self.worker: Worker | None = None
        self.is_frozen = False
        self.is_ending = False

    @property
    def is_up(self) -> bool:
        return self.worker is not None and not (self.is_frozen or self.is_ending)

    @property
    def group(self) -> int:
        assert self.worker is not None
        return self.worker.process.pid


class Scene(ABC):
    """All processes of one run. Only one thread, the test's, does things to them.

    Attributes:
        POOLS: Of the workers, with how many bodies each runs at once.
        CHILDREN: The pool whose children can be killed one by one.
        PLAN: What is done to them.
    """

    POOLS: ClassVar[list[tuple[str, int]]]
    CHILDREN: ClassVar[str]
    PLAN: ClassVar[list[Action]]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self.faults: list[Fault] = []
        self.immortal: set[str] = set()
        self.most_messages = 0
        self.workers_started = 0
        self.freed = 0
        self._ledger_read = 0
        self._bodies: dict[str, dict[str, Any]] = {}
        self._slots = [Slot(*each) for each in self.POOLS]
        self._workers: list[Worker] = []
        self._exit = contextlib.ExitStack()
        self.store = self._exit.enter_context(DevServer(persist=True, arguments=ARGUMENTS))
        self.results = self._exit.enter_context(DevServer())

    # What each framework does in its own way

    @abstractmethod
    def _new_worker(self, slot: Slot) -> Worker: ...

    @abstractmethod
    def _is_ready(self, worker: Worker) -> bool: ...

    @abstractmethod
    def producer(self, seed: str) -> Producer:
        """Something that triggers tasks until it is stopped."""

    @abstractmethod
    def holder(self, unit: str) -> tuple[str, str] | None:
        """State and message id of who holds a unit, as once tells its users."""

    @abstractmethod
    def messages(self) -> tuple[int, int]:
        """How many messages are in the queue, and how many with workers."""

    @abstractmethod
    def fates(self) -> Fates:
        """What the broker did with all messages."""

    @abstractmethod
    def unsent(self) -> set[str]:
        """Ids of messages and groups whose callbacks the broker did not take."""

    def complaints(self) -> list[str]:
        """Lines of workers' logs that must not be there."""
        return []

    def free_messages(self) -> int:
        """Help out messages that workers would keep until they end; returns how many."""
        return 0

    # Workers

    def start(self) -> None:
        """Start all workers; they need not be ready."""
        for slot in self._slots:
            self._start_worker(slot)

    def ready(self) -> None:
        """Wait until all workers are ready."""

        def are_ready() -> bool:
            self.supervise()
            return all(slot.worker and self._is_ready(slot.worker) for slot in self._slots)

        wait_until(are_ready, "all workers are ready", within=60)

    def close(self) -> None:
        """End every process."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.thaw()
            worker.kill()
        self._exit.close()

    def _start_worker(self, slot: Slot) -> None:
        slot.worker = self._new_worker(slot)
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
            self._heed(ledger.json.loads(line))
        for run, entry in list(self._bodies.items()):
            if _is_gone(entry["pid"]):
                del self._bodies[run]
        return list(self._bodies.values())

    def _heed(self, entry: dict[str, Any]) -> None:
        """Take in one note."""
        if entry["kind"] == "start":
            self._bodies[entry["run"]] = entry
        elif entry["kind"] == "end":
            self._bodies.pop(entry["run"], None)

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
        send_signal(pid, signal.SIGKILL)
        fault.done = time.monotonic()
        return nothing

    def kill_worker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to a worker with all its children; another one takes its place."""
        slot = self._slot(draw)
        if slot is None:
            return None
        self._kill(slot, "kill worker")
        return lambda: self._start_worker(slot)

    def restart_warm(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGTERM: bodies may finish; whatever has not ended in time is killed."""
        return self._restart(draw, "warm restart", self._end_warm)

    def restart_cold(self, draw: random.Random) -> Callable[[], None] | None:
        """Whatever runs is interrupted, and messages given back as far as the framework does."""
        return self._restart(draw, "cold restart", self._end_cold)

    def _end_warm(self, worker: Worker) -> None:
        worker.process.send_signal(signal.SIGTERM)

    @abstractmethod
    def _end_cold(self, worker: Worker) -> None: ...

    def _restart(
        self, draw: random.Random, what: str, end: Callable[[Worker], None]
    ) -> Callable[[], None] | None:
        slot = self._slot(draw)
        if slot is None:
            return None
        self._note(Fault(what, time.monotonic(), group=slot.group))
        assert slot.worker is not None
        end(slot.worker)
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
        send_signal(pid, signal.SIGSTOP)

        def thaw() -> None:
            send_signal(pid, signal.SIGCONT)
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

    def kill_store(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to the lock store; it comes back with its data."""
        return self._kill_server(self.store, "kill store")

    def empty_store(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to the lock store; it comes back with nothing."""
        return self._kill_server(self.store, "kill store", empty=True)

    def freeze_store(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to the lock store."""
        return self._freeze_server(self.store, "freeze store")

    def _kill_server(
        self, server: DevServer, what: str, *, empty: bool = False
    ) -> Callable[[], None] | None:
        if self._is_away(what.split()[1]):
            return None
        fault = self._note(Fault(what, time.monotonic(), came_back_empty=empty))
        server.kill()

        def again() -> None:
            server.restart(empty=empty)
            fault.until = time.monotonic()

        return again

    def _freeze_server(self, server: DevServer, what: str) -> Callable[[], None] | None:
        if self._is_away(what.split()[1]):
            return None
        fault = self._note(Fault(what, time.monotonic()))
        server.pause()

        def thaw() -> None:
            server.resume()
            fault.until = time.monotonic()

        return thaw

    def _is_away(self, name: str) -> bool:
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
        up = {each.group for each in self._slots if each.is_up and each.pool == self.CHILDREN}
        frozen = {each.pid for each in self.faults if each.until == FOREVER and not each.is_kill}
        busy = {each["pid"] for each in self.running() if each["group"] in up} - frozen
        return draw.choice(sorted(busy)) if busy else None

    # What can be seen from outside

    def look(self) -> None:
        """Count messages, and look for keys that would live for ever."""
        if not self._is_away("broker"):
            with contextlib.suppress(redis.RedisError, OSError):
                self.most_messages = max(self.most_messages, sum(self.messages()))
        if not self._is_away("store"):
            with contextlib.suppress(redis.RedisError, OSError):
                self.immortal |= {key for key, left in self.keys().items() if left == -1}

    def keys(self) -> dict[str, int]:
        """Keys of the lock store that are once's, and the milliseconds they live on."""
        with self.store.client() as client:
            names = sorted(client.scan_iter("once:*", count=1000))
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.pttl(name)
            return {key.decode(): left for key, left in zip(names, pipeline.execute(), strict=True)}


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def nothing() -> None:
    """Undo what needs no undoing."""


def send_signal(pid: int, number: int) -> None:
    """To a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Producer(threading.Thread, ABC):
    """Triggers random units at a steady rate, until it is told to stop.

    Attributes:
        UNITS: How many units of work there are of each kind of task.
        WEIGHTS: Kinds whose every call sends a message are called less often than others.
        RATE: Calls a second.
        BROKER_AWAY: What calls raise when the broker is away.
    """

    UNITS: ClassVar[dict[str, int]]
    WEIGHTS: ClassVar[dict[str, float]] = {"replace": 0.08, "debounce": 0.08}
    RATE: ClassVar[float] = 110.0
    BROKER_AWAY: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, seed: str) -> None:
        super().__init__(name="producer", daemon=True)
        self.triggers: list[Trigger] = []
        self.canvases: list[Canvas] = []
        self.unexpected: list[str] = []
        self._draw = random.Random(seed)
        self._stop_now = threading.Event()
        self._payload = 0
        self._canvas = 0
        self._seed = seed

    @abstractmethod
    def call(self, kind: str, unit: str, seconds: float, **rest: Any) -> tuple[str, str]:
        """One call; returns what became of it and the holder's id, as once tells its users."""

    @abstractmethod
    def send_canvas(self, name: str, works: list[tuple[str, float]], *, is_wide: bool) -> list[str]:
        """Units of the kind ``late``, then ``tail``; returns the ids of all messages."""

    def is_accident(self, error: Exception) -> bool:
        """Whether a client tripped over a connection that was closed under it."""
        return False

    def stop(self) -> None:
        self._stop_now.set()
        self.join(30)
        frame = sys._current_frames().get(self.ident or 0)
        where = "".join(traceback.format_stack(frame)[-8:]) if frame is not None else ""
        assert not self.is_alive(), f"a producer hangs in a call:\n{where}"

    def run(self) -> None:
        kinds = [(kind, number) for kind, count in self.UNITS.items() for number in range(count)]
        weights = [self.WEIGHTS.get(kind, 1.0) for kind, _ in kinds]
        due = time.monotonic()
        while not self._stop_now.is_set():
            kind, number = self._draw.choices(kinds, weights)[0]
            if self._draw.random() < 0.004:
                self._send_canvas()
            self.triggers.append(self.trigger(kind, number))
            due = max(due + 1 / self.RATE, time.monotonic() - 1)
            self._stop_now.wait(max(0.0, due - time.monotonic()))

    def trigger(self, kind: str, number: int) -> Trigger:
        """One call, with whatever becomes of it."""
        unit = f"{kind}-{number}"
        seconds = self._seconds()
        rest: dict[str, object] = {}
        payload = ""
        if kind == "retry":
            rest["times"] = self._draw.choice([0, 1, 1, 2])
        if kind in self.WEIGHTS:
            self._payload += 1
            rest["payload"] = payload = f"{self._seed}-{self._payload}"
        at = time.monotonic()
        trigger = Trigger(unit, at, at, "", payload=payload)
        try:
            trigger.state, trigger.holder = self.call(kind, unit, seconds, **rest)
        except StoreUnavailableError as error:
            trigger.state, trigger.error = "store away", str(error)
        except self.BROKER_AWAY as error:
            trigger.state, trigger.error = "broker away", str(error)
        except Exception as error:  # noqa: BLE001  # a finding, not the end of the test
            trigger.error = f"{type(error).__name__}: {error}"
            trigger.state = "broker away" if self.is_accident(error) else "error"
            if trigger.state == "error":
                self.unexpected.append(f"{unit}: {traceback.format_exc()}")
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
        units = [f"late-{number}" for number in self._draw.sample(range(IN_CANVASES), 3)]
        works = [(unit, self._seconds() / 4) for unit in units]
        is_wide = self._draw.random() < 0.5
        at = time.monotonic()
        try:
            ids = self.send_canvas(name, works, is_wide=is_wide)
        except (StoreUnavailableError, *self.BROKER_AWAY):
            return  # of either server; some of it may have been sent, and nobody counts on it
        except Exception as error:  # noqa: BLE001  # see `trigger`
            if not self.is_accident(error):
                self.unexpected.append(f"canvas {name}: {traceback.format_exc()}")
            return
        self.canvases.append(Canvas(name, at, ids))


def is_within(error: Exception, package: str) -> bool:
    """Whether an error was raised by a line of a package."""
    return f"/{package}/" in traceback.extract_tb(error.__traceback__)[-1].filename
