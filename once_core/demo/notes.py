"""What workers and producers write down, whatever task queue they are of."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from once_core._clock import elapsed
from once_core._lease import current_lease
from once_core.demo import scenario
from once_core.demo.ledger import Ledger
from once_core.events import Event, subscribe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ONCE", "name", "note_events", "open_ledger", "run_body", "url"]

ONCE: Mapping[str, object] = {"key": "{unit}"}
"""Options of the slow task."""

_SHOWN = frozenset({
    "deferred",
    "heartbeat_failed",
    "lease_lost",
    "lease_restored",
    "other_store",
    "reaped",
    "repeated",
    "settled",
    "store_unavailable",
    "superseded",
    "unguarded",
})  # fmt: skip
"""Kinds of events that the view shows; bodies, producers and workers tell the rest."""


def url() -> str:
    """Of the server that is broker and lock store."""
    return os.environ[scenario.URL_VARIABLE]


def name() -> str:
    """The worker or producer that this process belongs to."""
    return os.environ[scenario.NAME_VARIABLE]


def open_ledger() -> Ledger:
    """The ledger that all processes of the demo write."""
    return Ledger(os.environ[scenario.LEDGER_VARIABLE])


def run_body(ledger: Ledger, unit: str, message_id: str) -> None:
    """What the slow task does."""
    lease = current_lease()
    start = ledger.note(
        "start",
        unit=unit,
        message_id=message_id,
        worker=name(),
        host=socket.gethostname(),
        fence=lease.fence if lease else 0,
    )
    time.sleep(scenario.BODY)
    ledger.write(replace(start, what="end", at=elapsed()))


def note_events(ledger: Ledger) -> None:
    """Write down what once says in this process, from now on."""

    def on_event(event: Event) -> None:
        if event.kind in _SHOWN:
            message_id = event.message_id or event.holder_id
            ledger.note("event", message_id=message_id, text=f"{event.kind}: {event.reason}")

    subscribe(on_event)
