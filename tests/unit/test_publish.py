"""The producer's side: may a call be sent, and what its handle tells."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import redis

from once_core import protocol
from once_core._client import make_client
from once_core.envelope import Envelope
from once_core.errors import DuplicateTaskError, KeyDerivationError, StoreUnavailableError
from once_core.events import Event
from once_core.guard import Guard
from once_core.protocol import Message
from once_core.publish import OncePublish, claim
from once_core.store import Store


class Deaf:
    """A client of a real store whose answers get lost, or which is not heard, when told so."""

    def __init__(self, url: str) -> None:
        self.client: Any = make_client(url)
        self.loses_answers = False
        self.is_away = False
        self.asked = 0

    def evalsha(self, *command: Any) -> object:
        self.asked += 1
        if self.is_away:
            raise redis.ConnectionError("Connection refused")
        try:
            answer = self.client.evalsha(*command)
        except redis.exceptions.NoScriptError:
            text = next(s.text for s in map(protocol.script, STEPS) if s.sha == command[0])
            answer = self.client.eval(text, *command[1:])
        if self.loses_answers:
            raise redis.TimeoutError("Timeout reading from socket")
        return answer


STEPS = ("claim", "confirm", "start", "finish", "withdraw", "inspect")


@pytest.fixture
def deaf(store_url: str) -> Deaf:
    """A client that can be made deaf."""
    return Deaf(store_url)


@pytest.fixture
def guard(guarded: Callable[..., Guard], deaf: Deaf) -> Guard:
    """A guard over a client that can be made deaf."""
    client: Any = deaf
    return guarded(store=Store(client))


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
def test_kept(guarded: Callable[..., Guard], told: list[Event], options: dict[str, Any]) -> None:
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


def test_refreshed(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A message that has been due for suspiciously long gets a copy, with its own ticket."""
    guard = guarded(heal_after=0.001)
    first = claim(guard, (1,), {}, "m1")
    while (made := claim(guard, (1,), {}, "m2")).publish.state != "refreshed":
        pass  # it may be asked again within the same millisecond

    assert (made.publish.is_duplicate, made.publish.holder_id) == (False, "m2")
    assert made.ticket == first.ticket
    assert told[-1].kind == "refreshed"


def test_scope_that_limits_no_publish(guard: Guard, guarded: Any, deaf: Deaf) -> None:
    """Where nothing that waits is limited, publishing asks nobody."""
    limits_runs = guarded(scope="running", store=guard.store)
    made = claim(limits_runs, (1,), {}, "m1")

    assert (made.publish.state, made.publish.is_duplicate) == ("claimed", False)
    assert made.claim is None
    assert made.ticket < 0
    assert deaf.asked == 0


def test_one_round_trip(guard: Guard, deaf: Deaf) -> None:
    """A call asks the store once, sent or not."""
    claim(guard, (1,), {}, "m0")
    deaf.asked = 0
    claim(guard, (2,), {}, "m1").sent()
    claim(guard, (2,), {}, "m2")

    assert deaf.asked == 2


def test_store_away(guard: Guard, deaf: Deaf) -> None:
    """By default a call fails while the store is away."""
    deaf.is_away = True

    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")


def test_store_away_and_run(
    guard: Guard, guarded: Callable[..., Guard], deaf: Deaf, told: list[Event]
) -> None:
    """With on_store_error="run" the call is sent without a claim, and that is told."""
    lenient = guarded(store=guard.store, on_store_error="run")
    deaf.is_away = True
    made = claim(lenient, (1,), {}, "m1")

    assert made.publish == OncePublish("unguarded", False, "m1", guard.key((1,), {}), 0.0)
    assert made.ticket < 0
    assert [each.kind for each in told] == ["store_unavailable", "unguarded"]
    assert "the lock store at the client that was given is not available" in told[1].reason


def test_call_option_for_a_store_that_is_away(guard: Guard, deaf: Deaf) -> None:
    """A single call may do without the lock; the worker is told with the message."""
    deaf.is_away = True
    call = {"on_store_error": "run"}
    made = claim(guard.with_call(call), (1,), {}, "m1", call=call)

    assert made.publish.state == "unguarded"
    assert made.header["call"] == {"on_store_error": "run"}


def test_ghost_is_taken_over(guard: Guard, deaf: Deaf, told: list[Event]) -> None:
    """A claim whose answer was lost does not refuse this process's next call for a minute."""
    deaf.loses_answers = True
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    deaf.loses_answers = False
    made = claim(guard, (1,), {}, "m2")

    assert (made.publish.state, made.publish.is_duplicate) == ("refreshed", False)
    assert claim(guard, (1,), {}, "m3").publish.holder_id == "m2"


def test_ghost_of_another_process_heals(guard: Guard, guarded: Any, deaf: Deaf) -> None:
    """Another producer does not know of the ghost, and is refused until it heals."""
    deaf.loses_answers = True
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    made = claim(guarded(), (1,), {}, "m2")

    assert (made.publish.state, made.publish.holder_id) == ("waiting", "m1")


def test_claim_that_was_not_heard_leaves_no_ghost(guard: Guard, deaf: Deaf) -> None:
    """If the lost claim was not heard at all, the next one is the first."""
    deaf.is_away = True
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    deaf.is_away = False

    assert claim(guard, (1,), {}, "m2").publish.state == "claimed"
    assert claim(guard, (1,), {}, "m3").publish.state == "waiting"


def test_ghost_does_not_take_over_others(guard: Guard, guarded: Any, deaf: Deaf) -> None:
    """Whoever remembers a ghost that was never heard is still refused by somebody's real claim."""
    deaf.is_away = True
    with pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    deaf.is_away = False
    claim(guarded(), (1,), {}, "m2")

    assert claim(guard, (1,), {}, "m3").publish.holder_id == "m2"


def test_failed_publish_withdraws(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A message that the broker did not take leaves nothing behind; the next call is sent."""
    guard = guarded()
    claim(guard, (1,), {}, "m1").failed()

    assert guard.store.client().dbsize() == 0
    assert (told[-1].kind, told[-1].reason) == (
        "withdrawn",
        "the broker did not take the message",
    )
    assert claim(guard, (1,), {}, "m2").publish.state == "claimed"


def test_failed_publish_while_the_store_is_away(guard: Guard, deaf: Deaf) -> None:
    """If broker and store fail together, this process's next call takes its own claim over."""
    made = claim(guard, (1,), {}, "m1")
    deaf.is_away = True
    made.failed()
    deaf.is_away = False

    assert claim(guard, (1,), {}, "m2").publish.state == "refreshed"


def test_failed_publish_of_a_duplicate(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """A duplicate whose settling message could not be sent takes nothing from the holder."""
    guard = guarded()
    claim(guard, (1,), {}, "m1")
    claim(guard, (1,), {}, "m2").failed()

    assert guard.is_locked((1,), {})
    assert [each.kind for each in told] == ["claimed", "duplicate"]


def test_sent_while_the_store_is_away(guarded: Any, guard: Guard, deaf: Deaf) -> None:
    """A confirmation that cannot be sent is no error: the newer message's start says the same."""
    replacing = guarded(store=guard.store, on_duplicate="replace", key=["order_id"])
    claim(replacing, (1,), {"note": "old"}, "m1")
    made = claim(replacing, (1,), {"note": "new"}, "m2")
    deaf.is_away = True
    made.sent()

    assert made.publish.state == "replaced"


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
    holder = guard.holder((1,), {})

    assert holder is not None
    assert 4 < holder.remaining <= 5


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
