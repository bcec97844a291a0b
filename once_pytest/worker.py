"""Real workers for a test, in a process of their own: to be killed, frozen and stopped.

A worker is a fork of the test's process. So the tasks that a test defines, its app or broker, and
the place of its locks are there as they are, and nothing has to be importable.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING

from once_core.events import Event, logger
from once_pytest._worker_child import READY, Runner, work

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from celery import Celery
    from dramatiq import Broker

__all__ = ["WorkerProcess", "start_worker"]

_SHOWN = 6000
"""Characters of a log, from its end, that a message shows."""

_POLL = 0.01
_GONE = 10.0
"""Seconds in which killed processes are gone, and stopped ones stand still."""

_forking = threading.Lock()
"""Held while one forks and while `on_event` runs: a lock of its own would stay locked in a fork."""


class WorkerProcess:
    """A worker in a process of its own, with its children one process group.

    Made by `start_worker`. Thread safety: any thread, one at a time. Process safety: only in the
    process that started it.

    Attributes:
        pid: Of its main process, and of its process group.
    """

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self.pid = 0
        self._on_event = on_event
        self._process: BaseProcess | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        self._log_read: str | None = None
        self._events: list[Event] = []
        self._waited: Counter[str] = Counter()
        self._news = threading.Condition()
        self._is_ready = self._is_over = False

    @property
    def is_alive(self) -> bool:
        """Whether its main process lives; a frozen one does."""
        return self._process is not None and self._process.is_alive()

    @property
    def log(self) -> str:
        """What it and its children printed and logged so far."""
        if self._log_read is not None:
            return self._log_read
        descriptor = self._log.fileno()
        # reads at a place of its own: the worker writes where the file's own place is
        text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return text.decode(errors="replace")

    def kill(self) -> None:
        """End it and its children by SIGKILL, as a crash would; nothing if it is gone.

        Returns when they are gone and every event they sent was delivered.
        """
        __tracebackhide__ = True
        self._signal(signal.SIGKILL)
        self._end()

    def freeze(self) -> None:
        """Stop it and its children (SIGSTOP), and return when all of their threads stand still.

        Raises:
            AssertionError: It is gone.
        """
        __tracebackhide__ = True
        if not self.is_alive:
            raise AssertionError(f"a worker that is gone cannot be frozen: {self._condition()}")
        self._signal(signal.SIGSTOP)
        stands = "its threads stand still"
        self._until(lambda: {state.upper() for state in _states(self.pid)} <= {"T"}, stands)

    def thaw(self) -> None:
        """Let a frozen one go on (SIGCONT); nothing if it is not frozen."""
        self._signal(signal.SIGCONT)

    def stop(self, within: float = 10) -> None:
        """End it by SIGTERM, the warm shutdown: bodies that run come to their end.

        A frozen one is thawed; nothing happens to one that is gone.

        Args:
            within: Seconds that it may take; then it is killed.

        Raises:
            AssertionError: It did not end, or not with code 0; with its log.
        """
        __tracebackhide__ = True
        if self._process is None or not self.is_alive:
            return self._end()
        self._process.terminate()
        self.thaw()
        self._process.join(within)
        is_late = self._process.is_alive()
        self.kill()
        if is_late:
            raise AssertionError(
                f"the worker did not end within {within:g} s of SIGTERM and was killed; a body may "
                f"still have run. {self._shown_log()}"
            )
        if self._process.exitcode:
            raise AssertionError(f"the worker {self._condition()}. {self._shown_log()}")
        return None

    def wait_for(self, kind: str, *, within: float = 10) -> Event:
        """Wait for the next event of a kind from this worker.

        One that came before the call counts; but each counts once, so that the second call with
        the same kind waits for the second event.

        Args:
            kind: Such as ``"started"`` or ``"lease_lost"``; see `once_core.events.Event`.
            within: Seconds to wait.

        Returns:
            The event.

        Raises:
            AssertionError: It did not come; with the last events and the log.
        """
        __tracebackhide__ = True
        with self._news:
            nth = self._waited[kind]
            self._news.wait_for(lambda: self._is_over or self._count(kind) > nth, within)
            found = [event for event in self._events if event.kind == kind][nth:]
            if found:
                self._waited[kind] += 1
                return found[0]
            recent = "".join(f"\n  {event}" for event in self._events[-10:]) or " none"
        which = f"{kind!r}" if not nth else f"{kind!r} (number {nth + 1})"
        raise AssertionError(
            f"no event {which} from the worker within {within:g} s; it {self._condition()}. "
            f"Its last events:{recent}\n{self._shown_log()}"
        )

    def _count(self, kind: str) -> int:
        return sum(event.kind == kind for event in self._events)

    def _start(self, run: Runner) -> None:
        source, sink = os.pipe()
        reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        # a thread that ends would take its forks along, see _die_with
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        arguments = (run, self._log.fileno(), sink, parent)
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=work, args=arguments, name="once-worker")
        try:
            with _forking, warnings.catch_warnings():
                # "multi-threaded, use of fork": task queues' own workers fork beside threads too
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
        finally:
            os.close(sink)  # else its end would not end the pipe
            reader.start()
        self.pid = self._process.pid or 0
        self._at_exit = util.Finalize(None, self.kill, exitpriority=100)
        self._reader = reader

    def _read(self, source: int) -> None:
        """The thread that hears the worker, until nobody is left who could say anything."""
        with os.fdopen(source, encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                if line == READY:
                    with self._news:
                        self._is_ready = True
                        self._news.notify_all()
                elif line.endswith("\n"):
                    self._hear(Event(**json.loads(line)))
        with self._news:
            self._is_over = True
            self._news.notify_all()

    def _hear(self, event: Event) -> None:
        try:
            with _forking:
                if self._on_event is not None:
                    self._on_event(event)
        except Exception:  # noqa: BLE001  # it is logged
            logger.exception("on_event of a worker raised; the next event comes all the same")
        with self._news:
            self._events.append(event)
            self._news.notify_all()

    def _wait_until_ready(self, within: float) -> None:
        __tracebackhide__ = True
        with self._news:
            self._news.wait_for(lambda: self._is_ready or self._is_over, within)
        if self._is_ready and not self._is_over:
            return
        late = f"did not come up within {within:g} s"
        why = f"{self._condition()} before it was ready" if self._is_over else late
        self.kill()
        raise AssertionError(f"the worker {why}. {self._shown_log()}")

    def _signal(self, number: signal.Signals) -> None:
        # once all are gone the number of the group may be somebody else's
        if self._process is None or not (self.is_alive or self._reader.is_alive()):
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self.is_alive:  # it has not come to making its group
                os.kill(self.pid, number)

    def _end(self) -> None:
        """Wait until it and its children are gone and heard, and keep what they left."""
        __tracebackhide__ = True
        if self._process is None or self._log_read is not None:
            return
        self._process.join()
        self._signal(signal.SIGKILL)  # children that outlived it
        self._until(lambda: not _states(self.pid), "all of its processes are gone")
        self._reader.join(_GONE)
        if self._reader.is_alive():
            raise AssertionError(
                "something that the worker started in a process group of its own outlives it; "
                f"a body must end what it starts. {self._shown_log()}"
            )
        self._log_read = self.log
        self._log.close()
        self._at_exit.cancel()

    def _until(self, probe: Callable[[], bool], description: str) -> None:
        __tracebackhide__ = True
        deadline = time.monotonic() + _GONE
        while not probe():
            if time.monotonic() > deadline:
                states = _states(self.pid)
                raise AssertionError(f"not within {_GONE:g} s: {description}; states: {states}")
            time.sleep(_POLL)

    def _condition(self) -> str:
        if self._process is not None and self._is_over:
            self._process.join(_GONE)  # a process that ends closes its files a moment before
        if self._process is None or self._process.exitcode is None:
            return "is frozen" if set(_states(self.pid)) == {"T"} else "lives"
        code = self._process.exitcode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def _shown_log(self) -> str:
        text = self.log.rstrip()
        return f"Its log{' ends' if len(text) > _SHOWN else ''}:\n{text[-_SHOWN:] or '(empty)'}"


def start_worker(
    target: Celery | Broker,
    *,
    on_event: Callable[[Event], object] | None = None,
    concurrency: int = 1,
    pool: str | None = None,
    queues: Sequence[str] | None = None,
    within: float = 20,
) -> WorkerProcess:
    """Start a worker in a process of its own and wait until it consumes.

    It knows the tasks that are defined by now. It ends with this process at the latest; on Linux
    also when that is killed, if the main thread has started it.

    Args:
        target: The Celery app or the Dramatiq broker whose messages it is to run. The broker must
            be one that another process can reach.
        on_event: Called, in a thread of this process, with every event of the worker and its
            children. Must not start a worker.
        concurrency: Bodies at a time; for Dramatiq its threads.
        pool: Celery's ``"solo"``, ``"threads"`` or ``"prefork"``; by default solo for one body at
            a time, else prefork. None for Dramatiq.
        queues: Names of those to consume; by default all of the app's or the broker's.
        within: Seconds that it may take to come up.

    Raises:
        AssertionError: It did not come up; with its log.
        ConfigurationError: Another process cannot reach the broker, or options that cannot be.
        NotImplementedError: This system cannot fork (Windows).
        TypeError: The target is neither a Celery app nor a Dramatiq broker.
    """
    __tracebackhide__ = True
    run = _runner(target, concurrency, pool, queues)
    if not hasattr(os, "fork"):
        raise NotImplementedError("workers for tests are forks of the test, and Windows has none")
    worker = WorkerProcess(on_event)
    worker._start(run)  # noqa: SLF001  # its maker
    worker._wait_until_ready(within)  # noqa: SLF001  # its maker
    return worker


def _runner(
    target: object, concurrency: int, pool: str | None, queues: Sequence[str] | None
) -> Runner:
    kinds = {base.__module__.partition(".")[0] for base in type(target).__mro__}
    if "celery" in kinds:
        from once_pytest import _worker_celery

        return _worker_celery.runner(target, concurrency, pool, queues)
    if "dramatiq" in kinds:
        from once_pytest import _worker_dramatiq

        return _worker_dramatiq.runner(target, concurrency, pool, queues)
    raise TypeError(f"{target!r} is neither a Celery app nor a Dramatiq broker")


def _states(group: int) -> list[str]:
    """States of the threads of a group, such as R, S and T (stopped); the dead have none."""
    found = []
    if sys.platform.startswith("linux"):
        for path in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended since
                # after the name in brackets, which may hold anything
                state, _, of, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
                found.append((state, of))
    else:
        command = ["ps", "-A", "-o", "state=,pgid="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # constant
        found = [(state[0], of) for state, of in map(str.split, listed.stdout.splitlines())]
    return [state for state, of in found if of == str(group) and state not in "ZX"]
