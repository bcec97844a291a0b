"""Every way in which a Dramatiq message is enqueued: whatever does it, it is guarded as promised.

On all brokers: a `StubBroker` in this process, Redis and RabbitMQ with real workers. Pipelines
and groups of more than one step have a file of their own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import dramatiq
import pika
import pytest
import redis
from _support.cuttable import Cuttable
from _support.dramatiq_deployment import PIKA_URL, DramatiqDeployment
from _support.dramatiq_ways_actors import VetoError, ids, is_free, runs_when_triggered, told
from _support.ledger import overlaps
from _support.waiting import wait_until
from dramatiq import Message, Middleware, Worker, group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed, QueueNotFound

from once_dramatiq import OnceMiddleware, holder, is_locked, published, release

pytestmark = pytest.mark.lifecycle_dramatiq

Way = Callable[[Any, str], "Message[Any]"]


def of_a_pipeline(actor: Any, unit: str) -> Message[Any]:
    """The only step of one."""
    return pipeline([actor.message(unit)], broker=actor.broker).run().messages[0]


def of_a_group(actor: Any, unit: str) -> Message[Any]:
    """The only child of one."""
    return group([actor.message(unit)], broker=actor.broker).run().children[0]


SENT: dict[str, Way] = {
    "send": lambda actor, unit: actor.send(unit),
    "send with a keyword": lambda actor, unit: actor.send(unit=unit),
    "send_with_options": lambda actor, unit: actor.send_with_options(args=(unit,)),
    "send_with_options with kwargs": lambda actor, unit: actor.send_with_options(
        kwargs={"unit": unit}
    ),
    "delay": lambda actor, unit: actor.send_with_options(args=(unit,), delay=300),
    "delay=0": lambda actor, unit: actor.send_with_options(args=(unit,), delay=0),
    "delay as timedelta": lambda actor, unit: actor.send_with_options(
        args=(unit,), delay=timedelta(seconds=0.3)
    ),
    "own option": lambda actor, unit: actor.send_with_options(args=(unit,), mine="x"),
}
"""By the actor, who gives the message its id: a duplicate is left out, and has the holder's id."""

ENQUEUED: dict[str, Way] = {
    "broker.enqueue": lambda actor, unit: actor.broker.enqueue(actor.message(unit)),
    "broker.enqueue with a delay": lambda actor, unit: actor.broker.enqueue(
        actor.message(unit), delay=300
    ),
    "message_with_options": lambda actor, unit: actor.broker.enqueue(
        actor.message_with_options(args=(unit,), mine="x")
    ),
    "pipeline": of_a_pipeline,
    "group": of_a_group,
}
"""With an id that somebody knows already: a duplicate of it is settled, under its own id."""

LONG = 3_600_000
"""Milliseconds after which a message is due that only waits."""


class Tried(NamedTuple):
    """One way, tried on a unit that is taken and, when that was released, on an idle one."""

    unit: str
    waiting: Message[Any]
    duplicate: Message[Any]
    fresh: Message[Any]


@pytest.fixture(scope="module")
def tried(dramatiq_crew: DramatiqDeployment) -> dict[str, Tried]:
    """All ways, at once."""
    leaving, made = dramatiq_crew.task("leaving"), {}
    for name, way in (SENT | ENQUEUED).items():
        unit = f"u-{uuid.uuid4().hex[:8]}"
        waiting = leaving.send_with_options(args=(unit,), delay=LONG)
        duplicate = way(leaving, unit)
        release(leaving, unit)
        made[name] = Tried(unit, waiting, duplicate, way(leaving, unit))
    return made


@pytest.mark.parametrize("name", SENT)
def test_a_message_that_is_sent(
    dramatiq_crew: DramatiqDeployment, tried: dict[str, Tried], name: str
) -> None:
    """A duplicate of one that waits is not sent; on an idle unit it runs once, under a lease."""
    unit, waiting, duplicate, fresh = tried[name]

    assert published(duplicate).state == "waiting"
    assert duplicate.message_id == waiting.message_id
    runs_once(dramatiq_crew, unit, fresh)


