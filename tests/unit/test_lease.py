"""The lease as the body of a task sees it."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest

from once_core import _lease as leases
from once_core._lease import Lease, current_lease
from once_core.errors import LeaseLostError

KEY = "once:shop.sync:0"


def test_fresh(clock: Any) -> None:
    """A fresh lease is held for its whole length."""
    lease = Lease(KEY, 7, 60.0)

    assert (lease.key, lease.fence, lease.length) == (KEY, 7, 60.0)
    assert (lease.lost, lease.remaining) == (False, 60.0)
    assert lease.check() is None  # type: ignore[func-returns-value]  # it must not raise


def test_counts_down(clock: Any) -> None:
    """Without renewal a lease lapses by itself, also while nobody can reach Redis."""
    lease = Lease(KEY, 7, 60.0)
    clock.pass_time(59.0)
    before = (lease.lost, lease.remaining)
    clock.pass_time(2.0)

    assert before == (False, 1.0)
    assert (lease.lost, lease.remaining) == (True, 0.0)


def test_renewed(clock: Any) -> None:
    """A renewal counts from the moment it was sent: its answer may have been slow."""
    lease = Lease(KEY, 7, 60.0)
    clock.pass_time(30.0)
    lease._renewed(clock.now - 5.0)

    assert lease.remaining == 55.0


def test_restored_after_it_lapsed(clock: Any) -> None:
    """A lease that lapsed while Redis was away is held again once it is renewed."""
    lease = Lease(KEY, 7, 60.0)
    clock.pass_time(61.0)
    lease._renewed(clock.now)

    assert (lease.lost, lease.remaining) == (False, 60.0)


def test_taken_is_for_ever(clock: Any) -> None:
    """What another attempt may have taken stays lost, renewed or not."""
    lease = Lease(KEY, 7, 60.0)
    lease._taken()
    lease._renewed(clock.now)

    assert (lease.lost, lease.remaining) == (True, 0.0)


def test_check(clock: Any) -> None:
    """check() stops the body, with what may have happened and what to do."""
    lease = Lease(KEY, 7, 60.0)
    clock.pass_time(61.0)
    with pytest.raises(LeaseLostError) as caught:
        lease.check()

    assert (caught.value.key, caught.value.fence) == (KEY, 7)
    assert str(caught.value) == (
        f"the lease of {KEY} (fence 7) is lost: this process stood still for longer than the "
        "lease of 60 s, the lock store was away for as long, or somebody released it; another "
        "attempt may run. Undo or stop; for tasks that block the interpreter give a longer lease="
    )


def test_repr(clock: Any) -> None:
    """The repr tells how long it is held."""
    lease = Lease(KEY, 7, 60.0)
    held = repr(lease)
    clock.pass_time(61.0)

    assert held == f"<Lease {KEY} fence=7 60.0 s left>"
    assert repr(lease) == f"<Lease {KEY} fence=7 lost>"


def test_current() -> None:
    """Outside of a body there is no lease; inside, it goes along with the context."""
    lease = Lease(KEY, 7, 60.0)
    token = leases._current.set(lease)
    seen: list[Lease | None] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: seen.append(context.run(current_lease)))
    thread.start()
    thread.join()
    inside = current_lease()
    leases._current.reset(token)

    assert inside is lease
    assert seen == [lease]
    assert current_lease() is None
