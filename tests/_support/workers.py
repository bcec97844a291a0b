"""Real Celery workers in processes of their own, to be killed and frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from _support.celery_app import SETTINGS
from _support.waiting import wait_until

TESTS = Path(__file__).parent.parent


class CeleryWorker:
    """One worker; its log is shown when it does not come up."""

    def __init__(
        self,
        settings: Mapping[str, object],
        folder: Path,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        app: str = "_support.celery_app",
        loglevel: str = "INFO",
    ) -> None:
        self._log = folder / f"worker-{time.monotonic_ns()}.log"
        self.name = f"w{time.monotonic_ns()}@test"
        command = [
            sys.executable, "-m", "celery", "-A", app, "worker",
            "--pool", pool, "--concurrency", str(concurrency), "--hostname", self.name,
            "--loglevel", loglevel, "--without-gossip", "--without-mingle", "--without-heartbeat",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, SETTINGS: json.dumps(settings), "PYTHONPATH": str(TESTS)},
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ready(self) -> CeleryWorker:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"the worker ended:\n{self.log[-4000:]}"
            return " ready." in self.log

        wait_until(is_ready, "the worker is ready", within=40)
        return self

    def kill(self) -> float:
        """SIGKILL to the worker and all its children; returns when."""
        self._signal(signal.SIGKILL)
        self.process.wait(10)
        return time.monotonic()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self, within: float = 30) -> None:
        """Warm shutdown; killed if it takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(within)
            except subprocess.TimeoutExpired:
                self.kill()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass
