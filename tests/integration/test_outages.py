"""The lock store stopped, frozen, full, deaf for one reply, restarted: loud, and over by itself."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _support import ledger
from _support.celery_app import SETTINGS
from _support.deployment import Deployment
from _support.waiting import wait_until
from _support.workers import CeleryWorker
from kombu.exceptions import OperationalError

import once_celery
import once_core.errors
from once_core.devserver import DevServer

TESTS = Path(__file__).parent.parent

AT_ONCE = 2.0
"""Seconds: about one (0.4 to connect and 0.8 to read), on a machine that is busy."""

FIRST_CALL = """
import sys, time
from _support.celery_app import app
from once_celery import StoreUnavailableError

began = time.monotonic()
try:
    app.tasks["work"].delay(sys.argv[1])
except StoreUnavailableError:
    print(time.monotonic() - began)
"""


@pytest.fixture
def scene(
    server: DevServer, shared_server: DevServer, deploy: Callable[..., Deployment]
) -> Deployment:
    """A lock store of its own (`scene.store`); messages and results are elsewhere."""
    return deploy(store=server, concurrency=1, conf=elsewhere(shared_server))


def elsewhere(server: DevServer) -> dict[str, object]:
    """Settings for messages and results on another server than the lock store."""
    return {"broker_url": server.url, "result_backend": server.url}


def refused(scene: Deployment, unit: str) -> float:
    """Call `delay`, which must raise; how long that took."""
    began = time.monotonic()
    with pytest.raises(once_celery.StoreUnavailableError) as caught:
        scene.task("work").delay(unit)
    took = time.monotonic() - began
    assert isinstance(caught.value, once_core.errors.StoreUnavailableError)
    assert isinstance(caught.value, OperationalError)
    assert f"127.0.0.1:{scene.store.port}" in str(caught.value)
    return took


def accepted(scene: Deployment, task: str, *args: object, within: float = 10.0) -> Any:
    """Call `delay` until the store answers again."""

    def call() -> Any:
        try:
            return scene.task(task).delay(*args)
        except OperationalError:
            return None

    return wait_until(call, "delay() works again", within=within)


def started(scene: Deployment, unit: str, count: int = 1) -> ledger.Run:
    """Wait for so many bodies of a unit; the last of them."""
    enough = wait_until(
        lambda: (runs := scene.runs(unit)) and len(runs) >= count and runs,
        f"body {count} has started",
        within=30,
    )
    return enough[count - 1]


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_stopped_delay_raises_at_once_and_publishes_nothing(
    server: DevServer,
    shared_server: DevServer,
    deploy: Callable[..., Deployment],
    unit: str,
    broker: str,
) -> None:
    """Callers hear of it in about a second, as the error they know, and no message is sent."""
    conf = elsewhere(shared_server) if broker == "redis" else {}
    scene = deploy(store=server, broker=broker, conf=conf)
    scene.task("work").delay("before")

    server.kill()
    took = [refused(scene, f"{unit}-{number}") for number in range(5)]

    assert scene.queued() == 1
    assert max(took) < AT_ONCE
    print(f"stopped, {broker}: {max(took) * 1000:.1f} ms at most")


def test_frozen_delay_raises_in_about_a_second_and_then_at_once(
    scene: Deployment, unit: str
) -> None:
    """A server that accepts and says nothing costs a second a few times; then nobody asks it."""
    scene.task("work").delay("before")

    scene.store.pause()
    took = [refused(scene, f"{unit}-{number}") for number in range(8)]

    assert scene.queued() == 1
    assert max(took) < AT_ONCE
    assert max(took[3:]) < 0.1, "the circuit breaker should answer"
    print(f"frozen: {', '.join(f'{each:.3f}' for each in took)} s")


def test_frozen_the_first_call_of_a_fresh_process_raises_in_about_a_second(
    scene: Deployment, unit: str
) -> None:
    """A process that never saw the server well is no slower to tell."""
    scene.store.pause()

    printed = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, unit],
        env={**os.environ, SETTINGS: json.dumps(scene.settings), "PYTHONPATH": str(TESTS)},
        cwd=scene.folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout

    assert scene.queued() == 0
    assert float(printed) < AT_ONCE
    print(f"frozen, first call of a process: {float(printed):.3f} s")


def test_full_publishes_are_refused_and_leases_renewed_and_freed(
    server: DevServer, shared_server: DevServer, deploy: Callable[..., Deployment], unit: str
) -> None:
    """With maxmemory and noeviction nothing new is claimed, what runs is safe and ends cleanly."""
    scene = deploy(store=server, conf={**elsewhere(shared_server), "once_lease": 1})
    worker = scene.worker(concurrency=1)
    running = scene.task("keyed").delay(unit, 4.0)
    run = started(scene, unit)

    with server.client() as client:
        client.config_set("maxmemory", 1)
        took = refused(scene, "another")
        wait_until(lambda: time.monotonic() > run.start + 3, "three leases have passed")
        holder = scene.task("keyed").holder(unit)
        assert holder is not None
        assert (holder.state, holder.message_id) == ("running", running.id)
        assert 0 < holder.remaining <= 1
        assert running.get(timeout=20) == f"done {unit}"
        wait_until(lambda: not scene.keys(), "the lease is freed, on a full server", within=5)
        refused(scene, "another")

        client.config_set("maxmemory", 0)
        again = accepted(scene, "keyed", unit, 0.0)

    assert again.get(timeout=20) == f"done {unit}"
    assert [each["lost"] for each in ledger.entries(scene.ledger, "end")] == [False, False]
    assert "lease_lost" not in worker.log
    assert took < AT_ONCE


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_back_everything_works_with_no_restart_of_anything(
    scene: Deployment, unit: str, how: str
) -> None:
    """Producer and worker that saw the outage go on when it is over, within seconds."""
    scene.worker()
    assert scene.task("work").delay("before").get(timeout=20) == "done before"

    scene.store.kill() if how == "stopped" else scene.store.pause()
    for number in range(4):
        refused(scene, f"{unit}-{number}")
    scene.store.start() if how == "stopped" else scene.store.resume()
    back_at = time.monotonic()
    result = accepted(scene, "work", unit)

    assert result.get(timeout=20) == f"done {unit}"
    run = started(scene, unit)
    # a claim that the frozen server only carried out later is our own ghost: no obstacle
    assert accepted(scene, "work", f"{unit}-0").get(timeout=20) == f"done {unit}-0"
    wait_until(lambda: not scene.keys() or how == "frozen", "nothing is left")
    print(f"{how}: a body ran {run.start - back_at:.2f} s after the store was back")


@pytest.fixture
def lasting_server() -> Iterator[DevServer]:
    """A server whose data survives its death."""
    with DevServer(persist=True) as server:
        yield server


def bring_back(server: DevServer, how: str) -> float:
    """Start it again, or thaw it; returns when."""
    if how == "frozen":
        server.resume()
    else:
        server.restart(empty="empty" in how)
    return time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped, back empty", "stopped, back with data", "frozen"])
def test_a_message_that_starts_while_the_store_is_away_is_deferred(
    lasting_server: DevServer,
    shared_server: DevServer,
    deploy: Callable[..., Deployment],
    unit: str,
    how: str,
) -> None:
    """Neither lost nor run unguarded: it is put back, and runs when the store is back."""
    scene = deploy(store=lasting_server, concurrency=1, conf=elsewhere(shared_server))
    result = scene.task("work").delay(unit)
    lasting_server.pause() if how == "frozen" else lasting_server.kill()
    worker = scene.worker()

    wait_until(lambda: worker.log.count(" deferred work") >= 2, "it was put back twice", within=30)
    assert scene.runs() == []
    assert result.state == "PENDING"
    back_at = bring_back(lasting_server, how)

    assert result.get(timeout=30) == f"done {unit}"
    (run,) = scene.runs(unit)
    assert run.message_id == result.id
    assert run.fence is not None, "it ran unguarded"
    assert scene.queued() == 0
    print(f"{how}: ran {run.start - back_at:.2f} s after the store was back")


def test_on_store_error_run_goes_on_without_the_lock_and_says_so(
    server: DevServer,
    shared_server: DevServer,
    deploy: Callable[..., Deployment],
    unit: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever prefers a double run to none gets it, with a WARNING for each."""
    conf = {**elsewhere(shared_server), "once_on_store_error": "run"}
    scene = deploy(store=server, concurrency=1, conf=conf)
    server.kill()

    with caplog.at_level(logging.WARNING, "once"):
        result = scene.task("work").delay(unit)
    worker = scene.worker()

    assert result.once.state == "unguarded"
    assert not result.once.is_duplicate
    told = [each.once for each in caplog.records if hasattr(each, "once")]
    assert [each.kind for each in told] == ["store_unavailable", "unguarded"]
    assert told[1].message_id == result.id
    assert result.get(timeout=20) == f"done {unit}"
    assert [run.fence for run in scene.runs(unit)] == [None]
    assert worker.log.count(" unguarded work") == 1


