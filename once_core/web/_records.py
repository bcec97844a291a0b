"""One unit of work: what its record says, which rules hold for a call now, and freeing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from once_core import protocol
from once_core._host import is_dead
from once_core.errors import OnceError
from once_core.events import emit
from once_core.explain import Verdict, verdict
from once_core.guard import Guard, Holder, holders
from once_core.survey import is_record, task_in

if TYPE_CHECKING:
    from once_core.cli.program import Program
    from once_core.store import Store

__all__ = ["Record", "Standing", "find", "free", "guard_of", "standing"]


@dataclass(frozen=True)
class Record:
    """What is known of one unit of work.

    Attributes:
        key: Its key.
        task: Name of its task.
        store: Where it is held, or would be.
        holders: Who runs, who waits, what keeps it.
        fields: What Redis holds.
        guard: Of its task; None where the program does not say.
    """

    key: str
    task: str
    store: Store
    holders: Sequence[Holder]
    fields: Mapping[str, str]
    guard: Guard | None

    @property
    def is_there(self) -> bool:
        """Whether there is a record."""
        return len(self.fields) > 1  # the server's time is always among them

    @property
    def is_running(self) -> bool:
        """Whether somebody runs it."""
        return any(each.state == "running" for each in self.holders)

    @property
    def verdict(self) -> Verdict | None:
        """What would become of a call now; None where the program does not know the task."""
        return None if self.guard is None else verdict(self.guard, self.fields)

    @property
    def standings(self) -> list[Standing]:
        """Its holders, each with what is wrong with it."""
        return [standing(holder, self.guard) for holder in self.holders]


class Standing(NamedTuple):
    """One holder, and what is wrong with it.

    Attributes:
        holder: Who holds it.
        is_slow: It runs for longer than the task's ``warn_after=``.
        is_gone: Its process is known to be dead.
    """

    holder: Holder
    is_slow: bool
    is_gone: bool

    @property
    def place(self) -> str:
        """``host:pid``."""
        return self.holder.where.rpartition(":")[0]


def standing(holder: Holder, guard: Guard | None) -> Standing:
    """What is wrong with a holder.

    Args:
        holder: Who holds it.
        guard: Of the task, if that is known.
    """
    runs = holder.state == "running"
    limit = guard.options.warn_after if guard is not None else None
    is_slow = runs and bool(limit) and holder.age > (limit or 0)
    return Standing(holder, is_slow, runs and is_dead(holder.where))


def guard_of(program: Program, task: str) -> Guard | None:
    """The guard of a task; None where the program has none, or none that can be."""
    find_guard = program.guards.get(task)
    try:
        return find_guard() if find_guard is not None else None
    except OnceError:
        return None  # `once doctor` says what is wrong with it


def find(program: Program, key: str) -> Record | None:
    """Look one unit of work up; None if that is no key of this program.

    Raises:
        StoreUnavailableError: The store is away.
    """
    places = [(store, each) for store, each in program.places() if key.startswith(f"{each}:")]
    if not (is_record(key) and places):
        return None
    found: Record | None = None
    for store, prefix in places:
        fields = store.run(protocol.inspect(key))
        task = program.task_of(task_in(key, prefix))
        record = Record(key, task, store, tuple(holders(fields)), fields, guard_of(program, task))
        found = record if found is None or record.is_there else found
        if record.is_there:
            break
    return found


def free(record: Record, holder_id: str, *, who: str) -> protocol.Release:
    """Free a unit of work from one holder, and tell it.

    Args:
        record: Of the unit of work.
        holder_id: Message id of the holder that was shown; from no other is it freed.
        who: Asked for it, and from where.

    Raises:
        StoreUnavailableError: The store is away.
    """
    answer = record.store.run(protocol.release(record.key, holder_id))
    if answer.status == "released":
        emit(
            "released",
            task=record.task,
            key=record.key,
            holder_id=answer.holder_id,
            reason=f"the dashboard, asked by {who}",
        )
    return answer
