"""Entry of a worker's processes: ``dramatiq once_core.demo.worker_dramatiq``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dramatiq
from dramatiq.middleware import Middleware

from once_core.demo import lifeline, notes
from once_core.demo.app_dramatiq import make_broker

if TYPE_CHECKING:
    from dramatiq import Broker, MessageProxy, Worker

    from once_core.demo.ledger import Ledger

__all__ = ["broker"]


class _Noting(Middleware):
    """Writes down what a worker gets; before any other middleware can have a say.

    Args:
        ledger: Where to.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002  # a hook
        """A process is ready."""
        self._ledger.note("ready", worker=notes.name())

    def before_delay_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002  # a hook
        """One that was put back is in the hands of this process until it is due."""
        self._note_received(message)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002  # a hook
        """A thread has it."""
        self._note_received(message)

    def _note_received(self, message: MessageProxy) -> None:
        self._ledger.note("received", message_id=message.message_id, worker=notes.name())


_ledger = notes.open_ledger()
broker = make_broker(_ledger)
broker.add_middleware(_Noting(_ledger), before=type(broker.middleware[0]))
dramatiq.set_broker(broker)
notes.note_events(_ledger)
lifeline.hold()
