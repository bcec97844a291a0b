"""The producer's side: may a call be sent, and what its handle tells."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from once_core import protocol
from once_core.envelope import Envelope
from once_core.errors import DuplicateTaskError, KeyDerivationError, StoreUnavailableError
from once_core.events import Event
from once_core.guard import Guard
from once_core.protocol import Message
from once_core.publish import OncePublish, claim
from once_core.store import Ghosts
from once_pytest import OnceClock, OnceFaults, OnceHarness, assert_task_locked
from once_pytest._store import StoreOfTest

# a call is claimed or refused, and nobody runs what waits then
pytestmark = pytest.mark.once(leaks="ignore")


class Counted:
    """The client of a store that counts what is asked, and knows no other commands."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.asked = 0

    def evalsha(self, *command: Any) -> object:
        self.asked += 1
        return self._client.evalsha(*command)

    def eval(self, *command: Any) -> object:
        return self._client.eval(*command)


@pytest.fixture
def counted(once_locks: OnceHarness) -> Counted:
    """Counts commands; the toolkit counts steps, which may have several."""
    client: Any = Counted(once_locks.client())
    once_locks.store = StoreOfTest(lambda: client, once_locks.opened.prefix)
    return client


@pytest.fixture
def guard(guarded: Callable[..., Guard]) -> Guard:
    """A guard with the options that are built in."""
    return guarded()


def _start(guard: Guard, key: str, message: Message) -> protocol.Start:
    limits = guard.options.limits
    return guard.store.run(
        protocol.start(
            key,
            message,
            f"attempt-{message.id}",
            where="h",
            lease=60.0,
            ttl=60.0,
            heal_after=60.0,
            window=guard.options.window or 0.0,
            queued=limits.waiting,
            running=limits.running,
        )
    )


