"""Many calls at once: claimed together, sent one by one, nothing left of those that were not."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from once_core.bulk import BATCH, Bulk, Call, arguments
from once_core.errors import (
    BulkPublishError,
    ConfigurationError,
    DuplicateTaskError,
    KeyDerivationError,
    StoreUnavailableError,
)
from once_core.events import Event
from once_core.guard import Guard
from once_core.publish import OncePublish, Publication, claim, claiming
from once_pytest import OnceFaults, OnceHarness

# calls are claimed or refused, and nobody runs what waits then
pytestmark = pytest.mark.once(leaks="ignore")


class AwayError(Exception):
    """The broker does not answer."""


class LimitError(Exception):
    """Stands for a soft time limit, which is an `Exception`."""


class Caller:
    """Publishes with a broker that takes messages, or fails as the test says.

    Args:
        guard: Of the task.

    Attributes:
        sent: Ids of the messages that the broker has.
        tried: How often it was asked.
        fails: What it raises at which of its messages, counted from 0.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.sent: list[str] = []
        self.tried = 0
        self.fails: dict[int, BaseException] = {}
        self._ids = itertools.count(1)

    def publish(self, calls: Any) -> list[OncePublish]:
        def is_away(error: Exception) -> bool:
            return isinstance(error, AwayError)

        bulk = Bulk(self.guard.task, self._ask, self._deliver, is_away, interrupts=(LimitError,))
        return bulk.publish(calls)

    def _ask(self, call: Call, marks: dict[str, str]) -> Any:
        args, kwargs = arguments(self.guard.task, call)
        return claiming(self.guard, args, kwargs, f"m{next(self._ids)}", marks=marks)

    def _deliver(self, _call: Call, publication: Publication | None) -> OncePublish:
        assert publication is not None
        if publication.publish.is_duplicate:
            if self.guard.options.on_duplicate == "raise":
                raise publication.error()
            return publication.publish
        at, self.tried = self.tried, self.tried + 1
        if at in self.fails:
            publication.failed()
            raise self.fails[at]
        self.sent.append(publication.message_id)
        publication.sent()
        return publication.publish


def numbers(*wanted: object) -> list[Call]:
    """Calls with one argument each."""
    return [((number,), {}) for number in wanted]


@pytest.fixture
def caller(guarded: Callable[..., Guard]) -> Caller:
    """With the options that are built in, and scripts that the store has already."""
    return warm(Caller(guarded()))


def warm(caller: Caller) -> Caller:
    """The same, when the store has the scripts."""
    claim(caller.guard, ("warm",), {}, "warm").failed()
    return caller


@pytest.fixture
def trips(once_locks: OnceHarness) -> list[str]:
    """Steps that were carried, a name for each round trip."""
    seen: list[str] = []

    def note(name: str, carry: Callable[[], object]) -> object:
        seen.append(name)
        return carry()

    once_locks.store.gates.append(note)
    return seen


def held(caller: Caller, wanted: Sequence[object]) -> list[object]:
    """Which units are held."""
    return [each for each in wanted if caller.guard.holder((each,), {}) is not None]


# Claimed together


def test_in_order_and_a_duplicate_inside_gets_the_first(caller: Caller) -> None:
    """Of equal calls the first is sent, and the others have its id."""
    told = caller.publish([((1,), {}), ((2,), None), ((), {"order_id": 1}), ([3], {})])

    assert [(each.state, each.holder_id) for each in told] == [
        ("claimed", "m1"),
        ("claimed", "m2"),
        ("waiting", "m1"),
        ("claimed", "m4"),
    ]
    assert caller.sent == ["m1", "m2", "m4"]


def test_a_duplicate_of_one_that_waits_already_is_refused(caller: Caller) -> None:
    """What the store knows counts as what is inside does."""
    claim(caller.guard, (2,), {}, "before")
    told = caller.publish(numbers(1, 2))

    assert [(each.state, each.holder_id) for each in told] == [
        ("claimed", "m1"),
        ("waiting", "before"),
    ]


def test_a_batch_is_one_round_trip(caller: Caller, trips: list[str]) -> None:
    """As many as are claimed together."""
    caller.publish(numbers(*range(BATCH)))

    assert trips == ["claim"]
    assert len(caller.sent) == BATCH


def test_a_generator_of_1200_calls_is_three_round_trips(caller: Caller, trips: list[str]) -> None:
    """Any iterable will do; duplicates are found across batches too."""
    told = caller.publish(((each % 1100,), {}) for each in range(1200))

    assert trips == ["claim"] * 3
    assert len(told) == 1200
    assert len(caller.sent) == 1100
    assert [each.holder_id for each in told[1100:]] == [each.holder_id for each in told[:100]]


