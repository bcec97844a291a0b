"""Every way in which a Dramatiq worker ends, freezes or loses its messages while bodies run.

Redis gives out again what a worker held that was silent for `SILENT` ms, RabbitMQ at once.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pika
import pytest
from _support.cuttable import Cuttable
from _support.dramatiq_app import LEASE
from _support.dramatiq_deployment import PIKA_URL, DramatiqDeployment, DramatiqWorker
from _support.dramatiq_ways_actors import ids, is_free, last_seen_alive, runs_when_triggered, told
from _support.ledger import entries, overlaps
from _support.waiting import wait_until

from once_core.devserver import DevServer
from once_dramatiq import holder, published

pytestmark = pytest.mark.lifecycle_dramatiq

SILENT = 4000
"""Milliseconds after which Redis' broker takes a worker for dead; by default 60 s."""

SOON_REDELIVERED = {"heartbeat_timeout": SILENT, "maintenance_chance": 1_000_000}
"""Every command looks for dead workers; by default one in a thousand."""

SCOPES = ["queued+running", "until_done", "queued", "running"]


def conf(broker: str) -> dict[str, Any]:
    """Settings of a deployment."""
    return {"broker_options": SOON_REDELIVERED} if broker == "redis" else {}


def few(scene: DramatiqDeployment, number: int, **options: Any) -> DramatiqWorker:
    """A worker that takes so many messages and, until one of them ends, no more."""
    environment = {"dramatiq_queue_prefetch": str(number), "dramatiq_worker_timeout": "100"}
    return scene.worker(threads=number, environment=environment, **options)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def scene(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
) -> Iterator[DramatiqDeployment]:
    """Workers that are ended by the tests of this file; no key may lack a TTL."""
    if request.param == "rabbitmq":
        request.getfixturevalue("rabbitmq")
    folder = tmp_path_factory.mktemp(f"crashes-{request.param}")
    made = DramatiqDeployment(
        folder, shared_server, broker=request.param, threads=16, conf=conf(request.param)
    )
    yield made
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []
    made.close()


class Lost(NamedTuple):
    """A message whose body was cut short, and two that were sent while it ran."""

    unit: str
    message: Any
    sent: list[Any]


def terminate_all(worker: DramatiqWorker) -> None:
    """SIGTERM to all of its processes, until they are gone.

    One of Dramatiq's own threads (AsyncIO's) can outlive the first ones, and with it the bodies.
    """

    def is_gone() -> bool:
        worker.terminate_group()
        return worker.process.poll() is not None

    wait_until(is_gone, "all processes have ended")


ENDS: dict[str, Callable[[DramatiqWorker], None]] = {
    "SIGKILL": DramatiqWorker.kill,
    "SIGTERM to all": terminate_all,
    "shutdown timeout": DramatiqWorker.terminate,
}
"""Ends of a worker that none of its bodies outlives."""


@pytest.fixture(scope="module")
def lost(scene: DramatiqDeployment) -> dict[tuple[str, str], Lost]:
    """A worker for each end, with a body of each scope: ended all at once; one more goes on."""
    doomed, workers, held = scene.task("doomed"), {}, {}
    for end in ENDS:
        workers[end] = few(scene, len(SCOPES), options=("--worker-shutdown-timeout", "300"))
        for scope in SCOPES:
            unit = f"u-{uuid.uuid4().hex[:8]}"
            once = {"scope": scope}
            held[end, scope] = doomed.send_with_options(args=(unit, True), once=once)
        wait_until(
            lambda end=end: all(scene.runs(held[end, scope].args[0]) for scope in SCOPES),
            "the bodies run",
        )
    scene.start()
    sent = {
        which: [
            doomed.send_with_options(args=(message.args[0],), once={"scope": which[1]})
            for _ in range(2)
        ]
        for which, message in held.items()
    }
    for end, worker in workers.items():
        ENDS[end](worker)
    for worker in workers.values():
        worker.process.wait(20)
    for message in held.values():
        scene.let_go(message.args[0])
    return {which: Lost(message.args[0], message, sent[which]) for which, message in held.items()}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_ends_with_its_bodies(
    scene: DramatiqDeployment, lost: dict[tuple[str, str], Lost], end: str, scope: str
) -> None:
    """Its message comes again and runs; so does what was accepted meanwhile, and not beside it."""
    unit, message, sent = lost[end, scope]
    doomed = scene.task("doomed")
    accepted = [each.message_id for each in sent if not published(each).is_duplicate]

    assert [scene.result(each) for each in (message, *sent)] == ["success"] * 3
    is_free(doomed, unit)
    assert sorted(ids(scene, unit)) == sorted([message.message_id] * 2 + accepted)
    if scope != "queued":  # which lets them run beside each other
        assert overlaps(scene.runs(unit), last_seen_alive(scene)) == []
    runs_when_triggered(scene, doomed, unit)