def test_an_outage_is_one_error_in_the_log_and_its_end_one_line(
    scene: Deployment, unit: str, caplog: pytest.LogCaptureFixture
) -> None:
    """ERROR once an outage and process, however many tasks meet it; the next one is told again."""
    caplog.set_level(logging.INFO, "once")
    for number in range(4):
        scene.task("work").delay(f"{unit}-{number}")
    scene.store.kill()
    for number in range(6):
        refused(scene, f"{unit}-other-{number}")
    worker = scene.worker()
    wait_until(lambda: worker.log.count(" deferred work") >= 6, "six deferrals", within=40)
    scene.store.start()
    accepted(scene, "work", unit).get(timeout=30)
    wait_until(lambda: len(scene.runs()) == 5, "all have run", within=40)
    wait_until(lambda: " store_recovered" in worker.log, "the worker tells that it is back")
    log = worker.log  # before the next outage, which it tells again
    scene.store.kill()
    refused(scene, "once more")

    mine = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert [each.once.kind for each in mine] == [
        "store_unavailable",
        "store_recovered",
        "store_unavailable",
    ]
    assert [each.levelname for each in mine] == ["ERROR", "WARNING", "ERROR"]
    assert log.count("ERROR/") == log.count(" store_unavailable") == 1
    assert log.count(" store_recovered") == 1


