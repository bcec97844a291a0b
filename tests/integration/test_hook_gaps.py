"""Hooks that no other test would miss: found by `tests/mutations`.

Messages go through Celery's own `Request` and tracer, in this process: a broker and a result
backend in memory, and a lock store on fakeredis, make that as fast as a unit test.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from _support.waiting import wait_until
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import Celery, Task, chain, chord, signals
from celery.app.task import Context
from celery.exceptions import Reject
from celery.worker import state
from celery.worker.request import Request
from kombu.exceptions import OperationalError

from once_celery import DuplicateTaskError, OnceTask
from once_core import attempt as attempts
from once_core import events
from once_core._heartbeat import heartbeat
from once_core._host import is_dead, whereabouts
from once_core.attempt import Attempt
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.events import Event
from once_core.protocol import Message

Define = Callable[..., Any]


class Shop:
    """An app whose worker is this process."""

    def __init__(self, name: str, **conf: Any) -> None:
        self.app = Celery(name, set_as_current=False)
        self.app.conf.update(
            broker_url="memory://",
            result_backend="cache+memory://",
            task_default_queue=name,
            once_url=f"memory://{name}",
            **conf,
        )
        self.bodies: list[Any] = []
        self.own_id = f"own-{name}"

    def define(self, body: Callable[..., Any] | None = None, **options: Any) -> Any:
        """A task that notes the arguments of each run."""

        def run(task: Any, unit: object, payload: object = None) -> object:
            self.bodies.append(payload or unit)
            return body(task) if body else f"done {unit}"

        options = {"base": OnceTask, "once": {"key": ["unit"]}, **options}
        task = self.app.task(name="order", bind=True, shared=False, **options)(run)
        self.app.finalize()
        return task

    def take(self) -> Any:
        """The next message of the queue, or None."""
        with self.app.connection_for_read() as connection:
            found = connection.default_channel.basic_get(self.app.conf.task_default_queue)
            if found is not None:
                found.channel.basic_ack(found.delivery_tag)
            return found

    def queued(self) -> list[Any]:
        """All messages of the queue, which is empty then."""
        return list(iter(self.take, None))

    def request(self, message: Any, *, redelivered: bool = False) -> Request:
        """A delivery of a message, as a worker has it in its hands."""
        message.delivery_info["redelivered"] = redelivered
        return Request(message, app=self.app)

    def deliver(self, message: Any, *, redelivered: bool = False) -> None:
        """Run one delivery of a message to its end."""
        self.request(message, redelivered=redelivered).execute()


@pytest.fixture
def shop(unit: str) -> Iterator[Shop]:
    """An app of the test's own."""
    made = Shop(f"shop-{unit}")
    yield made
    made.app.close()


@pytest.fixture
def told() -> Iterator[list[Event]]:
    """Every event of this process, while the test runs."""
    seen: list[Event] = []
    stop = events.subscribe(seen.append)
    yield seen
    stop()


def running(task: Any, message_id: str = "other") -> Attempt:
    """A run of the unit 1, in this process, by another message than those of the test."""
    guard = task.once_guard()
    attempt = Attempt(guard, guard.key((1,), {}), Message(message_id, -1))
    assert attempt.start().status == "started"
    return attempt


def due_in(message: Any) -> float:
    """Seconds after which a message is due."""
    eta = message.headers["eta"]
    if eta is None:
        return 0.0
    return (datetime.fromisoformat(eta) - datetime.now(timezone.utc)).total_seconds()


# calls


def test_a_direct_call_runs_its_body(shop: Shop) -> None:
    """A task that is called as a function is a function, also while its unit runs."""
    task = shop.define()
    other = running(task)

    assert task(1) == "done 1"
    other.end("success")


def test_a_body_may_call_its_own_task_as_a_function(shop: Shop) -> None:
    """That is no second run of the message, which would wait for itself."""

    def body(task: Any) -> None:
        if len(shop.bodies) == 1:
            task(2)

    shop.define(body).delay(1)
    shop.deliver(shop.take())

    assert shop.bodies == [1, 2]


