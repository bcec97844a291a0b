"""What the process of a worker does around its work: it leaves the test it was forked from."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict

from once_core.events import Event, subscribe

__all__ = ["READY", "Runner", "work"]

Runner = Callable[[Callable[[], None]], int]
"""Runs a worker until SIGTERM; calls its argument when the worker consumes; returns its code."""

READY = "ready\n"
"""The line that says that the worker consumes; every other line is an event."""

_LINE = 4096
"""Bytes that a pipe takes as a whole, whoever else writes (Linux's PIPE_BUF)."""

_PR_SET_PDEATHSIG = 1


def work(run: Runner, log: int, sink: int, parent: int) -> None:
    """All of the worker's process; never returns into the test that was forked."""
    code = 1
    try:
        gc.freeze()  # what the test left for the collector may say goodbye on its connections
        os.setsid()
        _die_with(parent)
        _leave_pytest(log)
        subscribe(lambda event: os.write(sink, _line(event)))
        code = run(lambda: (os.write(sink, READY.encode()), None)[1])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  # the log is the only place left to tell it
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """Have Linux kill this process when the *thread* that forked it ends."""
    if parent and sys.platform.startswith("linux"):
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _leave_pytest(log: int) -> None:
    """Undo what a test runner has installed: nothing of this process is for its eyes."""
    signal.set_wakeup_fd(-1)  # an event loop's; signals would wake the test's
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(log, 1)
    os.dup2(log, 2)
    _kept.extend((sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = open(descriptor, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115  # for good
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    faulthandler.enable()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.INFO)
    warnings.resetwarnings()  # where tests make them errors, a worker would not come up
    for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", unseen)  # as in every program that is no test
    logging.captureWarnings(capture=False)  # else it does nothing where somebody has done it
    logging.captureWarnings(capture=True)


_kept: list[object] = []
"""Streams of the test: whoever lets go of one flushes it, into our log or the test's output."""


def _line(event: Event) -> bytes:
    """An event as a line that is short enough to reach the pipe in one piece."""
    facts = {name: value for name, value in asdict(event).items() if value not in (None, "")}
    line = _encoded(facts)
    for names, length in ((("reason", "preview"), 300), (tuple(facts), 100)):
        if len(line) <= _LINE:
            break
        for name in names:
            if isinstance(value := facts.get(name), str) and len(value) > length:
                facts[name] = value[: length - 1] + "…"
        line = _encoded(facts)
    return line


def _encoded(facts: dict[str, object]) -> bytes:
    return (json.dumps(facts, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
