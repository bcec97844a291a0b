"""Each assertion passes when it should, and fails when it should."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from once_core.errors import OnceError
from once_pytest import OnceHarness, call

if TYPE_CHECKING:
    from conftest import Task


def text_of(assertion: Callable[..., object], *args: object, **kwargs: object) -> str:
    """What an assertion says that has to fail."""
    with pytest.raises(AssertionError) as caught:
        assertion(*args, **kwargs)
    return str(caught.value)


# assert_task_locked


def test_locked_passes_for_what_was_sent(harness: OnceHarness, order: Task) -> None:
    """Arguments are bound as Python binds them: by position, by name, with defaults."""
    order.send(42)

    harness.assert_task_locked(order.task, 42)
    harness.assert_task_locked(order.task, order_id=42)
    harness.assert_task_locked(order.task, 42, "en")
    harness.assert_task_locked(order.task, 42, lang="en")
    harness.assert_task_locked(order.task, call(42))
    harness.assert_task_locked(order.task, mock.call(order_id=42))


@pytest.mark.parametrize("other", [(43,), ("42",), (True,), (42, "de"), (42.0,)], ids=repr)
def test_locked_fails_for_other_arguments(
    harness: OnceHarness, order: Task, other: tuple[object, ...]
) -> None:
    """Another value, another type or another default is another unit of work."""
    order.send(42)

    text = text_of(harness.assert_task_locked, order.task, *other)

    assert text.startswith(f"shop.sync_order is not locked for order_id={other[0]!r}")


def test_locked_fails_when_nothing_was_sent(harness: OnceHarness, order: Task) -> None:
    """A newcomer who has sent nothing, or eagerly, is told so."""
    text = text_of(harness.assert_task_locked, order.task, 42)

    assert "Nothing was sent under guard in this test." in text
    assert "task_always_eager" in text
    assert "Locks held now:\n  none" in text


def test_locked_fails_after_its_end(harness: OnceHarness, order: Task) -> None:
    """What was locked, and is not any more, is said to have ended, and how."""
    order.send(42)
    order.drain(harness)

    text = text_of(harness.assert_task_locked, order.task, 42)

    assert re.search(r"It was locked until \d+\.\d s ago: finished", text)


def test_locked_names_what_expired_just_before(
    harness: OnceHarness, make_task: Callable[..., Task]
) -> None:
    """A lock whose time is over is said to have expired, when, and how long it was."""
    order = make_task(ttl=300)
    order.send(42)
    harness.clock.advance(301.2)

    text = text_of(harness.assert_task_locked, order.task, 42)

    assert "It expired 1.2 s ago (ttl was 300 s)." in text


@pytest.mark.parametrize("given", [(..., "en"), (42, ...), (...,), (..., ...)], ids=repr)
def test_locked_takes_a_wildcard(
    harness: OnceHarness, order: Task, given: tuple[object, ...]
) -> None:
    """``...`` matches any one argument."""
    order.send(42)

    harness.assert_task_locked(order.task, *given)


@pytest.mark.parametrize("given", [(..., "de"), (43, ...)], ids=repr)
def test_locked_fails_for_a_wildcard_that_fits_nothing(
    harness: OnceHarness, order: Task, given: tuple[object, ...]
) -> None:
    """The other arguments still count."""
    order.send(42)

    assert "is not locked for" in text_of(harness.assert_task_locked, order.task, *given)


def test_a_single_wildcard_is_any_call(harness: OnceHarness, order: Task) -> None:
    """It passes for any lock of the task, and fails without one, in words that say so."""
    text = text_of(harness.assert_task_locked, order.task, ...)

    assert "shop.sync_order is not locked for any arguments." in text


def test_locked_tells_states_apart(harness: OnceHarness, make_task: Callable[..., Task]) -> None:
    """Waiting, running and kept can each be asked for."""
    order = make_task(keep_for=30)
    seen: list[str] = []

    def body(number: int) -> None:
        harness.assert_task_locked(order.task, number, state="running")
        seen.append(text_of(harness.assert_task_locked, order.task, number, state="waiting"))

    order.bodies.append(body)
    order.send(42)
    harness.assert_task_locked(order.task, 42, state="waiting")
    first = text_of(harness.assert_task_locked, order.task, 42, state="running")
    order.drain(harness)

    assert first.startswith("shop.sync_order is locked, but not with state running, for ")
    assert "but not with state waiting" in seen[0]
    harness.assert_task_locked(order.task, 42, state="kept")
    harness.assert_task_not_locked(order.task, 43)


def test_locked_tells_holders_apart(harness: OnceHarness, order: Task) -> None:
    """The holder can be asked for by id, or by a handle that has one."""
    held = harness.hold(order.task, 42)

    harness.assert_task_locked(order.task, 42, holder=held.message_id)
    harness.assert_task_locked(order.task, 42, holder=held)
    text = text_of(harness.assert_task_locked, order.task, 42, holder="somebody")

    assert "is locked, but not with holder somebody, for" in text
    assert held.message_id in text


def test_locked_tells_a_sent_message_as_holder(harness: OnceHarness, order: Task) -> None:
    """The id that a publish returned holds what waits."""
    message_id = order.send(42)

    harness.assert_task_locked(order.task, 42, holder=message_id, state="waiting")


def test_locked_asks_how_long(harness: OnceHarness, make_task: Callable[..., Task]) -> None:
    """``ttl=`` bounds what is left, also after time has passed."""
    order = make_task(ttl=300)
    order.send(42)

    harness.assert_task_locked(order.task, 42, ttl=(290, 300))
    harness.clock.advance(100)
    harness.assert_task_locked(order.task, 42, ttl=(190, 200))
    text = text_of(harness.assert_task_locked, order.task, 42, ttl=(290, 300))

    assert "but not with seconds left between 290 and 300, for" in text


def test_locked_waits_for_other_threads(harness: OnceHarness, order: Task) -> None:
    """``within=`` polls until another thread has sent it."""
    thread = threading.Timer(0.05, order.send, (42,))
    thread.start()

    harness.assert_task_locked(order.task, 42, within=10)
    thread.join()


def test_locked_gives_up_waiting(harness: OnceHarness, order: Task) -> None:
    """What does not come true fails, and says how long it was waited for."""
    text = text_of(harness.assert_task_locked, order.task, 42, within=0.05)

    assert "shop.sync_order is not locked within 0.05 s for order_id=42" in text


def test_arguments_that_the_task_does_not_take_are_no_riddle(
    harness: OnceHarness, order: Task
) -> None:
    """A wrong call fails as an assertion that names the call and the task."""
    for given in [(), (1, 2, 3), (..., 2, 3)]:
        text = text_of(harness.assert_task_locked, order.task, *given)
        assert "is no call of shop.sync_order" in text


# assert_task_not_locked, assert_no_locks


def test_not_locked(harness: OnceHarness, order: Task) -> None:
    """It passes for what is free, and fails for what is held: by whom, since when, what to do."""
    harness.assert_task_not_locked(order.task, 42)
    message_id = order.send(42)
    harness.assert_task_not_locked(order.task, 43)

    text = text_of(harness.assert_task_not_locked, order.task, 42)

    assert re.match(
        rf"shop\.sync_order is locked: waiting since \d\.\d s by message {message_id}, "
        r"\d+\.\d s left\.",
        text,
    )
    assert "once_drain()" in text


def test_not_locked_takes_a_wildcard(harness: OnceHarness, order: Task) -> None:
    """One lock that the pattern fits is enough to fail."""
    order.send(42)

    harness.assert_task_not_locked(order.task, ..., "de")
    text_of(harness.assert_task_not_locked, order.task, ..., "en")
    text_of(harness.assert_task_not_locked, order.task, ...)


def test_not_locked_names_who_runs(harness: OnceHarness, order: Task) -> None:
    """Of a running one it says where, and how to see it end."""
    with harness.hold(order.task, 42):
        text = text_of(harness.assert_task_not_locked, order.task, 42)

    assert "is locked: running since" in text
    assert "at held-by-test:0" in text
    assert "advance_to_expiry" in text


def test_not_locked_waits(harness: OnceHarness, order: Task) -> None:
    """``within=`` polls until another thread has let it go, and fails if none does."""
    held = harness.hold(order.task, 42)
    text_of(harness.assert_task_not_locked, order.task, 42, within=0.05)
    thread = threading.Timer(0.05, held.end)
    thread.start()

    harness.assert_task_not_locked(order.task, 42, within=10)
    thread.join()


def test_no_locks(harness: OnceHarness, order: Task) -> None:
    """It passes for none, and fails with a table of all that are held."""
    harness.assert_no_locks()
    order.send(42)
    order.send(43)

    text = text_of(harness.assert_no_locks)

    assert text.startswith("2 locks are held.")
    assert "shop.sync_order(order_id=42, lang='en')" in text
    assert "shop.sync_order(order_id=43, lang='en')" in text


# assert_ran, assert_duplicate, assert_deferred


def test_ran(harness: OnceHarness, order: Task) -> None:
    """It counts bodies that ran under guard, of one call, of a pattern or of any."""
    harness.assert_ran(order.task, ..., times=0)
    for number in (42, 42, 43):
        order.send(number)
        order.drain(harness)

    harness.assert_ran(order.task, 42, times=2)
    harness.assert_ran(order.task, 43)
    harness.assert_ran(order.task, ..., "en", times=3)
    harness.assert_ran(order.task, ..., times=(1, 3))
    harness.assert_ran(order.task, 44, times=0)


def test_ran_fails(harness: OnceHarness, order: Task) -> None:
    """Too often, too seldom, or for other arguments; it shows which."""
    order.send(42)
    waiting = text_of(harness.assert_ran, order.task, 42)
    order.drain(harness)

    often = text_of(harness.assert_ran, order.task, 42, times=0)
    seldom = text_of(harness.assert_ran, order.task, 42, times=2)
    other = text_of(harness.assert_ran, order.task, "42")

    assert waiting.startswith("shop.sync_order never ran for order_id=42, lang='en', expected once")
    assert "once_drain()" in waiting
    assert often.startswith("shop.sync_order ran once for order_id=42, lang='en', expected never.")
    assert "ran once for order_id=42, lang='en', expected twice." in seldom
    assert "It ran for other arguments:\n  order_id=42, lang='en'" in other
    assert "held 42" not in other  # nothing is
    assert "order_id differs in its type only" in other


def test_duplicate(harness: OnceHarness, order: Task) -> None:
    """It passes when a publish was refused, and can count how often."""
    order.send(42)
    never = text_of(harness.assert_duplicate, order.task, 42)
    order.send(42)
    order.send(42)

    harness.assert_duplicate(order.task, 42)
    harness.assert_duplicate(order.task, 42, times=2)
    harness.assert_duplicate(order.task, ..., "en", times=2)
    harness.assert_duplicate(order.task, 43, times=0)
    once = text_of(harness.assert_duplicate, order.task, 42, times=1)
    other = text_of(harness.assert_duplicate, order.task, "42")

    assert never.startswith("shop.sync_order was never refused for order_id=42, lang='en'")
    assert "was refused twice for order_id=42, lang='en', expected once." in once
    assert "It was refused for other arguments:" in other


def test_deferred(harness: OnceHarness, order: Task) -> None:
    """It passes when a message was put back because another attempt ran."""
    held = harness.hold(order.task, 42)
    order.send(42)
    never = text_of(harness.assert_deferred, order.task, 42)
    order.drain(harness, until_idle=False)

    harness.assert_deferred(order.task, 42)
    harness.assert_deferred(order.task, 42, times=1)
    harness.assert_ran(order.task, 42, times=0)
    held.end()
    order.drain(harness)
    harness.assert_ran(order.task, 42)
    text = text_of(harness.assert_deferred, order.task, 42, times=5)

    assert never.startswith("shop.sync_order was never deferred for order_id=42")
    assert ", expected 5 times." in text


# assert_same_key, assert_different_keys, assert_valid_options: without any lock


def test_same_key(order: Task) -> None:
    """Positions, names and defaults are one; it needs neither a harness nor a server."""
    KEYS.assert_same_key(
        order.task, call(1), call(order_id=1), call(1, "en"), mock.call(1, lang="en")
    )
    text = text_of(KEYS.assert_same_key, order.task, call(1), call("1"))

    assert text == (
        "shop.sync_order has different keys for call(1) and call('1'):\n"
        "  ! order_id: 1 (int) and '1' (str)\n"
        "    lang: 'en' (str)\n"
        "Why: order_id differs in its type only, and a key tells 42, '42', 42.0 and True apart; "
        "pass order_id as str here too, or convert it where the task is called."
    )


def test_different_keys(order: Task) -> None:
    """Values and types tell calls apart; what is one is shown with the reason."""
    KEYS.assert_different_keys(order.task, call(1), call("1"), call(True), mock.call(1, "de"))
    text = text_of(KEYS.assert_different_keys, order.task, call(1), call(2), call(order_id=1))

    assert text.startswith("shop.sync_order has one key for call(1) and call(order_id=1):\n")
    assert "Why: all their arguments mean the same" in text


def test_keys_say_what_the_option_leaves_out(make_task: Callable[..., Task]) -> None:
    """With ``key=`` the messages name it, and the arguments that do not count."""
    order = make_task(key=["order_id"])
    KEYS.assert_same_key(order.task, call(1, "en"), call(1, "de"))

    one = text_of(KEYS.assert_different_keys, order.task, call(1, "en"), call(1, "de"))
    two = text_of(KEYS.assert_same_key, order.task, call(1, "en"), call(2, "de"))

    assert "lang: 'en' (str) and 'de' (str)   (not part of the key)" in one
    assert "key=['order_id'] makes it of order_id" in one
    assert "order_id is part of the key (key=['order_id']) and differs" in two


@pytest.mark.parametrize("given", [(), (call(1),), (1, 2)], ids=repr)
def test_keys_are_compared_of_calls(order: Task, given: tuple[object, ...]) -> None:
    """Fewer than two, or values that are no calls, are the test's own mistake: a TypeError."""
    with pytest.raises(TypeError, match="call"):
        KEYS.assert_same_key(order.task, *given)


