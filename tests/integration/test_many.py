"""`delay_many` and `send_many`: many calls at once, held to the same tests on both frameworks."""

from __future__ import annotations

import gc
import json
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import celery
import dramatiq
import pytest
import redis
from _support.promise_tasks import PREFIX
from _support.promises import SCENES, Once, Scene, Scenes
from _support.waiting import wait_until
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import after_task_publish, before_task_publish
from dramatiq.brokers.stub import StubBroker

import once_dramatiq
from once_celery import OnceTask
from once_celery.compat.celery_once import AlreadyQueued, QueueOnce
from once_core.bulk import BATCH
from once_core.devserver import DevServer
from once_core.errors import (
    BulkPublishError,
    ConfigurationError,
    DuplicateTaskError,
    KeyDerivationError,
    StoreUnavailableError,
)
from once_dramatiq import OnceMiddleware
from once_pytest import OnceFaults

KINDS = [
    pytest.param((framework, broker), id=f"{framework}-{broker}", marks=marks)
    for framework in SCENES
    for broker, marks in (("redis", ()), ("rabbitmq", [pytest.mark.rabbitmq]))
]

ON_REDIS = [each for each in KINDS if "redis" in str(each.id)]

on_redis = pytest.mark.parametrize("scene", ON_REDIS, indirect=True)
"""For what cannot depend on the broker."""


@pytest.fixture(scope="module")
def scenes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
) -> Iterator[Scenes]:
    """Scenes of all kinds."""
    rabbitmq = partial(request.getfixturevalue, "rabbitmq")
    made = Scenes(tmp_path_factory.mktemp, shared_server, rabbitmq)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, scenes: Scenes, unit: str) -> Iterator[Scene]:
    """A framework and a broker."""
    with scenes.lent(request.param, unit) as scene:
        yield scene


@pytest.fixture(params=["celery", "dramatiq"])
def quiet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A broker and a lock store of the test's own, to be killed, and no worker."""
    with DevServer() as broker, DevServer() as locks:
        quiet = SCENES[request.param](tmp_path, broker, "redis", locks)
        quiet.deployment.store = broker  # Celery's would be that of the locks
        # else Celery asks the dead broker for results first, for 20 s
        quiet.deployment.task(PREFIX + "work").ignore_result = True
        yield quiet
        quiet.close()
        gc.collect()


def many(
    scene: Scene, task: str, calls: Any, *, once: Once = None, delay: float = 0.0, **options: Any
) -> list[Any]:
    """Trigger a task of the scene many times, in the words of its framework."""
    found = scene.deployment.task(PREFIX + task)
    if isinstance(scene, SCENES["celery"]):
        return found.apply_async_many(calls, once=once, countdown=delay or None, **options)
    due = round(delay * 1000) or None
    return once_dramatiq.send_many(found, calls, once=once, delay=due, **options)


def named(*units: object) -> list[Any]:
    """Calls with one argument each."""
    return [((each,), {}) for each in units]


def states(scene: Scene, handles: Any) -> list[str]:
    """What became of each call."""
    return [scene.published(each).state for each in handles]


@pytest.fixture
def on_sent() -> Iterator[Callable[[Scene, Callable[[int], object]], Sent]]:
    """Has something done after each message that a broker has taken; given how many that were."""
    made: list[Sent] = []

    def install(scene: Scene, then: Callable[[int], object]) -> Sent:
        made.append(Sent(then))
        if isinstance(scene, SCENES["celery"]):
            before_task_publish.connect(made[-1].trying, weak=False)
            after_task_publish.connect(made[-1].taken, weak=False)
        else:
            scene.deployment.app.add_middleware(Watching(made[-1]))
        return made[-1]

    yield install
    for each in made:
        before_task_publish.disconnect(each.trying)
        after_task_publish.disconnect(each.taken)


class Sent:
    """Counts messages that were tried, and those that the broker has."""

    def __init__(self, then: Callable[[int], object]) -> None:
        self.tried = self.count = 0
        self._then = then

    def trying(self, *_: object, **__: object) -> None:
        self.tried += 1

    def taken(self, *_: object, **__: object) -> None:
        self.count += 1
        self._then(self.count)