def test_claimed(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """The first call is sent, and its handle says so."""
    guard = guarded()
    made = claim(guard, (1,), {}, "m1")

    assert made.publish == OncePublish("claimed", False, "m1", guard.key((1,), {}), 0.0)
    assert made.ticket > 0
    assert [(each.kind, each.task, each.message_id) for each in told] == [
        ("claimed", "shop.sync", "m1")
    ]


def test_waiting(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A call while one waits is a duplicate; it is told who waits and when to try again."""
    guard = guarded()
    claim(guard, (1,), {}, "m1")
    made = claim(guard, (), {"order_id": 1}, "m2")

    assert (made.publish.state, made.publish.is_duplicate, made.publish.holder_id) == (
        "waiting",
        True,
        "m1",
    )
    assert 59 < made.publish.retry_after <= 60
    assert made.ticket == 0
    assert (told[1].kind, told[1].reason, told[1].holder_id) == (
        "duplicate",
        "one waits to run",
        "m1",
    )


def test_other_unit(guarded: Callable[..., Guard]) -> None:
    """Other arguments are another unit of work."""
    guard = guarded()
    claim(guard, (1,), {}, "m1")

    assert claim(guard, (2,), {}, "m2").publish.state == "claimed"


def test_while_running(guarded: Callable[..., Guard]) -> None:
    """In the default scope one may wait while one runs."""
    guard = guarded()
    first = claim(guard, (1,), {}, "m1")
    _start(guard, first.key, Message("m1", first.ticket))

    assert claim(guard, (1,), {}, "m2").publish.state == "claimed"
    assert claim(guard, (1,), {}, "m3").publish.holder_id == "m2"


def test_running(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """Under until_done a call while one runs is a duplicate of that one."""
    guard = guarded(scope="until_done")
    first = claim(guard, (1,), {}, "m1")
    _start(guard, first.key, Message("m1", first.ticket))
    made = claim(guard, (1,), {}, "m2")

    assert (made.publish.state, made.publish.is_duplicate, made.publish.holder_id) == (
        "running",
        True,
        "m1",
    )
    assert told[-1].reason == "one runs, and the scope refuses others until it is done"


@pytest.mark.parametrize(
    "options", [{"scope": "window", "window": 30}, {"scope": "until_done", "keep_for": 30}]
)
def test_kept(
    guarded: Callable[..., Guard],
    once_clock: OnceClock,
    told: list[Event],
    options: dict[str, Any],
) -> None:
    """Inside of window= and keep_for= a call is a duplicate of work that was done."""
    guard = guarded(**options)
    message = Message("m1", claim(guard, (1,), {}, "m1").ticket)
    key = guard.key((1,), {})
    _start(guard, key, message)
    keep_for = guard.options.keep_for or 0.0
    step = protocol.finish(
        key, message, "attempt-m1", "success", ttl=60, heal_after=60, keep_for=keep_for
    )
    guard.store.run(step)
    made = claim(guard, (1,), {}, "m2")

    assert (made.publish.state, made.publish.is_duplicate, made.publish.holder_id) == (
        "kept",
        True,
        "m1",
    )
    assert 29 < made.publish.retry_after <= 30
    assert told[-1].reason == "it was done just now (window= or keep_for=)"

    once_clock.advance_to_expiry(guard, 1)

    assert claim(guard, (1,), {}, "m3").publish.state == "claimed"


def test_replaced(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A newer call takes the place of the one that waits, which is dead once it is published."""
    guard = guarded(on_duplicate="replace", key=["order_id"])
    old = claim(guard, (1,), {"note": "old"}, "m1")
    new = claim(guard, (1,), {"note": "new"}, "m2")
    new.sent()

    assert (new.publish.state, new.publish.is_duplicate) == ("replaced", False)
    assert _start(guard, old.key, Message("m1", old.ticket)).status == "superseded"
    assert _start(guard, old.key, Message("m2", new.ticket)).status == "started"
    assert [each.kind for each in told] == ["claimed", "replaced"]


def test_replacing_message_that_was_not_published(guarded: Callable[..., Guard]) -> None:
    """The waiting message is not dead before the one that replaces it is published."""
    guard = guarded(on_duplicate="replace", key=["order_id"])
    old = claim(guard, (1,), {"note": "old"}, "m1")
    claim(guard, (1,), {"note": "new"}, "m2").failed()

    assert _start(guard, old.key, Message("m1", old.ticket)).status == "started"


def test_moved(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A call that equals the waiting one in all arguments moves its due time, and is not sent."""
    guard = guarded(on_duplicate="replace", debounce=10)
    first = claim(guard, (1,), {}, "m1")
    first.sent()
    made = claim(guard, (1,), {}, "m2")

    assert first.claim is not None
    assert first.claim.delay == 10.0
    assert (made.publish.state, made.publish.is_duplicate, made.publish.holder_id) == (
        "moved",
        True,
        "m1",
    )
    assert (told[-1].kind, told[-1].reason) == (
        "moved",
        "one with the same arguments waits; it is due later now",
    )


def test_refreshed(guard: Guard, once_clock: OnceClock, told: list[Event]) -> None:
    """A message that has been due for suspiciously long gets a copy, with its own ticket."""
    first = claim(guard, (1,), {}, "m1")
    once_clock.advance(guard.options.heal_after)
    made = claim(guard, (1,), {}, "m2")

    assert made.publish.state == "refreshed"
    assert (made.publish.is_duplicate, made.publish.holder_id) == (False, "m2")
    assert made.ticket == first.ticket
    assert told[-1].kind == "refreshed"


def test_scope_that_limits_no_publish(guarded: Callable[..., Guard], counted: Counted) -> None:
    """Where nothing that waits is limited, publishing asks nobody."""
    made = claim(guarded(scope="running"), (1,), {}, "m1")

    assert (made.publish.state, made.publish.is_duplicate) == ("claimed", False)
    assert made.claim is None
    assert made.ticket < 0
    assert counted.asked == 0


def test_one_round_trip(guard: Guard, counted: Counted) -> None:
    """A call asks the store once, sent or not."""
    claim(guard, (1,), {}, "m0")
    counted.asked = 0
    claim(guard, (2,), {}, "m1").sent()
    claim(guard, (2,), {}, "m2")

    assert counted.asked == 2


def test_store_away(guard: Guard, once_faults: OnceFaults) -> None:
    """By default a call fails while the store is away."""
    once_faults.outage()

    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")


def test_store_away_and_run(
    guarded: Callable[..., Guard], once_faults: OnceFaults, told: list[Event]
) -> None:
    """With on_store_error="run" the call is sent without a claim, and that is told."""
    lenient = guarded(on_store_error="run")
    once_faults.outage()
    made = claim(lenient, (1,), {}, "m1")

    assert made.publish == OncePublish("unguarded", False, "m1", lenient.key((1,), {}), 0.0)
    assert made.ticket < 0
    assert [each.kind for each in told] == ["store_unavailable", "unguarded"]
    assert "is not available (ConnectionError: injected by once_faults" in told[0].reason
    assert told[0].reason in told[1].reason


def test_call_option_for_a_store_that_is_away(guard: Guard, once_faults: OnceFaults) -> None:
    """A single call may do without the lock; the worker is told with the message."""
    once_faults.outage()
    call = {"on_store_error": "run"}
    made = claim(guard.with_call(call), (1,), {}, "m1", call=call)

    assert made.publish.state == "unguarded"
    assert made.header["call"] == {"on_store_error": "run"}


def test_ghost_is_taken_over(guard: Guard, once_faults: OnceFaults) -> None:
    """A claim whose answer was lost does not refuse this process's next call for a minute."""
    once_faults.lose_reply("claim")
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    made = claim(guard, (1,), {}, "m2")

    assert (made.publish.state, made.publish.is_duplicate) == ("refreshed", False)
    assert claim(guard, (1,), {}, "m3").publish.holder_id == "m2"


def test_ghost_of_another_process_heals(
    guard: Guard, once_locks: OnceHarness, once_clock: OnceClock, once_faults: OnceFaults
) -> None:
    """Another producer does not know of the ghost, and is refused until it heals."""
    once_faults.lose_reply("claim")
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    once_locks.store.ghosts = Ghosts()  # as in a process that lost nothing
    made = claim(guard, (1,), {}, "m2")

    assert (made.publish.state, made.publish.holder_id) == ("waiting", "m1")

    once_clock.advance(guard.options.heal_after)

    assert claim(guard, (1,), {}, "m3").publish.state == "refreshed"


def test_claim_that_was_not_heard_leaves_no_ghost(guard: Guard, once_faults: OnceFaults) -> None:
    """If the lost claim was not heard at all, the next one is the first."""
    once_faults.lose_request("claim")
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")

    assert claim(guard, (1,), {}, "m2").publish.state == "claimed"
    assert claim(guard, (1,), {}, "m3").publish.state == "waiting"


def test_ghost_does_not_take_over_others(
    guard: Guard, once_locks: OnceHarness, once_faults: OnceFaults
) -> None:
    """Whoever remembers a ghost that was never heard is still refused by somebody's real claim."""
    once_faults.lose_request("claim")
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    theirs = once_locks.hold(guard, 1, state="waiting")

    assert claim(guard, (1,), {}, "m3").publish.holder_id == theirs.message_id


def test_failed_publish_withdraws(guard: Guard, once_locks: OnceHarness, told: list[Event]) -> None:
    """A message that the broker did not take leaves nothing behind; the next call is sent."""
    claim(guard, (1,), {}, "m1").failed()

    assert once_locks.store.written() == []
    assert (told[-1].kind, told[-1].reason) == (
        "withdrawn",
        "the broker did not take the message",
    )
    assert claim(guard, (1,), {}, "m2").publish.state == "claimed"


def test_failed_publish_while_the_store_is_away(guard: Guard, once_faults: OnceFaults) -> None:
    """If broker and store fail together, this process's next call takes its own claim over."""
    made = claim(guard, (1,), {}, "m1")
    with once_faults.outage():
        made.failed()

    assert claim(guard, (1,), {}, "m2").publish.state == "refreshed"


def test_failed_publish_of_a_duplicate(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A duplicate whose settling message could not be sent takes nothing from the holder."""
    guard = guarded()
    claim(guard, (1,), {}, "m1")
    claim(guard, (1,), {}, "m2").failed()

    assert_task_locked(guard, 1, state="waiting", holder="m1")
    assert [each.kind for each in told] == ["claimed", "duplicate"]


def test_sent_while_the_store_is_away(
    guarded: Callable[..., Guard], once_faults: OnceFaults
) -> None:
    """A confirmation that cannot be sent is no error: the newer message's start says the same."""
    guard = guarded(on_duplicate="replace", key=["order_id"])
    old = claim(guard, (1,), {"note": "old"}, "m1")
    made = claim(guard, (1,), {"note": "new"}, "m2")
    with once_faults.outage() as outage:
        made.sent()

    assert (made.publish.state, outage.hits) == ("replaced", 1)
    assert _start(guard, old.key, Message("m2", made.ticket)).status == "started"
    assert _start(guard, old.key, Message("m1", old.ticket)).status == "superseded"


def test_duplicate_error(guarded: Callable[..., Guard]) -> None:
    """DuplicateTaskError says who holds it, when to try again, and what to do; as facts too."""
    guard = guarded()
    first = claim(guard, (1,), {}, "m1")
    made = claim(guard, (1,), {}, "m2")
    error = made.error()

    assert str(error) == (
        f"shop.sync was not sent: one waits to run (held by m1, a new call may be accepted in "
        f"{made.publish.retry_after:.1f} s); use its result, or "
        'on_duplicate="skip" to get its handle instead of this error'
    )
    assert isinstance(error, DuplicateTaskError)
    assert (error.task, error.key, error.state, error.holder_id, error.retry_after) == (
        "shop.sync",
        first.key,
        "waiting",
        "m1",
        made.publish.retry_after,
    )
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_no_key(guarded: Callable[..., Guard]) -> None:
    """Arguments that give no key are refused before anything is asked or sent."""
    with pytest.raises(KeyDerivationError) as caught:
        claim(guarded(), (object(),), {}, "m1")

    assert caught.value.parameter == "order_id"


def test_argument_without_form_outside_of_the_key(guarded: Callable[..., Guard]) -> None:
    """Replacing works with any payload: what has no canonical form equals nothing."""
    guard = guarded(on_duplicate="replace", key=["order_id"])
    note = object()
    states = [claim(guard, (1,), {"note": note}, f"m{n}").publish.state for n in range(2)]

    assert states == ["claimed", "replaced"]


def test_header(guarded: Callable[..., Guard]) -> None:
    """What travels is read back by the worker: key, ticket, scope, and this call's options."""
    guard = guarded()
    call = {"ttl": 5, "key": ["order_id"], "on_duplicate": "raise", "lease": 7}
    made = claim(guard.with_call(call), (1,), {}, "m1", call=call)
    read = Envelope.read(made.header, "m1", "shop.sync")

    assert read == Envelope(
        made.key,
        made.ticket,
        "queued+running",
        "m1",
        "shop.sync",
        call={"ttl": 5.0, "lease": 7.0},  # what only a producer needs stays with it
        store=guard.store.id,  # empty on fakeredis
    )


def test_header_of_a_duplicate(guarded: Callable[..., Guard]) -> None:
    """The message of a duplicate that is sent to be settled says whose duplicate it is."""
    guard = guarded()
    claim(guard, (1,), {}, "m1")
    read = Envelope.read(claim(guard, (1,), {}, "m2").header, "m2", "shop.sync")

    assert read is not None
    assert (read.duplicate_of, read.ticket) == ("m1", 0)


def test_unclaimed(guarded: Callable[..., Guard]) -> None:
    """A retry in another unit of work that was refused is sent all the same, without a ticket."""
    guard = guarded()
    claim(guard, (1,), {}, "m1")
    made = claim(guard, (1,), {}, "m2").unclaimed()

    assert (made.publish.is_duplicate, made.claim) == (False, None)
    assert made.ticket < 0
    assert "dup" not in made.header


def test_expiry(guarded: Callable[..., Guard]) -> None:
    """A message that the broker drops soon is remembered no longer than it lives."""
    guard = guarded()
    claim(guard, (1,), {}, "m1", expires=5.0)

    assert_task_locked(guard, 1, state="waiting", ttl=(4, 5))


def test_own_claim_from_within(guarded: Callable[..., Guard]) -> None:
    """The running holder's own id is not refused: Task.replace into the same unit must run."""
    guard = guarded(scope="until_done")
    first = claim(guard, (1,), {}, "m1")
    _start(guard, first.key, Message("m1", first.ticket))

    assert claim(guard, (1,), {}, "m1", own=True).publish.state == "claimed"


def test_handle_is_a_value() -> None:
    """What a handle tells can be compared, copied and pickled, and not changed."""
    told = OncePublish("waiting", is_duplicate=True, holder_id="m1", key="k", retry_after=1.0)

    assert pickle.loads(pickle.dumps(told)) == copy.deepcopy(told) == told
    with pytest.raises(AttributeError):
        told.state = "claimed"  # type: ignore[misc]  # that is what is tested
