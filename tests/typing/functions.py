"""`@once` and `lease()` as users write them. Nobody runs this: mypy and pyright check it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import redis
from typing_extensions import assert_type

from once_core import Guard, Holder, Lease, LeaseBlock, configure, lease, once

configure(url="redis://cache:6379/1", prefix="shop")


# What a call returns: its own, or what it returns when it is skipped.
@once
def bare(order_id: int, note: str = "") -> str:
    """Without parentheses it may be skipped with None."""
    return note


@once()
def called(order_id: int) -> str:
    """With parentheses too."""
    return str(order_id)


@once(key="check_order-{order_id}", raise_on_locked=False, return_on_locked=None)
def as_elsewhere(order_id: int) -> str:
    """As other libraries write it."""
    return str(order_id)


@once(return_on_locked=0)
def or_zero(order_id: int) -> str:
    """Returns something else when it is skipped."""
    return str(order_id)


@once(on_overlap="raise")
def or_raises(order_id: int) -> str:
    """Runs or raises, so it returns its own."""
    return str(order_id)


@once(raise_on_locked=True, key=["order_id"], lease=dt.timedelta(minutes=2), limit=3)
def or_raises_too(order_id: int) -> str:
    """The equivalent."""
    return str(order_id)


@once(on_overlap="wait", wait_up_to=5)
def or_waits(order_id: int) -> str:
    """Runs in its turn."""
    return str(order_id)


assert_type(bare(1), str | None)
assert_type(called(1), str | None)
assert_type(as_elsewhere(1), str | None)
assert_type(or_zero(1), str | int)
assert_type(or_raises(1), str)
assert_type(or_raises_too(order_id=1), str)
assert_type(or_waits(1), str)

bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # its signature
bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # the same
bare(1, other=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # the same

# Questions take the same arguments.
assert_type(bare.is_locked(1), bool)
assert_type(bare.holder(1, note="x"), Holder | None)
assert_type(bare.release(order_id=1), bool)
assert_type(bare.once_guard(), Guard)
assert_type(bare.__name__, str)
bare.is_locked("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # as above


# Coroutine functions.
@once
async def bare_async(order_id: int) -> str:
    """May be skipped."""
    return str(order_id)


@once(key=["order_id"], return_on_locked="busy")
async def or_busy(order_id: int) -> int:
    """Returns something else when it is skipped."""
    return order_id


@once(on_overlap="wait", wait_up_to=None)
async def or_waits_async(order_id: int) -> int:
    """Runs in its turn."""
    return order_id


async def ask() -> None:
    """All is awaited."""
    assert_type(await bare_async(1), str | None)
    assert_type(await or_busy(1), int | str)
    assert_type(await or_waits_async(1), int)
    assert_type(await or_busy.is_locked(1), bool)
    assert_type(await or_busy.holder(1), Holder | None)
    assert_type(await or_busy.release(1), bool)
    await bare_async("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # int


def takes_sync(function: Callable[[int], str | None]) -> None:
    """As a scheduler takes jobs."""


def takes_async(function: Callable[[int], Coroutine[Any, Any, int]]) -> None:
    """As a task queue takes coroutine functions."""


def takes_awaitable(function: Callable[[int], Awaitable[int]]) -> None:
    """The same."""


takes_sync(called)
takes_async(or_waits_async)
takes_awaitable(or_waits_async)


# Methods.
class Shop:
    """Of every kind."""

    @once(return_on_locked=False)
    def bound(self, order_id: int) -> str:
        """Of an instance."""
        return str(order_id)

    @once
    async def bound_async(self, order_id: int) -> str:
        """The same, awaited."""
        return str(order_id)

    @staticmethod
    @once(on_overlap="raise")
    def static(order_id: int) -> str:
        """Of none."""
        return str(order_id)

    @classmethod
    @once(on_overlap="raise")
    def of_class(cls, order_id: int) -> str:
        """Of the class."""
        return str(order_id)


shop = Shop()
assert_type(shop.bound(1), str | bool)
assert_type(Shop.bound(shop, 1), str | bool)
assert_type(shop.bound.is_locked(1), bool)
assert_type(shop.bound.holder(order_id=1), Holder | None)
assert_type(Shop.static(1), str)
shop.bound("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # its signature


async def ask_methods() -> None:
    """All is awaited."""
    assert_type(await shop.bound_async(1), str | None)
    assert_type(await shop.bound_async.is_locked(1), bool)


# What cannot be is seen before it runs.
once(on_overlap="defer")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]  # a task's
once(on_overlap="wait", return_on_locked=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]  # never returned
once(leese=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]  # unknown
once(scope="queued")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]  # a task's
once(wait_up_to=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]  # waits for nothing


# Blocks.
assert_type(lease("nightly", wait_up_to=5, limit=3, lease=30), LeaseBlock)
lease("nightly", wait_up_to=dt.timedelta(seconds=5), reentrant=True, client=redis.Redis())
lease("nightly", key=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # it has its name
lease(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no name


def block() -> int:
    """A block does not swallow errors, so what stands in it returns."""
    with lease("nightly") as held:
        assert_type(held, Lease)
        held.check()
        return held.fence


async def block_async() -> int:
    """The same."""
    async with lease("nightly", wait_up_to=None) as held:
        assert_type(held, Lease)
        return held.fence


def ask_block() -> bool:
    """Questions about a name."""
    assert_type(lease("nightly").holder(), Holder | None)
    return lease("nightly").is_locked() or lease("nightly").release()
