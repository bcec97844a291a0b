"""What `@once` makes of a function, for type checkers: the same signature, and three methods."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    overload,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from once_core.guard import Guard, Holder
    from once_core.options import Seconds
    from once_core.store import ClientSource

__all__ = ["AsyncOnceFunction", "BlockOptions", "FunctionOptions", "OnceFunction"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)  # noqa: PLC0105  # short, as everywhere


class BlockOptions(TypedDict, total=False):
    """Options of a ``with`` block; see the table in the docs."""

    prefix: str | Callable[[], str]
    lease: Seconds
    limit: int
    min_replicas: int
    warn_after: Seconds | None
    on_store_error: Literal["raise", "run"]
    url: str | None
    client: ClientSource | None


class FunctionOptions(BlockOptions, total=False):
    """Options of a function."""

    name: str | None
    preview: bool | Sequence[str]
    secret: str | bytes | None


class OnceFunction(Protocol[P, R]):
    """A function under `@once`."""

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it, or not: see `once`."""

    def is_locked(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether a run of this call goes on."""

    def holder(self, *args: P.args, **kwargs: P.kwargs) -> Holder | None:
        """Who runs it, or None."""

    def release(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Free it, whoever runs it: that run loses its lease and goes on."""

    def once_guard(self) -> Guard:
        """What once knows of it."""

    @overload
    def __get__(self, instance: None, owner: type) -> OnceFunction[P, R]: ...
    @overload
    def __get__(
        self: OnceFunction[Concatenate[Any, Q], R], instance: object, owner: type
    ) -> OnceFunction[Q, R]: ...


class AsyncOnceFunction(Protocol[P, R]):
    """A coroutine function under `@once`."""

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run it, or not: see `once`."""

    async def is_locked(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether a run of this call goes on."""

    async def holder(self, *args: P.args, **kwargs: P.kwargs) -> Holder | None:
        """Who runs it, or None."""

    async def release(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Free it, whoever runs it: that run loses its lease and goes on."""

    def once_guard(self) -> Guard:
        """What once knows of it."""

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncOnceFunction[P, R]: ...
    @overload
    def __get__(
        self: AsyncOnceFunction[Concatenate[Any, Q], R], instance: object, owner: type
    ) -> AsyncOnceFunction[Q, R]: ...
