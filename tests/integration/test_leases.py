"""Leases: lost by whoever sleeps, kept by whoever works, and renewed whatever happens."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _support import ledger
from _support.deployment import Deployment
from _support.waiting import wait_until

from once_core import events, protocol
from once_core._heartbeat import Heartbeat, Held
from once_core._host import whereabouts
from once_core._lease import Lease
from once_core.attempt import Attempt
from once_core.devserver import DevServer
from once_core.events import Event
from once_core.guard import Guard
from once_core.options import OnceOptions
from once_core.protocol import Message, Step
from once_core.store import Store


@pytest.fixture
def told() -> Iterator[list[Event]]:
    """Every event of this process, as it happens."""
    seen: list[Event] = []
    stop = events.subscribe(seen.append)
    yield seen
    stop()


def make_guard(server: DevServer, **options: object) -> Guard:
    """A guard of a task that is none of Celery's."""
    store = Store(server.url)
    return Guard("tests.lease", lambda unit: None, OnceOptions(**options), lambda: store)


def begin(guard: Guard, unit: str) -> Attempt:
    """Start an attempt of a unit that is free."""
    attempt = Attempt(guard, guard.key((unit,), {}), Message(uuid.uuid4().hex, -1))
    assert attempt.start().status == "started"
    return attempt


def lease_ends(scene: Deployment, pid: int) -> list[bool]:
    """What bodies of one process saw of their lease at their end."""
    return [each["lost"] for each in ledger.entries(scene.ledger, "end") if each["pid"] == pid]


def pair(deploy: Callable[..., Deployment], server: DevServer) -> tuple[Deployment, Deployment]:
    """Two scenes of the same units on queues of their own: a frozen worker takes no message."""
    one = deploy(store=server, concurrency=1, conf={"once_lease": 2})
    other = deploy(store=server, concurrency=1, conf={"once_lease": 2, "ledger": str(one.ledger)})
    return one, other


def test_a_frozen_holder_loses_its_lease_and_leaves_the_next_one_alone(
    server: DevServer, deploy: Callable[..., Deployment], unit: str
) -> None:
    """SIGSTOP beyond the lease: another runs with a greater fence; the sleeper ends harmlessly."""
    one, other = pair(deploy, server)
    frozen, awake = one.worker(), other.worker()
    one.task("keyed").delay(unit, 0.6)
    (first,) = wait_until(lambda: one.runs(unit), "the first body runs")

    frozen.freeze()
    frozen_at = time.monotonic()
    result = other.task("keyed").delay(unit, 4.0)
    second = wait_until(lambda: one.runs(unit)[1:], "the other body runs", within=15)[0]
    frozen.thaw()
    wait_until(lambda: lease_ends(one, first.pid), "the first body ends")
    wait_until(lambda: " succeeded in " in frozen.log, "the first message ends")
    holder = other.task("keyed").holder(unit)

    assert lease_ends(one, first.pid) == [True]
    assert holder is not None, "its end freed the lease of another"
    assert (holder.state, holder.message_id, holder.fence) == ("running", result.id, second.fence)
    assert second.fence > first.fence
    assert second.start - frozen_at > 0.6
    assert frozen.log.count(" lease_lost keyed") == 1
    assert result.get(timeout=20) == f"done {unit}"
    assert " lease_lost" not in awake.log
    assert lease_ends(one, second.pid) == [False]
    print(f"another body ran {second.start - frozen_at:.2f} s after SIGSTOP of the first")


@pytest.mark.parametrize("taken", ["taken meanwhile", "free all the time"])
def test_a_lease_that_lapsed_in_sleep_stays_lost(
    server: DevServer, deploy: Callable[..., Deployment], unit: str, taken: str
) -> None:
    """After SIGCONT the lease is renewed if nobody has it, yet its body is told to the end."""
    one, other = pair(deploy, server)
    frozen = one.worker()
    if taken == "taken meanwhile":
        other.worker()
    one.task("keyed").delay(unit, 6.0)
    (first,) = wait_until(lambda: one.runs(unit), "the first body runs")

    frozen.freeze()
    frozen_at = time.monotonic()
    if taken == "taken meanwhile":
        assert other.task("keyed").delay(unit, 0.0).get(timeout=20) == f"done {unit}"
    wait_until(lambda: not other.task("keyed").is_locked(unit), "the lease has lapsed")
    wait_until(lambda: time.monotonic() > frozen_at + 3, "well beyond its end")
    frozen.thaw()
    holder = wait_until(lambda: other.task("keyed").holder(unit), "it is taken again", within=3)

    assert (holder.state, holder.message_id) == ("running", first.message_id)
    assert wait_until(lambda: lease_ends(one, first.pid), "the first body ends") == [True]
    assert frozen.log.count(" lease_lost keyed") == 1
    wait_until(lambda: not other.task("keyed").is_locked(unit), "the unit is free")


FORKING = """
import multiprocessing, sys, time
sys.path.insert(0, sys.argv[2])
import test_leases as tests
from once_core.devserver import DevServer

class Server:
    url = sys.argv[1]

guard = tests.make_guard(Server, lease=1.0)

def hold(unit, seconds):
    attempt = tests.begin(guard, unit)
    with attempt.body():
        time.sleep(seconds)
    report = attempt.lease.lost
    attempt.end("success")
    return report

def child(pipe):
    pipe.send(hold("child", 2.5))

attempt = tests.begin(guard, "parent")
here, there = multiprocessing.get_context("fork").Pipe()
process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
process.start()
time.sleep(2.5)
lost = [attempt.lease.lost, here.recv()]
process.join()
time.sleep(1.5)
lost.append(attempt.lease.lost)
holder = guard.holder(("parent",), {})
print(lost, holder.state, guard.holder(("child",), {}))
attempt.end("success")
"""


