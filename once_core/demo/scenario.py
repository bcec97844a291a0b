"""The numbers of the demo, in one place: its processes and its texts have to agree on them."""

from __future__ import annotations

__all__ = [
    "ACCOUNTS",
    "BODY",
    "BURST",
    "CHILDREN",
    "KILL_INTO",
    "LEASE",
    "LEDGER_VARIABLE",
    "LIMIT",
    "NAME_VARIABLE",
    "PLAIN",
    "PLAIN_QUEUE",
    "PRODUCERS",
    "QUEUE",
    "REDELIVERY",
    "REPORT",
    "REPORT_AT",
    "RUSH",
    "RUSH_PAUSE",
    "SWEEP",
    "TRICKLE_PAUSE",
    "URL_VARIABLE",
    "WORKERS",
]

LEASE = 2.0
"""Seconds of a lease: the default is 60, which nobody wants to watch."""

BODY = 3.0
"""Seconds the slow task takes: longer than its lease, so that it lives on renewals."""

REDELIVERY = 5
"""Seconds after which the broker gives out again what nobody acknowledged.

Longer than the body: a live run is not to be redelivered. Celery's default is an hour, Dramatiq's a
minute and then some minutes more, by chance.
"""

SWEEP = 1
"""Seconds between two looks of a worker for such messages; Celery's default is about 100."""

WORKERS = ("one", "two")
CHILDREN = 6
"""Children or threads of each worker: as many as units of work, so that no run waits for a free
one."""

PRODUCERS = 3
ACCOUNTS = tuple(f"account-{number}" for number in range(1, 6))
REPORT = "report"
"""The unit that is triggered once and never again: only its own message can bring it back."""

RUSH = 100
"""Triggers of each producer right after its start, one every `RUSH_PAUSE` seconds."""
RUSH_PAUSE = 0.004
TRICKLE_PAUSE = 0.04
"""Seconds between the triggers of a producer after the rush."""
BURST = 7.5
"""Seconds from the first trigger to the last."""
REPORT_AT = 0.7
"""Seconds from the first trigger to the report's only one."""
KILL_INTO = 1.2
"""Seconds of the report's run after which its worker is killed."""

PLAIN = 200
"""Triggers of the same task without once, to see them pile up."""

LIMIT = 33.0
"""Seconds after which the demo stops waiting and judges what it has."""

QUEUE = "once-demo"
PLAIN_QUEUE = "once-demo-plain"

URL_VARIABLE = "ONCE_DEMO_URL"
LEDGER_VARIABLE = "ONCE_DEMO_LEDGER"
NAME_VARIABLE = "ONCE_DEMO_NAME"
