"""The one method of Celery's that groups are claimed through: it fails when that changes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from once_celery import OnceTask, _publish
from once_core.errors import StoreUnavailableError
from once_pytest import OnceFaults, OnceHarness

pytestmark = pytest.mark.once(leaks="ignore")  # nothing of what is sent runs


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with a broker in memory."""
    made = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def task(app: Celery) -> Any:
    """A task under guard."""

    @app.task(base=OnceTask, name="shop.sync", shared=False)
    def sync(order_id: int, note: str = "") -> None: ...

    return sync


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many claims went with each round trip."""
    from once_core.store import Store

    seen: list[int] = []

    def counted(name: str, count: Callable[[Any], int]) -> None:
        original = getattr(Store, name)

        def run(self: Any, asked: Any) -> Any:
            if _name(asked) == "claim":
                seen.append(count(asked))
            return original(self, asked)

        monkeypatch.setattr(Store, name, run)

    counted("run", lambda step: 1)
    counted("run_many", len)
    return seen


def _name(asked: Any) -> str:
    steps = asked if isinstance(asked, list) else [asked]
    return str(steps[0].script.name) if steps else ""


def test_the_method_is_as_it_was(task: Any) -> None:
    """A generator over members (signature, result, group id), whose first argument they are."""
    assert task.name  # ours wrap it when they are bound
    original = group._apply_tasks.once_original

    assert list(inspect.signature(original).parameters)[:2] == ["self", "tasks"]
    assert inspect.isgeneratorfunction(original)


def test_members_claim_together(once_locks: OnceHarness, task: Any, trips: list[int]) -> None:
    """One round trip for all; duplicates among them are settled under ids of their own."""
    result = group(task.si(1), task.si(2), task.si(1)).apply_async()

    assert trips == [3]
    assert len({each.id for each in result}) == 3
    assert _locked(task) == [1, 2]
    assert _publish.claimed_ahead == {}


def _locked(task: Any) -> list[int]:
    return [each for each in range(5) if task.is_locked(each)]


def test_so_do_those_of_a_chord(once_locks: OnceHarness, task: Any, trips: list[int]) -> None:
    """A chord's header is a group."""
    chord([task.si(1), task.si(2)])(task.si(3))

    assert trips == [2]


def test_other_members_go_their_own_way(
    once_locks: OnceHarness, app: Celery, task: Any, trips: list[int]
) -> None:
    """Plain tasks, chains, calls with options of their own."""

    @app.task(name="shop.plain", shared=False)
    def plain() -> None: ...

    group(
        task.si(1), plain.si(), chain(task.si(2), plain.si()), task.si(3).set(once={"ttl": 60})
    ).apply_async()

    assert sorted(trips) == [1, 1, 1]


def test_partial_arguments(once_locks: OnceHarness, task: Any) -> None:
    """Those that a group is given are added to those of its members."""
    group(task.s("x"), task.s("y")).apply_async((1,))

    assert task.is_locked(1, "x")
    assert task.is_locked(1, "y")


def test_a_group_that_is_cut_short_leaves_nothing_claimed(
    once_locks: OnceHarness, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is claimed; the others are free."""
    sent: list[int] = []
    original = task.app.send_task

    class BrokerError(Exception):
        pass

    def failing(name: str, args: Any = None, kwargs: Any = None, **rest: Any) -> Any:
        if len(sent) == 1:
            raise BrokerError
        sent.append(args[0])
        return original(name, args, kwargs, **rest)

    monkeypatch.setattr(task.app, "send_task", failing)
    with pytest.raises(BrokerError):
        group(task.si(each) for each in (1, 2, 3)).apply_async()

    assert _locked(task) == [1]
    assert _publish.claimed_ahead == {}


def test_the_store_is_away(once_locks: OnceHarness, once_faults: OnceFaults, task: Any) -> None:
    """As without: the first member says so."""
    with once_faults.outage(), pytest.raises(StoreUnavailableError):
        group(task.si(1), task.si(2)).apply_async()

    assert _publish.claimed_ahead == {}
