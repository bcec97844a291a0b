"""Entry of a process that triggers: ``python -m once_core.demo.producer NUMBER``."""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING

from once_core._clock import elapsed
from once_core.demo import lifeline, scenario
from once_core.demo.app import make_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from once_core.demo.ledger import Ledger

__all__: list[str] = []


def _main(number: int) -> None:
    app, ledger = make_app()
    if number == 1:
        # one connection for all of them, or most of the time goes into opening it
        with app.producer_or_acquire() as producer:
            for _ in range(scenario.PLAIN):
                app.tasks["plain_sync"].apply_async((scenario.ACCOUNTS[0],), producer=producer)
    ledger.note("ready", worker=f"producer-{number}")
    lifeline.wait_for_go()
    lifeline.hold()
    for unit in _units(is_first=number == 1):
        _trigger(app, ledger, unit, f"producer-{number}")


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


def _trigger(app: Celery, ledger: Ledger, unit: str, name: str) -> None:
    at = elapsed()
    try:
        handle = app.tasks["sync"].delay(unit)
    except Exception as error:  # noqa: BLE001  # whatever it is, the judge has to hear of it
        ledger.note("failed", at=at, unit=unit, worker=name, text=repr(error))
        return
    is_sent = not handle.once.is_duplicate
    ledger.note("trigger", at=at, unit=unit, message_id=handle.id, worker=name, is_sent=is_sent)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
