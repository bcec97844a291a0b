"""`@once` on methods of every kind."""

from __future__ import annotations

import asyncio

import pytest

from once_core import once
from once_pytest.harness import OnceHarness


class Shop:
    """Methods of every kind, in both orders of decorators where there are two."""

    def __init__(self, number: int) -> None:
        self.number = number

    @once(return_on_locked="busy")
    def bound(self, order_id: int) -> str:
        return f"{self.number} {self.bound.is_locked(order_id)} {Shop(9).bound(order_id)}"

    @once(return_on_locked="busy")
    async def awaited(self, order_id: int) -> str:
        is_locked = await self.awaited.is_locked(order_id)
        return f"{self.number} {is_locked} {await Shop(9).awaited(order_id)}"

    @staticmethod
    @once(return_on_locked="busy")
    def static(order_id: int) -> str:
        return f"{Shop.static.is_locked(order_id)} {Shop.static(order_id)}"

    @once(return_on_locked="busy")
    @staticmethod
    def outer_static(order_id: int) -> str:
        return f"{Shop.outer_static.is_locked(order_id)} {Shop(1).outer_static(order_id)}"

    @classmethod
    @once(return_on_locked="busy")
    def of_class(cls, order_id: int) -> str:
        return f"{cls.__name__} {cls.of_class.is_locked(order_id)} {cls.of_class(order_id)}"

    @once(return_on_locked="busy")
    @classmethod
    def outer_of_class(cls, order_id: int) -> str:
        return f"{cls.outer_of_class.is_locked(order_id)} {cls(1).outer_of_class(order_id)}"

    @once(key=lambda self, order_id, other: f"{self.number}-{order_id}", return_on_locked="busy")
    def by_number(self, order_id: int, other: Shop) -> str:
        return other.by_number(order_id, Shop(0)) if self.number else "ran"


@pytest.mark.usefixtures("once_locks")
def test_methods_of_every_kind_are_one_unit_for_all_instances() -> None:
    """Bound, static and class methods are locked by their arguments, without `self` and `cls`."""
    assert Shop(1).bound(7) == "1 True busy"
    assert Shop.bound(Shop(1), order_id=7) == "1 True busy"
    assert asyncio.run(Shop(1).awaited(7)) == "1 True busy"
    assert Shop.static(7) == "True busy"
    assert Shop.outer_static(7) == "True busy"
    assert Shop.of_class(7) == "Shop True busy"
    assert Shop.outer_of_class(7) == "True busy"


@pytest.mark.usefixtures("once_locks")
def test_a_key_may_be_made_of_self() -> None:
    """A `key=` function that takes `self` gets it, so that instances can be apart."""
    assert Shop(1).by_number(7, Shop(0)) == "ran"
    assert Shop(1).by_number(7, Shop(1)) == "busy"


def test_a_bound_method_can_be_wrapped(once_locks: OnceHarness) -> None:
    """`once` as a function takes a method of an instance."""

    class Plain:
        def double(self, number: int) -> int:
            return 2 * number

    assert once(Plain().double)(4) == 8