class Watching(dramatiq.Middleware):
    """Tells it of a broker's messages."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._sent.trying()

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._sent.taken()


def keys(scene: Scene) -> int:
    """How many records there are."""
    return len(scene.locks.client().keys("once:*"))


# What becomes of the calls


def test_all_run_and_the_handles_are_in_order(scene: Scene, unit: str) -> None:
    """Equal calls run once, and whoever made them has the result; nothing is left."""
    units = [f"{unit}-{at % 12}" for at in range(20)]
    handles = many(scene, "by_template", named(*units), delay=0.5)

    assert states(scene, handles) == ["claimed"] * 12 + ["waiting"] * 8
    assert [scene.result(each) for each in handles] == [f"done {each}" for each in units]
    assert [len(scene.runs(each)) for each in units] == [1] * 20
    assert not any(scene.is_locked("by_template", each) for each in units)


@on_redis
def test_one_that_waits_already_and_one_that_runs(scene: Scene, unit: str) -> None:
    """They refuse as they refuse single calls."""
    running = scene.hold("until_done", unit)
    other = scene.send("until_done", f"{unit}-b", delay=60)
    handles = many(scene, "until_done", named(unit, f"{unit}-b", f"{unit}-c"), delay=60)

    assert states(scene, handles) == ["running", "waiting", "claimed"]
    assert [scene.published(each).holder_id for each in handles[:2]] == [
        scene.message_id(running),
        scene.message_id(other),
    ]


@on_redis
@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("work", ["claimed", "waiting"]),
        ("until_done", ["claimed", "waiting"]),
        ("queued", ["claimed", "waiting"]),
        ("running", ["claimed", "claimed"]),
        ("window", ["claimed", "waiting"]),
    ],
)
def test_every_scope(scene: Scene, unit: str, task: str, expected: list[str]) -> None:
    """Two equal calls become what two calls one after the other become."""
    handles = many(scene, task, named(unit, unit))

    assert states(scene, handles) == expected
    assert [scene.result(each) for each in handles] == [f"done {unit}"] * 2


@on_redis
@pytest.mark.parametrize("task", ["replacing", "debounced"])
def test_the_newest_payload_runs_last(scene: Scene, unit: str, task: str) -> None:
    """Of those that replace each other in one batch; the others end without running."""
    handles = many(scene, task, [((unit, 0.0, payload), {}) for payload in "abc"])

    assert states(scene, handles) == ["claimed", "replaced", "replaced"]
    assert scene.result(handles[2]) == "c"
    runs = scene.has_ended(unit, 1)
    assert runs[-1].payload == "c"
    if task == "debounced":
        assert [run.payload for run in runs] == ["c"]


@on_redis
def test_equal_calls_that_replace_are_sent_once(scene: Scene, unit: str) -> None:
    """The second only moves the due time of the first."""
    handles = many(scene, "debounced", named(unit, unit))

    assert states(scene, handles) == ["claimed", "moved"]
    assert [scene.result(each) for each in handles] == [f"done {unit}"] * 2
    assert len(scene.runs(unit)) == 1


@on_redis
def test_those_that_raise_are_told_and_the_others_are_sent(scene: Scene, unit: str) -> None:
    """One refused call does not cost the others."""
    with pytest.raises(BulkPublishError) as caught:
        many(scene, "raising", named(unit, unit, f"{unit}-b"))
    first, second, third = caught.value.results

    assert isinstance(second, DuplicateTaskError)
    assert second.holder_id == scene.message_id(first)
    assert [scene.result(each) for each in (first, third)] == [f"done {unit}", f"done {unit}-b"]


@on_redis
def test_those_that_share_have_the_result(scene: Scene, unit: str) -> None:
    """As single calls have."""
    handles = many(scene, "sharing", named(unit, unit), delay=0.5)

    assert [scene.result(each) for each in handles] == [f"done {unit}"] * 2
    assert len(scene.runs(unit)) == 1


@on_redis
def test_options_for_the_calls(scene: Scene, unit: str) -> None:
    """once= is that of each of them; False sends all past the locks."""
    with pytest.raises(BulkPublishError):
        many(scene, "work", named(unit, unit), once={"on_duplicate": "raise"})
    handles = many(scene, "work", named(*[f"{unit}-b"] * 2), once=False)

    assert states(scene, handles) == ["off", "off"]
    assert [scene.result(each) for each in handles] == [f"done {unit}-b"] * 2
    assert len(scene.runs(f"{unit}-b")) == 2
    with pytest.raises(ConfigurationError, match="scope"):
        many(scene, "work", named(unit), once={"scope": "nonsense"})


@on_redis
def test_limit_of_the_calls(scene: Scene, unit: str) -> None:
    """As many run as may; one waits."""
    once = {"limit": 2}
    handles = many(scene, "work", [((unit, -1), {})], once=once)
    wait_until(lambda: scene.runs(unit), "one runs")
    handles += many(scene, "work", [((unit, -1), {}), ((unit, -1), {})], once=once)

    assert states(scene, handles) == ["claimed", "claimed", "waiting"]
    wait_until(lambda: len(scene.runs(unit)) == 2, "two run at once")
    scene.let_go(unit)
    scene.has_ended(unit, 2)


@on_redis
def test_none_starts_before_its_delay(scene: Scene, unit: str) -> None:
    """And the unit is held meanwhile."""
    handles = many(scene, "work", named(unit, f"{unit}-b"), delay=1)

    assert states(scene, handles) == ["claimed", "claimed"]
    holder = scene.holder("work", unit)
    assert holder is not None
    assert holder.state == "waiting"
    assert scene.result(handles[1]) == f"done {unit}-b"


@on_redis
def test_no_calls(scene: Scene) -> None:
    """Nothing to do is no error."""
    assert many(scene, "work", []) == []
    assert many(scene, "work", iter(())) == []


@on_redis
def test_bad_calls_are_told_for_themselves_alone(scene: Scene, unit: str) -> None:
    """A wrong shape, arguments that the task has not, that give no key, or cannot be sent."""
    calls: list[Any] = [
        ((f"{unit}-a",), {}),
        (f"{unit}-x", {}),
        ((), {"nobody": 1}),
        ((object(),), {}),
        ((f"{unit}-b", 0.0, object()), {}),
        ((f"{unit}-b",), {}),
    ]
    with pytest.raises(BulkPublishError) as caught:
        many(scene, "work", calls)
    good, shape, unknown, keyless, unsendable, good_too = caught.value.results

    assert isinstance(shape, ConfigurationError)
    assert isinstance(unknown, TypeError)
    assert isinstance(keyless, KeyDerivationError)
    assert isinstance(unsendable, Exception)
    assert "4111" not in str(caught.value)
    assert scene.result(good) == f"done {unit}-a"
    assert scene.published(good_too).state == "claimed"
    assert scene.result(good_too) == f"done {unit}-b"


# Cost


@on_redis
def test_1200_calls_of_a_generator_are_three_round_trips(
    quiet: Scene, scene: Scene, unit: str
) -> None:
    """One for each 500, whatever the number of duplicates."""
    many(quiet, "work", named("before"))  # which loads the script
    client = quiet.locks.client()
    client.config_resetstat()
    handles = many(quiet, "work", (((f"{unit}-{at % 1100}",), {}) for at in range(1200)))
    stats = client.info("commandstats")

    assert states(quiet, handles) == ["claimed"] * 1100 + ["waiting"] * 100
    assert stats["cmdstat_evalsha"]["calls"] == 1200
    assert "cmdstat_eval" not in stats
    assert quiet.queued() == 1101
    reads = client.info("stats")
    assert reads["total_reads_processed"] < 100


# The broker goes away


def test_the_broker_is_away_from_the_start(quiet: Scene, on_sent: Any) -> None:
    """The error of a single call, after the retries of one call; nothing is left claimed."""
    sent = on_sent(quiet, lambda count: None)
    quiet.deployment.store.kill()
    with pytest.raises(Exception) as single:  # noqa: PT011  # whatever it is
        quiet.send("work", "alone")
    tried, sent.tried = sent.tried, 0
    with pytest.raises(type(single.value)):
        many(quiet, "work", named(*range(1200)))

    assert tried == sent.tried == 1
    assert keys(quiet) == 0
    assert not any(quiet.is_locked("work", each) for each in range(1200))


def test_the_broker_dies_in_the_middle(quiet: Scene, on_sent: Any) -> None:
    """What it has taken is claimed, and nothing else; no further message is tried."""
    sent = on_sent(quiet, lambda count: quiet.deployment.store.kill() if count == 30 else None)
    with pytest.raises(BulkPublishError) as caught:
        many(quiet, "work", named(*range(600)))
    error = caught.value

    assert (sent.count, sent.tried) == (30, 31)
    assert states(quiet, error.results[:30]) == ["claimed"] * 30
    assert all(isinstance(each, Exception) for each in error.results[30:])
    assert [bool(each) for each in error.reasons] == [False] * 30 + [True] * 570
    assert keys(quiet) == 30
    assert not any(quiet.is_locked("work", each) for each in range(30, 600))
    assert "570 of 600 calls of " in str(error)
    assert "the first of them at index 30: " in str(error)

    quiet.deployment.store.start()
    assert states(quiet, many(quiet, "work", named(*range(30, 600)))) == ["claimed"] * 570


# The lock store goes away


def test_the_lock_store_is_away_from_the_start(quiet: Scene, on_sent: Any) -> None:
    """As single calls raise it, for users' handlers to see; nothing is sent."""
    sent = on_sent(quiet, lambda count: None)
    quiet.locks.kill()
    with pytest.raises(quiet.unavailable) as caught:
        many(quiet, "work", named(*range(1200)))

    assert isinstance(caught.value, quiet.connection_error)
    assert sent.tried == 0


