"""Metrics of real workers: counted in their processes, exact, and there when a process is not."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _support import celery_app, dramatiq_app
from _support.deployment import Deployment
from _support.dramatiq_deployment import TESTS, DramatiqDeployment
from _support.waiting import wait_until
from prometheus_client import CollectorRegistry  # before any test sets its multiprocess mode
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from once_core.events import Event, subscribe

Samples = dict[tuple[str, ...], float]


def collected(folder: Path) -> Samples:
    """The counts in the files of all processes, dead ones too."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    try:
        return samples_of(registry.collect())
    except struct.error:  # the client cannot read a file that is being made; the next look can
        return {}


def samples_of(metrics: Any) -> Samples:
    """Counts by name, task and outcome; buckets left out, and histograms by how many."""
    return {
        (each.name, *(each.labels[name] for name in ("task", "outcome") if name in each.labels)): (
            each.value
        )
        for metric in metrics
        for each in metric.samples
        if metric.name.startswith("once_") and not each.name.endswith(("_bucket", "_sum"))
    }


def of_task(found: Samples, task: str) -> Samples:
    """Those of one task, without it in their names."""
    return {
        (key[0].removeprefix("once_"), *key[2:]): value
        for key, value in found.items()
        if key[1:2] == (task,)
    }


def produce(
    module: str, variable: str, settings: dict[str, Any], folder: Path, *calls: str
) -> None:
    """Send calls from a process of its own that counts."""
    subprocess.run(
        [sys.executable, "-m", "_support.metrics_producer", module, *calls],
        env={
            **os.environ,
            variable: json.dumps(settings),
            "PYTHONPATH": str(TESTS),
            "PROMETHEUS_MULTIPROC_DIR": str(folder),
        },
        timeout=60,
        check=True,
    )


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """The empty folder of the multiprocess mode."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    return folder


@pytest.fixture
def celery_counts(
    deploy: Callable[..., Deployment], counts: Path, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """A deployment whose workers count."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(counts))
    return deploy()


def test_celery_prefork(celery_counts: Deployment, counts: Path, unit: str) -> None:
    """Publishes, duplicates, runs and retries of a producer and of prefork children add up."""
    calls = [f"work:{unit}"] * 3 + [f"retrying:{unit}"] * 2 + [f"work:{unit}-other"]
    settings = celery_counts.settings
    produce("_support.metrics_celery", celery_app.SETTINGS, settings, counts, *calls)

    celery_counts.worker(app="_support.metrics_celery")
    wait_until(
        lambda: (
            collected(counts).get(("once_run_seconds_count", "retrying", "success"))
            and collected(counts).get(("once_held_seconds_count", "work")) == 2
        ),
        "all have run",
    )

    found = collected(counts)
    assert of_task(found, "work") == {
        ("published_total", "claimed"): 2,
        ("published_total", "duplicate"): 2,
        ("started_total",): 2,
        ("wait_seconds_count",): 2,
        ("run_seconds_count", "success"): 2,
        ("held_seconds_count",): 2,
    }
    assert of_task(found, "retrying") == {
        ("published_total", "claimed"): 1,
        ("published_total", "duplicate"): 1,
        ("started_total",): 2,
        ("wait_seconds_count",): 2,
        ("run_seconds_count", "retry"): 1,
        ("run_seconds_count", "success"): 1,
        ("held_seconds_count",): 2,
    }


def test_a_killed_child_takes_no_count_along(
    celery_counts: Deployment, counts: Path, unit: str
) -> None:
    """What a child counted before its SIGKILL is there, and its end is counted by its parent."""
    worker = celery_counts.worker(app="_support.metrics_celery", concurrency=1)
    celery_counts.task("work").delay(unit)
    # longer than Celery takes to look for lost children: else the lease has lapsed by itself
    celery_counts.task("dying").apply_async((f"{unit}-dying",), once={"lease": 30})
    wait_until(
        lambda: collected(counts).get(("once_warnings_total", "dying", "reaped")),
        "the parent noticed",
    )
    celery_counts.task("work").delay(f"{unit}-after")
    wait_until(
        lambda: collected(counts).get(("once_run_seconds_count", "work", "success")) == 2,
        "the next child has run one",
    )
    worker.kill()

    found = collected(counts)
    assert of_task(found, "work")["started_total",] == 2
    assert of_task(found, "dying")["started_total",] == 1
    assert ("run_seconds_count", "success") not in of_task(found, "dying")