@pytest.mark.parametrize("end", ENDS)
def test_what_is_accepted_while_a_doomed_body_runs(
    lost: dict[tuple[str, str], Lost], end: str
) -> None:
    """It is what the scope says: one behind, nobody, or everybody."""
    told_of = {scope: [published(each).state for each in lost[end, scope].sent] for scope in SCOPES}
    holders = {scope: [each.message_id for each in lost[end, scope].sent] for scope in SCOPES}

    assert told_of["queued+running"] == ["claimed", "waiting"]
    assert told_of["until_done"] == ["running", "running"]
    assert told_of["queued"][0] == "claimed"
    assert told_of["running"] == ["claimed", "claimed"]
    assert len(set(holders["queued+running"])) == 1
    assert set(holders["until_done"]) == {lost[end, "until_done"].message.message_id}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_worker_that_is_asked_to_stop(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str, broker: str
) -> None:
    """It ends its bodies, stops those that want to know, and gives back the rest: nothing is lost.

    What has not started, and what waits for its time, runs once, elsewhere.
    """
    scene = deploy_dramatiq(broker=broker, conf=conf(broker))
    leaving, stopping = scene.task("leaving"), scene.task("stopping")
    old = scene.worker(threads=2)
    goes_on, stops = (
        leaving.send(f"{unit}-goes-on", "success", -1),
        stopping.send(f"{unit}-stops", -1),
    )
    wait_until(lambda: len(scene.runs()) == 2, "both bodies run")
    waits = leaving.send(f"{unit}-waits")
    later = leaving.send_with_options(args=(f"{unit}-later",), delay=2000)
    for each, queue in ((waits, "work"), (later, "delay")):
        line = f"Pushing message '{each.message_id}' onto {queue} queue."
        wait_until(lambda line=line: line in old.log, "the old worker has it")
    scene.start()

    old.terminate()

    wait_until(lambda: scene.runs(stops.args[0])[0].end, "it is told to stop")
    assert leaving.send(waits.args[0]).message_id == waits.message_id
    refused = leaving.send_with_options(args=goes_on.args, once={"scope": "until_done"})
    assert refused.message_id == goes_on.message_id
    for each in (goes_on, stops):
        scene.let_go(each.args[0])
    everything = [goes_on, stops, waits, later]
    assert [scene.result(each) for each in everything] == ["success"] * 4
    assert old.process.wait(20) == 0
    for each, actor in ((goes_on, leaving), (stops, stopping), (waits, leaving), (later, leaving)):
        is_free(actor, each.args[0])
    assert sorted(run.message_id for run in scene.runs()) == sorted(
        each.message_id for each in [*everything, stops]
    )
    assert overlaps(scene.runs()) == []


@pytest.fixture(params=["redis", "rabbitmq"])
def frozen(
    request: pytest.FixtureRequest, deploy_dramatiq: Callable[..., DramatiqDeployment]
) -> Iterator[tuple[DramatiqDeployment, Cuttable]]:
    """A broker that takes a frozen worker for dead: by its silence, or when the network is cut."""
    at = pika.URLParameters(PIKA_URL)
    proxy = Cuttable(at.host, at.port)
    url = PIKA_URL.replace(f"{at.host}:{at.port}", f"127.0.0.1:{proxy.port}")
    settings = conf(request.param) or {"url": url}
    yield deploy_dramatiq(broker=request.param, conf=settings), proxy
    proxy.close()