def test_the_lock_store_is_away_and_the_tasks_go_on(quiet: Scene, on_sent: Any) -> None:
    """With on_store_error="run" all are sent without a claim."""
    quiet.locks.kill()
    handles = many(quiet, "work", named(*range(600)), once={"on_store_error": "run"})

    assert set(states(quiet, handles)) == {"unguarded"}
    assert quiet.queued() == 600


@pytest.mark.parametrize("on_store_error", ["raise", "run"])
def test_the_lock_store_dies_between_two_batches(
    quiet: Scene, on_sent: Any, on_store_error: str
) -> None:
    """The first batch was claimed; of the rest each is told, or all are sent without a claim."""
    on_sent(quiet, lambda count: quiet.locks.kill() if count == BATCH else None)
    once = {"on_store_error": on_store_error}
    if on_store_error == "run":
        handles = many(quiet, "work", named(*range(1200)), once=once)
        assert states(quiet, handles) == ["claimed"] * BATCH + ["unguarded"] * 700
        return
    with pytest.raises(BulkPublishError) as caught:
        many(quiet, "work", named(*range(1200)), once=once)

    assert states(quiet, caught.value.results[:BATCH]) == ["claimed"] * BATCH
    assert all(isinstance(each, quiet.unavailable) for each in caught.value.results[BATCH:])
    assert all(isinstance(each, quiet.connection_error) for each in caught.value.results[BATCH:])
    assert quiet.queued() == BATCH


