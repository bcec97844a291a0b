"""What bodies do and note, whichever framework runs them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from _support import ledger

from once_core.events import Event, subscribe

__all__ = ["HEAL_AFTER", "LEASE", "note_events", "noted_body", "options"]

LEASE = 6.0
"""Seconds. Longer than in other tests: a renewal that meets a dead store is tried again after a
second, and a lease of three would lapse in outages that a lease of a minute does not notice."""

HEAL_AFTER = 4.0
"""Seconds, so that copies of messages that wait in a backlog are part of the chaos."""

OPTIONS: dict[str, dict[str, object]] = {
    "done": {"scope": "until_done"},
    "replace": {"on_duplicate": "replace"},
    "debounce": {"on_duplicate": "replace", "debounce": 0.5, "debounce_max": 2},
}
"""Of each kind of task that has any."""


def options(kind: str) -> dict[str, object]:
    """Options of a kind of task."""
    return {"key": "{unit}", **OPTIONS.get(kind, {})}


@contextmanager
def noted_body(
    path: str, message_id: str, retries: int, unit: str, payload: object = None
) -> Iterator[None]:
    """Around a body: note its start and its end, and in which group of processes it runs."""
    run = uuid.uuid4().hex
    group = os.getpgid(0)
    ledger.note(
        path,
        "start",
        run=run,
        unit=unit,
        group=group,
        id=message_id,
        retries=retries,
        payload=payload,
    )
    try:
        yield
    finally:
        try:
            ledger.note(path, "end", run=run, unit=unit)
        except BaseException:
            # a cold shutdown signals twice: without this a body that has ended counts as alive
            ledger.note(path, "end", run=run, unit=unit)
            raise


def note_events(path: str) -> None:
    """Note what once decides in this process, for whoever has to debug."""

    def decided(event: Event) -> None:
        ledger.note(f"{path}-events", "event", key=event.key, text=str(event))

    subscribe(decided)
