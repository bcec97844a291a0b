"""Locks that a test leaves behind, keys that never end, and servers reached by accident."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import once_pytest
from once_core.devserver import DevServer
from once_pytest import OnceHarness
from once_pytest._leaks import leak_text

Run = Callable[..., Any]

LEAKS = """
import pytest
from shop import *
from once_pytest import *


def test_leak(once_locks):
    sync_order.delay(42)


def test_two_leaks(once_locks):
    sync_order.delay(1)
    login.delay("ada", password="hunter2")


def test_failed_already(once_locks):
    sync_order.delay(42)
    assert False, "its own"


@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail(once_locks):
    sync_order.delay(42)
    assert False


def test_said_so(once_locks):
    sync_order.delay(42)
    assert_task_locked(sync_order, 42)


def test_said_of_another(once_locks):
    sync_order.delay(42)
    sync_order.delay(43)
    assert_task_locked(sync_order, 42)


def test_held_by_the_test(once_locks):
    once_locks.hold(sync_order, 42)


def test_released(once_locks):
    sync_order.delay(42)
    assert once_locks.release_all() == 1


@pytest.mark.once(leaks="ignore")
def test_looks_away(once_locks):
    sync_order.delay(42)


@pytest.mark.once(leaks="warn")
def test_warns(once_locks):
    sync_order.delay(42)


@pytest.mark.once(leaks="ignore")
def test_immortal(once_locks):
    once_locks.client().set(once_locks.opened.prefix + "once:sync:1", "1")


def test_clean_after_all_that(once_locks):
    assert once_locks.locks == []
    assert once_locks.client().keys(once_locks.opened.prefix + "*") == []
"""


@pytest.fixture(scope="module", params=["fake", "spawn"])
def leaky(request: pytest.FixtureRequest, run_once: Run) -> Any:
    """A run of tests that leave locks behind, in memory and on a server."""
    return run_once({"test_leaks.py": LEAKS}, f"--once-redis={request.param}")


def test_what_is_a_leak(leaky: Any) -> None:
    """Held and not spoken of is an error; once is enough for a test that has failed already."""
    assert leaky.outcomes == {
        "test_leak": ["passed", "error"],
        "test_two_leaks": ["passed", "error"],
        "test_failed_already": ["failed"],
        "test_expected_to_fail": ["xfail"],
        "test_said_so": ["passed"],
        "test_said_of_another": ["passed", "error"],
        "test_held_by_the_test": ["passed"],
        "test_released": ["passed"],
        "test_looks_away": ["passed"],
        "test_warns": ["passed"],
        "test_immortal": ["passed", "error"],
        "test_clean_after_all_that": ["passed"],
    }


def test_a_leak_says_what_to_do(leaky: Any) -> None:
    """The table, why it matters, three remedies, and no traceback."""
    lines = leaky.of("test_leak")

    lines.fnmatch_lines(
        [
            "the test left a lock that is still held:",
            "  shop.sync_order(order_id=42, lang='en')   waiting   by *-*   3*.* s left",
            "In production it would refuse calls until it ends by itself. Either",
            "  - run what was sent: once_drain(), or a worker of once_worker;",
            "  - say that it is meant: assert_task_locked(task, ...), which also tests it;",
            '  - or look away: @pytest.mark.once(leaks="ignore"), once_leaks = ignore in the ini.',
        ]
    )
    lines.no_fnmatch_line("*once_pytest*")


def test_all_leaks_are_shown(leaky: Any) -> None:
    """Each has a line of the table, without secrets."""
    lines = leaky.of("test_two_leaks")

    lines.fnmatch_lines(["the test left locks that are still held:"])
    lines.fnmatch_lines_random(
        [
            "  shop.sync_order(order_id=1, lang='en') *",
            "  shop.login(user='ada', password=[*][*][*]) *",
        ]
    )


def test_of_a_failed_test_they_are_a_section(leaky: Any) -> None:
    """Its own error comes first, and the locks are shown beneath."""
    leaky.of("test_failed_already").fnmatch_lines(
        ["E       AssertionError: its own", "*- once locks -*", "  shop.sync_order(order_id=42*"]
    )


def test_a_leak_can_be_a_warning(leaky: Any) -> None:
    """It is listed among the warnings of the run, at its test."""
    leaky.lines.fnmatch_lines(
        [
            "*warnings summary*",
            "*test_leaks.py::test_warns",
            "*the test left a lock that is still held:",
        ]
    )


def test_keys_without_an_end_are_always_an_error(leaky: Any) -> None:
    """Looking away from leaks does not look away from keys without a TTL."""
    leaky.of("test_immortal").fnmatch_lines(
        [
            "the test left keys without a TTL, which would stay for ever:",
            "  once:sync:1",
            "Every key of a lock has to end by itself: write it with PX or call PEXPIRE",
        ]
    )


def test_the_ini_sets_what_a_leak_is(run: Run) -> None:
    """``once_leaks`` holds for all tests, and a marker is stronger."""
    text = (
        "import pytest\nfrom shop import *\n"
        "def test_ini(once_locks): sync_order.delay(1)\n"
        "@pytest.mark.once(leaks='error')\n"
        "def test_mark(once_locks): sync_order.delay(1)\n"
    )

    suite = run({"test_ini.py": text, "pytest.ini": "[pytest]\nonce_leaks = ignore\n"})

    assert suite.outcomes == {"test_ini": ["passed"], "test_mark": ["passed", "error"]}


def test_what_expired_is_no_leak(harness: OnceHarness, order: Any) -> None:
    """A lock whose time is over is none, and one that waits again after it ran is a new one."""
    order.send(1)
    harness.clock.advance_to_expiry(order.task, 1)
    assert leak_text(harness, is_error=True) == ""

    order.send(2)
    harness.assert_task_locked(order.task, 2, state="waiting")
    assert leak_text(harness, is_error=True) == ""
    order.drain(harness)
    with harness.hold(order.task, 2):
        assert leak_text(harness, is_error=True) == ""


# The strict guard

STRICT = """
import threading
import pytest
from once_core import Store
from once_pytest import *
from shop import *