def test_a_call_without_a_key_fails(order: Task) -> None:
    """What has no canonical form fails with the parameter and the way out."""
    text = text_of(KEYS.assert_same_key, order.task, call(object()), call(1))

    assert text.startswith("a call of shop.sync_order has no key: ")
    assert "order_id" in text


def test_valid_options(make_task: Callable[..., Task]) -> None:
    """It returns the options that hold."""
    order = make_task(lease=30, scope="until_done")

    options = KEYS.assert_valid_options(order.task)

    assert (options.lease, options.scope) == (30, "until_done")


def test_valid_options_fails_for_what_cannot_work(make_task: Callable[..., Task]) -> None:
    """Contradictions are found when the task is defined, or here: as an error with the remedy."""
    with pytest.raises((AssertionError, OnceError), match="lease"):
        KEYS.assert_valid_options(make_task(lease=0).task)


@pytest.mark.parametrize("framework", ["celery", "dramatiq", "function", "value"])
def test_what_is_under_no_guard_says_how_to_be(harness: OnceHarness, framework: str) -> None:
    """Every assertion says of a plain task, actor or function how to put it under guard."""
    named, remedy = plain(framework)

    for assertion in (
        KEYS.assert_valid_options,
        harness.assert_task_locked,
        harness.assert_task_not_locked,
        harness.assert_ran,
        harness.assert_duplicate,
        harness.assert_deferred,
    ):
        text = text_of(assertion, named)
        assert " has no lock: " in text
        assert remedy in text


