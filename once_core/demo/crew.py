"""The processes of the demo: started, killed on purpose, and gone at the end, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from once_core._clock import elapsed
from once_core.demo import scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from once_core.demo.binding import Binding

__all__ = ["Crew", "DemoError"]


class DemoError(RuntimeError):
    """The demo could not be shown; says nothing about the promises."""


class Crew:
    """Workers and producers, each the leader of a process group of its own.

    Args:
        folder: Where they log to, and write the ledger.
        url: Of the server that is their broker and lock store.
        binding: What they are.
    """

    def __init__(self, folder: Path, url: str, binding: Binding) -> None:
        self._binding = binding
        self._folder = folder
        self._url = url
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_worker(self, name: str) -> int:
        """Start a worker with its children and return its pid."""
        return self._start(name, [each.format(name=name) for each in self._binding.worker])

    def start_producer(self, number: int) -> int:
        """Start a process that triggers once it is told to `go`, and return its pid."""
        arguments = ["once_core.demo.producer", str(number), self._binding.app]
        return self._start(f"producer-{number}", arguments)

    def _start(self, name: str, arguments: list[str]) -> int:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # no shell; all of it is ours
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,  # its lifeline
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**self._environment(), scenario.NAME_VARIABLE: name},
                start_new_session=True,
            )
        self._processes[name] = process
        return process.pid

    def _environment(self) -> dict[str, str]:
        # settings of the user's own projects would send the workers elsewhere
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CELERY_", "ONCE_", "dramatiq_"))
        }
        root = Path(__file__).resolve().parents[2]
        if root.name not in ("site-packages", "dist-packages"):
            # a checkout: they run in another folder, and have to find the same once as we
            path = [str(root), kept.get("PYTHONPATH", "")]
            kept["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        # what killed workers leave lying about goes with the folder
        kept["TMPDIR"] = str(self._folder)
        kept[scenario.URL_VARIABLE] = self._url
        kept[scenario.LEDGER_VARIABLE] = str(self._folder / "ledger")
        return kept

    def go(self) -> None:
        """Let the producers begin."""
        for name, process in self._processes.items():
            if name.startswith("producer") and process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # `check` tells of the dead
                    process.stdin.write(b"!")
                    process.stdin.flush()

    def is_done(self, name: str) -> bool:
        """Whether the process has ended."""
        return self._processes[name].poll() is not None

    def check(self) -> None:
        """See to it that nobody failed.

        Raises:
            DemoError: A process ended that nobody had ended; with the end of its log.
        """
        for name, process in self._processes.items():
            is_producer = name.startswith("producer")
            if process.poll() is None or (is_producer and process.returncode == 0):
                continue
            log = (self._folder / f"{name}.log").read_text(errors="replace")
            tail = "\n".join(log.splitlines()[-12:])
            raise DemoError(f"{name} ended with {process.returncode}. Its log ends:\n{tail}")

    def kill(self, name: str) -> tuple[int, float]:
        """SIGKILL to a whole worker, its children included: nobody gets to say good-bye.

        Returns:
            Its pid, and the moment of the kill. That is the moment before the signal: others
            may take over as soon as a child is dead, and that is before we know it.
        """
        process = self._processes.pop(name)
        at = elapsed()
        _end(process)
        return process.pid, at

    def stop(self, wait: Callable[[Callable[[], bool], float], bool]) -> None:
        """Ask everybody to end, as an orderly shutdown does.

        Args:
            wait: Polls until a condition holds, for so many seconds.
        """
        for process in self._processes.values():
            process.terminate()
        wait(lambda: all(self.is_done(name) for name in self._processes), 5.0)

    def end(self) -> None:
        """End whoever is left, at once."""
        for process in self._processes.values():
            _end(process)
        self._processes.clear()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:  # not yet waited for: the pid is still its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