@pytest.mark.parametrize("name", ENQUEUED)
def test_a_message_whose_id_is_known(
    dramatiq_crew: DramatiqDeployment, tried: dict[str, Tried], name: str
) -> None:
    """A duplicate of one that waits ends under its own id, without a run of its own."""
    unit, waiting, duplicate, fresh = tried[name]

    assert duplicate.message_id != waiting.message_id
    assert dramatiq_crew.result(duplicate) is None
    runs_once(dramatiq_crew, unit, fresh)


def runs_once(scene: DramatiqDeployment, unit: str, fresh: Message[Any]) -> None:
    """It runs, alone and under a lease; then the unit is free."""
    assert scene.result(fresh) == "success"
    runs = [(run.message_id, run.fence is not None) for run in scene.runs(unit)]
    assert runs == [(fresh.message_id, True)]
    is_free(scene.task("leaving"), unit)


def test_a_delayed_message_is_the_one_that_waits(
    dramatiq_crew: DramatiqDeployment, unit: str
) -> None:
    """Until it is due, and while it moves to its queue, triggers get its message, due or not."""
    leaving = dramatiq_crew.task("leaving")
    later = leaving.send_with_options(args=(unit,), delay=1000)

    now = leaving.send(unit)

    assert (published(now).state, now.message_id) == ("waiting", later.message_id)
    assert not dramatiq_crew.has_result(now)
    runs_once(dramatiq_crew, unit, now)