def test_a_worker_that_is_frozen(frozen: tuple[DramatiqDeployment, Cuttable], unit: str) -> None:
    """Another gets its messages: it waits for a lease that holds, and runs what has none.

    When the first wakes up it knows that it lost the lease, and frees nothing of the other's.
    """
    scene, proxy = frozen
    leaving, watchful = scene.task("leaving"), scene.task("watchful")
    lasts, lapses = leaving.send(f"{unit}-lasts", "success", -1), watchful.send(f"{unit}-lapses")
    sleeper = few(scene, 2)
    wait_until(lambda: len(scene.runs()) == 2, "both bodies run")

    sleeper.freeze()
    scene.start()
    proxy.cut()

    wait_until(lambda: len(ids(scene, lapses.args[0])) == 2, "what has no lease runs elsewhere")
    wait_until(lambda: told(scene, "deferred", lasts), "what has one waits")
    sleeper.thaw()
    scene.let_go(lasts.args[0])
    wait_until(lambda: scene.runs(lapses.args[0])[0].end, "the first knows that it has lost")
    trigger = watchful.send_with_options(args=lapses.args, once={"scope": "until_done"})
    assert (published(trigger).state, trigger.message_id) == ("running", lapses.message_id)

    scene.let_go(lapses.args[0])
    for actor, each in ((leaving, lasts), (watchful, lapses)):
        is_free(actor, each.args[0])
        wait_until(lambda each=each: all(run.end for run in scene.runs(each.args[0])), "it ended")
    wait_until(lambda: told(scene, "repeated", lasts), "the copy is known for one")
    assert ids(scene, lasts.args[0]) == [lasts.message_id]
    assert scene.result(lasts) == "success"
    first, second = scene.runs(lapses.args[0])
    assert second.fence > first.fence
    ends = [each for each in entries(scene.ledger, "end") if each["unit"] == lapses.args[0]]
    assert [each["lost"] for each in ends] == [True, False]
    runs_when_triggered(scene, leaving, lasts.args[0])
    runs_when_triggered(scene, watchful, lapses.args[0])


