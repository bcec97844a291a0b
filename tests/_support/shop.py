"""A shop at noon, for the dashboard: a dozen tasks, who holds what, and what happened just now."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from once_core import protocol
from once_core._host import whereabouts
from once_core.cli.program import Program
from once_core.guard import Guard
from once_core.options import OnceOptions
from once_core.protocol import Message
from once_core.store import Store

SECRET = "4111-1111-1111-1111"
"""An argument of every call, which no page may show."""

TASKS: dict[str, dict[str, Any]] = {
    "shop.orders.sync_order": {"key": "order-{order_id}", "preview": ["order_id"]},
    "shop.catalogue.import_catalogue": {"scope": "until_done", "warn_after": 120.0},
    "shop.catalogue.rebuild_search_index": {"scope": "until_done", "key": []},
    "shop.billing.charge_invoice": {"key": "invoice-{order_id}", "warn_after": 20.0},
    "shop.billing.send_reminder": {"scope": "window", "window": 3600.0},
    "shop.stock.recount_shelf": {"key": "shelf-{order_id}", "on_duplicate": "replace"},
    "shop.mail.send_newsletter": {"keep_for": 900.0, "key": ["order_id"]},
    "shop.reports.nightly_report": {"scope": "until_done", "key": []},
    "shop.images.make_thumbnails": {"key": "product-{order_id}", "limit": 3},
    "shop.partners.pull_prices": {"key": "partner-{order_id}", "warn_after": 60.0},
    "shop.carts.drop_abandoned": {"key": []},
    "shop.sessions.clean_up": {"key": []},
}
"""Names and options."""


def body(order_id: int = 0, card: str = "") -> None:
    """What every one of them is called with."""


@dataclass
class Shop:
    """The program, and a hand on its records."""

    store: Store
    prefix: str = "once"
    events: int = 0
    guards: dict[str, Guard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, options in TASKS.items():
            made = OnceOptions(**options, prefix=self.prefix, events=self.events)
            self.guards[name] = Guard(name, body, made, lambda: self.store)
            assert self.guards[name].store is self.store  # from now on its events are kept

    @property
    def program(self) -> Program:
        """As ``-A shop`` would load it."""

        def finder(guard: Guard) -> Callable[[], Guard]:
            return lambda: guard

        guards = {name: finder(guard) for name, guard in self.guards.items()}
        return Program("shop", guards, lambda: self.store, self.prefix)

    def guard(self, task: str) -> Guard:
        """By the last part of the name."""
        return next(guard for name, guard in self.guards.items() if name.endswith(f".{task}"))

    def key(self, task: str, order_id: int = 0) -> str:
        """Of one call."""
        return self.guard(task).key((order_id, SECRET), {})

    def wait(
        self, task: str, order_id: int = 0, *, age: float = 0.0, refused: int = 0, name: str = ""
    ) -> str:
        """A message waits, for so many seconds."""
        key, message_id = self.key(task, order_id), name or _id()
        self.store.run(protocol.claim(key, message_id, **LONG))
        for _ in range(refused):
            self.store.run(protocol.claim(key, _id(), **LONG))
        self._age(key, age)
        return message_id

    def run(
        self, task: str, order_id: int = 0, *, age: float = 0.0, where: str = "", name: str = ""
    ) -> str:
        """A message runs, for so many seconds."""
        message, _ = self._start(task, order_id, where, name)
        self._age(self.key(task, order_id), age)
        return message.id

    def keep(self, task: str, order_id: int = 0, *, seconds: float = 900.0) -> str:
        """One was done just now, and others are kept away for so long."""
        message, attempt = self._start(task, order_id, window=seconds)
        key = self.key(task, order_id)
        self.store.run(protocol.finish(key, message, attempt, "success", **LONG))
        return message.id

    def _start(
        self, task: str, order_id: int, where: str = "", name: str = "", window: float = 0.0
    ) -> tuple[Message, str]:
        key, attempt, message_id = self.key(task, order_id), _id(), name or _id()
        limit = self.guard(task).options.limit
        claim = self.store.run(protocol.claim(key, message_id, **LONG, limit=limit))
        message = Message(message_id, claim.ticket)
        step = protocol.start(
            key, message, attempt, where=where or whereabouts(), lease=36_000.0, window=window,
            limit=limit, **LONG,
        )  # fmt: skip
        assert self.store.run(step).status == "started"
        return message, attempt

    def _age(self, key: str, seconds: float) -> None:
        if seconds:
            self.store.run(protocol.age(key, seconds))


LONG = {"ttl": 36_000.0, "heal_after": 36_000.0}
"""Seconds: nothing ends or heals while a test looks at it."""


def _id() -> str:
    return str(uuid.uuid4())
