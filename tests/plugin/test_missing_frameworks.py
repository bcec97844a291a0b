"""Celery, Dramatiq, both or neither installed; fakeredis missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

TESTS = """
import pytest
from once_core import Guard, OnceOptions, Store
from once_pytest import *

guard = Guard("sync", lambda order_id, lang="en": None, OnceOptions(), lambda: Store("memory://x"))


def test_locks(once_locks, once_clock, once_faults, once_race):
    with once_locks.hold(guard, 1):
        assert_task_locked(guard, 1, state="running")
        once_clock.advance_to_expiry(guard, 1)
    assert_no_locks()
    assert_ran(guard, 1, times=0)
    assert_same_key(guard, call(1), call(order_id=1))
    told = once_race.run(lambda: guard.is_locked((1,), {}), n=2)
    assert [each.result for each in told] == [False, False]


def test_celery(once_celery_app):
    from once_celery import OnceTask
    task = once_celery_app.task(base=OnceTask, name="t")(lambda_)
    task.delay()
    assert_task_locked(task)


def test_dramatiq(once_dramatiq_broker):
    import dramatiq
    actor = dramatiq.actor(broker=once_dramatiq_broker, once=True)(lambda_)
    actor.send()
    assert_task_locked(actor)


def lambda_(): ...
"""


def blocked(folder: Path, *names: str) -> dict[str, str]:
    """Files with which these packages are as if they were not installed."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names),
        encoding="utf-8",
    )
    return {"test_it.py": TESTS}


@pytest.mark.parametrize("missing", [("celery",), ("dramatiq",), ("celery", "dramatiq")], ids=str)
def test_it_works_without(run: Run, tmp_path: Path, missing: tuple[str, ...]) -> None:
    """What needs a framework that is not there skips with its package; all else is the same."""
    suite = run(blocked(tmp_path, *missing), shop=False)

    there = [name for name in ("celery", "dramatiq") if name not in missing]
    assert suite.status == 0, suite.text
    assert suite.outcomes.pop("test_locks") == ["passed"]
    assert {name for name, each in suite.outcomes.items() if each == ["passed"]} == {
        "test_locks",
        *(f"test_{name}" for name in there),
    }
    for name in missing:
        suite.lines.fnmatch_lines(
            [f"SKIPPED *{name} is not installed: pip install 'once-tasks[[]{name}[]]'"]
        )


@pytest.mark.parametrize("missing", ["fakeredis", "lupa"])
def test_without_fakeredis_it_says_what_to_install(run: Run, tmp_path: Path, missing: str) -> None:
    """The fixture fails with the extra, and with what does without it."""
    suite = run(blocked(tmp_path, missing), "-k", "test_locks", shop=False)

    assert suite.outcomes == {"test_locks": ["error"]}
    suite.lines.fnmatch_lines(
        ["*needs fakeredis with Lua: pip install 'once-tasks[[]pytest[]]', * --once-redis=spawn*"]
    )
    assert "Traceback" not in suite.text


def test_without_fakeredis_a_server_does(run: Run, tmp_path: Path) -> None:
    """On a spawned server nothing of fakeredis is needed."""
    suite = run(
        blocked(tmp_path, "fakeredis", "lupa"), "-k", "test_locks", "--once-redis=spawn", shop=False
    )

    assert suite.outcomes == {"test_locks": ["passed"]}, suite.text