@pytest.mark.parametrize("calls", [[], (), iter([])])
def test_no_calls(caller: Caller, trips: list[str], calls: Any) -> None:
    """Nothing to do is no error, and asks nobody."""
    assert caller.publish(calls) == []
    assert trips == []


def test_one_event_for_each_call(caller: Caller, told: list[Event]) -> None:
    """Metrics count them as they count single calls."""
    told.clear()
    caller.publish(numbers(1, 2, 1))

    assert [(each.kind, each.message_id) for each in told] == [
        ("claimed", "m1"),
        ("claimed", "m2"),
        ("duplicate", "m3"),
    ]


def test_a_scope_that_limits_no_publish_asks_nobody(
    guarded: Callable[..., Guard], trips: list[str]
) -> None:
    """As for single calls."""
    caller = Caller(guarded(scope="running"))
    told = caller.publish(numbers(1, 1))

    assert [each.state for each in told] == ["claimed", "claimed"]
    assert trips == []


def test_of_two_threads_one_has_each_unit(caller: Caller) -> None:
    """Both are told of the same messages, and each unit was sent once."""
    other, ready = Caller(caller.guard), threading.Barrier(2)
    other._ids = itertools.count(10_000)
    told: dict[Caller, list[OncePublish]] = {}

    def publish(who: Caller) -> None:
        ready.wait(10)
        told[who] = who.publish(numbers(*range(1200)))

    threads = [threading.Thread(target=publish, args=(each,)) for each in (caller, other)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)

    assert len(caller.sent) + len(other.sent) == 1200
    assert [each.holder_id for each in told[caller]] == [each.holder_id for each in told[other]]


# Calls that cannot be sent


@pytest.mark.parametrize(
    "call",
    [
        42,
        "ab",
        None,
        (),
        (1,),
        (1, 2),
        ((1,), {}, {}),
        (0, {}),
        ("", {}),
        ({}, {}),
        ((1,), [1]),
        ((1,), 0),
        {"args": (1,)},
    ],
    ids=repr,
)
def test_what_is_no_call_is_refused(call: Any) -> None:
    """Whatever is no pair of arguments; an empty value of another kind stands for nothing."""
    with pytest.raises(ConfigurationError, match=r"is no call of shop.sync: give \(args, kwargs\)"):
        arguments("shop.sync", call)


def test_the_error_for_what_is_no_call_does_not_show_its_values() -> None:
    """They may be secret, and errors are logged."""
    with pytest.raises(ConfigurationError) as caught:
        arguments("shop.sync", ("4111-1111", "4111-1111"))  # type: ignore[arg-type]  # on purpose

    assert str(caught.value) == (
        "a pair of str and str is no call of shop.sync: give (args, kwargs) for each, such as "
        "((42,), {}) or ((), {'order_id': 42})"
    )
    with pytest.raises(ConfigurationError, match=r"^tuple of 3 is no call"):
        arguments("shop.sync", ("4111-1111", 1, 2))  # type: ignore[arg-type]  # on purpose


def test_bad_calls_are_told_for_themselves_alone(caller: Caller) -> None:
    """The others are sent; each has its place in the results."""
    with pytest.raises(BulkPublishError) as caught:
        caller.publish([((1,), {}), ((object(),), {}), 42, ((), {"nobody": 1}), ((2,), {})])
    error = caught.value

    assert len(caller.sent) == 2
    assert [type(each) for each in error.results] == [
        OncePublish,
        KeyDerivationError,
        ConfigurationError,
        KeyDerivationError,
        OncePublish,
    ]
    assert [bool(reason) for reason in error.reasons] == [False, True, True, True, False]
    assert error.task == "shop.sync"
    assert held(caller, [1, 2]) == [1, 2]


def test_a_call_that_was_refused_with_raise_is_told_for_itself(
    guarded: Callable[..., Guard],
) -> None:
    """The others are sent."""
    caller = Caller(guarded(on_duplicate="raise"))
    with pytest.raises(BulkPublishError) as caught:
        caller.publish(numbers(1, 1, 2))

    assert [type(each) for each in caught.value.results] == [
        OncePublish,
        DuplicateTaskError,
        OncePublish,
    ]


def test_when_all_fail_for_one_reason_that_is_raised(caller: Caller) -> None:
    """As a single call raises it, so that the handlers of single calls go on working."""
    caller.fails = {at: ValueError("no") for at in range(3)}
    with pytest.raises(ValueError, match=r"^no$"):
        caller.publish(numbers(1, 2, 3))

    caller.fails = {3: ValueError("no"), 4: ValueError("not this one either")}
    with pytest.raises(BulkPublishError):
        caller.publish(numbers(1, 2))
    assert held(caller, [1, 2, 3]) == []


