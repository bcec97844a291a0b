"""The Dramatiq broker of the demo: one slow actor under guard, and the same without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage, Retries

from once_core.demo import notes, scenario
from once_dramatiq import OnceMiddleware, published

if TYPE_CHECKING:
    from once_core.demo.ledger import Ledger

__all__ = ["DramatiqApp", "make_broker", "open_app"]

_ALWAYS = 1_000_000
"""Of a million commands, those that look for what dead workers held; Dramatiq's default is 1000."""


def make_broker(ledger: Ledger) -> RedisBroker:
    """Make the broker, with the actors ``sync`` and ``plain_sync``.

    Args:
        ledger: Where the first of them writes.
    """
    broker = RedisBroker(  # type: ignore[no-untyped-call]  # Dramatiq's
        url=notes.url(),
        middleware=[Retries(), CurrentMessage()],
        heartbeat_timeout=scenario.REDELIVERY * 1000,
        maintenance_chance=_ALWAYS,
    )
    broker.add_middleware(OnceMiddleware(prefix="once-demo", lease=scenario.LEASE))
    _add_actors(broker, ledger)
    return broker


def _add_actors(broker: RedisBroker, ledger: Ledger) -> None:
    @dramatiq.actor(broker=broker, queue_name=scenario.QUEUE, once=notes.ONCE)
    def sync(unit: str) -> None:
        message = CurrentMessage.get_current_message()
        notes.run_body(ledger, unit, message.message_id if message else "")

    @dramatiq.actor(broker=broker, queue_name=scenario.PLAIN_QUEUE)
    def plain_sync(unit: str) -> None:
        """Never runs: nobody consumes its queue."""


class DramatiqApp:
    """What a producer does with it; see `once_core.demo.binding.App`.

    Args:
        broker: The broker.
    """

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker

    def trigger(self, unit: str) -> tuple[str, bool]:
        """Trigger the slow actor."""
        message = self._broker.get_actor("sync").send(unit)
        return message.message_id, not published(message).is_duplicate

    def pile_up(self, unit: str) -> None:
        """Trigger it without once."""
        for _ in range(scenario.PLAIN):
            self._broker.get_actor("plain_sync").send(unit)


def open_app(ledger: Ledger) -> DramatiqApp:
    """The broker, for a producer.

    Args:
        ledger: Of the demo.
    """
    return DramatiqApp(make_broker(ledger))
