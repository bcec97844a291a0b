"""What a test prints that went wrong: one run of wrong tests, one look at each message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

RunOnce = Callable[..., Any]

HOLDS = """
from shop import *


def test_green(once_locks):
    sync_order.delay(1)
    once_locks.assert_task_locked(sync_order, 1)


def test_red(once_locks):
    sync_order.delay(1)
    assert 0
"""

WRONG = """
import pytest
from unittest.mock import call
from shop import *
from once_pytest import *


def test_of_a_newcomer(once_locks):
    sync_order.delay(42)
    sync_order.delay(43)
    assert_task_locked(sync_order, "42")


def test_wrong_actor(once_locks):
    send_mail.send(7)
    assert_task_locked(send_mail, "7")


def test_nothing_sent(once_locks):
    assert_task_locked(sync_order, 42)


def test_called_as_a_function(once_locks):
    sync_order(42)
    assert_ran(sync_order, 42)


def test_without_the_fixture():
    assert_task_locked(sync_order, 42)


def test_plain_task(once_locks):
    assert_task_locked(plain, 42)


def test_wrong_call(once_locks):
    assert_task_locked(sync_order, 1, 2, 3)


def test_secret(once_locks):
    login.delay("ada", password="hunter2")
    assert_task_locked(login, "ada", password="letmein")


def test_expired(once_locks, once_clock):
    sync_order.delay(42)
    once_clock.advance(3605)
    assert_task_locked(sync_order, 42)


def test_released(once_locks):
    sync_order.delay(42)
    sync_order.release(42)
    assert_task_locked(sync_order, 42)


def test_not_locked(once_locks):
    sync_order.delay(42)
    assert_task_not_locked(sync_order, 42)


def test_no_locks(once_locks):
    sync_order.delay(42)
    once_locks.hold(sync_order, 7)
    assert_no_locks()


def test_never_ran(once_locks):
    sync_order.delay(42)
    assert_ran(sync_order, 42)


def test_no_duplicate(once_locks):
    sync_order.delay(42)
    assert_duplicate(sync_order, 42)


def test_not_deferred(once_locks):
    sync_order.delay(42)
    assert_deferred(sync_order, 42, times=(2, 3))


def test_keys_differ():
    assert_same_key(sync_order, call(1), call(order_id="1"))


def test_keys_equal():
    assert_different_keys(sync_order, call(1), call(1, lang="en"))


def test_no_call():
    assert_same_key(sync_order, 1, 2)


def test_expires_unlocked(once_locks, once_clock):
    once_clock.advance_to_expiry(sync_order, 42)


def test_expires_never(once_locks, once_clock):
    from once_core.attempt import Attempt
    once_clock.advance(-1)


def test_held_twice(once_locks):
    once_locks.hold(sync_order, 42)
    once_locks.hold(sync_order, 42)


def test_no_such_step(once_locks, once_faults):
    once_faults.lose_reply("acquire")


def test_wrong_schedule(once_locks, once_race):
    once_race.steps("A C", {"A": lambda: sync_order.delay(1)})


def test_race(once_locks, once_race):
    def check(told):
        assert told["B"].result.once.is_duplicate, "B won"
    once_race.explore(
        {"A": lambda: sync_order.delay(1), "B": lambda: sync_order.delay(1)}, check
    )


def test_outage(once_locks, once_faults):
    once_faults.outage()
    sync_order.delay(42)


def test_not_idempotent():
    rows = []
    assert_idempotent(rows.append, 1, state=lambda: len(rows))


def test_unknown_server(once_locks):
    once_locks.hold(sync_order, 1, state="busy")


def test_green(once_locks):
    sync_order.delay(42)
    assert_task_locked(sync_order, 42)
    print("it has a section")


def test_asserts_itself(once_locks):
    sync_order.delay(42)
    assert once_locks.locks == []
