"""`once_core.prometheus`: counted once, found where it was asked for, and ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest

from once_core import prometheus
from once_core.errors import ConfigurationError
from once_core.events import emit
from once_core.metrics import METRICS

DUPLICATES = {"task": "shop.sync", "outcome": "duplicate"}


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def measure() -> Iterator[Callable[..., Callable[[], None]]]:
    """Counts until the test ends."""
    stops = []

    def call(registry: CollectorRegistry | None = None) -> Callable[[], None]:
        stops.append(prometheus.measure(registry))
        return stops[-1]

    yield call
    for stop in stops:
        stop()


def duplicates(registry: CollectorRegistry) -> float | None:
    """How many were counted there."""
    return registry.get_sample_value("once_published_total", DUPLICATES)


def test_called_twice(
    measure: Callable[..., Callable[[], None]], registry: CollectorRegistry
) -> None:
    """Two modules that both say it neither fail nor count double."""
    measure(registry)
    measure(registry)
    emit("duplicate", task="shop.sync")

    assert duplicates(registry) == 1


def test_ended_and_begun_again(
    measure: Callable[..., Callable[[], None]], registry: CollectorRegistry
) -> None:
    """What was counted stays when it ends, and is added to when it begins again."""
    stop = measure(registry)
    emit("duplicate", task="shop.sync")
    stop()
    stop()
    emit("duplicate", task="shop.sync")
    assert duplicates(registry) == 1

    measure(registry)
    emit("duplicate", task="shop.sync")
    assert duplicates(registry) == 2


def test_the_usual_registry_by_its_name(measure: Callable[..., Callable[[], None]]) -> None:
    """Giving the registry that is used anyway is the same as giving none."""
    before = duplicates(REGISTRY) or 0
    measure()
    measure(REGISTRY)
    emit("duplicate", task="shop.sync")

    assert duplicates(REGISTRY) == before + 1


def test_two_registries(measure: Callable[..., Callable[[], None]]) -> None:
    """Each has all counts from the moment it was given."""
    first, second = CollectorRegistry(), CollectorRegistry()
    measure(first)
    emit("duplicate", task="shop.sync")
    measure(second)
    emit("duplicate", task="shop.sync")

    assert (duplicates(first), duplicates(second)) == (2, 1)


def test_what_is_scraped(
    measure: Callable[..., Callable[[], None]], registry: CollectorRegistry
) -> None:
    """Names, labels and buckets are as documented."""
    measure(registry)
    emit("finished", task="shop.sync", reason="success", ran=0.2, held=0.3)
    emit("renewed", lag=0.02)

    lines = generate_latest(registry).decode().splitlines()
    assert 'once_run_seconds_bucket{le="0.25",outcome="success",task="shop.sync"} 1.0' in lines
    assert 'once_run_seconds_bucket{le="0.1",outcome="success",task="shop.sync"} 0.0' in lines
    assert 'once_held_seconds_sum{task="shop.sync"} 0.3' in lines
    assert "once_renewal_lag_seconds_count 1.0" in lines
    assert f"# HELP once_run_seconds {METRICS['run'].text}" in lines


def test_a_name_that_is_taken(
    measure: Callable[..., Callable[[], None]],
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A program with a metric of our name is told once, and nothing of its work fails."""
    Counter("once_published", "Ours.", registry=registry)
    measure(registry)
    emit("duplicate", task="shop.sync")
    emit("duplicate", task="shop.sync")

    told = [each for each in caplog.records if each.levelname == "ERROR"]
    assert len(told) == 1
    assert "Duplicated timeseries" in str(told[0].exc_info)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client the error names the extra."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(ConfigurationError, match=r'pip install "once-tasks\[prometheus\]"'):
        prometheus.measure()


def test_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A multiprocess mode without its folder is refused at once, not at each event."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))

    with pytest.raises(ConfigurationError, match=r"gone' is not a folder.*make it, empty"):
        prometheus.measure()


LATE = """
import os, sys
from once_core.events import emit
from once_core.prometheus import measure
measure()
assert "prometheus_client" not in sys.modules
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]  # as Dramatiq does, when it has booted
emit("duplicate", task="shop.sync")
"""


def test_the_client_is_imported_late(tmp_path: Path) -> None:
    """It looks at its import where to count, and that may be said after `measure()`."""
    subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], timeout=60, check=True)

    assert [each.name.partition("_")[0] for each in tmp_path.iterdir()] == ["counter"]
