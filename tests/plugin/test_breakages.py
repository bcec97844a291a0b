"""A broken product is noticed: with one line of a copy broken, assertions turn red."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import once_core

if TYPE_CHECKING:
    from conftest import Suite

pytest.importorskip("celery")

SUITE = """
import once_core
from pathlib import Path

import pytest
from once_celery import OnceTask
from once_pytest import *


@pytest.fixture
def sync_order(once_celery_app):
    @once_celery_app.task(base=OnceTask, bind=True, shared=False, name="sync_order")
    def sync_order(self, order_id, lang="en"):
        bodies.pop(0)() if bodies else None

    return sync_order


bodies = []


def test_it_is_the_copy():
    assert Path(once_core.__file__).parents[1] == Path(__file__).parent


def test_runs_once(once_locks, sync_order, once_drain):
    bodies.append(lambda: assert_task_locked(sync_order, 1, state="running", ttl=(50, 60)))
    sync_order.delay(1)
    sync_order.delay(1)
    assert_task_locked(sync_order, 1, state="waiting", ttl=(3500, 3600))
    assert_duplicate(sync_order, 1)
    once_drain()
    assert_ran(sync_order, 1)
    assert_no_locks()


def test_nobody_else_starts(once_locks, sync_order, once_drain):
    held = once_locks.hold(sync_order, 1)
    sync_order.delay(1)
    once_drain(until_idle=False)
    assert_ran(sync_order, 1, times=0)
    assert_deferred(sync_order, 1)
    held.end()
    once_drain()
    assert_ran(sync_order, 1)


def test_the_lock_of_another_is_not_freed(once_locks, sync_order, once_drain):
    # as after a pause longer than the lease: somebody else runs when we come to our end
    others = []

    def lose_it():
        once_locks.forget()
        others.append(once_locks.hold(sync_order, 1))

    bodies.append(lose_it)
    sync_order.delay(1)
    once_drain()
    assert_task_locked(sync_order, 1, state="running", holder=others[0])


def test_locks_expire(once_locks, sync_order, once_clock):
    sync_order.delay(1)
    once_clock.advance_to_expiry(sync_order, 1)
    assert_task_not_locked(sync_order, 1)


def test_what_is_left_ends_by_itself(once_locks, sync_order):
    sync_order.delay(1)
    assert_task_locked(sync_order, 1)


def test_keys(once_locks, sync_order):
    assert_same_key(sync_order, call(1), call(order_id=1), call(1, "en"))
    assert_different_keys(sync_order, call(1), call("1"), call(2), call(1, "de"))


def test_one_of_many(once_locks, once_race, sync_order):
    told = once_race.run(sync_order, 1, n=4)
    assert sum(not each.result.once.is_duplicate for each in told) == 1
    assert_task_locked(sync_order, 1)
"""


class Break(NamedTuple):
    """One line of the product, and which tests have to turn red for it.

    Attributes:
        file: In which.
        old: A text that is there once.
        new: What takes its place.
        red: Names of tests of `SUITE`, at least those.
    """

    file: str
    old: str
    new: str
    red: tuple[str, ...]


BREAKS = {
    "release without ownership check": Break(
        "once_core/lua/finish.lua",
        "  if seen[1] == ARGV[4] and redis.call('HLEN', KEYS[1]) == fields then",
        "  if seen[1] and redis.call('HLEN', KEYS[1]) == fields then",
        ("test_the_lock_of_another_is_not_freed",),
    ),
    "no TTL": Break(
        "once_core/lua/claim.lua",
        "    redis.call('PEXPIRE', KEYS[1], text('%.0f', till - now))",
        "",
        ("test_runs_once", "test_locks_expire", "test_what_is_left_ends_by_itself"),
    ),
    "key without defaults": Break(
        "once_core/keys.py",
        "values.append(self._defaults[name])",
        "values.append(None)",
        ("test_keys",),
    ),
    "start that always says started": Break(
        "once_core/protocol.py",
        '    if status == "early":\n',
        '    if status == "overlap":\n        return Start("started", 1, 0.0, True)\n'
        '    if status == "early":\n',
        ("test_nobody_else_starts",),
    ),
    "claim that always says claimed": Break(
        "once_core/protocol.py",
        '    ticket, holder_id = rest.split(" ", 1)\n',
        '    return Claim("claimed", 1, 0.0)\n',
        ("test_runs_once", "test_one_of_many"),
    ),
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The packages as they are installed, in a folder that comes first on the path."""
    for name in ("once_core", "once_celery", "once_dramatiq", "once_pytest"):
        shutil.copytree(
            Path(once_core.__file__).parents[1] / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return tmp_path


def run_there(run: Callable[..., Suite], folder: Path, place: str = "fake") -> Any:
    """Run the suite on the copy."""
    return run(
        {"test_it.py": SUITE}, f"--once-redis={place}", shop=False, env={"PYTHONPATH": str(folder)}
    )


@pytest.mark.parametrize("place", ["fake", "spawn"])
def test_a_product_that_works_is_green(run: Callable[..., Suite], copied: Path, place: str) -> None:
    """The suite finds nothing wrong in a copy that is whole, in memory and on a server."""
    suite = run_there(run, copied, place)

    assert suite.status == 0, suite.text


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_product_is_red(run: Callable[..., Suite], copied: Path, name: str) -> None:
    """Each breakage turns the assertion red that is there for it, with a message that fits."""
    file, old, new, red = BREAKS[name]
    path = copied / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is not once in {file}"
    path.write_text(text.replace(old, new), encoding="utf-8")

    suite = run_there(run, copied)

    wrong = {test for test, each in suite.outcomes.items() if {"failed", "error"} & {*each}}
    assert {*red} <= wrong, suite.text
    assert "test_it_is_the_copy" not in wrong
    assert "INTERNALERROR" not in suite.text