def _body() -> None:
    """Of tasks under no guard."""


def plain(framework: str) -> tuple[Any, str]:
    """Something without a guard, and what to be told of it."""
    if framework == "celery":
        from celery import Celery

        app = Celery("plain", set_as_current=False)
        return app.task(name="plain", shared=False)(_body), "base=OnceTask"
    if framework == "dramatiq":
        import dramatiq

        from once_pytest._brokers import new_broker

        return dramatiq.actor(broker=new_broker("", "", {}))(_body), "once=True"
    if framework == "function":
        return _body, "plain function"
    return 42, "it is int"


# assert_idempotent


def test_idempotent(order: Task) -> None:
    """The body runs three times, or as often as said; the state after each must be the first's."""
    runs: list[object] = []
    order.bodies += [runs.append] * 5

    KEYS.assert_idempotent(order.task, 42, state=lambda: set(runs))
    KEYS.assert_idempotent(order.task, 42, state=lambda: set(runs), times=2)

    assert runs == [42] * 5


def test_idempotent_fails(order: Task) -> None:
    """A state that a later run changes is shown, before and after, with what to do."""
    runs: list[object] = []
    order.bodies += [runs.append] * 3

    text = text_of(KEYS.assert_idempotent, order.task, 42, state=lambda: len(runs))

    assert text.startswith(
        "shop.sync_order is not idempotent for call(42): run 2 changed the state."
    )
    assert "after run 1: 1\n  after run 2: 2" in text
    assert "delivered again" in text