def run_script(code: str, folder: Path, *arguments: str) -> str:
    """Run code in a fresh process; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_renewal_goes_on_after_a_fork_on_both_sides(server: DevServer, tmp_path: Path) -> None:
    """A body that forks keeps its lease; the child's own is renewed by a thread of its own."""
    printed = run_script(FORKING, tmp_path, server.url, str(Path(__file__).parent))

    assert printed == "[False, False, False] running None"


PATCHED = """
import sys
kind, url, folder = sys.argv[1:]
if kind == "gevent":
    from gevent import monkey
    monkey.patch_all()
else:
    import warnings
    warnings.simplefilter("ignore")
    import eventlet
    eventlet.monkey_patch()
sys.path.insert(0, folder)
import time
import test_leases as tests

class Server:
    pass

Server.url = url
guard = tests.make_guard(Server, lease=1.5)
attempt = tests.begin(guard, "busy")
end = time.monotonic() + 4
while time.monotonic() < end:
    sum(range(1000))  # and the hub gets no turn
holder = guard.holder(("busy",), {})
print(attempt.lease.lost, holder and holder.state)
attempt.end("success")
print(guard.holder(("busy",), {}))
"""


@pytest.mark.parametrize("kind", ["gevent", "eventlet"])
def test_a_busy_green_thread_keeps_its_lease(server: DevServer, tmp_path: Path, kind: str) -> None:
    """Under monkey patching the renewal is a thread of the system's: a blocked hub stops it not."""
    pytest.importorskip(kind)

    printed = run_script(PATCHED, tmp_path, kind, server.url, str(Path(__file__).parent))

    assert printed.splitlines() == ["False running", "None"]


class Flaky:
    """A store whose first beats raise what no store should."""

    is_at_hand = True

    def __init__(self, store: Store, failures: int) -> None:
        self._store = store
        self.failures = failures
        self.beats = 0

    def sibling(self) -> Flaky:
        return self

    def run_many(self, steps: list[Step[str]]) -> list[object]:
        self.beats += 1
        if self.beats <= self.failures:
            raise RuntimeError(f"on purpose: beat {self.beats}")
        return self._store.run_many(steps)


def test_a_beat_that_raises_is_shouted_about_and_renewal_goes_on(
    server: DevServer, unit: str, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing ends the renewal thread: CRITICAL and an event each time, and the next beat comes."""
    guard = make_guard(server)
    flaky = Flaky(guard.store, failures=2)
    key, message = guard.key((unit,), {}), Message(unit, -1)
    answer = guard.store.run(
        protocol.start(
            key, message, "attempt", where=whereabouts(), lease=4.0, ttl=60, heal_after=60
        )
    )
    lease = Lease(key, answer.fence, 4.0)
    held = Held(flaky, message, "attempt", whereabouts(), lease, "tests.lease")
    beats = Heartbeat()

    beats.add(held)
    wait_until(lambda: flaky.beats >= 4, "the beats went on", within=15)

    failed = [each for each in told if each.kind == "heartbeat_failed"]
    assert [each.reason for each in failed] == [
        "RuntimeError: on purpose: beat 1",
        "RuntimeError: on purpose: beat 2",
    ]
    critical = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert any(each.exc_info for each in critical), "the traceback is missing"
    assert not lease.lost
    beats.remove(held)


def test_all_leases_of_a_process_are_renewed_in_one_round_trip(
    server: DevServer, unit: str
) -> None:
    """Two leases, one pipeline a beat: the server reads half as often as it carries steps."""
    guard = make_guard(server, lease=1.0)
    attempts = [begin(guard, f"{unit}-{number}") for number in range(2)]

    with server.client() as client:

        def counted() -> tuple[int, int]:
            reads = client.info("stats")["total_reads_processed"]
            asked = client.info("commandstats")["cmdstat_evalsha"]
            return asked["calls"] - asked["failed_calls"], reads  # of scripts that were there

        # the thread's connection is made and the scripts are loaded in the first beat
        wait_until(lambda: counted()[0] >= 4, "the first beats")
        wait_until(lambda: counted()[0] % 2 == 0, "between two beats")
        steps, reads = counted()
        end = time.monotonic() + 2.2
        wait_until(lambda: time.monotonic() > end, "six beats")
        steps_now, reads_now = counted()

    steps, reads = steps_now - steps, reads_now - reads - 2  # the two of counting
    assert 10 <= steps <= 16
    assert steps == 2 * reads
    assert not any(each.lease.lost for each in attempts)
    for each in attempts:
        assert each.end("success")
    assert guard.holder((f"{unit}-0",), {}) is None


def test_warn_after_tells_once_of_a_slow_run(
    server: DevServer, unit: str, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that holds its lease for longer than warn_after is a WARNING, while it still runs."""
    caplog.set_level(logging.WARNING, "once")
    guard = make_guard(server, lease=1.0, warn_after=0.5)
    attempt = begin(guard, unit)
    began = time.monotonic()

    def slow() -> list[Event]:
        return [each for each in told if each.kind == "slow" and each.key == attempt.key]

    (event,) = wait_until(slow, "it is told", within=5)
    took = time.monotonic() - began
    wait_until(lambda: time.monotonic() > began + 1.8, "some more beats")
    attempt.end("success")

    assert slow() == [event]
    assert event.message_id == attempt.message.id
    assert 0.5 <= event.ran < 1.5
    assert took < 1.5
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    finished = [each for each in told if each.kind == "finished" and each.key == attempt.key]
    assert finished[0].held > 1.7