"""


@pytest.fixture(scope="module")
def wrong(run_once: RunOnce) -> Any:
    """A run of tests of which each is wrong."""
    return run_once({"test_wrong.py": WRONG})


def test_all_of_them_fail(wrong: Any) -> None:
    """Each wrong test is red, and none twice: what an assertion was told of is no leak."""
    names = re.findall(r"^def (test_\w+)", WRONG, re.MULTILINE)

    assert wrong.outcomes == {
        name: ["passed" if name == "test_green" else "failed"] for name in names
    }


def test_no_frame_of_ours_is_shown(wrong: Any) -> None:
    """A traceback of an assertion ends in the test."""
    assert re.findall(r"^\S*/once_pytest/\S+\.py:\d+: .*$", wrong.text, re.MULTILINE) == []
    assert "def assert_" not in wrong.text


def test_a_newcomer_reads_all_that_is_needed(wrong: Any) -> None:
    """Task, both values with types, the rule, the remedy, what is held instead, the events."""
    wrong.of("test_of_a_newcomer").fnmatch_lines(
        [
            '>       assert_task_locked(sync_order, "42")',
            "E       AssertionError: shop.sync_order is not locked for order_id='42', lang='en'.",
            "E       Nearest lock of the same task:",
            "E         ! order_id: expected '42' (str), held 42 (int)",
            "E           lang: 'en' (str)",
            "E       Why the keys differ: order_id differs in its type only, and a key tells 42, *",
            "E       Locks held now:",
            "E         shop.sync_order(order_id=4?, lang='en')   waiting   by *-*-*   3*.* s left",
            "E         shop.sync_order(order_id=4?, lang='en')   waiting   by *-*-*   3*.* s left",
            "E       Last events:",
            "E           *-*.* s  claimed shop.sync_order (message *-*-*)",
            "E           *0.00 s  claimed shop.sync_order (message *-*-*)",
            "test_wrong.py:*: AssertionError",
            "*- once locks -*",
            "*- once events -*",
        ]
    )
    assert "pass order_id as int here too" in wrong.text


def test_of_an_actor_too(wrong: Any) -> None:
    """Dramatiq's are shown in the same form."""
    wrong.of("test_wrong_actor").fnmatch_lines(
        [
            "E       AssertionError: send_mail is not locked for user_id='7', lang='en'.",
            "E         ! user_id: expected '7' (str), held 7 (int)",
            "E         send_mail(user_id=7, lang='en')   waiting   by *",
        ]
    )


