"""Would this call be sent and run now, and if not, why: the rules of the record, read only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from once_core import protocol
from once_core._host import is_dead
from once_core.errors import KeyDerivationError
from once_core.guard import Holder, holders, slots

if TYPE_CHECKING:
    from once_core.guard import Guard

__all__ = ["Explanation", "Verdict", "explain", "verdict"]


class Verdict(NamedTuple):
    """What a record means for a call; the fields are those of `Explanation`."""

    publish: str
    publish_why: str
    retry_after: float
    run: str
    run_why: str


@dataclass(frozen=True)
class Explanation:
    """What would become of a call. Times in seconds.

    Attributes:
        task: Name of the task.
        key: Key of the unit of work.
        parameters: What went into the key: names, and values where they may be shown.
        scope: What is limited.
        publish: ``"sent"`` or ``"refused"``.
        publish_why: The rule that decides, in words.
        run: ``"starts"``, ``"waits"`` or ``"ends"``: what a message would do at its start now.
        run_why: The rule that decides, in words.
        retry_after: After which a refused call may be accepted; 0 for one that is sent.
        holders: Who runs, who waits, what keeps it.
        renewed_ago: Since the lease of the first who runs was last renewed, as its worker's task
            has it; None if nobody runs. More than a third of ``lease=`` is a worker in trouble.
    """

    task: str
    key: str
    parameters: Mapping[str, str]
    scope: str
    publish: str
    publish_why: str
    run: str
    run_why: str
    retry_after: float
    holders: tuple[Holder, ...]
    renewed_ago: float | None = None


def explain(guard: Guard, args: Sequence[object], kwargs: Mapping[str, object]) -> Explanation:
    """Say what would become of a call now; changes nothing.

    Args:
        guard: Of the task.
        args: Positional arguments of the call.
        kwargs: Its arguments by name.

    Raises:
        KeyDerivationError: The arguments give no key.
        StoreUnavailableError: The store is away.

    Example:
        >>> from once_core import Guard, OnceOptions, Store
        >>> def sync(order_id): ...
        >>> store = Store("memory://explain-example")
        >>> guard = Guard("shop.sync", sync, OnceOptions(), lambda: store)
        >>> told = explain(guard, (42,), {})
        >>> told.publish, told.run
        ('sent', 'starts')
    """
    key = guard.key(args, kwargs)
    fields = guard.store.run(protocol.inspect(key))
    same = fields.get("wx") == _fingerprint(guard, args, kwargs)
    told = verdict(guard, fields, is_same=same)
    found = tuple(holders(fields))
    return Explanation(
        task=guard.task,
        key=key,
        parameters=_parameters(guard, args, kwargs),
        scope=guard.options.scope,
        holders=found,
        renewed_ago=_renewed_ago(guard, found),
        **told._asdict(),
    )


def _renewed_ago(guard: Guard, found: Sequence[Holder]) -> float | None:
    first = next((each for each in found if each.state == "running"), None)
    if first is None or not guard.options.limits.running:
        return None
    return max(0.0, guard.options.lease - first.remaining)


def verdict(guard: Guard, fields: Mapping[str, str], *, is_same: bool = False) -> Verdict:
    """Say what a record means for a call, whatever its arguments are.

    Args:
        guard: Of the task.
        fields: The record, as `protocol.inspect` answers.
        is_same: Whether all arguments of the call equal those of the message that waits.
    """
    return Verdict(*_publish(guard, fields, is_same=is_same), *_run(guard, fields))


def _fingerprint(guard: Guard, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    if guard.options.on_duplicate != "replace":
        return ""
    try:
        return guard.fingerprint(args, kwargs)
    except KeyDerivationError:
        return ""


def _parameters(
    guard: Guard, args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, str]:
    """Types, for they count; and values only of those that ``preview=`` names."""
    if callable(guard.options.key):
        return {"key": "what the function given as key= returns"}
    shown, given = guard.keys.preview(args, kwargs), guard.arguments(args, kwargs)
    return {
        name: f"{shown.get(name, '…')} ({type(given[name]).__name__})" if name in given else "…"
        for name in guard.keys.parameters
    }


def _publish(  # noqa: PLR0911  # one for each rule, in their order
    guard: Guard, fields: Mapping[str, str], *, is_same: bool
) -> tuple[str, str, float]:
    options, now = guard.options, int(fields["now"])
    running = slots(fields)
    if guard.overlap:
        return "sent", "it is a function, of which nothing is queued", 0.0
    if not options.limits.waiting:
        return "sent", f'scope="{options.scope}" limits nothing that waits', 0.0
    if "qu" in fields:
        left = (int(fields["qu"]) - now) / 1000
        return (
            "refused",
            "it was accepted or done just now, and window= or keep_for= keeps others away",
            left,
        )
    if options.limits.while_running and len(running) >= options.limit:
        left = (min(int(fields[f"{slot}u"]) for slot in running) - now) / 1000
        return "refused", 'one runs, and scope="until_done" refuses others until it is done', left
    if "wu" not in fields:
        return "sent", "nothing of this unit of work waits", 0.0
    if is_same and fields.get("wp") == "1" and now < int(fields["wh"]):
        left = max(0.0, (int(fields["wd"]) - now) / 1000)
        return "refused", "one with the same arguments waits, and only its due time moves", left
    if options.on_duplicate == "replace":
        return "sent", 'one waits, and on_duplicate="replace" lets the newest take its place', 0.0
    heals_in = (int(fields["wh"]) - now) / 1000
    if heals_in > 0:
        why = (
            "one waits to run, and will run after this call; if it does not come to that (its "
            f"queue was purged, its producer died), a call is sent again in {heals_in:.0f} s"
        )
        return "refused", why, heals_in
    return "sent", "one waits for suspiciously long: the call would be sent as a copy of it", 0.0


def _run(  # noqa: PLR0911  # one for each rule, in their order
    guard: Guard, fields: Mapping[str, str]
) -> tuple[str, str]:
    options, running = guard.options, slots(fields)
    if fields.get("wp") == "1" and int(fields["wd"]) > int(fields["now"]):
        left = (int(fields["wd"]) - int(fields["now"])) / 1000
        return "waits", f"one waits that is due in {left:.0f} s (debounce=)"
    if not options.limits.running:
        return "starts", f'scope="{options.scope}" lets runs overlap'
    if len(running) < options.limit:
        others = f"{len(running)} of limit={options.limit} run" if running else "nothing runs"
        return "starts", others
    holder = next(iter(holders(fields)))
    place = holder.where.rpartition(":")[0]
    since = f"message {holder.message_id} has run for {holder.age:.0f} s at {place}"
    if is_dead(holder.where):
        return "starts", f"{since}, but that process is gone: the next one takes its place at once"
    if guard.overlap == "wait":
        return "waits", f'{since}, and on_overlap="wait" waits for its turn'
    if guard.overlap:
        what = "raises OverlapError" if guard.overlap == "raise" else "returns return_on_locked="
        return "ends", f'{since}, and on_overlap="{guard.overlap}" {what}'
    if options.on_overlap == "defer":
        return "waits", f"{since}; a message comes back until it has ended"
    return "ends", f'{since}, and on_overlap="{options.on_overlap}" ends others without a run'
