"""Entry of a process that triggers: ``python -m once_core.demo.producer NUMBER APP``."""

from __future__ import annotations

import importlib
import random
import sys
import time
from typing import TYPE_CHECKING

from once_core._clock import elapsed
from once_core.demo import lifeline, notes, scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from once_core.demo.binding import App
    from once_core.demo.ledger import Ledger

__all__: list[str] = []


def _main(number: int, module: str) -> None:
    ledger = notes.open_ledger()
    app: App = importlib.import_module(module).open_app(ledger)
    if number == 1:
        app.pile_up(scenario.ACCOUNTS[0])
    ledger.note("ready", worker=notes.name())
    lifeline.wait_for_go()
    lifeline.hold()
    for unit in _units(is_first=number == 1):
        _trigger(app, ledger, unit)


def _units(*, is_first: bool) -> Iterator[str]:
    """The units to trigger, each when it is time to."""
    begin, is_due = elapsed(), is_first
    count = 0
    while (now := elapsed() - begin) < scenario.BURST:
        if is_due and now > scenario.REPORT_AT:
            is_due = False
            yield scenario.REPORT
        yield random.choice(scenario.ACCOUNTS)  # noqa: S311  # any will do
        count += 1
        time.sleep(scenario.RUSH_PAUSE if count < scenario.RUSH else scenario.TRICKLE_PAUSE)


def _trigger(app: App, ledger: Ledger, unit: str) -> None:
    at = elapsed()
    try:
        message_id, is_sent = app.trigger(unit)
    except Exception as error:  # noqa: BLE001  # whatever it is, the judge has to hear of it
        ledger.note("failed", at=at, unit=unit, worker=notes.name(), text=repr(error))
        return
    facts = {"message_id": message_id, "worker": notes.name(), "is_sent": is_sent}
    ledger.note("trigger", at=at, unit=unit, **facts)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
