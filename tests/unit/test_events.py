"""Events: one record for each decision, told to the log and to whoever subscribed."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from once_core import events, publish
from once_core.attempt import Attempt
from once_core.events import Event, emit, subscribe
from once_core.guard import Guard
from once_core.protocol import Message
from once_pytest import OnceHarness, assert_task_locked

SECRET = "4111-1111-1111-1111"


@pytest.fixture
def silent() -> Iterator[None]:
    """A logger that logs nothing."""
    level = events.logger.level
    events.logger.setLevel(logging.CRITICAL + 1)
    yield
    events.logger.setLevel(level)


@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        ("DEBUG", ["claimed", "started", "finished", "renewed"]),
        (
            "INFO",
            [
                "refreshed",
                "replaced",
                "moved",
                "duplicate",
                "withdrawn",
                "unavailable",
                "deferred",
                "skipped",
                "settled",
                "superseded",
                "repeated",
            ],
        ),
        (
            "WARNING",
            [
                "unguarded",
                "slow",
                "lease_lost",
                "lease_restored",
                "reaped",
                "released",
                "store_recovered",
            ],
        ),
        ("ERROR", ["store_unavailable", "other_store"]),
        ("CRITICAL", ["heartbeat_failed"]),
    ],
)
def test_levels(level: str, kinds: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """What happens all day is DEBUG; what somebody should look at is WARNING and above."""
    caplog.set_level(logging.DEBUG, "once")
    for kind in kinds:
        emit(kind, task="shop.sync")

    assert [(each.name, each.levelname, each.getMessage()) for each in caplog.records] == [
        ("once", level, f"{kind} shop.sync") for kind in kinds
    ]
    assert set(kinds) <= set(events._LEVELS)


def test_every_kind_has_been_given_a_level_on_purpose() -> None:
    """There are 25 kinds; a new one needs its line in the test above."""
    assert len(events._LEVELS) == 25


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("store_recovered"), "store_recovered"),
        (Event("claimed", task="shop.sync"), "claimed shop.sync"),
        (Event("slow", reason="it runs"), "slow: it runs"),
        (
            Event("duplicate", "shop.sync", "once:k", "m2", "one waits", "m1", at=5.0),
            "duplicate shop.sync: one waits (key=once:k, message_id=m2, holder_id=m1)",
        ),
        (
            Event("finished", "t", waited=0.0, ran=1.23456, delay=2.0, fence=0, preview="a=1"),
            "finished t (waited=0.000, ran=1.235, delay=2.000, fence=0, preview=a=1)",
        ),
        (
            Event("deferred", "t", reason="one runs", cause="overlap", delay=1.0),
            "deferred t: one runs (delay=1.000)",
        ),
    ],
)
def test_line(event: Event, line: str) -> None:
    """A log line has the kind, the task, the reason, and the facts that apply."""
    assert str(event) == line


def test_record_is_in_the_log_record(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers that want facts find the event itself as `once`."""
    caplog.set_level(logging.DEBUG, "once")
    emit("duplicate", task="shop.sync", holder_id="m1")
    found: Any = caplog.records[0]

    assert isinstance(found.once, Event)
    assert (found.once.kind, found.once.holder_id) == ("duplicate", "m1")


def test_events_are_frozen_and_travel() -> None:
    """An event cannot be changed, and can be pickled."""
    event = Event("claimed", task="shop.sync")

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.task = "other"  # type: ignore[misc]  # that is what is tested
    assert pickle.loads(pickle.dumps(event)) == event