def touch():
    Store("redis://:hunter2@10.9.8.7:6379/0").client().ping()


def test_store_by_hand(once_locks):
    touch()


def test_swallowed(once_locks):
    try:
        touch()
    except Exception:
        pass


def test_swallowed_in_a_thread(once_locks):
    def work():
        try:
            touch()
        except BaseException:
            pass
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.once(strict=False)
def test_allowed(once_locks):
    with pytest.raises(Exception) as caught:
        Store("redis://127.0.0.1:1/0").client().ping()
    assert "refused" in str(caught.value).lower() or "connect" in str(caught.value).lower()


def test_tasks_go_where_the_test_is(once_locks):
    sync_order.delay(1)
    assert_task_locked(sync_order, 1)


def test_without_the_fixture():
    with pytest.raises(Exception):
        sync_order.delay(1)


def test_memory_is_no_server():
    assert Store("memory://strict").client().ping()
"""


@pytest.fixture(scope="module")
def strict(run_once: Run) -> Any:
    """A run in which only tests with the fixture are guarded."""
    return run_once({"test_strict.py": STRICT})


@pytest.fixture(scope="module")
def strict_everywhere(run_once: Run) -> Any:
    """A run with ``once_strict``."""
    return run_once({"test_strict.py": STRICT}, "-o", "once_strict=true")


def test_a_test_with_locks_of_its_own_reaches_no_server(strict: Any) -> None:
    """Also where the code under test swallows the error, or it is another thread's."""
    assert strict.outcomes == {
        "test_store_by_hand": ["failed"],
        "test_swallowed": ["failed"],
        "test_swallowed_in_a_thread": ["failed"],
        "test_allowed": ["passed"],
        "test_tasks_go_where_the_test_is": ["passed"],
        "test_without_the_fixture": ["passed"],
        "test_memory_is_no_server": ["passed"],
    }


