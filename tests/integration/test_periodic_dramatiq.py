"""Actors triggered by the clock, through periodiq and APScheduler, that are slower than it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dramatiq
import pendulum
import periodiq
import pytest
from _support import ledger
from _support.dramatiq_app import SETTINGS
from _support.dramatiq_deployment import TESTS, DramatiqWorker
from _support.dramatiq_periodic import make_broker
from _support.waiting import wait_until
from apscheduler.schedulers.background import BackgroundScheduler

from once_core.devserver import DevServer
from once_dramatiq import holder, published

MODULE = "_support.dramatiq_periodic:broker_of_environment"


@dataclass
class Clock:
    """A broker with a real worker, and what happened in it."""

    folder: Path
    settings: dict[str, str]
    broker: Any

    def actor(self, name: str) -> Any:
        """One of the actors."""
        return self.broker.get_actor(name)

    def tick(self, name: str = "report", count: int = 1, at: Any = None) -> None:
        """What periodiq does whenever an actor is due."""
        actor = self.actor(name)
        for _ in range(count):
            periodiq.Scheduler([actor]).send_actors([actor], at or pendulum.now())

    def runs(self, unit: str = "report") -> list[ledger.Run]:
        """All that started."""
        return ledger.runs(self.settings["ledger"], unit)

    def let_go(self, unit: str = "report") -> None:
        """Have the bodies end."""
        ledger.gate(self.settings["ledger"], unit).touch()

    def waiting(self) -> int:
        """Messages in the broker that are not acknowledged."""
        queue = self.settings["queue"]
        return sum(self.broker.client.hlen(f"dramatiq:{queue}{kind}.msgs") for kind in ("", ".DQ"))


@pytest.fixture
def clock(tmp_path: Path, shared_server: DevServer) -> Iterator[Clock]:
    """With a worker of four threads, so that nothing but once keeps runs apart."""
    settings = {
        "url": shared_server.url,
        "queue": f"once_test_{uuid.uuid4().hex[:12]}",
        "ledger": str(tmp_path / "ledger"),
        "prefix": f"once-{uuid.uuid4().hex[:8]}",
    }
    before = dramatiq.broker.global_broker
    made = Clock(tmp_path, settings, make_broker(settings))
    worker = DramatiqWorker(settings, tmp_path, module=MODULE)
    try:
        worker.ready()
        yield made
    finally:
        worker.kill()
        made.broker.close()
        dramatiq.broker.global_broker = before


def test_a_periodic_actor_that_is_slower_than_its_period(clock: Clock) -> None:
    """With `until_done`: ticks during the run send nothing, and the one after it runs."""
    clock.tick()
    wait_until(clock.runs, "the first one runs")

    clock.tick(count=20)
    in_broker = clock.waiting()
    clock.let_go()
    wait_until(lambda: holder(clock.actor("report")) is None, "it has ended")
    clock.tick()
    wait_until(lambda: len(clock.runs()) == 2, "the next one runs")
    wait_until(lambda: clock.waiting() == 0, "nothing is left")

    assert in_broker == 1
    assert len(clock.runs()) == 2
    assert ledger.overlaps(clock.runs()) == []


def test_a_periodic_actor_in_the_default_scope_runs_back_to_back(clock: Clock) -> None:
    """Of all ticks during the run one waits, and runs after it."""
    clock.tick("sync")
    wait_until(lambda: clock.runs("sync"), "the first one runs")

    clock.tick("sync", count=20)
    in_broker = clock.waiting()
    clock.let_go("sync")
    wait_until(lambda: clock.waiting() == 0, "nothing is left")

    # one that is on its way between two queues is in both
    assert 2 <= in_broker <= 3
    assert len(clock.runs("sync")) == 2
    assert ledger.overlaps(clock.runs("sync")) == []


def test_a_message_that_periodiq_finds_too_late_frees_its_unit(clock: Clock) -> None:
    """After half a minute its middleware skips it; the next tick runs."""
    clock.tick(at=pendulum.now().subtract(minutes=5))
    wait_until(lambda: holder(clock.actor("report")) is None, "the late one is skipped")

    clock.tick()
    wait_until(clock.runs, "the next one runs")
    clock.let_go()
    wait_until(lambda: clock.waiting() == 0, "nothing is left")

    assert len(clock.runs()) == 1


def test_two_schedulers_by_mistake_are_one_run(clock: Clock) -> None:
    """The ``periodiq`` command, started twice: both send at once, and once takes one."""
    command = "import periodiq; periodiq.entrypoint()"
    logs = [clock.folder / f"periodiq-{number}.log" for number in range(2)]
    processes = []
    for log in logs:
        with log.open("wb") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", command, "-v", MODULE],
                    env={
                        **os.environ,
                        SETTINGS: json.dumps(clock.settings),
                        "PYTHONPATH": str(TESTS),
                    },
                    cwd=clock.folder,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        # one that starts in the last seconds of a minute waits for the next
        for log in logs:
            wait_until(
                lambda log=log: "Nothing to do until" in log.read_text(encoding="utf-8"),
                "it has sent what is due",
            )
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    wait_until(clock.runs, "it runs")
    in_broker = clock.waiting()
    clock.let_go()
    wait_until(lambda: clock.waiting() == 0, "nothing is left")

    assert in_broker == 1
    assert len(clock.runs()) == 1


def test_apscheduler_triggers_it_more_often_than_it_can_run(clock: Clock) -> None:
    """Every 50 ms for a body of 400 ms: as many messages as runs, one at a time."""
    sent = []
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(
        lambda: sent.append(clock.actor("report").send(0.4)),
        "interval",
        seconds=0.05,
        max_instances=1,
        coalesce=True,
    )

    scheduler.start()
    try:
        wait_until(lambda: len(clock.runs()) >= 4, "it ran four times")
    finally:
        scheduler.shutdown()
    wait_until(lambda: clock.waiting() == 0, "nothing is left")

    accepted = {message.message_id for message in sent if not published(message).is_duplicate}
    assert accepted == {run.message_id for run in clock.runs()}
    assert len(sent) > len(accepted)
    assert ledger.overlaps(clock.runs()) == []
