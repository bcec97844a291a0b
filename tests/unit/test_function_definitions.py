"""`@once` where a function is defined: what it refuses, what it keeps, where it finds its store."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import inspect
import pickle
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, get_type_hints

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from once_core import (
    ConfigurationError,
    KeyDerivationError,
    OverlapError,
    StoreUnavailableError,
    configure,
    once,
)
from once_core._places import _async_stores
from once_pytest.harness import OnceHarness


def plain(order_id: int, note: str = "x") -> list[int]:
    """Check an order."""
    return [order_id]


def generator() -> Iterator[int]:
    """A generator."""
    yield 1


async def async_generator() -> AsyncIterator[int]:
    """An asynchronous one."""
    yield 1


@contextlib.contextmanager
def managed() -> Iterator[int]:
    """A context manager."""
    yield 1


async def coroutine() -> None:
    """What is hidden by the next one."""


@functools.wraps(coroutine)
def hidden_coroutine() -> object:
    """A coroutine function that no longer looks like one."""
    return coroutine()


class CanBeCalled:
    def __call__(self) -> None: ...


# Refused


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (generator, "is a generator.*guard nothing.*lease"),
        (async_generator, "is a generator.*guard nothing.*lease"),
        (CanBeCalled, "takes a function"),
        (CanBeCalled(), "object that can be called"),
        (functools.partial(plain, 1), "object that can be called|takes a function"),
        (7, "takes a function"),
    ],
    ids=["generator", "async generator", "class", "callable object", "partial", "number"],
)
def test_what_cannot_be_guarded_is_refused_where_it_is_defined(function: Any, text: str) -> None:
    """What returns before its body begins, and what is no function, is refused with the reason."""
    with pytest.raises(ConfigurationError, match=text):
        once(function)
    with pytest.raises(ConfigurationError, match=text):
        once(key=[])(function)


@pytest.mark.parametrize("function", [managed, hidden_coroutine])
def test_what_only_looks_like_a_plain_function_is_not_guarded_in_silence(
    once_locks: OnceHarness, function: Any
) -> None:
    """A wrapper whose body runs after it has returned is an error that says where @once belongs."""
    made = once(key=[])(function)

    with pytest.raises(ConfigurationError, match="its body has not run"):
        made()
    assert made.is_locked() is False


@pytest.mark.parametrize("attribute", ["apply_async", "kiq", "send_with_options", "delay"])
def test_a_task_is_refused_for_its_decorator_belongs_above(attribute: str) -> None:
    """Above the decorator of a task queue it would guard nothing, and the error says where to."""

    def task() -> None: ...

    setattr(task, attribute, lambda: None)

    with pytest.raises(ConfigurationError, match=r"Write .* above @once"):
        once(task)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_overlap": "defer"}, "must be one of 'skip', 'raise', 'wait'"),
        ({"on_overlap": "skip", "raise_on_locked": True}, "says something else"),
        ({"on_overlap": "raise", "raise_on_locked": False}, "says something else"),
        ({"on_overlap": "wait", "raise_on_locked": True}, "says something else"),
        ({"raise_on_locked": True, "return_on_locked": 1}, "never returned"),
        ({"on_overlap": "wait", "return_on_locked": 1}, "never returned"),
        ({"wait_up_to": 5}, 'needs on_overlap="wait"'),
        ({"on_overlap": "wait", "wait_up_to": -1}, "must be seconds"),
        ({"on_overlap": "wait", "wait_up_to": "5"}, "must be seconds"),
        ({"on_overlap": "wait", "wait_up_to": True}, "must be seconds"),
        ({"on_overlap": "wait", "wait_up_to": float("nan")}, "must be seconds"),
        ({"key": "order-{oder_id}"}, "did you mean 'order_id'"),
        ({"key": "order"}, "names no parameter"),
        ({"leese": 5}, "did you mean 'lease'"),
        ({"limit": 0}, "limit=0"),
        ({"keep_for": 5}, "keep_for"),
        ({"scope": "queued"}, "scope"),
        ({"ttl": 5}, "ttl"),
        ({"heal_after": 5}, "heal_after"),
        ({"return_on_duplicate": 1}, "return_on_duplicate"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_where_they_are_given(
    options: dict[str, Any], text: str
) -> None:
    """Contradictions, values that cannot be and options without meaning here are refused."""
    with pytest.raises(ConfigurationError, match=text):
        once(**options)(plain)


@pytest.mark.parametrize("given", ["order-{order_id}", ["order_id"]])
def test_options_are_given_by_name(given: Any) -> None:
    """A key without its name is refused with what to write."""
    with pytest.raises(ConfigurationError, match=r"write @once\(key="):
        once(given)


def test_seconds_may_be_a_timedelta(once_locks: OnceHarness) -> None:
    """Durations are numbers or timedeltas, `wait_up_to` too."""
    made = once(
        on_overlap="wait", wait_up_to=dt.timedelta(seconds=3), lease=dt.timedelta(minutes=2)
    )

    assert made(plain).once_guard().options.lease == 120
    assert made(plain)(1) == [1]


# Kept


def test_a_function_keeps_what_identifies_it() -> None:
    """Name, docstring, signature, annotations, module and kind are those of the function."""

    async def check(order_id: int) -> str: ...

    made, awaited = once(plain), once(check)

    assert (made.__name__, made.__doc__) == ("plain", "Check an order.")
    assert inspect.signature(made) == inspect.signature(plain)
    assert get_type_hints(made) == {"order_id": int, "note": str, "return": list[int]}
    assert made.__module__ == __name__
    assert inspect.isfunction(made)
    assert not inspect.iscoroutinefunction(made)
    assert inspect.iscoroutinefunction(awaited)
    assert asyncio.iscoroutinefunction(awaited)
    assert inspect.iscoroutinefunction(awaited.is_locked)
    assert inspect.iscoroutinefunction(awaited.holder)
    assert inspect.iscoroutinefunction(awaited.release)


@once
def at_module_level(order_id: int) -> int:
    """For pickle."""
    return order_id


def test_a_function_can_be_pickled() -> None:
    """Schedulers and process pools send functions by their name."""
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


def test_ways_to_call_it_are_one_unit(once_locks: OnceHarness) -> None:
    """`f(1)`, `f(order_id=1)` and `f(1, default)` are one unit of work; `f(2)` is another."""
    made = once(plain)

    once_locks.assert_same_key(made, _call(1), _call(order_id=1), _call(1, note="x"))
    once_locks.assert_different_keys(made, _call(1), _call(2), _call("1"))


def _call(*args: object, **kwargs: object) -> Any:
    from once_pytest import call

    return call(*args, **kwargs)


@pytest.mark.parametrize(
    ("key", "is_same"),
    [
        (None, False),
        (["order_id"], True),
        ("order-{order_id}", True),
        (lambda order_id, note="": order_id, True),
        ([], True),
    ],
    ids=["all", "names", "template", "function", "the function alone"],
)
def test_key_says_which_arguments_identify_the_work(
    once_locks: OnceHarness, key: Any, is_same: bool
) -> None:
    """`key=` selects arguments as it does for tasks."""
    made = once(key=key)(plain)

    compare = once_locks.assert_same_key if is_same else once_locks.assert_different_keys
    compare(made, _call(1, note="one"), _call(1, note="other"))


def test_two_functions_may_share_a_unit(once_locks: OnceHarness) -> None:
    """With one `name=` two functions exclude each other."""

    @once(name="account", return_on_locked="busy")
    def load(account: int) -> object:
        return update(account)

    @once(name="account", return_on_locked="busy")
    def update(account: int) -> object:
        return "ran"

    assert load(1) == "busy"
    assert update(1) == "ran"


def test_arguments_without_a_form_name_the_way_out(once_locks: OnceHarness) -> None:
    """An argument of which no key can be made is an error that names it, before anything runs."""
    runs: list[object] = []

    @once
    def check(order: object) -> None:
        runs.append(order)

    with pytest.raises(KeyDerivationError, match=r"order .*no form"):
        check(object())
    assert runs == []


def test_the_toolkit_s_assertions_take_functions(once_locks: OnceHarness) -> None:
    """`assert_task_locked` and its like know functions under `@once`."""

    @once
    def check(order_id: int) -> None:
        once_locks.assert_task_locked(check, 7, state="running")

    check(7)

    once_locks.assert_task_not_locked(check, 7)


@pytest.mark.once(bypass=True)
def test_a_bypassed_test_runs_everything(once_locks: OnceHarness) -> None:
    """Where a test asks for no guard, functions run as if they were not decorated."""

    @once(on_overlap="raise", key=[])
    def check(depth: int) -> int:
        return check(depth - 1) if depth else 0

    @once(on_overlap="raise", key=[])
    async def check_later(depth: int) -> int:
        return await check_later(depth - 1) if depth else 0

    assert check(3) == 0
    assert asyncio.run(check_later(3)) == 0
    assert once_locks.locks == []


# The store


@pytest.fixture
def memory_url() -> str:
    """A lock store of the test's own, as a program has one."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("ONCE_URL", "ONCE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    configure()
    yield
    configure()