# Somebody interrupts


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SoftTimeLimitExceeded])
def test_an_interrupt_leaves_nothing_claimed_of_what_was_not_sent(
    quiet: Scene, on_sent: Any, kind: type[BaseException]
) -> None:
    """It comes out as it is; `SoftTimeLimitExceeded` is an `Exception`, and no call's own."""
    if isinstance(quiet, SCENES["dramatiq"]) and kind is SoftTimeLimitExceeded:
        kind = dramatiq.middleware.TimeLimitExceeded
    seen: list[int] = []

    def interrupted(send: Callable[..., Any]) -> Callable[..., Any]:
        def sending(*args: Any, **options: Any) -> Any:
            seen.append(1)
            if len(seen) == 5:
                raise kind
            return send(*args, **options)

        return sending

    with pytest.MonkeyPatch.context() as patched:
        app = quiet.deployment.app
        where, name = (
            (app, "send_task") if isinstance(quiet, SCENES["celery"]) else (app, "emit_before")
        )
        patched.setattr(where, name, interrupted(getattr(where, name)))
        with pytest.raises(kind):
            many(quiet, "work", named(*range(20)))

    assert len(seen) == 5
    assert keys(quiet) == 4
    assert [quiet.is_locked("work", each) for each in range(20)] == [True] * 4 + [False] * 16