def test_a_duplicate_is_sent_when_the_first_of_its_unit_could_not_be(caller: Caller) -> None:
    """The first had arguments that no serializer takes; the second of the same unit is good."""
    caller.fails[0] = TypeError("not serializable")
    with pytest.raises(BulkPublishError) as caught:
        caller.publish(numbers(1, 1, 1))
    first, second, third = caught.value.results

    assert isinstance(first, TypeError)
    assert isinstance(second, OncePublish)
    assert isinstance(third, OncePublish)
    assert (second.state, third.state) == ("claimed", "waiting")
    assert third.holder_id == second.holder_id
    assert len(caller.sent) == 1


def test_when_the_calls_cannot_be_read_nothing_is_sent(caller: Caller) -> None:
    """A generator that fails half way fails before the first message."""

    def calls() -> Iterator[Call]:
        yield from numbers(*range(BATCH + 1))
        raise LookupError("the database is away")

    with pytest.raises(LookupError):
        caller.publish(calls())
    assert caller.sent == []
    assert held(caller, [0, BATCH]) == []


# The broker goes away


def test_the_broker_is_away_from_the_start(
    caller: Caller, trips: list[str], once_locks: OnceHarness
) -> None:
    """One error, as of a single call; it is tried once, and nothing is left claimed."""
    caller.fails[0] = AwayError("refused")
    with pytest.raises(AwayError, match="refused"):
        caller.publish(numbers(*range(1200)))

    assert caller.tried == 1
    assert once_locks.store.names() == []
    # what was not sent is taken back in one round trip, and further batches are not claimed
    assert trips == ["claim", "withdraw", "withdraw"]


def test_the_broker_dies_in_the_middle(caller: Caller, once_locks: OnceHarness) -> None:
    """What it took is claimed, and nothing else."""
    caller.fails[700] = AwayError("reset")
    with pytest.raises(BulkPublishError) as caught:
        caller.publish(numbers(*range(1200)))
    results = caught.value.results

    assert caller.tried == 701
    assert [type(each) for each in results] == [OncePublish] * 700 + [AwayError] * 500
    assert held(caller, range(1200)) == list(range(700))
    assert len(once_locks.store.names()) == 700
    assert str(caught.value).startswith(
        "500 of 1200 calls of shop.sync were not sent, the first of them at index 700: reset; "
    )


def test_a_duplicate_of_what_was_not_sent_has_no_handle(caller: Caller) -> None:
    """It would wait for a message that nobody has."""
    caller.fails[1] = AwayError("reset")
    with pytest.raises(BulkPublishError) as caught:
        caller.publish(numbers(1, 2, 2, 3, 3))

    assert [type(each) for each in caught.value.results] == [OncePublish] + [AwayError] * 4
    assert held(caller, [1, 2, 3]) == [1]


# The lock store goes away


def test_the_store_is_away_from_the_start(
    caller: Caller, trips: list[str], once_faults: OnceFaults
) -> None:
    """One error, as of a single call; it is asked once, whatever the number of batches."""
    with once_faults.outage(), pytest.raises(StoreUnavailableError):
        caller.publish(numbers(*range(1200)))

    assert caller.sent == []
    assert trips == ["claim"]


def test_the_store_is_away_and_the_task_goes_on(
    guarded: Callable[..., Guard], once_faults: OnceFaults
) -> None:
    """With on_store_error="run" all are sent without a claim."""
    caller = Caller(guarded(on_store_error="run"))
    with once_faults.outage():
        told = caller.publish(numbers(*range(1200)))

    assert {each.state for each in told} == {"unguarded"}
    assert len(caller.sent) == 1200


@pytest.mark.parametrize("on_store_error", ["raise", "run"])
def test_the_store_dies_between_two_batches(
    guarded: Callable[..., Guard], once_faults: OnceFaults, on_store_error: str
) -> None:
    """The first batch is sent; the rest is told, or sent without a claim."""
    caller = warm(Caller(guarded(on_store_error=on_store_error)))

    class Sent(list[str]):
        def append(self, each: str) -> None:
            super().append(each)
            if len(self) == BATCH:
                once_faults.outage()

    caller.sent = Sent()
    if on_store_error == "run":
        told = caller.publish(numbers(*range(1200)))

        assert [each.state for each in told] == ["claimed"] * BATCH + ["unguarded"] * 700
        return
    with pytest.raises(BulkPublishError) as caught:
        caller.publish(numbers(*range(1200)))

    kinds = [type(each) for each in caught.value.results]
    assert kinds == [OncePublish] * BATCH + [StoreUnavailableError] * 700
    assert len(caller.sent) == BATCH