def test_a_refusal_says_where_and_what_to_do(strict: Any) -> None:
    """The server without its password, the caller's file and line, the fixture, the marker."""
    for name in ("test_store_by_hand", "test_swallowed", "test_swallowed_in_a_thread"):
        lines = strict.of(name)
        lines.fnmatch_lines(
            ["*would have reached the lock server at *10.9.8.7*(from test_strict.py:10); use *"]
        )
        assert not [line for line in lines.lines if "hunter2" in line and "Store(" not in line]
    assert "use the fixture once_locks, which gives it locks of its own, or " in strict.text
    assert "@pytest.mark.once(strict=False)" in strict.text


def test_a_whole_session_can_be_guarded(strict_everywhere: Any) -> None:
    """With ``once_strict`` a test without the fixture is refused as well; memory is no server."""
    outcomes = strict_everywhere.outcomes

    assert outcomes["test_without_the_fixture"] == ["failed"]
    assert outcomes["test_memory_is_no_server"] == ["passed"]
    assert outcomes["test_tasks_go_where_the_test_is"] == ["passed"]
    strict_everywhere.of("test_without_the_fixture").fnmatch_lines(
        ["*this test would have reached the lock server at *127.0.0.1:1*(from test_strict.py:*"]
    )


# Nothing is deleted that is not the test's


def test_nothing_ever_flushes() -> None:
    """No command that empties a database, or lists keys with KEYS, is in the package."""
    for path in Path(once_pytest.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"flush_?(all|db)|\.keys\(\s*[\"'f]", text, re.IGNORECASE), path


def test_a_server_that_is_not_ours_keeps_what_is_on_it(run: Run, server: DevServer) -> None:
    """``--once-redis=URL`` writes keys of its own and deletes just those."""
    url = server.url.replace("/0", "/3")
    with redis.Redis.from_url(url) as client:
        client.mset({"once:theirs": 1, "once-test:mine": 2, "sessions": 3})
        text = (
            "from shop import *\n"
            "def test_it(once_locks, once_faults):\n"
            "    sync_order.delay(1); send_mail.send(1)\n"
            "    names = once_locks.client().keys('once-test:main:*')\n"
            "    assert len(names) == 2, names\n"
            "    once_locks.assert_task_locked(sync_order, 1)\n"
            "    once_locks.assert_task_locked(send_mail, 1)\n"
            "def test_noscript(once_locks, once_faults):\n"
            "    once_faults.noscript()\n"
        )

        suite = run({"test_url.py": text}, f"--once-redis={url}")

        assert suite.outcomes == {"test_it": ["passed"], "test_noscript": ["failed"]}
        suite.of("test_noscript").fnmatch_lines(["E *RuntimeError: noscript() makes the server *"])
        assert sorted(client.keys()) == [b"once-test:mine", b"once:theirs", b"sessions"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("nowhere", "*--once-redis='nowhere' is none of fake, spawn or a redis://*"),
        ("redis://db.example.com/0", "*host 'db.example.com', which is not this machine*"),
        ("redis://127.0.0.1:1/0", "*127.0.0.1:1*"),
    ],
)
def test_a_wrong_server_is_refused(pytester: pytest.Pytester, kind: str, text: str) -> None:
    """What is no server, of another machine, or away, is the fixture's error; it says why."""
    pytester.makepyfile("def test_it(once_locks): pass")

    result = pytester.runpytest_inprocess(f"--once-redis={kind}")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([text])


ODD = """
from shop import *


def test_own_key(once_locks):
    once_locks.client().set(once_locks.opened.prefix + "mine", "1", ex=100)
    sync_order.delay(1)
    assert [each.task for each in once_locks.locks] == ["shop.sync_order"]
    once_locks.assert_task_locked(sync_order, 1)


def test_server_ends(once_locks, once_server):
    once_server.close()
    sync_order.delay(1)


def test_after_that(): ...
"""


def test_a_report_never_ends_the_session(run: Run) -> None:
    """Keys that are no locks, or a server that died, are for one test to fail of, not the run."""
    suite = run({"test_odd.py": ODD}, "--once-redis=spawn")

    assert "INTERNALERROR" not in suite.text
    assert suite.outcomes["test_own_key"] == ["passed"]
    assert "failed" in suite.outcomes["test_server_ends"]
    assert suite.outcomes["test_after_that"] == ["passed"]