@pytest.fixture(scope="module")
def cut(
    rabbitmq: str, tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Iterator[DramatiqDeployment]:
    """RabbitMQ and a worker of two threads, whose channels RabbitMQ closes.

    As it does after consumer_timeout: what was not acknowledged is given out again, the bodies
    go on, and Dramatiq cannot acknowledge them any more.
    """
    made = DramatiqDeployment(
        tmp_path_factory.mktemp("cut"), shared_server, broker="rabbitmq", threads=2
    )
    made.start()
    yield made
    made.close()


def is_given_out_again(scene: DramatiqDeployment, message: Any) -> bool:
    """Whether the worker got it twice."""
    log = scene.workers[0].log
    return log.count(f"Pushing message '{message.message_id}' onto work queue.") == 2


def test_a_copy_that_comes_while_the_body_runs(cut: DramatiqDeployment, unit: str) -> None:
    """consumer_timeout, and a thread is idle: one run, whose result is not replaced."""
    cut_off = cut.task("cut_off")
    message = cut_off.send(unit)
    cut.let_go(f"{unit}-cut")
    wait_until(lambda: told(cut, "deferred", message), "the copy meets the first")
    assert not cut.has_result(message)

    cut.let_go(unit)

    assert cut.result(message) == "success"
    wait_until(lambda: told(cut, "repeated", message), "the copy is known for one")
    is_free(cut_off, unit)
    assert ids(cut, unit) == [message.message_id]
    runs_once_more(cut, cut_off, unit)


def test_copies_that_nobody_looks_at_until_the_bodies_have_ended(
    cut: DramatiqDeployment, unit: str
) -> None:
    """consumer_timeout, and all threads are busy: one run of each; of what waited there, too."""
    leaving, cut_off = cut.task("leaving"), cut.task("cut_off")
    cuts, runs = cut_off.send(f"{unit}-cuts"), leaving.send(f"{unit}-runs", "success", -1)
    wait_until(lambda: cut.runs(cuts.args[0]) and cut.runs(runs.args[0]), "all threads are busy")
    waits = leaving.send(f"{unit}-waits")
    later = leaving.send_with_options(args=(f"{unit}-later",), delay=2000)
    line = f"Pushing message '{waits.message_id}' onto work queue."
    wait_until(lambda: line in cut.workers[0].log, "it waits in the worker")

    cut.let_go(f"{cuts.args[0]}-cut")
    for each in (cuts, runs, waits):
        wait_until(lambda each=each: is_given_out_again(cut, each), "its copy has come")
    for each in (cuts, runs):
        cut.let_go(each.args[0])

    everything = [(cut_off, cuts), (leaving, runs), (leaving, waits), (leaving, later)]
    assert [cut.result(each) for _, each in everything] == ["success"] * 4
    for _, each in everything[:3]:
        wait_until(lambda each=each: told(cut, "repeated", each), "the copy is known for one")
    for actor, each in everything:
        is_free(actor, each.args[0])
        assert ids(cut, each.args[0]) == [each.message_id]


def test_a_body_that_ends_before_the_worker_is_connected_again(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> None:
    """consumer_timeout of an actor without results: its copy finds a mark and does not run."""
    scene = deploy_dramatiq(broker="rabbitmq", conf={"results": False})
    scene.worker(environment={"dramatiq_restart_delay": "2000"})
    cut_off = scene.task("cut_off")
    scene.let_go(unit)

    message = cut_off.send(unit)
    wait_until(lambda: scene.runs(unit), "it runs")
    scene.let_go(f"{unit}-cut")

    wait_until(lambda: is_given_out_again(scene, message), "its copy has come")
    wait_until(lambda: told(scene, "repeated", message), "the copy is known for one", within=10)
    is_free(cut_off, unit)
    assert ids(scene, unit) == [message.message_id]


def runs_once_more(scene: DramatiqDeployment, actor: Any, unit: str) -> None:
    """Copies that were given out are no reason to drop the next trigger."""
    again = actor.send(unit)
    scene.let_go(f"{unit}-cut")
    assert scene.result(again) == "success"
    assert ids(scene, unit)[1:] == [again.message_id]
    is_free(actor, unit)


def test_a_worker_under_gevent(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> None:
    """Its greenlets run one at once; who computes keeps its lease, though no other gets a turn."""
    scene = deploy_dramatiq(broker="redis")
    leaving, busy = scene.task("leaving"), scene.task("busy")
    scene.worker(command=(str(Path(sys.executable).with_name("dramatiq-gevent")),))
    first = leaving.send(unit, "success", -1)
    wait_until(lambda: scene.runs(unit), "it runs")
    behind = leaving.send(unit)
    wait_until(lambda: told(scene, "deferred", behind), "the other meets it")
    scene.let_go(unit)

    assert [scene.result(each) for each in (first, behind)] == ["success"] * 2
    assert ids(scene, unit) == [first.message_id, behind.message_id]
    assert overlaps(scene.runs(unit)) == []

    message = busy.send(f"{unit}-busy", 1.5 * LEASE)
    wait_until(lambda: scene.runs(f"{unit}-busy"), "it computes")

    def is_over() -> bool:
        is_held = holder(busy, f"{unit}-busy") is not None
        has_ended = scene.runs(f"{unit}-busy")[0].end is not None
        assert is_held or has_ended
        return has_ended

    wait_until(is_over, "it ends, held until then")
    assert scene.result(message) == "success"
    assert [each["lost"] for each in entries(scene.ledger, "end")] == [False] * 3
    is_free(busy, f"{unit}-busy")