def test_the_call_of_another_base_class_is_made(shop: Shop) -> None:
    """What Flask users put around their tasks is around guarded tasks too."""
    seen = []

    class InContext(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(args)
            return super().__call__(*args, **kwargs)

    class Both(OnceTask, InContext):
        pass

    task = shop.define(base=Both)
    task.delay(1)
    shop.deliver(shop.take())

    assert (seen, shop.bodies) == ([(1,)], [1])


@pytest.mark.parametrize("way", ["countdown", "eta"])
def test_a_call_far_away_refuses_until_a_minute_after_it_is_due(shop: Shop, way: str) -> None:
    """Nobody sends a copy of a message whose time has not come."""
    task = shop.define()
    when: Any = 600 if way == "countdown" else datetime.now(timezone.utc) + timedelta(seconds=600)
    task.apply_async((1,), **{way: when})

    assert 650 < task.delay(1).once.retry_after <= 660


@pytest.mark.parametrize("said", ["at the call", "with the task"])
def test_a_message_that_expires_refuses_nobody_afterwards(shop: Shop, said: str) -> None:
    """What the broker drops without a word is forgotten when it does."""
    task = shop.define(**({"expires": 5} if said == "with the task" else {}))

    task.apply_async((1,), **({"expires": 5} if said == "at the call" else {}))

    assert 3 < task.holder(1).remaining <= 5


def test_an_eta_is_no_way_around_debounce_max(shop: Shop) -> None:
    """When a burst may be delayed no more, a call of it is due at once, whatever its ETA."""
    debounce = {"on_duplicate": "replace", "debounce": 0.01, "debounce_max": 0.01}
    task = shop.define(once={"key": ["unit"], **debounce})
    calls = iter(range(100_000))

    def is_due_at_once() -> bool:
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        task.apply_async((1, f"call {next(calls)}"), eta=later)
        return due_in(shop.take()) <= 0

    assert wait_until(is_due_at_once, "the bound of the burst", within=10)


def test_what_was_replaced_is_dead_before_the_newer_one_starts(shop: Shop) -> None:
    """The older message is settled even if it is the first to be delivered."""
    task = shop.define(once={"key": ["unit"], "on_duplicate": "replace"})
    older = task.delay(1, "older")
    task.delay(1, "newer")

    for message in shop.queued():
        shop.deliver(message)

    assert shop.bodies == ["newer"]
    assert older.get(timeout=1) is None


def test_a_retry_by_the_main_process_does_not_replace_what_waits(shop: Shop) -> None:
    """`retry_on_worker_lost`: the message goes out again; the newest payload still runs last."""
    task = shop.define(once={"key": ["unit"], "on_duplicate": "replace"})
    lost = task.delay(1, "older")
    headers = {"once": shop.take().headers["once"]}
    newer = task.delay(1, "newer")

    task.apply_async((1, "older"), task_id=lost.id, retries=1, headers=headers)

    assert [message.headers["id"] for message in shop.queued()] == [newer.id, lost.id]
    assert task.holder(1).message_id == newer.id


def test_a_duplicate_is_not_sent(shop: Shop) -> None:
    """While one waits a second call sends nothing; with once=False it does, and runs."""
    task = shop.define()
    other = running(task)
    first = task.delay(1)

    assert task.delay(1).id == first.id
    assert [message.headers["id"] for message in shop.queued()] == [first.id]
    task.apply_async((1,), once=False)
    shop.deliver(shop.take())
    assert shop.bodies == [1]
    other.end("success")


def test_calls_past_all_locks_run_beside_each_other(shop: Shop) -> None:
    """With once=False the worker takes no lease either."""

    def body(task: Any) -> None:
        if shop.bodies == [1]:
            shop.deliver(shop.take())

    task = shop.define(body)
    for unit in (1, 2):
        task.apply_async((unit,), once=False)
    shop.deliver(shop.take())

    assert shop.bodies == [1, 2]


def test_a_duplicate_that_somebody_waits_for_is_settled(shop: Shop) -> None:
    """An id of its own ends with the value that the call chose, and its body does not run."""
    task = shop.define()
    task.delay(1)
    shop.take()

    call = {"return_on_duplicate": "skipped"}
    settled = task.apply_async((1,), task_id=shop.own_id, once=call)
    shop.deliver(shop.take())

    assert (settled.get(timeout=1), shop.bodies) == ("skipped", [])


def test_a_duplicate_with_a_callback_is_sent(shop: Shop) -> None:
    """Or its callback would never be called."""
    task = shop.define()
    task.delay(1)
    shop.take()

    task.apply_async((1,), link=task.si(2))

    assert len(shop.queued()) == 1


def test_a_duplicate_step_of_a_chain_does_not_raise(shop: Shop) -> None:
    """It would fail the step before it, which has succeeded."""
    task = shop.define(once={"key": ["unit"], "on_duplicate": "raise"})
    task.delay(1)
    shop.take()

    task.apply_async((1,), task_id=shop.own_id, parent_id="step before")

    assert len(shop.queued()) == 1
    with pytest.raises(DuplicateTaskError):
        task.apply_async((1,), task_id=f"{shop.own_id}-2")


def test_a_burst_is_held_back_by_the_broker(shop: Shop) -> None:
    """A debounced message is sent with a delay: no worker has to put it back all the time."""
    burst = {"on_duplicate": "replace", "debounce": 600, "debounce_max": 600}
    task = shop.define(once={"key": ["unit"], **burst})
    task.delay(1)

    assert 590 < due_in(shop.take()) <= 600


@pytest.mark.parametrize("scope", ["queued+running", "until_done"])
def test_what_replaces_a_run_runs_under_its_id(shop: Shop, scope: str) -> None:
    """`Task.replace` into the same unit, which the run itself holds and another waits for."""

    def body(task: Any) -> str:
        if shop.bodies[-1] != "final":
            if scope != "until_done":
                task.apply_async((1, "another"))
            raise task.replace(task.si(1, "final"))
        return "final"

    task = shop.define(body, once={"key": ["unit"], "scope": scope})
    handle = task.delay(1)
    shop.deliver(shop.take())
    mine = [message for message in shop.queued() if message.headers["id"] == handle.id]
    shop.deliver(mine[0])

    assert handle.get(timeout=1) == "final"


# retries


@pytest.mark.parametrize("throw", [True, False], ids=["raised", "quiet"])
def test_a_retry_is_the_one_that_waits(shop: Shop, throw: bool) -> None:
    """Whether the body raises it or goes on: a call meanwhile is a duplicate of it."""

    def body(task: Any) -> None:
        task.retry(countdown=60, throw=throw)

    task = shop.define(body)
    handle = task.delay(1)
    shop.deliver(shop.take())

    holder = task.holder(1)
    assert (holder.state, holder.message_id, holder.retries) == ("waiting", handle.id, 1)
    assert task.delay(1).once.retry_after > 100


def test_a_retry_is_the_one_that_waits_where_runs_are_not_limited(shop: Shop) -> None:
    """Its part is written when it is published, for no lease keeps it from running at once."""

    def body(task: Any) -> None:
        task.retry(countdown=60)

    task = shop.define(body, once={"key": ["unit"], "scope": "queued"})
    handle = task.delay(1)
    shop.deliver(shop.take())

    holder = task.holder(1)
    assert (holder.state, holder.message_id, holder.retries) == ("waiting", handle.id, 1)


def test_a_retry_does_not_replace_a_newer_payload(shop: Shop) -> None:
    """The newest payload runs last, whatever an older one does meanwhile."""

    def body(task: Any) -> None:
        task.apply_async((1, "newer"), task_id=shop.own_id)
        raise task.retry(countdown=60)

    task = shop.define(body, once={"key": ["unit"], "on_duplicate": "replace"})
    task.delay(1, "older")
    shop.deliver(shop.take())

    assert task.holder(1).message_id == shop.own_id


def test_a_retry_with_other_arguments_waits_in_their_unit(shop: Shop) -> None:
    """And frees the one it comes from."""

    def body(task: Any) -> None:
        raise task.retry(args=(2,), countdown=60)

    task = shop.define(body)
    handle = task.delay(1)
    shop.deliver(shop.take())

    assert not task.is_locked(1)
    assert task.holder(2).message_id == handle.id


def test_a_retry_into_a_unit_where_one_waits_is_sent_to_run(shop: Shop) -> None:
    """Its task counts on it: it is not settled as a duplicate."""

    def body(task: Any) -> None:
        if shop.bodies == [1]:
            raise task.retry(args=(2,), countdown=0)

    task = shop.define(body)
    task.delay(2)
    shop.take()
    task.delay(1)
    shop.deliver(shop.take())
    shop.deliver(shop.take())

    assert shop.bodies == [1, 2]


def lost_child(shop: Shop, task: Any) -> dict[str, Any]:
    """What `retry_on_worker_lost` sends a message again with, in the main process."""
    handle = task.delay(1)
    return {
        "task_id": handle.id,
        "retries": 1,
        "headers": {"once": shop.take().headers["once"]},
    }


def test_a_retry_by_the_main_process_is_the_one_that_waits(shop: Shop) -> None:
    """A call meanwhile is a duplicate of it."""
    task = shop.define()
    call = lost_child(shop, task)

    task.apply_async((1,), **call)

    holder = task.holder(1)
    assert (holder.state, holder.message_id, holder.retries) == ("waiting", call["task_id"], 1)


def test_a_retry_that_the_main_process_cannot_send_refuses_nobody(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is away: no part stands for what never was sent."""
    task = shop.define()
    call = lost_child(shop, task)
    monkeypatch.setattr(shop.app.amqp, "send_task_message", is_away)

    with pytest.raises(OperationalError):
        task.apply_async((1,), **call)

    assert not task.is_locked(1)


def is_away(*args: Any, **options: Any) -> None:
    """What a broker that is away answers."""
    raise OperationalError("the broker is away")


def test_a_retry_that_cannot_be_sent_refuses_nobody(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task fails, and nothing waits."""

    def body(task: Any) -> None:
        monkeypatch.setattr(shop.app.amqp, "send_task_message", is_away)
        raise task.retry(countdown=60)

    task = shop.define(body)
    task.delay(1)
    shop.deliver(shop.take())

    assert not task.is_locked(1)


def test_a_retry_that_runs_at_once_refuses_nobody_afterwards(shop: Shop) -> None:
    """Without a lease it may run before its host has ended: nothing is written after it."""

    def body(task: Any) -> None:
        if not task.request.retries:
            task.retry(countdown=0, throw=False)
            shop.deliver(shop.take())

    task = shop.define(body, once={"key": ["unit"], "scope": "queued"})
    task.delay(1)
    shop.deliver(shop.take())

    assert shop.bodies == [1, 1]
    assert not task.is_locked(1)


def test_a_copied_header_is_no_way_around_the_lock(shop: Shop) -> None:
    """Sending a message again with all it carried sends no second one while it waits."""
    task = shop.define()
    first = task.delay(1)
    (message,) = shop.queued()

    task.apply_async((1,), task_id=first.id, headers={"once": message.headers["once"]})

    assert shop.queued() == []


# the end of a run


def test_a_call_from_a_hook_is_not_refused_by_the_run_that_is_over(shop: Shop) -> None:
    """A task that calls itself from `after_return` goes on, also where a mark is due."""

    class Again(OnceTask):
        def after_return(self, *args: Any) -> None:
            self.apply_async((1,))

    task = shop.define(base=Again, once={"key": ["unit"], "scope": "until_done"})
    task.delay(1)
    shop.deliver(shop.take(), redelivered=True)

    assert len(shop.queued()) == 1


def test_a_mark_is_not_left_before_the_result(shop: Shop) -> None:
    """A chain step of the same task is dispatched before the result is stored: too soon."""
    held = []

    def body(task: Any) -> None:
        held.append(task.holder(1).state)

    task = shop.define(body)
    states = []
    send = shop.app.amqp.send_task_message

    def sending(*args: Any, **options: Any) -> Any:
        if args[2].headers["parent_id"]:
            states.append(task.holder(1) and task.holder(1).state)
        return send(*args, **options)

    (task.si(1) | task.si(2))()
    message = shop.take()
    shop.app.amqp.send_task_message = sending
    shop.deliver(message, redelivered=True)

    assert (held, states) == (["running"], ["running"])
    assert not task.is_locked(1)


def test_a_redelivery_after_the_end_leaves_the_result_alone(shop: Shop) -> None:
    """A late copy neither runs nor is settled: its first delivery has stored the result."""
    task = shop.define()
    handle = task.delay(1)
    message = shop.take()

    shop.deliver(message, redelivered=True)
    shop.app.backend.delete(shop.app.backend.get_key_for_task(handle.id))
    shop.deliver(message, redelivered=True)

    assert shop.bodies == [1]
    assert handle.state == "PENDING"
    assert not task.is_locked(1)


def test_settling_overwrites_no_result(shop: Shop) -> None:
    """A duplicate whose id has failed already, by whatever way, has failed."""
    task = shop.define()
    task.delay(1)
    settled = task.apply_async((1,), task_id=shop.own_id)
    shop.app.backend.store_result(shop.own_id, ValueError("theirs"), "FAILURE")

    for message in shop.queued():
        shop.deliver(message)

    assert shop.bodies == [1]
    with pytest.raises(ValueError, match="theirs"):
        settled.get(timeout=1)


def test_what_is_rejected_to_come_again_runs_again(shop: Shop) -> None:
    """The broker will give it out again: its end leaves no mark, not even of a redelivery."""

    def body(task: Any) -> None:
        raise Reject("on purpose", requeue=True)

    shop.define(body, acks_late=True).delay(1)
    message = shop.take()
    for _ in range(2):
        shop.deliver(message, redelivered=True)

    assert shop.bodies == [1, 1]


def test_what_a_cold_shutdown_gives_back_runs_again(shop: Shop) -> None:
    """A body that is ended by SystemExit leaves no mark."""

    def body(task: Any) -> None:
        raise SystemExit

    task = shop.define(body, acks_late=True)
    task.delay(1)
    message = shop.take()
    for _ in range(2):
        with pytest.raises(SystemExit):
            shop.deliver(message, redelivered=True)

    assert shop.bodies == [1, 1]
    assert not task.is_locked(1)


def test_a_time_limit_between_start_and_body_frees_the_unit(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of a body that never began does not hold the unit."""
    start = Attempt.start

    def interrupted(attempt: Attempt) -> None:
        start(attempt)
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(Attempt, "start", interrupted)
    task = shop.define()
    task.delay(1)

    shop.deliver(shop.take())

    assert shop.bodies == []
    assert not task.is_locked(1)


def test_the_producers_key_counts(shop: Shop) -> None:
    """A worker that would derive another key, such as another tenant's, frees the right unit."""
    tenant = ["a"]
    task = shop.define(once={"key": ["unit"], "prefix": lambda: tenant[0]})
    task.delay(1)

    tenant[0] = "b"
    shop.deliver(shop.take())
    tenant[0] = "a"

    assert shop.bodies == [1]
    assert not task.is_locked(1)


# deferring


def test_a_deferred_message_keeps_what_it_carries(shop: Shop) -> None:
    """What the caller sent along or hid is so when the message comes back, and its ticket too."""
    task = shop.define()
    other = running(task)
    task.apply_async((1,), headers={"tenant": "a"}, argsrepr="hidden")
    message = shop.take()

    shop.deliver(message)
    (back,) = shop.queued()
    other.end("success")

    assert shop.bodies == []
    assert (back.headers["tenant"], back.headers["argsrepr"]) == ("a", "hidden")
    assert back.headers["once"]["ticket"] == message.headers["once"]["ticket"]
    assert (back.headers["id"], back.headers["once"]["n"]) == (message.headers["id"], 1)


def test_a_deferred_retry_is_still_that_retry(shop: Shop) -> None:
    """A message that is put back keeps the count of its retries."""

    def body(task: Any) -> None:
        if not task.request.retries:
            raise task.retry(countdown=0)

    task = shop.define(body)
    task.delay(1)
    shop.deliver(shop.take())
    other = running(task)
    shop.deliver(shop.take())
    (back,) = shop.queued()
    other.end("success")

    assert back.headers["retries"] == 1


@pytest.mark.parametrize("choice", ["raise", "run"])
def test_a_message_that_starts_while_the_store_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """It is put back, and neither lost nor run unguarded, unless the task says so."""
    task = shop.define(once={"key": ["unit"], "on_store_error": choice})
    task.delay(1)
    message = shop.take()

    def away(step: Any) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(task.once_guard().store, "run", away)
    shop.deliver(message)

    assert shop.bodies == ([1] if choice == "run" else [])
    assert len(shop.queued()) == (0 if choice == "run" else 1)


@pytest.mark.parametrize("scope", ["queued+running", "running"])
def test_an_id_given_again_with_a_countdown_runs_again(shop: Shop, scope: str) -> None:
    """The result of the first is no proof that the second has run."""
    task = shop.define(once={"scope": scope})
    for countdown in (0, 0.01):
        task.apply_async((1,), task_id=shop.own_id, countdown=countdown)
        shop.deliver(shop.take())

    assert shop.bodies == [1, 1]


def test_a_late_copy_of_a_message_with_an_eta_is_known_by_its_mark(shop: Shop) -> None:
    """A worker held it until then; no result tells that it has ended."""
    task = shop.define(ignore_result=True)
    task.apply_async((1,), countdown=0.01)
    message = shop.take()
    shop.deliver(message)
    shop.deliver(message, redelivered=True)

    assert shop.bodies == [1]


def test_a_shared_result_is_never_that_of_an_earlier_run(shop: Shop) -> None:
    """The holder is gone; what the record remembers of copies is older than it."""
    task = shop.define(once={"on_duplicate": "share", "heal_after": 0.5})
    task.delay(1)
    wait_until(lambda: task.delay(1).once.state == "refreshed", "a copy is sent")
    for message in shop.queued():
        shop.deliver(message)
    task.apply_async((1,), once={"heal_after": 60})
    task.apply_async((1,), task_id=shop.own_id)
    _, duplicate = shop.queued()
    task.release(1)

    shop.deliver(duplicate)

    (again,) = shop.queued()
    assert again.headers["once"]["share"][1] == 1
    assert not task.AsyncResult(shop.own_id).ready()


def test_a_retry_that_its_body_did_not_wait_for_runs(shop: Shop) -> None:
    """`retry(throw=False)`: the body stores a result under the id of its retry."""

    def body(task: Any) -> None:
        if not task.request.retries:
            task.retry(countdown=0.01, throw=False)

    task = shop.define(body, once={"scope": "running"})
    task.delay(1)
    shop.deliver(shop.take())
    shop.deliver(shop.take(), redelivered=True)

    assert shop.bodies == [1, 1]


def test_a_result_of_an_earlier_message_with_the_same_id_proves_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for a copy, whose first delivery may have died."""
    task = shop.define()
    task.backend.store_result(shop.own_id, "long ago", "SUCCESS")
    monkeypatch.setattr(
        "celery.result.AsyncResult.date_done",
        property(lambda result: datetime.now(timezone.utc) - timedelta(hours=1)),
    )
    task.apply_async((1,), task_id=shop.own_id)
    task.release(1)
    shop.deliver(shop.take(), redelivered=True)

    assert shop.bodies == [1]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's
def test_a_member_that_was_stored_and_not_counted_is_counted(
    shop: Shop, shared_server: DevServer
) -> None:
    """Its worker died between the two: the copy does not run again, and the chord goes on."""
    shop.app.conf.result_backend = shared_server.url
    task = shop.define()
    chord([task.si(1), task.si(2)])(task.si(3))
    first, second = shop.take(), shop.take()
    shop.deliver(first)
    task.backend.store_result(second.headers["id"], "done 2", "SUCCESS")
    task.release(2)

    shop.deliver(second, redelivered=True)
    shop.deliver(shop.take())

    assert shop.bodies == [1, 3]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's
@pytest.mark.parametrize("is_duplicate", [False, True])
def test_a_chord_whose_last_task_a_dead_worker_has_claimed_goes_on(
    shop: Shop, shared_server: DevServer, *, is_duplicate: bool
) -> None:
    """Celery lets nobody else send it until the claim is over: the copy of a member waits for it.

    Found by the chaos test: the copy came while the claim held, and was the last to look.
    """
    shop.app.conf.result_backend = shared_server.url
    task = shop.define()
    chord([task.si(1), task.si(1 if is_duplicate else 2)])(task.si(3))
    first, second = shop.take(), shop.take()
    claim = task.backend.get_key_for_group(second.headers["group"], ".c")
    shop.deliver(first)
    task.backend.store_result(second.headers["id"], "done 2", "SUCCESS")
    task.backend.client.set(claim, "of a worker that was killed", px=700)
    task.release(2)

    def goes_on() -> bool:
        shop.deliver(shop.take())
        return 3 in shop.bodies

    shop.deliver(second, redelivered=True)
    wait_until(goes_on, "the last task of the chord runs")

    assert shop.bodies == [1, 3]


def test_an_eager_body_has_its_own_request(shop: Shop) -> None:
    """With its id and its retries; before Celery 5.7 eager retries rest on it."""
    seen: list[Any] = []
    task = shop.define(lambda task: seen.append((task.request.id, task.request.is_eager)))

    result = task.apply((1,))

    assert seen == [(result.id, True)]


def test_a_chain_goes_on_while_the_store_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step whose body is done does not fail for it; the next one is guarded when it runs."""
    task = shop.define()
    store = task.once_guard().store
    run = store.run

    def away(step: Any) -> Any:
        if step.script.name == "claim":
            raise StoreUnavailableError("away")
        return run(step)

    chain(task.si(1), task.si(2)).apply_async()
    first = shop.take()
    monkeypatch.setattr(store, "run", away)
    shop.deliver(first)
    monkeypatch.undo()
    shop.deliver(shop.take())

    assert shop.bodies == [1, 2]
    assert task.AsyncResult(first.headers["id"]).get() == "done 1"


def test_a_retry_begins_its_deferrals_anew(shop: Shop) -> None:
    """A message that was put back for long before it ran is not slow for ever."""

    def body(task: Any) -> None:
        if not task.request.retries:
            task.retry(countdown=0, throw=False)

    task = shop.define(body)
    task.delay(1)
    message = shop.take()
    message.headers["once"]["n"] = 6
    shop.deliver(message)
    (retry,) = shop.queued()

    assert retry.headers["retries"] == 1
    assert not retry.headers["once"].get("n")


def test_a_lease_that_ends_soon_is_not_outwaited(shop: Shop) -> None:
    """A message that was put back often comes back when the dead holder's lease ends."""
    task = shop.define(once={"key": ["unit"], "lease": 3})
    running(task)
    task.delay(1)
    message = shop.take()
    message.headers["once"]["n"] = 6

    shop.deliver(message)

    assert due_in(shop.take()) < 3.5


@pytest.mark.parametrize("why", ["overlap", "early"])
def test_no_message_is_held_for_longer_than_the_broker_allows(unit: str, why: str) -> None:
    """Longer than a quarter of the visibility_timeout, and it would be given out again."""
    shop = Shop(f"shop-{unit}", broker_transport_options={"visibility_timeout": 8})
    burst = {"on_duplicate": "replace", "debounce": 600, "debounce_max": 600}
    task = shop.define(once={"key": ["unit"], **(burst if why == "early" else {})})
    if why == "overlap":
        running(task)
    task.delay(1)
    message = shop.take()
    message.headers["once"]["n"] = 6

    shop.deliver(message)

    assert due_in(shop.take()) <= 2.0
    shop.app.close()


def test_a_message_stays_with_its_worker_while_the_broker_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be neither run nor put back: it is held, and runs when the unit is free."""
    task = shop.define()
    other = running(task)
    task.delay(1)
    message = shop.take()

    def away(*args: Any, **options: Any) -> None:
        other.end("success")
        is_away()

    monkeypatch.setattr(shop.app.amqp, "send_task_message", away)
    shop.deliver(message)

    assert shop.bodies == [1]


# signals


def test_a_revoked_message_waits_no_more(shop: Shop) -> None:
    """When a worker finds out that a message is revoked, the next call is sent at once."""
    task = shop.define()
    handle = task.delay(1)
    request = shop.request(shop.take())
    state.revoked.add(handle.id)

    assert request.revoked()
    assert not task.is_locked(1)


def test_an_ordinary_failure_reaps_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends where it runs: its lease is not shortened, and no round trip is spent on that."""

    def body(task: Any) -> None:
        raise ZeroDivisionError

    task = shop.define(body)
    store, steps = task.once_guard().store, []
    run = store.run
    task.delay(1)
    monkeypatch.setattr(store, "run", lambda step: steps.append(step.script.name) or run(step))
    shop.deliver(shop.take(), redelivered=True)

    assert steps == ["start", "finish"]


def test_a_child_that_is_about_to_be_killed_is_given_time(shop: Shop) -> None:
    """At a hard time limit the main process is told before the child dies: no overlap meanwhile."""
    task = shop.define(once={"key": ["unit"], "lease": 60})
    mine = running(task, "m1")

    signals.task_failure.send(
        sender=task, task_id="m1", exception=TimeLimitExceeded(1), args=(1,), kwargs={}
    )

    holder = task.holder(1)
    assert (holder.state, holder.message_id) == ("running", "m1")
    assert holder.remaining <= 60 / 3 + 2
    mine.end("success")


@pytest.mark.parametrize("why", ["time limit", "terminated"])
def test_a_child_that_dies_in_a_moment_frees_its_unit(shop: Shop, why: str) -> None:
    """The main process looks again: the lease is not waited for."""
    task = shop.define(once={"key": ["unit"], "lease": 60})
    mine = running(task, "m1")
    heartbeat().remove(mine._held)  # it is the child's: this process does not renew it
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    host, _, namespace = whereabouts().split(":")
    task.once_guard().store.client().hset(mine.key, "x0b", f"{host}:{child.pid}:{namespace}")

    if why == "terminated":
        request = Context(id="m1", args=(1,), kwargs={})
        signals.task_revoked.send(sender=task, request=request, terminated=True)
    else:
        error = TimeLimitExceeded(1)
        signals.task_failure.send(sender=task, task_id="m1", exception=error, args=(1,), kwargs={})
    assert task.is_locked(1)
    child.kill()
    child.wait()

    wait_until(lambda: not task.is_locked(1), "the unit is free", within=15)
    mine.end("success")


# sharing


@pytest.mark.parametrize("how", ["success", "failure"])
def test_a_duplicate_that_shares_ends_as_its_holder(shop: Shop, how: str) -> None:
    """With the holder's value, or with its failure."""

    def body(task: Any) -> str:
        if how == "failure":
            raise ZeroDivisionError
        return "value"

    task = shop.define(body, once={"on_duplicate": "share"})
    task.delay(1)
    duplicate = task.apply_async((1,), task_id=shop.own_id)
    for message in shop.queued():
        shop.deliver(message)

    assert shop.bodies == [1]
    if how == "failure":
        with pytest.raises(ZeroDivisionError):
            duplicate.get(timeout=1)
    else:
        assert duplicate.get(timeout=1) == "value"


def test_a_duplicate_that_shares_does_not_wait_for_ever(shop: Shop) -> None:
    """Its holder was purged: after some looks, and not after one, it fails."""
    task = shop.define(once={"on_duplicate": "share"})
    task.delay(1)
    duplicate = task.apply_async((1,), task_id=shop.own_id)
    shop.take()
    task.release(1)

    looks = 0
    while (message := shop.take()) is not None and looks < 20:
        looks += 1
        shop.deliver(message)

    with pytest.raises(DuplicateTaskError):
        duplicate.get(timeout=1)
    assert 1 < looks < 20
    assert shop.bodies == []


# leases and processes


def test_a_lease_counts_from_when_it_was_asked_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the store may have been slow: the lease is that much older."""
    now = [1000.0]
    monkeypatch.setattr(attempts, "elapsed", lambda: now[0])
    task = shop.define(once={"key": ["unit"], "lease": 60})
    store = task.once_guard().store
    run = store.run

    def slowly(step: Any) -> Any:
        now[0] += 5
        return run(step)

    monkeypatch.setattr(store, "run", slowly)
    mine = running(task)

    assert mine.lease is not None
    assert mine.lease._deadline == 1060.0
    mine.end("success")


def test_a_pid_of_another_container_says_nothing() -> None:
    """Two containers may share a host name: a pid that is missing here may live there."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, _, namespace = whereabouts().split(":")

    assert is_dead(f"{host}:{child.pid}:{namespace}")
    assert not is_dead(f"{host}:{child.pid}:0123456789")
    assert not is_dead(f"{host}:{child.pid}:")


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_a_zombie_is_dead() -> None:
    """A killed child whose parent has not heard of it yet runs no body any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    host, _, namespace = whereabouts().split(":")

    wait_until(lambda: is_dead(f"{host}:{child.pid}:{namespace}"), "it is known to be dead")
    child.wait()
