"""A broker of the test's own: a Redis with a log of its writes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from chaos.scene import ARGUMENTS, Fault, Scene, nothing

from once_core.devserver import DevServer

__all__ = ["RedisBrokerScene"]


class RedisBrokerScene(Scene):
    """A scene whose broker is a Redis."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.broker = self._exit.enter_context(DevServer(persist=True, arguments=ARGUMENTS))

    @property
    def broker_folder(self) -> Path:
        folder = self.broker._folder
        assert folder is not None
        return folder / "data"

    def kill_broker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGKILL to the broker; it comes back with its data."""
        return self._kill_server(self.broker, "kill broker")

    def freeze_broker(self, draw: random.Random) -> Callable[[], None] | None:
        """SIGSTOP to the broker."""
        return self._freeze_server(self.broker, "freeze broker")

    def cut_broker(self, draw: random.Random) -> Callable[[], None] | None:
        """All connections to the broker break; new ones work."""
        if self._is_away("broker"):
            return None
        fault = self._note(Fault("cut broker", time.monotonic()))
        with self.broker.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        fault.until = time.monotonic()
        return nothing
