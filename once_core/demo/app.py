"""The Celery app of the demo: one slow task under guard, and the same without."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import Any

from celery import Celery

from once_celery import OnceTask, current_lease
from once_core._clock import elapsed
from once_core.demo import scenario
from once_core.demo.ledger import Ledger

__all__ = ["make_app"]


def make_app() -> tuple[Celery, Ledger]:
    """Make the app and open the ledger, both named by the environment that the demo sets.

    Returns:
        The app, with the tasks ``sync`` and ``plain_sync``, and the ledger they write.
    """
    url, ledger = os.environ[scenario.URL_VARIABLE], Ledger(os.environ[scenario.LEDGER_VARIABLE])
    app = Celery("once-demo", broker=url)
    app.conf.update(
        once_url=url,
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
    return app, ledger


def _add_tasks(app: Celery, ledger: Ledger) -> None:
    @app.task(base=OnceTask, bind=True, name="sync", once={"key": "{unit}"})  # type: ignore[untyped-decorator]  # Celery has no types
    def sync(self: Any, unit: str) -> None:  # noqa: ANN401  # the same
        lease = current_lease()
        start = ledger.note(
            "start",
            unit=unit,
            message_id=self.request.id,
            worker=self.request.hostname.partition("@")[0],
            host=socket.gethostname(),
            fence=lease.fence if lease else 0,
        )
        time.sleep(scenario.BODY)
        ledger.write(replace(start, what="end", at=elapsed()))

    @app.task(name="plain_sync")  # type: ignore[untyped-decorator]  # Celery has no types
    def plain_sync(unit: str) -> None:
        """Never runs: nobody consumes its queue."""