EXPECTED = {
    "test_nothing_sent": [
        "E       AssertionError: shop.sync_order is not locked for order_id=42, lang='en'.",
        "E         none",
        "E         none: nothing was sent or run under guard",
        "E       Nothing was sent under guard in this test. Send the task with delay(), *",
    ],
    "test_called_as_a_function": [
        "E *Error: shop.sync_order never ran for order_id=42, lang='en', expected once.",
        "E       A queued task runs when a worker takes it: *once_drain() * called as functions*",
    ],
    "test_without_the_fixture": [
        "E *Error: assert_task_locked() needs the fixture once_locks, * def test_it(once_locks)*",
    ],
    "test_plain_task": [
        "E *Error: shop.plain has no lock: it is a plain Celery task; define it with base=OnceTask",
    ],
    "test_wrong_call": [
        "E       AssertionError: *is no call of shop.sync_order: *",
    ],
    "test_secret": [
        "E       AssertionError: shop.login is not locked for user='ada', password=[*][*][*].",
        "E         ! password: expected [*][*][*] (str), held [*][*][*] (str)",
        "E       Why the keys differ: password is part of the key *",
    ],
    "test_expired": [
        "E       AssertionError: shop.sync_order is not locked for order_id=42, lang='en'.",
        "E       It expired 5.0 s ago (ttl was 3600 s).",
    ],
    "test_released": [
        "E       It was locked until 0.? s ago: released: somebody asked for it.",
        "E       *released shop.sync_order: somebody asked for it*",
    ],
    "test_not_locked": [
        "E *Error: shop.sync_order is locked: waiting since 0.? s by message *-*, 3*.* s left.",
        "E       Locks held now:",
        "E       Last events:",
        "E       Its message was sent and has not run: run it with once_drain() or a worker.",
    ],
    "test_no_locks": [
        "E       AssertionError: 2 locks are held.",
        "E         shop.sync_order(order_id=*, lang='en')   *",
        "E         shop.sync_order(order_id=*, lang='en')   *",
    ],
    "test_never_ran": [
        "E *Error: shop.sync_order never ran for order_id=42, lang='en', expected once.",
        "E       *call once_drain() before this, or start an once_worker*",
    ],
    "test_no_duplicate": [
        "E *Error: shop.sync_order was never refused for order_id=42, *, expected at least once.",
    ],
    "test_not_deferred": [
        "E *Error: shop.sync_order was never deferred for order_id=42, *, expected 2 to 3 times.",
    ],
    "test_keys_differ": [
        "E *Error: shop.sync_order has different keys for call(1) and call(order_id='1'):",
        "E         ! order_id: 1 (int) and '1' (str)",
        "E       Why: order_id differs in its type only*",
    ],
    "test_keys_equal": [
        "E       AssertionError: shop.sync_order has one key for call(1) and call(1, lang='en'):",
        "E       Why: all their arguments mean the same: defaults are filled in, *",
    ],
    "test_no_call": ["E       TypeError: 1 is no call; write call(1)"],
    "test_expires_unlocked": [
        "E *Error: shop.sync_order is not locked, so nothing of it expires* order_id=42, *'en'.",
    ],
    "test_expires_never": ["E *ValueError: time cannot go back by 1 s"],
    "test_held_twice": [
        "E *Error: shop.sync_order cannot be held by the test*somebody has it*order_id=42, *",
        "E       *sync_order(order_id=42, *)   running   by held-by-test-* at held-by-test:0*",
    ],
    "test_no_such_step": [
        "E *ValueError: there is no step 'acquire'; there are *claim, *finish*start*",
    ],
    "test_wrong_schedule": ["E *ValueError: the schedule names [[]'C'], the calls are [[]'A']"],
    "test_race": [
        "E       AssertionError: B won",
        'E       in the schedule "* of the steps',
        "E         A: claim*",
        "E         B: claim*",
        'E       Try it alone: pytest --once-schedule="*", or once_race.steps("*", …)',
    ],
    "test_outage": [
        "E *StoreUnavailableError: *injected by once_faults.outage() at test_wrong.py:*",
    ],
    "test_not_idempotent": [
        "E       AssertionError: *append is not idempotent for call(1): run 2 changed the state.",
        "E         after run 1: 1",
        "E         after run 2: 2",
        "E       Overlaps are kept from it by its lock, but after a crash *",
    ],
    "test_unknown_server": ['E *ValueError: state=\'busy\' must be "running" or "waiting"'],
    "test_asserts_itself": [
        "*- once locks -*",
        "  shop.sync_order(order_id=42, lang='en')   waiting   by *-*   3*.* s left",
        "*- once events -*",
        "*0.00 s  claimed shop.sync_order (message *-*)",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_printed(wrong: Any, name: str) -> None:
    """Each message says what happened, with values, and what to do."""
    wrong.of(name).fnmatch_lines(EXPECTED[name])


def test_secrets_are_nowhere(wrong: Any) -> None:
    """Neither in messages nor in sections; pytest itself shows the lines of the test alone."""
    shown = [line for line in wrong.text.splitlines() if re.search("hunter2|letmein", line)]

    assert [line for line in shown if not re.match(r"[> ]      ", line)] == []


def test_a_green_test_shows_nothing_of_ours(wrong: Any) -> None:
    """Locks and events are shown of tests that fail."""
    wrong.of("test_green").no_fnmatch_line("*- once * -*")


def test_sections_of_all_tests(run_once: RunOnce) -> None:
    """With ``once_report = all`` locks and events are shown of green tests too."""
    told = run_once({"test_it.py": HOLDS}, "-o", "once_report=all")

    told.of("test_green").fnmatch_lines(
        ["*- once locks -*", "  shop.sync_order(order_id=1, *", "*- once events -*"]
    )


def test_sections_can_be_switched_off(run_once: RunOnce) -> None:
    """With ``once_report = none`` a failure shows no section of ours."""
    told = run_once({"test_it.py": HOLDS}, "-o", "once_report=none")

    assert told.outcomes == {"test_green": ["passed"], "test_red": ["failed"]}
    assert "once locks" not in told.text
