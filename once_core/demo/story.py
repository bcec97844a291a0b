"""What happens in the demo, in order; and that all of it is gone afterwards."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from once_core._clock import elapsed
from once_core.demo import scenario
from once_core.demo.board import Board
from once_core.demo.crew import Crew, DemoError
from once_core.demo.judge import Verdict, judge
from once_core.demo.ledger import Ledger
from once_core.demo.view import make_view
from once_core.devserver import DevServer, find_server_binary
from once_core.errors import OnceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from once_core.demo.binding import Binding
    from once_core.demo.ledger import Entry

__all__ = ["Interrupted", "Story", "run"]

_POLL = 0.05
_QUIET = 0.5
"""Seconds that everything has to be idle to be over: the broker takes a message from its queue
and notes it as handed out in two steps, and between them it is nowhere."""
_START_PATIENCE = 20.0
_RECOVERY = scenario.LEASE + scenario.REDELIVERY + 2 * scenario.SWEEP + 2.0
"""Seconds from the kill to the next start: a lease, the broker's redelivery, a slow machine."""


class Interrupted(BaseException):
    """Somebody wants us to end.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(binding: Binding) -> int:
    """Show the demo on standard output.

    Args:
        binding: With which task queue.

    Returns:
        The exit code: 0 when every promise was kept, 1 when one was broken, 2 when the demo
        could not be shown, 128 and the signal's number when it was interrupted.
    """
    try:
        with _signals() as check, ExitStack() as stack:
            return Story(stack, check, binding).tell()
    except Interrupted as interrupted:
        print("\nonce demo: interrupted; all it had started is gone", file=sys.stderr)
        return 128 + interrupted.number
    except (DemoError, OnceError, redis.RedisError) as error:
        print(f"once demo: {error}", file=sys.stderr)
        return 2


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Note signals instead of being struck by them, so that no process is half started."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: seen.append(number)) for number in numbers]

    def check() -> None:
        if seen:
            raise Interrupted(seen[0])

    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Story:
    """One demo, from its start to its verdict.

    Args:
        stack: Holds what has to be undone at the end.
        check: Raises `Interrupted` when somebody wants us to end.
        binding: With which task queue.
    """

    def __init__(self, stack: ExitStack, check: Callable[[], None], binding: Binding) -> None:
        self._binding = binding
        self._begin = elapsed()
        self._check = check
        folder = Path(tempfile.mkdtemp(prefix="once-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder
        self._server = stack.enter_context(DevServer())
        self._client = self._server.client()
        stack.callback(self._client.close)
        self._ledger = Ledger(folder / "ledger")
        stack.callback(self._ledger.close)
        self._crew = Crew(folder, self._server.url, binding)
        stack.callback(self._crew.end)
        self._board = Board(self._begin, binding)
        self._view = make_view(self._board)
        stack.callback(self._view.close)
        self._entries: list[Entry] = []
        self._most = 0
        self._phase, self._progress = "starting workers", 0.0

    def tell(self) -> int:
        """Show it, and return the exit code."""
        pids = [self._crew.start_worker(name) for name in scenario.WORKERS]
        producers = [self._crew.start_producer(1 + number) for number in range(scenario.PRODUCERS)]
        self._view.open(self._header(pids, producers))
        everybody = len(pids) * self._binding.processes + len(producers)
        if not self._wait(lambda: len(self._board.ready) == everybody, _START_PATIENCE):
            raise DemoError(f"the workers were not ready after {_START_PATIENCE:.0f} s")
        piled = int(self._client.llen(self._binding.pile))
        self._say(f"without once: {scenario.PLAIN} triggers of one unit put {piled} in the queue")
        self._burst()
        self._settle()
        verdict = judge(self._entries, recover_within=_RECOVERY)
        self._phase, self._progress = "stopping what was started", 0.97
        self._crew.stop(self._wait)
        self._phase, self._progress = "done", 1.0
        self._look()
        self._view.close()
        self._view.conclude(self._summary(verdict, piled), verdict.broken)
        return 1 if verdict.broken else 0

    def _burst(self) -> None:
        self._say(
            f"{scenario.PRODUCERS} processes trigger {len(scenario.ACCOUNTS)} units at random for "
            f"{scenario.BURST:g} s, the first {scenario.PRODUCERS * scenario.RUSH} in a rush"
        )
        self._crew.go()
        begin = elapsed()
        self._phase = "burst of duplicate triggers"
        names = [f"producer-{1 + number}" for number in range(scenario.PRODUCERS)]
        report = self._board.units[scenario.REPORT]
        is_killed = False
        while not (is_killed and all(self._crew.is_done(name) for name in names)):
            self._progress = 0.1 + 0.5 * min(1.0, (elapsed() - begin) / scenario.BURST)
            self._step()
            self._crew.check()
            if not is_killed and report.run and elapsed() - report.run.at > scenario.KILL_INTO:
                self._kill(report.run.worker)
                is_killed = True
            if self._is_late() and not is_killed:
                raise DemoError("no worker ran anything that could be killed")

    def _kill(self, worker: str) -> None:
        pid, at = self._crew.kill(worker)
        self._ledger.note("kill", at=at, pid=pid, worker=worker)
        self._phase = f"worker {worker} was killed"

    def _settle(self) -> None:
        """Until nothing runs and nothing waits, for a while, or it takes too long."""
        self._phase = "last trigger sent; until nothing runs or waits"
        begin = idle_since = elapsed()
        while elapsed() - idle_since < _QUIET and not self._is_late():
            self._progress = min(0.95, 0.6 + 0.35 * (elapsed() - begin) / _RECOVERY)
            self._step()
            self._crew.check()
            if self._at_broker() or not self._board.is_idle():
                idle_since = elapsed()

    def _at_broker(self) -> int:
        """Messages that wait in the queue or are handed out and not acknowledged."""
        pipeline = self._client.pipeline(transaction=True)
        for command, key in self._binding.waiting:
            getattr(pipeline, command)(key)
        count: int = sum(pipeline.execute())
        self._most = max(self._most, count)
        return count

    def _is_late(self) -> bool:
        return elapsed() - self._begin > scenario.LIMIT

    def _wait(self, condition: Callable[[], bool], patience: float) -> bool:
        deadline = elapsed() + patience
        while not condition():
            if elapsed() > deadline:
                return False
            self._step()
        return True

    def _step(self) -> None:
        self._check()
        time.sleep(_POLL)
        self._look()

    def _look(self) -> None:
        entries = self._ledger.read()
        self._entries += entries
        self._at_broker()
        lines = self._board.add(sorted(entries, key=lambda entry: entry.at))
        self._view.show(lines, self._phase, self._progress)

    def _say(self, text: str) -> None:
        line = self._board.tell(elapsed(), text)
        self._view.show([line], self._phase, self._progress)

    def _header(self, workers: Sequence[int], producers: Sequence[int]) -> list[str]:
        server = self._server
        workers_text = f"{' and '.join(scenario.WORKERS)}: {self._binding.kind}"
        rows = {
            "server": f"broker and lock store: version {server.version}, port {server.port}, "
            f"pid {server.pid}, {find_server_binary()}",
            "workers": f"{workers_text}, pids {_list(workers)}; triggers: pids {_list(producers)}",
            "folder": f"{self._folder}: ledger and logs, removed at the end",
            "task": f"takes {scenario.BODY:g} s; lease of {scenario.LEASE:g} s (default: 60), "
            f"{self._binding.redelivery}",
        }
        return [f"{name:<8} {text}" for name, text in rows.items()]

    def _summary(self, verdict: Verdict, piled: int) -> list[tuple[str, str]]:
        killed = sum(run.is_killed for run in verdict.runs)
        plain = f"without once: {piled} for {scenario.PLAIN} triggers"
        rows = {
            "triggers": f"{verdict.triggers} from {scenario.PRODUCERS} processes",
            "refused": f"{verdict.refused}, because a message waited already",
            "messages sent": f"{len(verdict.messages)}, at most {self._most} at the broker at once "
            f"({plain})",
            "runs": f"{len(verdict.runs)}, of which {killed} were cut off by SIGKILL",
            "overlaps": str(len(verdict.overlaps)),
            "lost": f"{len(verdict.lost)} triggers",
            "time to recover": _recovered(verdict),
            "took": f"{elapsed() - self._begin:.1f} s",
        }
        return list(rows.items())


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _recovered(verdict: Verdict) -> str:
    told = []
    for each in sorted(verdict.recoveries, key=lambda each: each.after or 0.0):
        how = "same message, redelivered" if each.is_redelivery else "next message"
        after = "never" if each.after is None else f"{each.after:.1f} s ({how})"
        told.append(f"{each.unit} {after}")
    return "; ".join(told)
