"""Messages of dead workers, given out again by Redis brokers of every version of kombu."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import kombu

if TYPE_CHECKING:
    from _support.deployment import Deployment

INTERVAL_CAN_BE_SET = kombu.VERSION[:2] >= (5, 7)


@contextlib.contextmanager
def sweeping(scene: Deployment) -> Iterator[None]:
    """Have this done every second, as ``unacked_restore_interval`` asks for.

    Older kombu ignores it: each worker sweeps every 100 s. A test cannot wait for that, so it
    sweeps itself, with kombu's own code, as one more worker of the same broker would.
    """
    if scene.broker != "redis" or INTERVAL_CAN_BE_SET:
        yield
        return
    over = threading.Event()

    def sweep() -> None:
        with scene.app.connection_for_write() as connection:
            qos = connection.default_channel.qos
            while not over.wait(1):
                qos.restore_visible(interval=1)

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
