"""Entry of a worker's processes: ``celery -A once_core.demo.worker_celery worker``."""

from __future__ import annotations

from typing import Any

from celery import signals

from once_core.demo import lifeline, notes
from once_core.demo.app_celery import make_app

__all__ = ["app"]

_ledger = notes.open_ledger()
app = make_app(_ledger)


@signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]  # Celery has no types
def _on_ready(**_: object) -> None:
    _ledger.note("ready", worker=notes.name())


@signals.task_received.connect(weak=False)  # type: ignore[untyped-decorator]  # Celery has no types
def _on_received(request: Any = None, **_: object) -> None:  # noqa: ANN401  # the same
    _ledger.note("received", message_id=request.id, worker=notes.name())


notes.note_events(_ledger)
lifeline.hold()