def test_restarted_empty_a_running_lease_is_restored(
    server: DevServer, shared_server: DevServer, deploy: Callable[..., Deployment], unit: str
) -> None:
    """What the store forgot the living attempt writes again: no trigger overlaps with it."""
    scene = deploy(store=server, conf={**elsewhere(shared_server), "once_lease": 3})
    worker = scene.worker()
    first = scene.task("work").delay(unit, 6.0)
    run = started(scene, unit)

    def holder_if_known() -> Any:
        try:
            return scene.task("work").holder(unit, 6.0)
        except OperationalError:
            return None

    server.restart(empty=True)
    back_at = time.monotonic()
    holder = wait_until(holder_if_known, "the lease is restored", within=5)
    restored_after = time.monotonic() - back_at
    assert (holder.state, holder.message_id) == ("running", first.id)
    assert holder.fence == run.fence
    second = accepted(scene, "work", unit, 6.0)

    assert not second.once.is_duplicate
    run = started(scene, unit, 2)
    assert run.message_id == second.id
    assert ledger.overlaps(scene.runs(unit)) == []
    assert run.fence > holder.fence
    assert ledger.entries(scene.ledger, "end")[0]["lost"] is False
    assert " lease_restored work" in worker.log
    assert " lease_lost" not in worker.log
    print(f"restored {restored_after:.2f} s after the restart")


