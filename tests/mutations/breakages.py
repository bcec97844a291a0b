"""The list of deliberate breakages, and of what has to be broken by at least one of them."""

from __future__ import annotations

from mutations.dramatiq import DRAMATIQ_BREAKAGES
from mutations.hooks import HOOK_BREAKAGES
from mutations.record import RECORD_BREAKAGES
from mutations.slots import SLOT_BREAKAGES
from mutations.turns import TURN_BREAKAGES

__all__ = ["BREAKAGES", "HOOKS", "RULES"]

BREAKAGES = RECORD_BREAKAGES + SLOT_BREAKAGES + TURN_BREAKAGES + HOOK_BREAKAGES + DRAMATIQ_BREAKAGES

RULES = (
    *(f"every step {number}" for number in range(1, 6)),
    *(f"claim {number}" for number in range(1, 8)),
    "confirm 1",
    *(f"withdraw {number}" for number in range(1, 4)),
    *(f"start {number}" for number in range(1, 13)),
    *(f"start 6{letter}" for letter in "abcd"),
    "renew 1",
    "renew 2",
    *(f"finish {number}" for number in range(1, 7)),
    "outside 1",
    "outside 2",
    "slots",
    "line",
    "turns",
)
"""Of `rules.md`: the steps of the record, and what binds them to the outside."""

HOOKS = (
    "apply_async",
    "arguments",
    "__call__",
    "on_bound",
    "task_postrun",
    "task_received",
    "task_revoked",
    "task_failure",
    "awaited ids",
    "breaker",
    "confirm",
    "countdown",
    "debounce",
    "deferral cap",
    "dispatch",
    "dramatiq",
    "end pending",
    "expires",
    "finish later",
    "fork safety",
    "full server",
    "ghosts",
    "header",
    "heartbeat",
    "interrupted",
    "is resent",
    "is_dead",
    "lapse margin",
    "late copies",
    "on_store_error",
    "other store",
    "other versions",
    "own id",
    "producers scope",
    "purge",
    "put back",
    "reap",
    "release",
    "retry noted",
    "same id twice",
    "settle",
    "share",
    "stale connections",
    "store unavailable",
    "time-outs",
    "withdraw at publish",
)
"""Where the record meets Celery, Redis, processes and people."""
