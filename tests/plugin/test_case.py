"""`unittest` and Django: the same toolkit by a mixin, with pytest and without."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Suite

TESTS = """
import asyncio
import unittest

from once_pytest import OnceTestMixin, assert_task_locked, call
from shop import *


class SyncTests(OnceTestMixin, unittest.TestCase):
    def test_waits(self):
        sync_order.delay(42)
        self.assert_task_locked(sync_order, 42, state="waiting", ttl=(3500, 3600))
        self.assert_task_not_locked(sync_order, 43)
        assert_task_locked(sync_order, 42)
        self.assertEqual(len(self.once_locks.locks), 1)

    def test_next_has_its_own(self):
        self.assert_no_locks()

    def test_actor(self):
        send_mail.send(1)
        send_mail.send(1)
        self.assert_duplicate(send_mail, 1)
        self.assert_task_locked(send_mail, 1)

    def test_keys(self):
        self.assert_same_key(sync_order, call(1), call(order_id=1))
        self.assert_different_keys(sync_order, call(1), call("1"))
        self.assertEqual(self.assert_valid_options(sync_order).lease, 60)

    def test_clock(self):
        sync_order.delay(1)
        self.once_clock.advance_to_expiry(sync_order, 1)
        self.assert_no_locks()

    def test_faults(self):
        with self.once_faults.outage(), self.assertRaises(Exception):
            sync_order.delay(1)

    def test_race(self):
        told = self.once_race.run(sync_order, 1, n=4)
        self.assertEqual(sum(each.result.once.is_duplicate for each in told), 3)
        self.assert_task_locked(sync_order, 1)

    def test_ran(self):
        sync_order.delay(77)
        self.once_drain(app)
        self.assert_ran(sync_order, 77)

    def test_subtests(self):
        for number in (1, 2):
            with self.subTest(number=number):
                sync_order.delay(number)
                self.assert_task_locked(sync_order, number)

    def test_wrong(self):
        sync_order.delay(42)
        self.assert_task_locked(sync_order, "42")

    def test_leak(self):
        sync_order.delay(42)

    def test_failed_already(self):
        sync_order.delay(42)
        self.fail("its own")

    @unittest.expectedFailure
    def test_expected(self):
        sync_order.delay(42)
        self.assert_no_locks()


class SetUpTests(OnceTestMixin, unittest.TestCase):
    def setUp(self):
        super().setUp()
        sync_order.delay(7)

    def test_it(self):
        self.assert_task_locked(sync_order, 7)


class LooseTests(OnceTestMixin, unittest.TestCase):
    once_leaks = "ignore"

    def test_leaks(self):
        sync_order.delay(42)


class AsyncTests(OnceTestMixin, unittest.IsolatedAsyncioTestCase):
    async def test_waits(self):
        await asyncio.to_thread(sync_order.delay, 42)
        self.assert_task_locked(sync_order, 42)
        client = self.once_locks.async_client()
        self.assertTrue(await client.ping())
        await client.aclose()


if __name__ == "__main__":
    unittest.main()
"""

RED = ["test_failed_already", "test_leak", "test_wrong"]


@pytest.fixture(scope="module")
def by_unittest(tmp_path_factory: pytest.TempPathFactory, shop: str) -> str:
    """What unittest's own runner prints; pytest cannot be imported there."""
    folder = tmp_path_factory.mktemp("unittest")
    (folder / "shop.py").write_text(shop)
    (folder / "test_it.py").write_text(
        "import sys\nsys.modules['pytest'] = sys.modules['_pytest'] = None\n" + TESTS
    )
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "test_it"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def by_pytest(run_once: Callable[..., Suite]) -> Suite:
    """The same tests, run by pytest."""
    return run_once({"test_it.py": TESTS})


def test_unittest_runs_them(by_unittest: str) -> None:
    """All are green but those that should not be, and no pytest is needed."""
    lines = [line for line in by_unittest.splitlines() if " ... " in line]
    red = sorted(line.split()[0] for line in lines if line.endswith(("FAIL", "ERROR")))

    assert len(lines) >= 15, by_unittest
    assert (red, "ModuleNotFoundError" in by_unittest) == (RED, False), by_unittest
    assert "expected failure" in by_unittest


def test_pytest_runs_them_too(by_pytest: Any) -> None:
    """With the same result."""
    red = sorted(name for name, each in by_pytest.outcomes.items() if {"failed", "error"} & {*each})

    assert red == RED, by_pytest.text


