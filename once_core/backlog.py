"""Units of work that wait, beside the messages that a broker has: what waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from once_core.finding import Finding

if TYPE_CHECKING:
    from once_core.survey import Unit

__all__ = ["Overdue", "Queued", "of_backlog"]

PATIENCE_MS = 5000
"""Of a unit whose message is due: it may be on its way to the broker, or to its body."""


class Queued(NamedTuple):
    """What a broker has for a task.

    Attributes:
        queue: Name of the task's queue.
        messages: How many are there, of all tasks that share it.
        counts_held: Whether those are among them that workers hold.
    """

    queue: str
    messages: int
    counts_held: bool

    def beside(self, other: Queued | None) -> Queued:
        """Both together, for tasks that share the name in their keys."""
        if other is None or other == self:
            return self
        names = ", ".join(sorted({self.queue, other.queue}))
        messages = self.messages + other.messages
        return Queued(names, messages, self.counts_held and other.counts_held)


class Overdue:
    """Counts units whose message is due and has not started, by the task's name in their keys."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.oldest: dict[str, float] = {}
        self.heal_in: dict[str, float] = {}

    def add(self, unit: Unit) -> None:
        """Count one, if it is overdue."""
        fields = unit.fields
        if "wu" not in fields:
            return
        now, due = int(fields["now"]), int(fields.get("wd", 0))
        if now - due < PATIENCE_MS:
            return
        task, heal_in = unit.task, max(0, int(fields.get("wh", 0)) - now) / 1000
        self.counts[task] = self.counts.get(task, 0) + 1
        self.oldest[task] = max(self.oldest.get(task, 0.0), (now - due) / 1000)
        self.heal_in[task] = max(self.heal_in.get(task, 0.0), heal_in)


def of_backlog(overdue: Overdue, queued: Mapping[str, Queued]) -> Iterator[Finding]:
    """Tasks of which units wait although their queue is empty.

    Args:
        overdue: What waits.
        queued: What the broker has, by the task's name in keys.
    """
    for task, count in sorted(overdue.counts.items()):
        found = queued.get(task)
        if found is None or found.messages:
            continue
        units = "1 unit of work waits" if count == 1 else f"{count} units of work wait"
        held = "and no worker holds a message" if found.counts_held else "unless workers hold them"
        yield Finding(
            "note",
            "waits-without-message",
            task,
            f"{units}, due for up to {overdue.oldest[task]:.0f} s, but queue {found.queue!r} is "
            f"empty, {held}: their messages are gone (a purge, a broker that lost its data), or "
            "were sent to a queue that this program does not know",
            "nothing has to be done: the next call of each is sent, by and by within "
            f"{overdue.heal_in[task]:.0f} s; at once after `once release {task} ARG …`. Empty "
            "queues with `once purge`, which frees what waited",
        )