# Celery's own


@pytest.fixture
def app() -> celery.Celery:
    """In memory, with a queue and locks of its own."""
    name = uuid.uuid4().hex
    app = celery.Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_default_queue=name, once_url=f"memory://{name}")
    return app


def messages(app: celery.Celery, queue: str = "") -> list[Any]:
    """What waits in a queue."""
    with app.connection_for_write() as connection:
        simple = connection.SimpleQueue(queue or app.conf.task_default_queue)
        found = [simple.get_nowait() for _ in range(simple.qsize())]
        simple.close()
    return found


def test_options_of_apply_async_hold_for_all_messages(app: celery.Celery) -> None:
    """queue, expires, priority, headers and links."""

    @app.task(base=OnceTask)
    def sync(order_id: int) -> None: ...

    handles = sync.apply_async_many(
        named(1, 2, 1), queue=f"{app.conf.task_default_queue}-b", expires=60, headers={"of": "me"}
    )
    found = messages(app, f"{app.conf.task_default_queue}-b")

    assert [each.headers["id"] for each in found] == [each.id for each in handles[:2]]
    assert all(each.headers["expires"] and each.headers["of"] == "me" for each in found)


def test_a_duplicate_with_a_link_is_settled(app: celery.Celery) -> None:
    """Somebody waits for it, so its message is sent all the same, as for a single call."""

    @app.task(base=OnceTask)
    def sync(order_id: int) -> None: ...

    handles = sync.apply_async_many(named(1, 1), link=sync.si(2))

    assert handles[0].id != handles[1].id
    assert handles[1].once.is_duplicate
    assert len(messages(app)) == 2


def test_one_id_cannot_be_that_of_many(app: celery.Celery) -> None:
    """It is said what to do."""

    @app.task(base=OnceTask)
    def sync(order_id: int) -> None: ...

    with pytest.raises(ConfigurationError, match="task_id='mine' cannot be the id of many calls"):
        sync.apply_async_many(named(1, 2), task_id="mine")


def test_eager(app: celery.Celery) -> None:
    """Runs all of them at once, in order, as `delay` does; options are checked all the same."""
    ran: list[int] = []
    app.conf.task_always_eager = True

    @app.task(base=OnceTask)
    def sync(order_id: int) -> int:
        ran.append(order_id)
        return order_id

    assert [each.get() for each in sync.delay_many(named(1, 2, 1))] == [1, 2, 1]
    assert ran == [1, 2, 1]
    with pytest.raises(ConfigurationError):
        sync.apply_async_many(named(1), once={"scope": "nonsense"})


def test_a_task_under_no_guard(app: celery.Celery) -> None:
    """All of its calls are sent."""

    @app.task(base=OnceTask, once=False)
    def sync(order_id: int) -> None: ...

    handles = sync.delay_many(named(1, 1))

    assert [each.once.state for each in handles] == ["off", "off"]
    assert len(messages(app)) == 2
    with pytest.raises(ConfigurationError, match="not under guard"):
        sync.apply_async_many(named(1, 2), once={"scope": "queued"})


def test_the_apply_async_of_a_subclass_is_respected(app: celery.Celery) -> None:
    """It is called for each; what it adds is in all messages, and duplicates are found."""

    class Traced(OnceTask):
        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            options["headers"] = {"trace": "t1"}
            return super().apply_async(args, kwargs, **options)

    @app.task(base=Traced)
    def sync(order_id: int) -> None: ...

    handles = sync.delay_many(named(1, 2, 1))

    assert [each.once.state for each in handles] == ["claimed", "claimed", "waiting"]
    assert [each.headers["trace"] for each in messages(app)] == ["t1", "t1"]


