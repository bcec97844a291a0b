"""Entry of a worker's processes: ``celery -A once_core.demo.worker worker``."""

from __future__ import annotations

from typing import Any

from celery import signals

from once_core.demo import lifeline
from once_core.demo.app import make_app
from once_core.events import Event, subscribe

__all__ = ["app"]

app, _ledger = make_app()

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
"""Kinds of events that the view shows; bodies, producers and main processes tell the rest."""


@signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]  # Celery has no types
def _on_ready(sender: Any = None, **_: object) -> None:  # noqa: ANN401  # the same
    _ledger.note("ready", worker=sender.hostname.partition("@")[0])


@signals.task_received.connect(weak=False)  # type: ignore[untyped-decorator]  # Celery has no types
def _on_received(request: Any = None, **_: object) -> None:  # noqa: ANN401  # the same
    worker = request.hostname.partition("@")[0]
    _ledger.note("received", message_id=request.id, worker=worker)


def _on_event(event: Event) -> None:
    if event.kind in _SHOWN:
        message_id = event.message_id or event.holder_id
        _ledger.note("event", message_id=message_id, text=f"{event.kind}: {event.reason}")


subscribe(_on_event)
lifeline.hold()