def test_idempotent_runs_coroutines() -> None:
    """An async body needs no plugin."""
    done: set[int] = set()

    async def pay(number: int) -> None:
        await asyncio.sleep(0)
        done.add(number)

    KEYS.assert_idempotent(pay, 7, state=lambda: set(done))

    assert done == {7}


def test_idempotent_passes_an_error_on(order: Task) -> None:
    """What the body raises is the test's to see."""

    def body(number: int) -> None:
        raise KeyError(number)

    order.bodies.append(body)

    with pytest.raises(KeyError):
        KEYS.assert_idempotent(order.task, 42, state=lambda: None)


def test_idempotent_wants_two_runs(order: Task) -> None:
    """One run shows nothing."""
    with pytest.raises(ValueError, match="times=1 shows nothing"):
        KEYS.assert_idempotent(order.task, 42, state=lambda: None, times=1)


# What holds for all of them


def test_secrets_are_redacted(harness: OnceHarness) -> None:
    """Arguments with the name of a secret are three stars in every text."""
    from celery import Celery

    from once_celery import OnceTask

    app = Celery("secrets", broker="memory://", set_as_current=False)

    @app.task(base=OnceTask, name="login", shared=False)
    def login(user, password, api_key=None): ...  # noqa: ANN001, ANN202  # as users write it

    login.delay("ada", "hunter2", api_key="sk-1234")
    texts = [
        text_of(harness.assert_task_locked, login, "eve", "letmein"),
        text_of(harness.assert_task_not_locked, login, "ada", "hunter2", "sk-1234"),
        text_of(harness.assert_no_locks),
        text_of(harness.assert_ran, login, "ada", "hunter2", "sk-1234"),
        text_of(harness.assert_same_key, login, call("a", "hunter2"), call("a", "letmein")),
        text_of(harness.assert_idempotent, login, "ada", "hunter2", state=iter([1, 2]).__next__),
        text_of(harness.assert_task_locked, login, "ada", "hunter2", "letmein", "x"),
    ]

    for text in texts:
        assert not re.search("hunter2|letmein|sk-1234", text), text
    assert "password=***" in texts[0]