@pytest.mark.parametrize("on_duplicate", ["skip", "replace"])
def test_claims_whose_reply_was_lost_are_taken_over_by_the_next_call(
    guarded: Callable[..., Guard], once_faults: OnceFaults, on_duplicate: str
) -> None:
    """They are in the store, and refuse nobody here: nor where one unit was named twice."""
    caller = warm(Caller(guarded(on_duplicate=on_duplicate)))
    with once_faults.lose_reply("claim"), pytest.raises(StoreUnavailableError):
        caller.publish(numbers(1, 2, 1))
    assert held(caller, [1, 2]) == [1, 2]
    told = caller.publish(numbers(1, 2))

    assert not any(each.is_duplicate for each in told)
    assert len(caller.sent) == 2


# Somebody interrupts


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, LimitError])
def test_an_interrupt_leaves_nothing_claimed_of_what_was_not_sent(
    caller: Caller, once_locks: OnceHarness, kind: type[BaseException]
) -> None:
    """It ends all of it, and is no error of one call; a soft time limit is an `Exception`."""
    caller.fails[3] = kind()
    with pytest.raises(kind):
        caller.publish(numbers(*range(10)))

    assert caller.tried == 4
    assert held(caller, range(10)) == [0, 1, 2]
    assert len(once_locks.store.names()) == 3


def test_an_interrupt_while_the_answers_come_in(caller: Caller, once_locks: OnceHarness) -> None:
    """Nobody knows what was claimed; the next call takes it over."""

    def interrupt(_name: str, carry: Callable[[], object]) -> object:
        carry()
        raise KeyboardInterrupt

    once_locks.store.gates.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        caller.publish(numbers(1, 2, 1))
    once_locks.store.gates.remove(interrupt)
    assert held(caller, [1, 2]) == [1, 2]

    assert [each.is_duplicate for each in caller.publish(numbers(1, 2))] == [False, False]


def test_an_interrupt_while_the_answers_are_told(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, once they have been heard."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("once_core.publish.emit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            caller.publish(numbers(1, 2, 3))
    assert held(caller, [1, 2, 3]) == [1, 2, 3]

    assert not any(each.is_duplicate for each in caller.publish(numbers(1, 2, 3)))


def test_an_interrupt_while_claims_are_taken_back(caller: Caller, once_locks: OnceHarness) -> None:
    """What could not be taken back is taken over by the next call."""

    def interrupt(name: str, carry: Callable[[], object]) -> object:
        if name == "withdraw" and caller.tried == 1:
            caller.tried += 1  # that of the one which failed
        elif name == "withdraw":
            raise KeyboardInterrupt
        return carry()

    caller.fails[0] = AwayError("refused")
    once_locks.store.gates.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        caller.publish(numbers(1, 2, 3))
    once_locks.store.gates.remove(interrupt)
    assert held(caller, [1, 2, 3]) == [2, 3]

    assert not any(each.is_duplicate for each in caller.publish(numbers(1, 2, 3)))


# The error


def test_the_error_pickles_without_the_handles(caller: Caller) -> None:
    """Handles stay in their process; why each call failed does not."""
    with pytest.raises(BulkPublishError) as caught:
        caller.publish([*numbers(1), 42])
    error = caught.value

    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert str(twin) == str(error)
        assert (twin.task, list(twin.reasons)) == ("shop.sync", list(error.reasons))
        assert list(twin.results) == []


def test_the_text_of_the_error(caller: Caller) -> None:
    """How many, which first, why, and what to do."""
    with pytest.raises(BulkPublishError) as caught:
        caller.publish([*numbers(1), 42])

    assert str(caught.value) == (
        "1 of 2 calls of shop.sync were not sent, the first of them at index 1: int is no call of "
        "shop.sync: give (args, kwargs) for each, such as ((42,), {}) or ((), {'order_id': 42}); "
        "`results` has the handle or the error of each, in order, and those with an error can be "
        "called again"
    )
    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_an_error_without_a_text_has_a_reason_all_the_same(caller: Caller) -> None:
    """An empty reason says that the call was sent."""
    caller.fails[1] = ValueError()
    with pytest.raises(BulkPublishError) as caught:
        caller.publish(numbers(1, 2))

    assert list(caught.value.reasons) == ["", "ValueError()"]
    assert "at index 1: ValueError();" in str(caught.value)
