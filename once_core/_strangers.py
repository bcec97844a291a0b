"""The commonest silent mistake: producer and worker lock in different places."""

from __future__ import annotations

from once_core.envelope import Envelope
from once_core.events import emit
from once_core.guard import Guard
from once_core.protocol import Message
from once_core.store import Store

__all__ = ["notice_other_store"]


def notice_other_store(guard: Guard, store: Store, message: Message, envelope: Envelope) -> None:
    """Tell once of each other store in which messages were claimed that came here.

    Args:
        guard: Of the task.
        store: Whose record knows nothing of the message.
        message: That has started.
        envelope: It came with.
    """
    claimed_in = envelope.store
    is_first_run = message.ticket > 0 and not message.retries
    if not (is_first_run and claimed_in) or claimed_in in store.strangers:
        return
    if store.is_other(claimed_in, message.ticket):
        store.strangers.add(claimed_in)
        emit(
            "other_store",
            task=guard.task,
            key=envelope.key,
            message_id=message.id,
            reason=f"its producer locks in another Redis (run id {claimed_in}…) than this "
            f"worker ({store.id}… at {store.place}), so nothing is guarded between them; "
            "give both the same once_url",
        )