def test_an_apply_async_that_a_test_has_replaced_is_respected(
    app: celery.Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mocks sit on the task and not on its class."""

    @app.task(base=OnceTask)
    def sync(order_id: int) -> None: ...

    asked: list[Any] = []
    monkeypatch.setattr(
        sync._get_current_object(),
        "apply_async",
        lambda args, kwargs, **options: asked.append(args) or app.AsyncResult("x"),
    )
    sync.delay_many(named(1, 2))

    assert asked == [(1,), (2,)]
    assert messages(app) == []


def test_django_task(app: celery.Celery) -> None:
    """Claims and sends at once, inside of a transaction too."""
    from once_celery.django import DjangoOnceTask  # needs Celery 5.4

    @app.task(base=DjangoOnceTask)
    def sync(order_id: int) -> None: ...

    assert [each.once.state for each in sync.delay_many(named(1, 1))] == ["claimed", "waiting"]


@pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning")
def test_compat_class(app: celery.Celery) -> None:
    """A stand-in of another library refuses in its own words."""

    @app.task(base=QueueOnce)
    def sync(order_id: int) -> None: ...

    with pytest.raises(BulkPublishError) as caught:
        sync.delay_many(named(1, 2, 1))

    assert isinstance(caught.value.results[2], AlreadyQueued)
    assert len(messages(app)) == 2


def test_calls_that_are_made_while_others_are_sent_over_one_connection(app: celery.Celery) -> None:
    """A generator that sends something itself waits for no connection that we hold."""
    app.conf.broker_pool_limit = 1

    @app.task(base=OnceTask)
    def sync(order_id: int) -> None: ...

    def calls() -> Iterator[Any]:
        for each in range(2):
            sync.apply_async((100 + each,), expires=60)
            yield (each,), {}

    assert len(sync.delay_many(calls())) == 2
    assert len(messages(app)) == 4


def test_a_result_backend_that_is_away_is_tried_once(
    app: celery.Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery asks it before each message, and gives up after 20 s with a `RuntimeError`."""
    asked: list[object] = []

    @app.task(base=OnceTask)
    def sync(order_id: int) -> None: ...

    def away(producer: object, task_id: str) -> None:
        asked.append(task_id)
        raise RuntimeError(
            "Retry limit exceeded while trying to reconnect to the Celery result store backend."
        )

    monkeypatch.setattr(app.backend, "on_task_call", away)
    with pytest.raises(RuntimeError, match="Retry limit exceeded"):
        sync.delay_many(named(1, 2, 3))

    assert len(asked) == 1
    assert not any(sync.is_locked(each) for each in (1, 2, 3))


# Dramatiq's own


@pytest.fixture
def stub() -> StubBroker:
    """With locks of its own."""
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware(url=f"memory://{uuid.uuid4().hex}"))
    return broker


def test_a_method_of_actors(stub: StubBroker) -> None:
    """The same as the function."""

    @dramatiq.actor(broker=stub, once=True)
    def sync(order_id: int) -> None: ...

    found = sync.send_many(named(1, 2, 1))

    assert [once_dramatiq.published(each).state for each in found] == [
        "claimed",
        "claimed",
        "waiting",
    ]
    assert found[2].message_id == found[0].message_id


def test_an_actor_under_no_guard_and_a_broker_without_ours(stub: StubBroker) -> None:
    """All of its messages are sent."""
    for broker in (stub, StubBroker()):

        @dramatiq.actor(broker=broker, actor_name=f"plain-{id(broker)}")
        def sync(order_id: int) -> None: ...

        found = once_dramatiq.send_many(sync, named(1, 1))

        assert found[0].message_id != found[1].message_id
        assert broker.queues["default"].qsize() == 2


def test_the_send_with_options_of_an_actor_class_is_respected(stub: StubBroker) -> None:
    """It is called for each; what it adds is in all messages, and duplicates are found."""

    class Traced(dramatiq.Actor):
        def send_with_options(self, **options: Any) -> Any:
            return super().send_with_options(trace="t1", **options)

    @dramatiq.actor(broker=stub, once=True, actor_class=Traced)
    def sync(order_id: int) -> None: ...

    found = once_dramatiq.send_many(sync, named(1, 2, 1))
    sent = [json.loads(each) for each in stub.queues["default"].queue]

    assert [once_dramatiq.published(each).is_duplicate for each in found] == [False, False, True]
    assert [each["options"]["trace"] for each in sent] == ["t1", "t1"]