def test_a_delayed_message_that_is_retried(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """It runs twice, under one id; a trigger in between is refused."""
    leaving = dramatiq_crew.task("leaving")
    message = leaving.send_with_options(args=(unit, "Retry"), delay=300)
    wait_until(lambda: dramatiq_crew.runs(unit), "it runs")
    wait_until(lambda: holds(leaving, unit) == "waiting", "its retry waits")

    refused = leaving.send(unit)

    assert refused.message_id == message.message_id
    assert dramatiq_crew.result(refused) == "Retry"
    assert [(run.message_id, run.retries) for run in dramatiq_crew.runs(unit)] == [
        (message.message_id, 0),
        (message.message_id, 1),
    ]
    is_free(leaving, unit)


def holds(actor: Any, unit: str) -> str:
    """State of whoever holds the unit."""
    found = holder(actor, unit)
    return found.state if found else "free"


def test_a_body_that_sends_its_own_unit(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """It is a trigger: one more run, when this one is over."""
    leaving = dramatiq_crew.task("leaving")
    first = leaving.send(unit, "again")

    assert dramatiq_crew.result(first) == "again"
    wait_until(lambda: len(dramatiq_crew.runs(unit)) == 2, "it runs again")
    is_free(leaving, unit)
    assert ids(dramatiq_crew, unit)[0] == first.message_id
    assert len(set(ids(dramatiq_crew, unit))) == 2
    assert overlaps(dramatiq_crew.runs(unit)) == []


def test_a_body_that_sends_its_own_unit_until_done(
    dramatiq_crew: DramatiqDeployment, unit: str
) -> None:
    """The scope refuses triggers while it runs, its own too."""
    leaving = dramatiq_crew.task("leaving")
    first = leaving.send_with_options(args=(unit, "again until done"), once=UNTIL_DONE)

    assert dramatiq_crew.result(first) == "again until done"
    is_free(leaving, unit)
    assert ids(dramatiq_crew, unit) == [first.message_id]


UNTIL_DONE = {"scope": "until_done"}


# The same message enqueued twice


def test_the_same_message_enqueued_twice(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """While it waits the second is left out; it runs once, and its result is real."""
    leaving = dramatiq_crew.task("leaving")
    message = leaving.message(unit)

    first = dramatiq_crew.app.enqueue(message, delay=500)
    second = dramatiq_crew.app.enqueue(message)

    assert [published(each).state for each in (first, second)] == ["claimed", "waiting"]
    assert not dramatiq_crew.has_result(message)
    runs_once(dramatiq_crew, unit, message)


def test_the_same_message_enqueued_while_it_runs(
    dramatiq_crew: DramatiqDeployment, unit: str
) -> None:
    """It is a trigger: it runs again in its turn. A third one is refused."""
    leaving = dramatiq_crew.task("leaving")
    message = leaving.message(unit, "success", -1)
    dramatiq_crew.app.enqueue(message)
    wait_until(lambda: dramatiq_crew.runs(unit), "it runs")

    second = dramatiq_crew.app.enqueue(message)
    third = dramatiq_crew.app.enqueue(message)

    assert [published(each).state for each in (second, third)] == ["claimed", "waiting"]
    dramatiq_crew.let_go(unit)
    wait_until(lambda: len(dramatiq_crew.runs(unit)) == 2, "it runs again")
    is_free(leaving, unit)
    assert ids(dramatiq_crew, unit) == [message.message_id] * 2
    assert overlaps(dramatiq_crew.runs(unit)) == []
    assert dramatiq_crew.result(message) == "success"


def test_the_same_message_enqueued_after_its_run(
    dramatiq_crew: DramatiqDeployment, unit: str
) -> None:
    """It runs again."""
    leaving = dramatiq_crew.task("leaving")
    message = leaving.message(unit)
    dramatiq_crew.app.enqueue(message)
    wait_until(lambda: dramatiq_crew.runs(unit), "it runs")
    is_free(leaving, unit)

    again = dramatiq_crew.app.enqueue(message)

    assert published(again).state == "claimed"
    wait_until(lambda: len(dramatiq_crew.runs(unit)) == 2, "it runs again")
    is_free(leaving, unit)


def test_a_pipeline_that_is_run_twice(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """While its first step waits the second is left out: each step runs once."""
    leaving, noting = dramatiq_crew.task("leaving"), dramatiq_crew.task("noting")
    line = pipeline(
        [leaving.message(unit, "success"), noting.message(unit)], broker=dramatiq_crew.app
    )

    line.run(delay=500)
    line.run()

    assert dramatiq_crew.result(line.messages[-1]) == "success"
    is_free(leaving, unit)
    assert ids(dramatiq_crew, unit) == [line.messages[0].message_id]
    assert [each["args"] for each in dramatiq_crew.noted() if each["args"][0] == unit] == [
        [unit, "success"]
    ]


def test_a_step_that_a_worker_enqueues(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """A duplicate is settled and the pipeline goes on; on an idle unit the step runs, once."""
    leaving, noting = dramatiq_crew.task("leaving"), dramatiq_crew.task("noting")

    def line() -> pipeline:
        steps = [noting.message(unit), leaving.message_with_options(args=(unit,), pipe_ignore=True)]
        return pipeline([*steps, noting.message(unit)], broker=dramatiq_crew.app).run()

    leaving.send_with_options(args=(unit,), delay=LONG)
    refused = line()
    assert dramatiq_crew.result(refused.messages[2]) is None
    release(leaving, unit)
    accepted = line()

    assert dramatiq_crew.result(accepted.messages[2]) == "success"
    runs_once(dramatiq_crew, unit, accepted.messages[1])
    assert dramatiq_crew.result(refused.messages[1]) is None


def test_a_duplicate_with_a_callback(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """Its id is told to the callback, so it ends under it: each callback is called once."""
    leaving, noting = dramatiq_crew.task("leaving"), dramatiq_crew.task("noting")
    both = [leaving.send_with_options(args=(unit,), delay=300, on_success=noting) for _ in range(2)]

    assert [published(each).state for each in both] == ["claimed", "waiting"]
    assert [dramatiq_crew.result(each) for each in both] == ["success", None]
    runs_once(dramatiq_crew, unit, both[0])
    calls = wait_until(lambda: callbacks(dramatiq_crew, both, at_least=2), "both are called")
    assert sorted(calls) == sorted(
        [(both[0].message_id, "success"), (both[1].message_id, None)],
    )


def callbacks(
    scene: DramatiqDeployment, messages: list[Message[Any]], *, at_least: int
) -> list[tuple[str, object]]:
    """Of which of these messages, and with which results; empty until there are enough."""
    ids_of = {each.message_id for each in messages}
    given = [each["args"] for each in scene.noted() if isinstance(each["args"][0], dict)]
    found = [(told_of["message_id"], result) for told_of, result in given]
    mine = [each for each in found if each[0] in ids_of]
    return mine if len(mine) >= at_least else []


def test_a_copy_that_the_broker_made(dramatiq_crew: DramatiqDeployment, unit: str) -> None:
    """Published twice, for a connection broke: one run, if it comes while the other runs."""
    leaving = dramatiq_crew.task("leaving")
    message = leaving.send(unit, "success", -1)
    wait_until(lambda: dramatiq_crew.runs(unit), "it runs")

    dramatiq_crew.app.enqueue.once_original(message)
    wait_until(lambda: told(dramatiq_crew, "deferred", message), "the copy met the first")
    dramatiq_crew.let_go(unit)

    wait_until(lambda: told(dramatiq_crew, "repeated", message), "the copy is known for one")
    runs_once(dramatiq_crew, unit, message)


# What is not enqueued after all


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_veto_of_other_middleware(
    dramatiq_crew: DramatiqDeployment, unit: str, place: str
) -> None:
    """Its error comes to the caller, and the unit is free."""
    leaving = dramatiq_crew.task("leaving")

    with pytest.raises(VetoError):
        leaving.send_with_options(args=(unit,), strict=f"veto {place}")

    assert not is_locked(leaving, unit)
    runs_when_triggered(dramatiq_crew, leaving, unit)


@pytest.mark.parametrize("delay", [None, 100])
def test_arguments_that_cannot_be_encoded(
    dramatiq_crew: DramatiqDeployment, unit: str, delay: int | None
) -> None:
    """The encoder's error comes to the caller, and the unit is free."""
    leaving = dramatiq_crew.task("leaving")

    with pytest.raises(TypeError, match="not JSON serializable"):
        leaving.send_with_options(args=(unit,), kwargs={"payload": object()}, delay=delay)

    assert not is_locked(leaving, unit)
    runs_when_triggered(dramatiq_crew, leaving, unit)


class Counting(Middleware):
    """Counts how often Dramatiq has tried to enqueue each message."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
        self.tried.append(message.message_id)


@pytest.fixture
def cuttable(
    request: pytest.FixtureRequest, deploy_dramatiq: Callable[..., DramatiqDeployment]
) -> Iterator[tuple[DramatiqDeployment, Cuttable]]:
    """Redis or RabbitMQ behind a network that can be cut."""
    server = request.getfixturevalue("shared_server")
    if request.param == "redis":
        proxy = Cuttable("127.0.0.1", server.port)
        conf: dict[str, Any] = {"url": f"redis://127.0.0.1:{proxy.port}/0"}
    else:
        at = pika.URLParameters(PIKA_URL)
        proxy = Cuttable(at.host, at.port)
        url = PIKA_URL.replace(f"{at.host}:{at.port}", f"127.0.0.1:{proxy.port}")
        conf = {"url": url, "broker_options": {"confirm_delivery": True}}
    yield deploy_dramatiq(broker=request.param, conf=conf), proxy
    proxy.close()


@pytest.mark.parametrize("cuttable", ["redis", "rabbitmq"], indirect=True)
def test_a_broker_that_is_away(cuttable: tuple[DramatiqDeployment, Cuttable], unit: str) -> None:
    """Its error is what Dramatiq's users know; nothing is locked, whatever the way in."""
    scene, proxy = cuttable
    leaving = scene.task("leaving")
    leaving.send(f"{unit}-before")
    error = {"redis": redis.ConnectionError, "rabbitmq": ConnectionClosed}[scene.broker]

    proxy.close()

    with pytest.raises(error):
        leaving.send(unit)
    assert not is_locked(leaving, unit)


@pytest.mark.parametrize("cuttable", ["rabbitmq"], indirect=True)
def test_a_connection_that_breaks_while_a_message_is_sent(
    cuttable: tuple[DramatiqDeployment, Cuttable], unit: str
) -> None:
    """Dramatiq tries again, with the same claim: the caller sees nothing, and it runs once."""
    scene, proxy = cuttable
    leaving, counting = scene.task("leaving"), Counting()
    scene.app.add_middleware(counting)
    scene.start()
    assert scene.result(leaving.send(f"{unit}-before")) == "success"

    proxy.cut()
    message = leaving.send(unit, "success", -1)
    wait_until(lambda: scene.runs(unit), "it runs")
    behind = leaving.send(unit)
    scene.let_go(unit)

    assert counting.tried.count(message.message_id) > 1
    assert (published(message).state, published(behind).state) == ("claimed", "claimed")
    assert [scene.result(message), scene.result(behind)] == ["success", "success"]
    assert ids(scene, unit) == [message.message_id, behind.message_id]
    is_free(leaving, unit)


# What is taken away


@pytest.mark.parametrize("broker", ["stub", "redis", "rabbitmq"])
def test_a_flushed_broker(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str, broker: str
) -> None:
    """Nobody tells once. A trigger is refused for `heal_after`, then one is accepted, and runs."""
    scene = deploy_dramatiq(broker=broker)
    leaving = scene.task("leaving")
    soon = {"once": {"heal_after": 1}}
    now, later = f"{unit}-now", f"{unit}-later"
    flushed = [
        leaving.send_with_options(args=(now,), **soon),
        leaving.send_with_options(args=(later,), delay=500, **soon),
    ]

    scene.app.flush_all()

    healed = {}
    for each in (now, later):
        first = leaving.send_with_options(args=(each,), **soon)
        assert published(first).state in {"waiting", "refreshed"}
        healed[each] = wait_until(
            lambda each=each: accepted(leaving.send_with_options(args=(each,), **soon)),
            "a trigger is accepted",
        )
        again = leaving.send_with_options(args=(each,), **soon)
        assert again.message_id == healed[each].message_id
    scene.start()
    for each, message in healed.items():
        assert scene.result(message) == "success"
        assert ids(scene, each) == [message.message_id]
        is_free(leaving, each)
    assert {each.message_id for each in flushed}.isdisjoint(run.message_id for run in scene.runs())


def accepted(message: Message[Any]) -> Message[Any] | None:
    """The message, if it was sent."""
    return None if published(message).is_duplicate else message


# A bare broker, as users have it in their own tests


@pytest.fixture
def stub() -> Iterator[StubBroker]:
    """With nothing but once, whose store it has by itself."""
    broker = StubBroker()
    broker.add_middleware(OnceMiddleware())
    yield broker
    broker.flush_all()
    broker.close()


@pytest.fixture
def runs(stub: StubBroker) -> Iterator[list[str]]:
    """What the actor ``plain`` was run with, by a worker."""
    seen: list[str] = []

    @dramatiq.actor(broker=stub, once=True)
    def plain(unit: str) -> None:
        seen.append(unit)

    worker = Worker(stub, worker_timeout=100, worker_threads=4)
    worker.start()
    yield seen
    worker.stop()


def test_a_user_joins_a_stub_broker(stub: StubBroker, runs: list[str]) -> None:
    """Where ``join()`` returns all is over: the unit is free, and nothing is kept of it."""
    plain = stub.get_actor("plain")

    for _ in range(20):
        plain.send("x")
        stub.join(plain.queue_name, timeout=20_000)
        assert not is_locked(plain, "x")

    assert runs == ["x"] * 20


def test_a_queue_that_does_not_exist(stub: StubBroker) -> None:
    """Its error comes to the caller, and the unit is free."""
    plain = dramatiq.actor(broker=stub, actor_name="plain", once=True)(str)
    del stub.queues[plain.queue_name]

    with pytest.raises(QueueNotFound):
        plain.send("x")

    assert not is_locked(plain, "x")


def test_a_user_flushes_a_stub_broker(stub: StubBroker) -> None:
    """As test suites do between two tests: what was thrown away refuses nobody."""
    plain = dramatiq.actor(broker=stub, actor_name="plain", once=True)(str)
    plain.send("x")
    assert published(plain.send("x")).is_duplicate

    stub.flush_all()

    assert accepted(plain.send("x"))
    assert stub.queues[plain.queue_name].qsize() == 1