def test_subscribers_get_all_facts(told: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber gets each event with all that is known, and when it was."""
    monkeypatch.setattr(events, "wall", lambda: 99.0)
    facts: dict[str, Any] = {
        "task": "t",
        "key": "k",
        "message_id": "m",
        "reason": "r",
        "holder_id": "h",
        "waited": 1.0,
        "ran": 2.0,
        "delay": 3.0,
        "fence": 4,
        "preview": "p",
    }
    emit("started", **facts)

    assert told == [Event("started", **facts, at=99.0)]


def test_raising_subscriber(told: list[Event], caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber that raises stops neither the task nor the other subscribers; it is logged."""

    def broken(event: Event) -> None:
        raise RuntimeError("broken subscriber")

    later: list[Event] = []
    stop_broken, stop_later = subscribe(broken), subscribe(later.append)
    emit("duplicate", task="shop.sync")
    stop_broken()
    stop_later()

    assert [each.kind for each in told + later] == ["duplicate", "duplicate"]
    failures = [each for each in caplog.records if each.exc_info]
    assert [each.getMessage() for each in failures] == [
        "a subscriber of once events raised; the task goes on"
    ]
    assert "broken subscriber" in str(failures[0].exc_info)


def test_unsubscribe() -> None:
    """After its end a subscription hears nothing; ending it twice is harmless."""
    seen: list[Event] = []
    stop = subscribe(seen.append)
    emit("duplicate")
    stop()
    stop()
    emit("duplicate")

    assert len(seen) == 1


def test_unsubscribe_from_within(told: list[Event]) -> None:
    """A subscriber may end its subscription while it is called."""
    seen: list[Event] = []

    def one(event: Event) -> None:
        seen.append(event)
        stop()

    stop = subscribe(one)
    emit("duplicate")
    emit("duplicate")

    assert (len(seen), len(told)) == (1, 2)


def test_one_of_two_equal_subscriptions() -> None:
    """Whoever subscribed the same function twice and ends one of them still hears the other."""
    seen: list[Event] = []
    hear = seen.append
    stop_one, stop_other = subscribe(hear), subscribe(hear)
    stop_one()
    emit("duplicate")
    stop_other()

    assert len(seen) == 1


@pytest.mark.usefixtures("silent")
def test_no_work_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a subscriber, and below the logger's level, no event is even made."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an event was made for nobody")

    monkeypatch.setattr(events, "Event", never)
    monkeypatch.setattr(events, "_subscribers", ())  # an earlier test may have left one

    emit("duplicate", task="shop.sync")


@pytest.mark.usefixtures("silent")
def test_subscribers_do_not_depend_on_the_logger(told: list[Event]) -> None:
    """Metrics get all events, whatever the level of the log."""
    emit("claimed")

    assert [each.kind for each in told] == ["claimed"]


def test_every_kind_that_is_told_is_known() -> None:
    """A kind without a level is a mistake of ours and shows at once."""
    with pytest.raises(KeyError):
        emit("no such kind")


def _everything_of_a_life(guard: Guard, once_locks: OnceHarness) -> str:
    """All that can be seen of a message with a secret argument, from publish to end."""
    args, kwargs = (SECRET,), {"note": SECRET}
    first = publish.claim(guard.with_call({"ttl": 5}), args, kwargs, "m1", call={"ttl": 5})
    second = publish.claim(guard, args, kwargs, "m2")
    seen = [once_locks.dump()]
    attempt = Attempt(guard, first.key, Message("m1", first.ticket))
    attempt.start()
    seen.append(once_locks.dump())
    attempt.end("failure")
    second.failed()
    headers = [json.dumps(first.header), json.dumps(second.header)]
    told = once_locks.events
    assert all(first.key in each for each in seen)
    return repr([told, list(map(str, told)), seen, headers, first.publish, str(second.error())])


@pytest.mark.usefixtures("beats")
@pytest.mark.parametrize("options", [{}, {"on_duplicate": "replace"}, {"secret": "s"}])
def test_no_argument_is_shown(
    guarded: Callable[..., Guard], once_locks: OnceHarness, options: dict[str, Any]
) -> None:
    """No value of an argument is in an event, a log line, the record, a header or an error."""
    everything = _everything_of_a_life(guarded(**options), once_locks)

    assert {each.kind for each in once_locks.events} >= {"claimed", "started", "finished"}
    assert SECRET not in everything


@pytest.mark.usefixtures("beats")
def test_no_secret_is_shown(guarded: Callable[..., Guard], once_locks: OnceHarness) -> None:
    """The secret of the digests is not shown either."""
    assert "top-secret" not in _everything_of_a_life(guarded(secret="top-secret"), once_locks)


def test_preview_shows_what_it_names(guarded: Callable[..., Guard], told: list[Event]) -> None:
    """Events show the arguments that preview= names, and no others."""
    guard = guarded(preview=["order_id"])
    publish.claim(guard, (7,), {"note": SECRET}, "m1")
    publish.claim(guard, (7,), {"note": SECRET}, "m2")

    assert [(each.kind, each.preview) for each in told] == [
        ("claimed", "order_id=7"),
        ("duplicate", "order_id=7"),
    ]
    assert SECRET not in repr(told)
    assert_task_locked(guard, 7, note=SECRET, state="waiting", holder="m1")
