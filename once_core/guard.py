"""What once knows of one task, and what a person may ask of it. The bindings build on this."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from once_core import protocol, stream
from once_core._diversion import diversion
from once_core._flow import Flow
from once_core.envelope import Envelope
from once_core.errors import ConfigurationError, KeyDerivationError
from once_core.events import emit, logger
from once_core.keys import KeySpec
from once_core.options import OPTIONS, OnceOptions
from once_core.store import Store

__all__ = ["Guard", "Holder", "holders", "slots"]

_SLOT = re.compile(r"x\d+u")
"""End of the lease in one of the slots of those who run."""

Arguments = tuple[Sequence[object], Mapping[str, object]]


@dataclass(frozen=True)
class Holder:
    """Who holds a unit of work; times in seconds.

    Attributes:
        state: ``"running"``, ``"waiting"`` or ``"kept"``.
        message_id: Id of its message.
        age: Since when: of the run, of the waiting, or of the keeping.
        remaining: Until its part ends if nothing renews it.
        where: ``host:pid:namespace`` of a running one.
        fence: Number of its lease.
        retries: How often it was retried.
        suppressed: Publishes it has refused so far.
    """

    state: str
    message_id: str
    age: float
    remaining: float
    where: str = ""
    fence: int = 0
    retries: int = 0
    suppressed: int = 0


class Guard:
    """A task under guard: its options, its keys, its store. Safe for threads and forks.

    Args:
        task: Name of the task.
        function: Its body, whose signature binds the arguments.
        options: Checked options.
        store: Returns the lock store; asked when it is first needed.
        normalize: Gives arguments the form in which the body gets them, before keys are derived.

    Raises:
        ConfigurationError: When ``key=`` names parameters that the function has not, or leaves
            out some although duplicates are to end with the holder's result.

    Example:
        >>> def sync(order_id, force=False): ...
        >>> guard = Guard("shop.sync", sync, OnceOptions(), lambda: Store("memory://guard"))
        >>> guard.key((1,), {}) == guard.key((), {"order_id": 1, "force": False})
        True
        >>> guard.is_locked((1,), {})
        False
    """

    def __init__(
        self,
        task: str,
        function: Callable[..., object],
        options: OnceOptions,
        store: Callable[[], Store],
        normalize: Callable[..., Arguments] | None = None,
    ) -> None:
        self.task = task
        self.options = options
        self._function = function
        self._find_store = store
        self._normalize = normalize or _as_given
        self._store: Store | None = None
        self.overlap = ""
        """Of a function: what a call does while another runs; it has no messages."""
        self.keys = self._key_spec()

    @property
    def store(self) -> Store:
        """The lock store."""
        test = diversion()
        return self._own_store() if test is None else test.store(self._own_store)

    def _own_store(self) -> Store:
        if self._store is None:
            self._store = self._find_store()
            if self.options.events:
                prefix = self.options.prefix
                beside = prefix if isinstance(prefix, str) else str(OPTIONS["prefix"].default)
                stream.keep(self.task, self._store, beside, self.options.events)
        return self._store

    def with_call(self, call: Mapping[str, object]) -> Guard:
        """The guard under which one call goes whose options differ.

        Raises:
            ConfigurationError: As for `OnceOptions.with_call`.
        """
        if not call:
            return self
        other = copy.copy(self)
        other._find_store = self._own_store  # noqa: SLF001  # found once, for all calls
        other.options = self.options.with_call(call, self.task)
        if call.keys() & {"key", "name", "on_duplicate"}:
            other.keys = other._key_spec()  # noqa: SLF001  # of the same class
        return other

    def as_called(self, envelope: Envelope) -> Guard:
        """The guard of one message, with the options that came with it.

        A producer of another version may know options that this one does not: those are left out.
        """
        try:
            return self.with_call(envelope.call)
        except ConfigurationError as error:
            logger.warning("options of the call are left out: %s", error)
            return self

    @property
    def is_sharing(self) -> bool:
        """Whether duplicates end with the result of their holder."""
        return self.options.on_duplicate == "share"

    def _key_spec(self) -> KeySpec:
        options = self.options
        keys = KeySpec(
            options.name or self.task,
            self._function,
            options.key,
            secret=options.secret,
            preview=options.preview,
        )
        if self.is_sharing and not keys.covers_all:
            raise ConfigurationError(
                f'once option on_duplicate="share" of {self.task} needs a key of all arguments: '
                f"with key={options.key!r} a call would end with the result of one that has other "
                'arguments; leave key= out, or use on_duplicate="skip"',
                option="on_duplicate",
            )
        return keys

    def key(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
        """The key of the unit of work that these arguments identify.

        Raises:
            KeyDerivationError: When they give none.
        """
        args, kwargs = self._normalize(args, kwargs)
        key = self.keys.key(args, kwargs, prefix=self._prefix())
        test = diversion()
        if test is not None:
            test.derived(self, key, args, kwargs)
        return key

    def arguments(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Every argument of a call by the name of its parameter, defaults applied.

        Raises:
            KeyDerivationError: If the task does not take these arguments.
        """
        return self.keys.bind(*self._normalize(args, kwargs))

    def _prefix(self) -> str:
        prefix = self.options.prefix
        if not callable(prefix):
            return prefix
        try:
            return prefix()
        except Exception as error:
            raise KeyDerivationError(
                f"{self.task} has no key: its prefix= raised {error!r}; workers call it too, where "
                "no request is: give it a way to find the tenant there",
                task=self.task,
            ) from error

    def fingerprint(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
        """A digest over all arguments, whatever the key is made of.

        Raises:
            KeyDerivationError: When they give none.
        """
        return self.keys.fingerprint(*self._normalize(args, kwargs))

    def preview(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
        """The arguments that may be shown, as text; empty unless ``preview=`` names some."""
        if not self.options.preview:
            return ""
        shown = self.keys.preview(*self._normalize(args, kwargs))
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def is_locked(self, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
        """Whether the unit of work waits, runs, or is kept.

        Raises:
            StoreUnavailableError: When nobody can say.
        """
        return self.holder(args, kwargs) is not None

    def holder(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Holder | None:
        """Who runs; if nobody, who waits; if nobody, what keeps it; or None.

        Raises:
            StoreUnavailableError: When nobody can say.
        """
        return self.store.follow(self.finding_holder(args, kwargs))

    def finding_holder(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Flow[Holder | None]:
        """The same as a flow."""
        fields: dict[str, str] = yield protocol.inspect(self.key(args, kwargs))
        return next(holders(fields), None)

    def release(
        self, args: Sequence[object], kwargs: Mapping[str, object], *, holder_id: str = ""
    ) -> bool:
        """Free the unit of work, whoever holds it: a live run loses its lease for good.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            holder_id: Free it only from this message; whoever holds it if empty.

        Returns:
            Whether there was something to free, of this holder.

        Raises:
            StoreUnavailableError: When the store is away.
        """
        return self.store.follow(self.releasing(args, kwargs, holder_id=holder_id))

    def releasing(
        self, args: Sequence[object], kwargs: Mapping[str, object], *, holder_id: str = ""
    ) -> Flow[bool]:
        """The same as a flow."""
        key = self.key(args, kwargs)
        answer: protocol.Release = yield protocol.release(key, holder_id)
        if answer.status == "released":
            emit(
                "released",
                task=self.task,
                key=key,
                holder_id=answer.holder_id,
                reason="somebody asked for it",
            )
        return answer.status == "released"


def _as_given(args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    return args, kwargs


def holders(fields: Mapping[str, str]) -> Iterator[Holder]:
    """Everybody whom a record names: who runs, who waits, the retry behind it, what keeps it.

    Args:
        fields: As `protocol.inspect` answers.
    """
    running = [(slot, "running") for slot in slots(fields)]
    for part, state in (*running, ("w", "waiting"), ("n", "waiting"), ("q", "kept")):
        if f"{part}u" in fields:
            yield _holder(fields, part, state)


def slots(fields: Mapping[str, str]) -> list[str]:
    """Names of the slots of those who run, in order.

    Args:
        fields: As `protocol.inspect` answers.
    """
    return sorted((name[:-1] for name in fields if _SLOT.fullmatch(name)), key=_number)


def _number(slot: str) -> int:
    return int(slot[1:])


def _holder(fields: Mapping[str, str], part: str, state: str) -> Holder:
    def number(letter: str) -> int:
        return int(fields.get(part + letter, 0))

    now = int(fields["now"])
    return Holder(
        state=state,
        message_id=fields.get(f"{part}j") or fields.get(f"{part}i", ""),
        age=max(0, now - number("s")) / 1000,
        remaining=max(0, number("u") - now) / 1000,
        where=fields.get(f"{part}b", ""),
        fence=number("f"),
        retries=number("r"),
        suppressed=number("z"),
    )