def test_an_enqueue_that_others_have_wrapped_is_respected(stub: StubBroker) -> None:
    """Whatever sits around the broker's own."""

    @dramatiq.actor(broker=stub, once=True)
    def sync(order_id: int) -> None: ...

    inner, seen = stub.enqueue, []

    def enqueue(message: Any, *, delay: Any = None) -> Any:
        seen.append(message.message_id)
        return inner(message, delay=delay)

    stub.enqueue = enqueue  # type: ignore[method-assign]  # as instrumentation does
    found = once_dramatiq.send_many(sync, named(1, 2, 1))

    assert len(seen) == 3
    assert [once_dramatiq.published(each).is_duplicate for each in found] == [False, False, True]


@pytest.mark.parametrize("error", [redis.ConnectionError, redis.TimeoutError, ConnectionError])
def test_a_broker_on_redis_that_is_away_is_tried_once(
    stub: StubBroker, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Dramatiq's RedisBroker raises what redis-py does, after redis-py's own retries."""
    asked: list[Any] = []

    @dramatiq.actor(broker=stub, once=True)
    def sync(order_id: int) -> None: ...

    def away(message: Any, **_: Any) -> Any:
        asked.append(message)
        raise error("away")

    monkeypatch.setattr(stub.enqueue, "once_original", away)
    with pytest.raises(error):
        once_dramatiq.send_many(sync, named(1, 2, 3))

    assert len(asked) == 1
    assert not once_dramatiq.is_locked(sync, 1)


# Under the toolkit, and in bodies


def test_in_a_body_under_celery(once_celery_app: celery.Celery, once_drain: Any) -> None:
    """Its own unit waits for it to end, the others once each."""
    ran: list[int] = []

    @once_celery_app.task(base=OnceTask)
    def fan_out(number: int) -> None:
        ran.append(number)
        if number == 0 and len(ran) == 1:
            fan_out.delay_many(named(0, 1, 2, 1))

    fan_out.delay(0)
    once_drain()

    assert sorted(ran) == [0, 0, 1, 2]


def test_in_a_body_under_dramatiq(once_dramatiq_broker: Any, once_drain: Any) -> None:
    """The same."""
    ran: list[int] = []

    @dramatiq.actor(broker=once_dramatiq_broker, once=True)
    def fan_out(number: int) -> None:
        ran.append(number)
        if number == 0 and len(ran) == 1:
            once_dramatiq.send_many(fan_out, named(0, 1, 2, 1))

    fan_out.send(0)
    once_drain()

    assert sorted(ran) == [0, 0, 1, 2]


def test_faults_of_the_toolkit(
    once_celery_app: celery.Celery, once_faults: OnceFaults, once_drain: Any
) -> None:
    """An outage fails the calls; a lost reply is taken over by the next ones; all run once."""
    ran: list[int] = []

    @once_celery_app.task(base=OnceTask)
    def sync(order_id: int) -> None:
        ran.append(order_id)

    with once_faults.outage(), pytest.raises(StoreUnavailableError):
        sync.delay_many(named(1, 2))
    with once_faults.lose_reply("claim"), pytest.raises(StoreUnavailableError):
        sync.delay_many(named(1, 2, 2))
    handles = sync.delay_many(named(1, 2))
    once_drain()

    assert not any(each.once.is_duplicate for each in handles)
    assert sorted(ran) == [1, 2]


@pytest.mark.once(bypass=True)
def test_the_bypass_of_the_toolkit(once_dramatiq_broker: Any, once_celery_app: Any) -> None:
    """Calls that ask for options of their own pass the locks too, as single ones do."""

    @dramatiq.actor(broker=once_dramatiq_broker, once=True)
    def sync(order_id: int) -> None: ...

    @once_celery_app.task(base=OnceTask)
    def sync_too(order_id: int) -> None: ...

    found = once_dramatiq.send_many(sync, named(1, 1), once={"scope": "queued"})
    handles = sync_too.apply_async_many(named(1, 1), once={"scope": "queued"})

    assert not any(once_dramatiq.published(each).is_duplicate for each in found)
    assert not any(each.once.is_duplicate for each in handles)
