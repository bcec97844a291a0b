"""The Celery app of the demo: one slow task under guard, and the same without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery

from once_celery import OnceTask
from once_core.demo import notes, scenario

if TYPE_CHECKING:
    from once_core.demo.ledger import Ledger

__all__ = ["CeleryApp", "make_app", "open_app"]


def make_app(ledger: Ledger) -> Celery:
    """Make the app, with the tasks ``sync`` and ``plain_sync``.

    Args:
        ledger: Where the first of them writes.
    """
    app = Celery("once-demo", broker=notes.url())
    app.conf.update(
        once_url=notes.url(),
        once_prefix="once-demo",
        once_lease=scenario.LEASE,
        task_default_queue=scenario.QUEUE,
        task_routes={"plain_sync": {"queue": scenario.PLAIN_QUEUE}},
        task_ignore_result=True,
        # a message is acknowledged after its run: the broker gives it out again if we die
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": scenario.REDELIVERY,
            "unacked_restore_interval": scenario.SWEEP,
            "unacked_restore_throttle": 1,
        },
    )
    _add_tasks(app, ledger)
    return app


def _add_tasks(app: Celery, ledger: Ledger) -> None:
    @app.task(base=OnceTask, bind=True, name="sync", once=notes.ONCE)  # type: ignore[untyped-decorator]  # Celery has no types
    def sync(self: Any, unit: str) -> None:  # noqa: ANN401  # the same
        notes.run_body(ledger, unit, self.request.id)

    @app.task(name="plain_sync")  # type: ignore[untyped-decorator]  # Celery has no types
    def plain_sync(unit: str) -> None:
        """Never runs: nobody consumes its queue."""


class CeleryApp:
    """What a producer does with it; see `once_core.demo.binding.App`.

    Args:
        app: The app.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    def trigger(self, unit: str) -> tuple[str, bool]:
        """Trigger the slow task."""
        handle = self._app.tasks["sync"].delay(unit)
        return handle.id, not handle.once.is_duplicate

    def pile_up(self, unit: str) -> None:
        """Trigger it without once."""
        # one connection for all of them, or most of the time goes into opening it
        with self._app.producer_or_acquire() as producer:
            for _ in range(scenario.PLAIN):
                self._app.tasks["plain_sync"].apply_async((unit,), producer=producer)


def open_app(ledger: Ledger) -> CeleryApp:
    """The app, for a producer.

    Args:
        ledger: Of the demo.
    """
    return CeleryApp(make_app(ledger))
