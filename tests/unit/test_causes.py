"""Events say in one word of a few why something was refused, put back or given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from once_core import once, publish
from once_core.delays import deferral_cause
from once_core.errors import StoreUnavailableError
from once_core.events import Event
from once_core.guard import Guard
from once_core.protocol import Start
from once_pytest import OnceFaults, assert_task_locked


def _causes(told: list[Event], kind: str) -> list[tuple[str, str]]:
    return [(each.task, each.cause) for each in told if each.kind == kind]


def test_duplicate(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """What was in the way of a call."""
    guard = guarded()
    publish.claim(guard, (1,), {}, "m1")
    publish.claim(guard, (1,), {}, "m2")

    assert _causes(told, "claimed") == [("shop.sync", "")]
    assert _causes(told, "duplicate") == [("shop.sync", "waiting")]
    assert_task_locked(guard, 1, state="waiting", holder="m1")


def test_deferral() -> None:
    """What a message waits for."""
    answers = [None, Start("overlap"), Start("early")]

    assert [deferral_cause(each) for each in answers] == ["store", "overlap", "early"]


def test_call_while_the_store_is_away(
    guarded: Callable[..., Guard], once_faults: OnceFaults, told: list[Event]
) -> None:
    """A call that raises is told like one that goes on."""
    once_faults.outage()
    with pytest.raises(StoreUnavailableError):
        publish.claim(guarded(), (1,), {}, "m1")
    publish.claim(guarded(on_store_error="run"), (1,), {}, "m2")

    assert _causes(told, "unavailable") == [("shop.sync", "publish")]
    assert _causes(told, "unguarded") == [("shop.sync", "publish")]


def test_function_while_the_store_is_away(once_faults: OnceFaults, told: list[Event]) -> None:
    """The same for functions, which have no publish."""

    @once(on_store_error="run")
    def lenient() -> None: ...

    @once
    def strict() -> None: ...

    with once_faults.outage():
        lenient()
        with pytest.raises(StoreUnavailableError):
            strict()

    assert [cause for _, cause in _causes(told, "unavailable")] == ["start"]
    assert [cause for _, cause in _causes(told, "unguarded")] == ["start"]
