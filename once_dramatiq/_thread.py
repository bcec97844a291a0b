"""What a thread is doing for Dramatiq when it enqueues a message: that is what the call means."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dramatiq.worker import ConsumerThread, WorkerThread

    from once_dramatiq._delivery import Delivery

else:
    try:
        from dramatiq.worker import ConsumerThread, WorkerThread
    except ImportError:  # Dramatiq 1
        from dramatiq.worker import _ConsumerThread as ConsumerThread
        from dramatiq.worker import _WorkerThread as WorkerThread

__all__ = ["ThreadState"]


class ThreadState(threading.local):
    """One for a middleware, with a value for each thread.

    Attributes:
        is_worker: Messages are processed in it, whatever kind of thread it is.
        is_in_body: An actor runs in it.
        is_putting_back: A message is enqueued that is to go out as it is.
        delivery: The delivery that it works on.
    """

    is_worker = False
    is_in_body = False
    is_putting_back = False
    delivery: Delivery | None = None
    _sending = ""

    @property
    def is_consumer(self) -> bool:
        """Whether it is a consumer's, which enqueues messages that were delayed until now."""
        return isinstance(threading.current_thread(), ConsumerThread)

    @property
    def is_between_bodies(self) -> bool:
        """Whether what it enqueues belongs to the message that it has: retries, callbacks, steps.

        Otherwise it comes from a body or a program.
        """
        if self.is_in_body:
            return False
        return self.is_worker or isinstance(threading.current_thread(), WorkerThread)

    def begin_sending(self, actor_name: str) -> str:
        """An actor's ``send()`` begins: nobody knows the id of its message yet.

        Returns:
            What to give to `end_sending`. Not a context manager: it is on every send's way.
        """
        before, self._sending = self._sending, actor_name
        return before

    def end_sending(self, before: str) -> None:
        """It has ended."""
        self._sending = before

    def take_sending(self, actor_name: str) -> bool:
        """Whether the message that is enqueued now is that of a ``send()``; true once for each."""
        is_sent = self._sending == actor_name
        if is_sent:
            self._sending = ""
        return is_sent

    @contextmanager
    def borrowed(self) -> Iterator[ThreadState]:
        """Around a worker's work in a thread that is none, as tests do; it is as before afterwards.

        Yields:
            This, which says that it is a worker's and has no message yet.
        """
        mine = vars(self)  # of this thread
        before = dict(mine)
        mine.clear()
        self.is_worker = True
        try:
            yield self
        finally:
            mine.clear()
            mine.update(before)

    @contextmanager
    def putting_back(self) -> Iterator[None]:
        """Around the enqueuing of a message that is to come again as it is."""
        self.is_putting_back = True
        try:
            yield
        finally:
            self.is_putting_back = False
