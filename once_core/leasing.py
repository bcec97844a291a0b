"""`lease()`: a named lock around any block of code, sync or async."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from once_core._clock import elapsed
from once_core._diversion import is_bypassed
from once_core._function_types import BlockOptions
from once_core._guarded import refuse_others, seconds_to_wait
from once_core._lease import Lease
from once_core._places import async_store_of, store_of
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.guard import Guard, Holder
from once_core.options import OnceOptions
from once_core.turn import Turn, held_here

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from once_core._flow import Flow

__all__ = ["LeaseBlock", "lease"]


def lease(
    name: str,
    *,
    wait_up_to: timedelta | float | None = 0.0,
    reentrant: bool = False,
    **options: Unpack[BlockOptions],
) -> LeaseBlock:
    """Lock a block of code, sync or async, under a name.

    Whoever waits is woken by the end of the one before, first come first served. The lease is
    renewed while the block runs, and free within one lease after a crash.

    Args:
        name: Of what is locked; everybody who says the same name contends for it.
        wait_up_to: Seconds to wait for it. 0, the default, tries once; None waits as long as it
            takes.
        reentrant: Whether a block within a block of the same name, in the same thread or task,
            goes on under the lease that is held already.
        options: ``limit`` (blocks at once), ``lease`` (seconds until it is free after a crash,
            60), ``min_replicas``, ``prefix``, ``warn_after``, ``on_store_error``, ``url``,
            ``client``; see the docs' table.

    Returns:
        A context manager, sync and async, for one block at a time; gives the `Lease`.

    Raises:
        ConfigurationError: Options that cannot be.

    Example:
        >>> with lease("nightly", url="memory://lease-example") as held:
        ...     held.lost, lease("nightly", url="memory://lease-example").is_locked()
        (False, True)
        >>> lease("nightly", url="memory://lease-example").is_locked()
        False
    """
    if not name or not isinstance(name, str):
        raise ConfigurationError(f"lease({name!r}) needs a name, a text that is not empty")
    return LeaseBlock(name, seconds_to_wait(name, wait_up_to), dict(options), reentrant=reentrant)


class LeaseBlock:
    """What `lease` returns: a context manager, and questions about the name.

    Args:
        name: Of what is locked.
        wait_up_to: Seconds; None for as long as it takes.
        options: Those that were given.
        reentrant: Whether an inner block goes on under an outer one's lease.
    """

    def __init__(
        self, name: str, wait_up_to: float | None, options: dict[str, Any], *, reentrant: bool
    ) -> None:
        if "key" in options:
            raise ConfigurationError(f"lease({name!r}) takes no key=: its name is the key")
        refuse_others(options, BlockOptions, f"lease({name!r})")
        self.name = name
        self._wait_up_to = wait_up_to
        self._given = {"name": f"lease:{name}", **options, "key": [], "scope": "running"}
        self._reentrant = reentrant
        self._turn: Turn | None = None
        self._is_entered = False
        OnceOptions(**self._given)  # what cannot be is refused here

    def once_guard(self) -> Guard:
        """What once knows of it."""
        options = OnceOptions.layered({}, {**self._given, "on_overlap": "skip"}, self.name)
        return Guard(f"lease:{self.name}", _nothing, options, lambda: store_of(options, self.name))

    # Blocks

    def __enter__(self) -> Lease:
        """Take it.

        Raises:
            LeaseTimeoutError: It was not free in time.
            OverlapError: The calling code holds it, would wait for itself, and no slot is free.
            StoreUnavailableError: The store is away.
        """
        turn, outer, began = self._begin()
        if outer is not None:
            return outer
        try:
            answer = turn.store.follow(turn.taking(self._wait_up_to))
            return self._taken(turn, answer, elapsed() - began)
        except BaseException as error:  # noqa: BLE001  # it is raised again, unless it may run
            if turn.is_running:  # a time limit struck between the start and the block
                turn.leave()
                turn.store.follow(turn.giving_back(is_success=False))
            return self._not_taken(turn, error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        turn, ending = self._end(error)
        if turn is not None:
            turn.store.follow(ending)

    async def __aenter__(self) -> Lease:
        """The same for asyncio."""
        turn, outer, began = self._begin()
        if outer is not None:
            return outer
        store = async_store_of(turn.guard.options, self.name)
        try:
            answer = await store.follow(turn.taking(self._wait_up_to))
            return self._taken(turn, answer, elapsed() - began)
        except BaseException as error:  # noqa: BLE001  # it is raised again, unless it may run
            if turn.is_running:
                turn.leave()
                await store.follow(turn.giving_back(is_success=False))
            return self._not_taken(turn, error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        turn, ending = self._end(error)
        if turn is not None:
            await async_store_of(turn.guard.options, self.name).follow(ending)

    def _begin(self) -> tuple[Turn, Lease | None, float]:
        if self._is_entered:
            raise ConfigurationError(
                f"this lease({self.name!r}) is in use by a block already; call lease() anew for "
                "each block"
            )
        guard = self.once_guard()
        key = guard.key((), {})
        turn = Turn(guard, key)
        self._is_entered = True
        outer = held_here(key) if self._reentrant else None
        if is_bypassed():
            outer = _unlimited(key)
        return turn, outer, elapsed()

    def _taken(self, turn: Turn, answer: Any, waited: float) -> Lease:  # noqa: ANN401  # a Start
        if answer.status != "started":
            raise turn.timeout_error(answer, waited)
        self._turn = turn
        held = turn.enter()
        assert held is not None, "its scope limits what runs"  # noqa: S101  # for type checkers
        return held

    def _not_taken(self, turn: Turn, error: BaseException) -> Lease:
        is_away = isinstance(error, StoreUnavailableError)
        if is_away and turn.guard.options.on_store_error == "run":
            turn.unguarded(error)  # type: ignore[arg-type]  # just seen
            return _unlimited(turn.key)
        self._turn, self._is_entered = None, False
        raise error

    def _end(self, error: BaseException | None) -> tuple[Turn | None, Flow[None]]:
        turn, self._turn, self._is_entered = self._turn, None, False
        if turn is None:
            return None, _no_flow()
        turn.leave()
        return turn, turn.giving_back(is_success=error is None)

    # Questions

    def is_locked(self) -> bool:
        """Whether somebody holds it; with ``limit=``, whether anybody does.

        Raises:
            StoreUnavailableError: When nobody can say.
        """
        return self.holder() is not None

    def holder(self) -> Holder | None:
        """Who holds it, or None."""
        return self.once_guard().holder((), {})

    def release(self) -> bool:
        """Free it, whoever holds it: its block goes on, with a lease that is lost."""
        return self.once_guard().release((), {})


def _unlimited(key: str) -> Lease:
    """For a block that runs without a lock, as it was told to: it is not to be stopped."""
    return Lease(key, 0, float("inf"))


def _nothing() -> None: ...


def _no_flow() -> Flow[None]:
    return
    yield  # makes it a generator