def test_overlaps_and_renewals(celery_counts: Deployment, counts: Path, unit: str) -> None:
    """A message that meets its like is counted as deferred, and each renewal once."""
    celery_counts.worker(app="_support.metrics_celery")
    work = celery_counts.task("work")
    work.delay(unit, -1)
    wait_until(lambda: celery_counts.runs(unit), "the first body runs")
    work.delay(unit, -1)
    wait_until(
        lambda: (
            collected(counts).get(("once_deferred_total", "work", "overlap"))
            and collected(counts).get(("once_renewal_lag_seconds_count",))
        ),
        "the second one was put back, and a lease was renewed",
    )

    assert of_task(collected(counts), "work")["started_total",] == 1
    Path(f"{celery_counts.ledger}-gate-{unit}").touch()


def test_dramatiq_beside_its_own_middleware(
    deploy_dramatiq: Callable[..., DramatiqDeployment], counts: Path, tmp_path: Path, unit: str
) -> None:
    """Two worker processes and Dramatiq's own metrics: all are behind its one port."""
    deployment = deploy_dramatiq(broker="redis")
    port = free_port()
    calls = [f"work:{unit}"] * 3 + [f"retrying:{unit}", f"work:{unit}-other"]
    settings = deployment.settings
    produce("_support.metrics_dramatiq", dramatiq_app.SETTINGS, settings, counts, *calls)

    deployment.worker(
        module="_support.metrics_dramatiq",
        processes=2,
        environment={
            "dramatiq_prom_db": str(tmp_path / "dramatiq-prom"),
            "dramatiq_prom_host": "127.0.0.1",
            "dramatiq_prom_port": str(port),
        },
    )

    def scraped() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:  # it comes up after the workers, and see `collected`
            return ""

    def runs() -> Samples:
        return samples_of(text_string_to_metric_families(scraped()))

    wait_until(
        lambda: (
            runs().get(("once_run_seconds_count", "retrying", "success"))
            and runs().get(("once_held_seconds_count", "work")) == 2
        ),
        "all have run",
    )

    assert of_task(collected(counts), "work") == {
        ("published_total", "claimed"): 2,
        ("published_total", "duplicate"): 2,
    }
    assert of_task(runs(), "work") == {
        ("started_total",): 2,
        ("wait_seconds_count",): 2,
        ("run_seconds_count", "success"): 2,
        ("held_seconds_count",): 2,
    }
    assert of_task(runs(), "retrying") == {
        ("started_total",): 2,
        ("wait_seconds_count",): 2,
        ("run_seconds_count", "retry"): 1,
        ("run_seconds_count", "success"): 1,
        ("held_seconds_count",): 2,
    }
    theirs = f'dramatiq_messages_total{{actor_name="work",queue_name="{deployment.queue}"}} 2.0'
    assert theirs in scraped()


def test_dramatiq_says_why_it_puts_back(
    deploy_dramatiq: Callable[..., DramatiqDeployment], unit: str
) -> None:
    """A message that meets its like is told as an overlap there too."""
    deployment = deploy_dramatiq(broker="stub")
    told: list[Event] = []
    stop = subscribe(told.append)
    deployment.start()
    deployment.hold(unit)
    second = deployment.task("work").send(unit, -1)

    (event, *_) = wait_until(
        lambda: [each for each in told if each.kind == "deferred"], "it is put back"
    )
    deployment.let_go(unit)
    deployment.result(second)
    stop()

    assert (event.message_id, event.cause) == (second.message_id, "overlap")
    assert (event.delay or 0) > 0