def test_messages_are_the_same(by_unittest: str, by_pytest: Any) -> None:
    """A failure shows the nearest lock, a leak the remedies; one error for a failed test."""
    for text in (by_unittest, by_pytest.text):
        lines = pytest.LineMatcher([line.removeprefix("E       ") for line in text.splitlines()])
        lines.fnmatch_lines_random(
            [
                "*AssertionError: shop.sync_order is not locked for order_id='42', lang='en'.",
                "*! order_id: expected '42' (str), held 42 (int)",
                "*the test left a lock that is still held:",
                "*In production it would refuse calls until it ends by itself. Either",
            ]
        )
    assert by_unittest.count("the test left a lock") == 1


def test_no_frame_of_ours_is_shown(by_unittest: str, by_pytest: Any) -> None:
    """Neither runner shows the inside of an assertion."""
    assert "once_pytest/_assertions.py" not in by_unittest
    assert "once_pytest/_assertions.py" not in by_pytest.text


def test_a_testcase_can_use_the_fixture(run_once: Callable[..., Suite]) -> None:
    """Without the mixin, ``usefixtures`` sets ``self.once_locks``."""
    suite = run_once(
        {
            "test_it.py": "import unittest, pytest\nfrom shop import *\n"
            "@pytest.mark.usefixtures('once_locks')\n"
            "class Tests(unittest.TestCase):\n"
            "    def test_it(self):\n"
            "        sync_order.delay(1)\n"
            "        self.once_locks.assert_task_locked(sync_order, 1)\n"
        }
    )

    assert suite.outcomes == {"test_it": ["passed"]}, suite.text


DJANGO = """
from django.db import transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from once_pytest import OnceTestMixin
from shop import *


class OrderTests(OnceTestMixin, TestCase):
    def test_sent_on_commit(self):
        transaction.on_commit(lambda: sync_order.delay(42))
        self.assert_task_not_locked(sync_order, 42)
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: sync_order.delay(42))
        self.assert_task_locked(sync_order, 42, state="waiting")

    def test_next_has_its_own(self):
        self.assert_no_locks()

    def test_ran(self):
        sync_order.delay(77)
        self.once_drain(app)
        self.assert_ran(sync_order, 77)


class CommitTests(OnceTestMixin, TransactionTestCase):
    def test_committed(self):
        with transaction.atomic():
            transaction.on_commit(lambda: sync_order.delay(42))
            self.assert_no_locks()
        self.assert_task_locked(sync_order, 42)


class SimpleTests(OnceTestMixin, SimpleTestCase):
    def test_leak(self):
        sync_order.delay(42)

"""


RUNNER = """
import sys

import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[],
    USE_TZ=True,
)
django.setup()

from django.test.runner import DiscoverRunner

sys.exit(DiscoverRunner(verbosity=2).run_tests(["test_orders"]))
"""


def test_django_runs_them(tmp_path: Path, shop: str) -> None:
    """Django's own runner and its test cases: what is sent on commit, databases, leaks."""
    pytest.importorskip("django")
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "test_orders.py").write_text(DJANGO)
    (tmp_path / "runner.py").write_text(RUNNER)

    done = subprocess.run(
        [sys.executable, "runner.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip

    text = done.stdout + done.stderr
    assert "Ran 5 tests" in text, text
    assert "FAILED (failures=1)" in text or "FAILED (errors=1)" in text, text
    assert "the test left a lock that is still held:" in text


def test_without_fakeredis_the_mixin_says_what_to_install(tmp_path: Path, shop: str) -> None:
    """The error of setUp names the extra."""
    (tmp_path / "test_it.py").write_text(
        "import sys, unittest\nsys.modules['fakeredis'] = None\n"
        "from once_pytest import OnceTestMixin\n"
        "class T(OnceTestMixin, unittest.TestCase):\n    def test_it(self): ...\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "unittest", "test_it"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip

    assert "once_pytest needs fakeredis with Lua: pip install 'once-tasks[pytest]'" in done.stderr


def test_a_base_class_is_no_place_to_forget_super(tmp_path: Path) -> None:
    """A setUp that does not call ours ends in an error that can be understood."""
    (tmp_path / "test_it.py").write_text(
        "import unittest\nfrom once_core import Guard, OnceOptions\n"
        "from once_pytest import OnceTestMixin\n"
        "guard = Guard('sync', lambda x: None, OnceOptions(), lambda: None)\n"
        "class T(OnceTestMixin, unittest.TestCase):\n"
        "    def setUp(self): ...\n"
        "    def test_it(self): self.assert_task_locked(guard, 1)\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "unittest", "test_it"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip

    assert "super().setUp()" in done.stderr, done.stderr
