"""Two runs of one function under `@once` that meet."""

from __future__ import annotations

import asyncio
import threading

from once_core import Event, subscribe


class Meeting:
    """Two runs of one function that meet: the one that runs ends when the other was refused.

    Attributes:
        results: What they returned, sorted.
    """

    def __init__(self) -> None:
        self._refused = threading.Event()
        self._stop = subscribe(self._note)
        self.results: list[object] = []

    def _note(self, event: Event) -> None:
        if event.kind == "skipped":
            self._refused.set()

    def body(self) -> str:
        """Of a sync function."""
        assert self._refused.wait(30), "nobody was refused"
        self.results.append("ran")
        return "ran"

    async def body_async(self) -> str:
        """Of a coroutine function."""
        return await asyncio.to_thread(self.body)

    def end(self) -> None:
        """No more events."""
        self._stop()
