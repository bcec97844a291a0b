"""The producer's side: may this call be sent, and what became of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from once_core import protocol
from once_core._replicas import TooFewReplicasError
from once_core.envelope import Envelope
from once_core.errors import DuplicateTaskError, KeyDerivationError, StoreUnavailableError
from once_core.events import emit
from once_core.guard import Guard
from once_core.protocol import Claim, Message, Step

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Claiming", "OncePublish", "Publication", "Terms", "claim", "claiming"]

_WORKER_OPTIONS = frozenset({
    "scope",
    "ttl",
    "lease",
    "limit",
    "min_replicas",
    "heal_after",
    "window",
    "keep_for",
    "return_on_duplicate",
    "on_overlap",
    "on_store_error",
    "warn_after",
})  # fmt: skip
"""Options given at a call that have to travel with the message."""

_WHY = {
    "waiting": "one waits to run",
    "running": "one runs, and the scope refuses others until it is done",
    "kept": "it was done just now (window= or keep_for=)",
    "moved": "one with the same arguments waits; it is due later now",
}


@dataclass(frozen=True)
class OncePublish:
    """What became of a call; the `.once` of its handle.

    Attributes:
        state: Sent: ``"claimed"``, ``"refreshed"`` (a copy, for one that waits suspiciously
            long), ``"replaced"``, ``"unguarded"`` (the store was away), ``"off"``. Not sent:
            ``"waiting"``, ``"running"``, ``"kept"`` (its result may be gone), ``"moved"``.
        is_duplicate: Whether the call was refused; its work is the holder's.
        holder_id: Message id whose result answers the call.
        key: Key of the unit of work.
        retry_after: Seconds after which a new call may be accepted; 0 for calls that were sent.

    Example:
        >>> told = OncePublish("waiting", is_duplicate=True, holder_id="a1", retry_after=12.5)
        >>> told.retry_after
        12.5
    """

    state: str
    is_duplicate: bool
    holder_id: str
    key: str = ""
    retry_after: float = 0.0


class Publication(NamedTuple):
    """One call on its way to the broker.

    Attributes:
        guard: Of the task, with the options of this call.
        key: Key of the unit of work.
        message_id: Id that the message has, or would have.
        claim: The record's answer; None where the scope needs none or the store is away.
        publish: What the caller is told.
        ticket: Right to run; a nonce where there was no claim.
        nonce: By which the record knows this claim as ours.
        call: Options that were given at the call.
        is_owed: A task counts on it (a retry, a replacement): sent without a claim, it is not
            counted among those of which one may wait.
    """

    guard: Guard
    key: str
    message_id: str
    claim: Claim | None
    publish: OncePublish
    ticket: int
    nonce: str = ""
    call: Mapping[str, object] | None = None
    is_owed: bool = False

    @property
    def is_replacing(self) -> bool:
        """Whether the record, and not the caller alone, says when it is due."""
        return self.guard.options.on_duplicate == "replace"

    @property
    def header(self) -> dict[str, object]:
        """What has to travel with the message, as plain values."""
        return self.envelope.to_header()

    @property
    def envelope(self) -> Envelope:
        """What has to travel with the message."""
        guard, given = self.guard, self.guard.options.given if self.call else {}
        is_duplicate = self.publish.is_duplicate
        scope = "running" if self.is_owed and guard.options.limits.running else guard.options.scope
        return Envelope(
            self.key,
            self.ticket,
            scope,
            self.message_id,
            guard.task,
            guard.store.id if self.ticket > 0 else "",
            {name: given[name] for name in self.call or () if self._travels(name)},
            self.publish.holder_id if is_duplicate else "",
            shares=is_duplicate and guard.is_sharing,
            shared_ticket=self.claim.holder_ticket if self.claim and guard.is_sharing else 0,
        )

    def _travels(self, option: str) -> bool:
        is_shared = option == "on_duplicate" and self.guard.is_sharing
        return is_shared or option in _WORKER_OPTIONS

    def sent(self) -> None:
        """The broker has it: whatever it replaced is dead from now on."""
        if self.claim is None or self.claim.status != "replaced":
            return
        try:
            step = protocol.confirm(self.key, self.ticket, ttl=self.guard.options.ttl)
            self.guard.store.run(step)
        except StoreUnavailableError:
            pass  # the start of the newer message says the same

    def failed(self) -> None:
        """The broker has it not: nothing waits, and the next call must not wait for it."""
        step = self.withdrawal
        if step is None:
            return
        try:
            self.guard.store.run(step)
        except StoreUnavailableError:
            self.not_withdrawn()
            return
        self.withdrawn()

    @property
    def withdrawal(self) -> Step[str] | None:
        """The step that says that the broker has it not; None where there was no claim."""
        if self.claim is None or not self.claim.ticket:
            return None
        return protocol.withdraw(self.key, Message(self.message_id, self.ticket))

    def not_withdrawn(self) -> None:
        """Nobody heard that step."""
        # our next claim finds it by its nonce; a claim of others heals
        self.guard.store.ghosts.add(self.key, self.nonce)

    def withdrawn(self) -> None:
        """The record knows that the broker has it not."""
        emit(
            "withdrawn",
            task=self.guard.task,
            key=self.key,
            message_id=self.message_id,
            reason="the broker did not take the message",
        )

    def unclaimed(self) -> Publication:
        """The same call without a claim: it is sent all the same, and guarded when it runs.

        It waits for its turn beside the one that waits, and never ends as a duplicate of it.
        """
        told = replace(self.publish, is_duplicate=False)
        return self._replace(claim=None, publish=told, ticket=nonce(), is_owed=True)

    def error(self) -> DuplicateTaskError:
        """For ``on_duplicate="raise"``."""
        publish = self.publish
        return DuplicateTaskError(
            f"{self.guard.task} was not sent: {_WHY.get(publish.state, publish.state)} "
            f"(held by {publish.holder_id}, a new call may be accepted in "
            f'{publish.retry_after:.1f} s); use its result, or on_duplicate="skip" to get its '
            "handle instead of this error",
            task=self.guard.task,
            key=publish.key,
            state=publish.state,
            holder_id=publish.holder_id,
            retry_after=publish.retry_after,
        )


class Claiming(NamedTuple):
    """A call whose claim is on its way to the record.

    Attributes:
        guard: Of the task, with the options of this call.
        step: What the record is asked.
        message_id: Id that the message has, or would have.
        preview: Parameters that may be shown.
        mark: By which the record knows this claim as ours.
        call: Options that were given at the call.
        is_owed: As in `Publication`.
        must_go: A task counts on it: it is sent without a claim if there is none to be had.
        retries: Of the message.
    """

    guard: Guard
    step: Step[Claim]
    message_id: str
    preview: str
    mark: str
    call: Mapping[str, object] | None
    is_owed: bool
    must_go: bool
    retries: int

    def answered(self, answer: Claim) -> Publication:
        """The record has answered."""
        _tell(self.guard, self.step.key, self.message_id, answer, self.preview)
        holder_id = answer.holder_id or self.message_id
        publish = OncePublish(
            answer.status, answer.is_duplicate, holder_id, self.step.key, answer.remaining
        )
        return Publication(
            self.guard,
            self.step.key,
            self.message_id,
            answer,
            publish,
            answer.ticket,
            self.mark,
            self.call,
        )

    def failed(self, error: BaseException) -> Publication:
        """Nobody has answered: send it without a claim, or raise the error."""
        guard, key = self.guard, self.step.key
        guard.store.ghosts.add(key, self.mark)  # it may have been heard, and only the answer lost
        if not isinstance(error, StoreUnavailableError):
            raise error  # such as a soft time limit in the middle of it
        told = partial(emit, task=guard.task, key=key, message_id=self.message_id, cause="publish")
        if guard.options.on_store_error == "raise" and not self.must_go:
            told("unavailable", reason=str(error))
            if isinstance(error.__cause__, TooFewReplicasError):
                self._take_back()
            raise error
        told("unguarded", reason=str(error))
        sent = _unclaimed(guard, key, self.message_id, self.call, state="unguarded")
        return sent._replace(is_owed=self.is_owed)

    def _take_back(self) -> None:
        """The record has the claim, and nobody sends its message: others are not to wait for it."""
        message = Message(self.message_id, 0, self.retries)
        try:
            self.guard.store.run(protocol.withdraw(self.step.key, message))
        except StoreUnavailableError:
            pass  # our next claim takes it over; for others it heals


class Terms(TypedDict, total=False):
    """What a call comes with besides its arguments and its message id; durations in seconds.

    Attributes:
        call: Options that were given at the call.
        delay: After which it is to run.
        expires: After which the broker drops it.
        own: It replaces the attempt that makes the call, under the same message id.
        retries: Above 0 for a retry whose arguments make it another unit of work.
        dispatched: A worker sends it on behalf of a task whose body is done.
    """

    call: Mapping[str, object] | None
    delay: float
    expires: float | None
    own: bool
    retries: int
    dispatched: bool


def claim(
    guard: Guard,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    message_id: str,
    **terms: Unpack[Terms],
) -> Publication:
    """Ask the record whether a call may be sent: one round trip, none where nothing is limited.

    Args:
        guard: Of the task, with the options of this call.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        message_id: Id that the message has, or would have.
        terms: What else it comes with.

    Raises:
        KeyDerivationError: The arguments give no key.
        StoreUnavailableError: The store is away and ``on_store_error`` says to raise; never for
            a retry, a replacement or a dispatch, whose task counts on it: those are sent without
            a claim, and wait for the store when they start.
    """
    asked = claiming(guard, args, kwargs, message_id, **terms)
    if isinstance(asked, Publication):
        return asked
    try:
        answer = guard.store.run(asked.step)
    except BaseException as error:  # noqa: BLE001  # raised again, or dealt with
        return asked.failed(error)
    return asked.answered(answer)


def claiming(
    guard: Guard,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    message_id: str,
    *,
    marks: dict[str, str] | None = None,
    **terms: Unpack[Terms],
) -> Claiming | Publication:
    """What the record has to be asked for a call, or the answer where it need not be asked.

    Arguments and errors are those of `claim`, and ``marks`` are by key those of the claims that
    are asked for together: if nobody hears the answers, any of one key may be the ghost.
    """
    call, own, retries = terms.get("call"), terms.get("own", False), terms.get("retries", 0)
    options, key = guard.options, guard.key(args, kwargs)
    if not options.limits.waiting:
        return _unclaimed(guard, key, message_id, call, state="claimed")
    replaces = options.on_duplicate == "replace"
    debounce = options.debounce if replaces else None
    lost = guard.store.ghosts.take(key)
    marks = {} if marks is None else marks
    mark = marks.setdefault(key, lost or os.urandom(5).hex())  # not `random`, which programs seed
    step = protocol.claim(
        key,
        message_id,
        ttl=options.ttl,
        heal_after=options.heal_after,
        replace=replaces,
        delay=max(terms.get("delay", 0.0), debounce or 0.0),
        latest=options.debounce_max if debounce else None,
        expires=terms.get("expires"),
        until_done=options.limits.while_running,
        own=own,
        nonce=mark,
        lost=lost,
        fingerprint=_fingerprint(guard, args, kwargs) if replaces else "",
        retries=retries,
        limit=options.limit,
        replicas=options.min_replicas,
    )
    is_owed = own or retries > 0
    preview = guard.preview(args, kwargs)
    must_go = is_owed or terms.get("dispatched", False)
    return Claiming(guard, step, message_id, preview, mark, call, is_owed, must_go, retries)


def _fingerprint(guard: Guard, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Of all arguments; empty, which equals none, where one outside of the key has no form."""
    try:
        return guard.fingerprint(args, kwargs)
    except KeyDerivationError:
        return ""


def nonce() -> int:
    """What stands in the place of a ticket where there was no claim; says when, as tickets do."""
    return -(time.time_ns() // 1000)


def _unclaimed(
    guard: Guard, key: str, message_id: str, call: Mapping[str, object] | None, *, state: str
) -> Publication:
    told = OncePublish(state, is_duplicate=False, holder_id=message_id, key=key)
    return Publication(guard, key, message_id, None, told, nonce(), call=call)


def _tell(guard: Guard, key: str, message_id: str, answer: Claim, preview: str) -> None:
    emit(
        "duplicate" if answer.is_duplicate and answer.status != "moved" else answer.status,
        task=guard.task,
        key=key,
        message_id=message_id,
        reason=_WHY.get(answer.status, ""),
        cause=answer.status if answer.is_duplicate else "",
        holder_id=answer.holder_id,
        preview=preview,
    )
