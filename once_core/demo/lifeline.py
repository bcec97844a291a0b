"""Ties a process to the demo that started it: it ends when the demo does, however that ends."""

from __future__ import annotations

import os
import signal
import sys
import threading

__all__ = ["hold", "wait_for_go"]


def hold() -> None:
    """End this process and its children as soon as the demo is gone.

    The demo holds the other end of our standard input; the system closes it when the demo
    ends, by SIGKILL too. Needs to lead a process group of its own.
    """
    threading.Thread(target=_wait_for_the_end, name="once-demo-lifeline", daemon=True).start()


def wait_for_go() -> None:
    """Wait until the demo says so; end if it ends before."""
    if os.read(sys.stdin.fileno(), 1) == b"":
        sys.exit(1)


def _wait_for_the_end() -> None:
    while os.read(0, 1 << 10):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
