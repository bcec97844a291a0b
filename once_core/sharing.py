"""``on_duplicate="share"``: how long a duplicate looks for the result of its holder, and where."""

from __future__ import annotations

from once_core import protocol
from once_core.delays import deferral
from once_core.envelope import Envelope
from once_core.errors import DuplicateTaskError, StoreUnavailableError
from once_core.guard import Guard, slots

__all__ = ["LONGEST_LOOK", "Search"]

LONGEST_LOOK = 5.0
"""Seconds between two looks for the holder's result: what waits for it should not wait longer."""

LOOKS_WITHOUT_HOLDER = 5
"""Looks in a row, about 15 s, that find neither the holder nor its result. One is no proof: a
result is stored after the lease is freed."""


class Search:
    """The search of one duplicate for the result of its holder.

    Args:
        guard: Of the task, with the options of the call.
        envelope: Of the duplicate.
        longest: Seconds between two looks at most; brokers give long-held messages out again.
    """

    def __init__(self, guard: Guard, envelope: Envelope, longest: float) -> None:
        self.guard = guard
        self.envelope = envelope
        self._longest = min(LONGEST_LOOK, longest)

    def look(self, looks: int) -> float:
        """Look who holds the unit, having found no result; seconds until the next look.

        Afterwards `envelope` names the message whose result counts now.

        Args:
            looks: Since the message came, for one that could not be put back.

        Raises:
            DuplicateTaskError: It is in vain: no holder, no result; or none for ``ttl`` seconds.
        """
        self.envelope = self._seen()
        deferrals = self.envelope.deferrals + looks
        is_gone = self.envelope.missed >= LOOKS_WITHOUT_HOLDER
        if is_gone or deferrals * LONGEST_LOOK > self.guard.options.ttl:
            raise self._in_vain(is_gone=is_gone)
        return deferral(deferrals, self._longest)

    def _seen(self) -> Envelope:
        """Who holds the unit now, and how many looks in a row found neither them nor a result."""
        guard, envelope = self.guard, self.envelope
        try:
            fields = guard.store.run(protocol.inspect(envelope.key))
        except StoreUnavailableError:
            return envelope  # nobody can say
        holder_id, ran = envelope.duplicate_of, fields.get("zi", "")
        parts = ["w", "n", *slots(fields)]
        held = {fields.get(f"{part}{letter}") for part in parts for letter in "ij"}
        if holder_id in held:
            return envelope._replace(missed=0)
        if ran != holder_id and fields.get("zt") == str(envelope.shared_ticket):
            # the holder was one of several copies, and another of them ran with its ticket
            return envelope._replace(duplicate_of=ran, missed=0)
        if guard.options.limits.running or fields.get("qi") == holder_id:
            return envelope._replace(missed=envelope.missed + 1)
        return envelope._replace(missed=0)  # it may run: this scope keeps no account of that

    def _in_vain(self, *, is_gone: bool) -> DuplicateTaskError:
        guard, envelope = self.guard, self.envelope
        why = (
            "is neither waiting nor running any more and left no result"
            if is_gone
            else f"had none after {guard.options.ttl:g} s (ttl)"
        )
        return DuplicateTaskError(
            f"{guard.task} was to end with the result of {envelope.duplicate_of}, of which it is "
            f"a duplicate, but that {why}; call it again, give it a longer ttl, or use "
            'on_duplicate="skip", which ends duplicates at once with return_on_duplicate',
            task=guard.task,
            key=envelope.key,
            state="gone" if is_gone else "waiting",
            holder_id=envelope.duplicate_of,
        )