class Relay:
    """A TCP relay in front of a server that can swallow what the server answers."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        self.is_deaf = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [client, server]
            for source, target, is_answer in ((client, server, False), (server, client, True)):
                pump = threading.Thread(
                    target=self._pump, args=(source, target, is_answer), daemon=True
                )
                self._threads.append(pump)
                pump.start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(65536):
                if not (is_answer and self.is_deaf):
                    target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
        for each in self._threads:
            each.join(5)


@pytest.fixture
def relay(server: DevServer) -> Iterator[Relay]:
    """A relay in front of the lock store."""
    made = Relay(server.port)
    yield made
    made.close()


@pytest.mark.parametrize("after", ["at once", "after the claim of another producer"])
def test_a_claim_whose_reply_was_lost_is_taken_over_by_its_producer(
    server: DevServer, deploy: Callable[..., Deployment], relay: Relay, unit: str, after: str
) -> None:
    """Heard by the store, not answered to the producer: the producer's next call is sent."""
    scene = deploy(store=server, conf={"once_url": f"redis://127.0.0.1:{relay.port}/0"})
    other = deploy(store=server)
    task = scene.task("work")
    task.delay("before")

    relay.is_deaf = True
    with pytest.raises(once_celery.StoreUnavailableError):
        task.delay(unit)
    relay.is_deaf = False
    assert len(scene.keys()) == 2, "the store should have heard it"
    assert scene.queued() == 1
    if after != "at once":
        assert other.task("work").delay(unit).once.state == "waiting"
    result = task.delay(unit)

    assert not result.once.is_duplicate
    assert scene.queued() == 2
    assert task.delay(unit).once.holder_id == result.id
    scene.worker()
    assert result.get(timeout=20) == f"done {unit}"
    assert len(scene.runs(unit)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["back with data", "back empty"])
def test_broker_and_store_restarted_together_everything_runs_again(
    lasting_server: DevServer,
    shared_server: DevServer,
    deploy: Callable[..., Deployment],
    unit: str,
    how: str,
) -> None:
    """One Redis for both, gone for a moment: its worker comes back by itself and guards again."""
    # results are elsewhere: this very process reads them, and Celery's reader gives up
    conf = {"result_backend": shared_server.url}
    scene = deploy(store=lasting_server, concurrency=2, conf=conf)
    worker = scene.worker()
    scene.task("work").delay(f"{unit}-long", 4.0)
    started(scene, f"{unit}-long")

    lasting_server.kill()
    with pytest.raises(OperationalError):
        scene.task("work").delay(unit)
    back_at = bring_back(lasting_server, how)

    result = accepted(scene, "work", unit)
    assert result.get(timeout=40) == f"done {unit}"
    run = started(scene, unit)
    again = accepted(scene, "work", f"{unit}-long", 4.0)
    assert again.once.state == "claimed"
    started(scene, f"{unit}-long", 2)
    assert ledger.overlaps(scene.runs()) == []
    assert worker.process.poll() is None
    assert " other_store " not in worker.log, "it is the same server in its second life"
    print(f"{how}: a body ran {run.start - back_at:.2f} s after the server was back")


def test_a_worker_whose_store_is_not_its_producers_says_so_once(
    scene: Deployment, shared_server: DevServer, unit: str
) -> None:
    """Two lock stores guard nothing between them: an ERROR, at the first message that shows it."""
    settings = {**scene.settings, "once_url": shared_server.url}
    worker = CeleryWorker(settings, scene.folder, concurrency=1)
    scene.workers.append(worker)
    worker.ready()

    results = [scene.task("work").delay(f"{unit}-{number}") for number in range(3)]

    for result in results:
        result.get(timeout=20)
    assert worker.log.count(" other_store work") == 1
    assert worker.log.count("ERROR/") == 1