def test_a_task_with_secret_shows_what_its_preview_names(harness: OnceHarness) -> None:
    """With ``secret=`` nothing is shown but what ``preview=`` names."""
    from celery import Celery

    from once_celery import OnceTask

    app = Celery("secrets", broker="memory://", set_as_current=False)

    @app.task(
        base=OnceTask, name="pay", shared=False, once={"secret": "s" * 32, "preview": ["order"]}
    )
    def pay(order, amount): ...  # noqa: ANN001, ANN202  # as users write it

    pay.delay(7, 12345)
    text = text_of(harness.assert_no_locks)

    assert "pay(order=7, amount=***)" in text


def test_parameters_may_have_the_names_of_ours(harness: OnceHarness) -> None:
    """A task whose parameter is called ``state`` or ``ttl`` is asked for with `call`."""
    from celery import Celery

    from once_celery import OnceTask

    app = Celery("names", broker="memory://", set_as_current=False)

    @app.task(base=OnceTask, name="names", shared=False)
    def names(state, ttl=1, task=0): ...  # noqa: ANN001, ANN202  # as users write it

    names.delay("new", task=3)

    harness.assert_task_locked(names, call(state="new", task=3), state="waiting")
    harness.assert_task_locked(names, call("new", 1, 3))
    text_of(harness.assert_task_locked, names, call(state="old", task=3))


def test_functions_look_at_the_harness_that_is_open(order: Task) -> None:
    """The functions are the methods of the open harness, and say so where none is."""
    import once_pytest

    with OnceHarness():
        order.send(1)
        once_pytest.assert_task_locked(order.task, 1)
        once_pytest.assert_task_not_locked(order.task, 2)
        text_of(once_pytest.assert_no_locks)
        text_of(once_pytest.assert_ran, order.task, 1)
        text_of(once_pytest.assert_duplicate, order.task, 1)
        text_of(once_pytest.assert_deferred, order.task, 1)

    for name in ("assert_no_locks", "assert_task_locked", "assert_ran"):
        text = text_of(getattr(once_pytest, name), order.task)
        assert text.startswith(f"{name}() needs the fixture once_locks")


class _Keys:
    """The assertions that need no harness, as a module of functions."""

    def __getattr__(self, name: str) -> Any:
        import once_pytest

        return getattr(once_pytest, name)


KEYS: Any = _Keys()