nowhere = pytest.mark.usefixtures("_nothing_configured")
Define = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def define(request: pytest.FixtureRequest) -> Define:
    """Makes a function that says whether it is locked while it runs; to be called as a sync one."""

    def make(**options: Any) -> Any:
        if request.param == "sync":

            @once(**options)
            def check(order_id: int) -> bool:
                return check.is_locked(order_id)

            return check

        @once(**options)
        async def check_later(order_id: int) -> bool:
            return await check_later.is_locked(order_id)

        return lambda order_id: asyncio.run(check_later(order_id))

    return make


@nowhere
def test_without_a_store_the_error_says_where_to_name_one(define: Define) -> None:
    """Defining a function needs no store; calling it without one says how to give it one."""
    check = define()

    with pytest.raises(ConfigurationError, match=r"configure\(url=.*ONCE_URL.*url= or client="):
        check(7)


@nowhere
def test_a_store_configured_after_a_failing_call_counts(define: Define, memory_url: str) -> None:
    """A call that came before `configure` does not spoil those after it."""
    check = define()
    with pytest.raises(ConfigurationError):
        check(7)

    configure(url=memory_url)

    assert check(7) is True


@nowhere
def test_functions_are_defined_before_anything_is_configured(
    define: Define, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`configure` and `ONCE_URL` may come after the module's import, before the first call."""
    check, other = define(), define()

    configure(url=memory_url)
    assert check(7) is True

    configure()
    monkeypatch.setenv("ONCE_URL", memory_url)
    assert other(7) is True


@nowhere
def test_a_url_of_its_own_goes_before(define: Define, memory_url: str) -> None:
    """What a function says goes before what the process says."""
    configure(url="redis://127.0.0.1:1/0")

    assert define(url=memory_url)(7) is True


@nowhere
def test_sync_and_async_meet_in_one_store(memory_url: str) -> None:
    """A sync and an async function with one name exclude each other: it is one store."""

    @once(name="unit", key=[], url=memory_url)
    def check() -> bool:
        return asyncio.run(check_later())

    @once(name="unit", key=[], url=memory_url, return_on_locked="busy")
    async def check_later() -> object:
        return "ran"

    assert check() == "busy"


def test_an_asyncio_client_is_refused_with_the_reason() -> None:
    """Leases are renewed by a thread, which an asyncio client cannot serve."""

    @once(client=redis.asyncio.Redis())  # type: ignore[arg-type]  # that is the mistake
    async def check() -> None: ...

    with pytest.raises(ConfigurationError, match="asyncio client"):
        asyncio.run(check())


def test_a_client_of_which_no_other_can_be_made_is_refused_for_coroutines() -> None:
    """A client that is no plain one serves sync functions only, and the error says what to do."""

    class OwnClient(redis.Redis): ...

    @once(client=OwnClient())
    async def check() -> None: ...

    with pytest.raises(ConfigurationError, match="give url= for coroutines"):
        asyncio.run(check())


def test_a_function_that_makes_clients_makes_one_store() -> None:
    """`client=` as a function does not make a new store with each call of a coroutine."""

    @once(client=lambda: redis.Redis(port=1, retry=Retry(NoBackoff(), 0)), lease=1)
    async def check() -> None: ...

    before = len(_async_stores)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            asyncio.run(check())

    assert len(_async_stores) <= before + 1


def test_a_skipped_call_costs_one_step(once_locks: OnceHarness) -> None:
    """A call that runs makes two round trips, one that is refused makes one."""
    steps: list[str] = []

    @once
    def check(order_id: int) -> None: ...

    def count(step: str, carry: Callable[[], object]) -> object:
        steps.append(step)
        return carry()

    once_locks.store.gates.append(count)
    check(7)
    hold = once_locks.hold(check, 7)
    check(7)

    assert steps == ["start", "finish", "start"]
    hold.end()


def test_an_overlap_error_can_be_sent_to_another_process(once_locks: OnceHarness) -> None:
    """Errors of functions survive pickle with their facts, as results of tasks have to."""
    made = once(raise_on_locked=True)(plain)

    with once_locks.hold(made, 7) as hold, pytest.raises(OverlapError) as caught:
        made(7)

    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.key, again.holder_id) == (hold.key, hold.message_id)
