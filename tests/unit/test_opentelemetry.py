"""`once_core.opentelemetry`: the same metrics, and what spans are told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from once_core import lease, opentelemetry, publish
from once_core._heartbeat import Heartbeat
from once_core.attempt import Attempt
from once_core.errors import ConfigurationError
from once_core.events import emit
from once_core.guard import Guard
from once_core.metrics import METRICS
from once_core.protocol import Message
from once_pytest import assert_task_locked


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """Reads a provider of the test's own, for which is counted until the test ends."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.measure(provider)
    stop = opentelemetry.measure(provider)  # called twice, as two modules may
    yield reader
    stop()
    provider.shutdown()


@pytest.fixture
def tracer(reader: InMemoryMetricReader) -> Any:
    """Makes spans that record."""
    return TracerProvider().get_tracer("tests")


def points(reader: InMemoryMetricReader) -> dict[str, Any]:
    """What was counted, by name: unit and points."""
    data = reader.get_metrics_data()
    found = data.resource_metrics if data else []
    scopes = [scope for resource in found for scope in resource.scope_metrics]
    return {each.name: (each.unit, *each.data.data_points) for s in scopes for each in s.metrics}


def test_counters(reader: InMemoryMetricReader) -> None:
    """Counted once, by task and outcome."""
    emit("duplicate", task="shop.sync")

    unit, point = points(reader)["once.published"]
    assert (unit, point.value) == ("", 1)
    assert dict(point.attributes) == {"task": "shop.sync", "outcome": "duplicate"}


def test_histograms(reader: InMemoryMetricReader) -> None:
    """Seconds, in the buckets that are documented."""
    emit("started", task="shop.sync", waited=0.2)

    unit, point = points(reader)["once.wait"]
    assert (unit, point.count, point.sum) == ("s", 1, 0.2)
    assert point.explicit_bounds == METRICS["wait"].buckets


def test_an_api_without_buckets() -> None:
    """Older releases of the API are not told the buckets, and count all the same."""

    class Meter:
        def create_histogram(self, name: str, unit: str = "", description: str = "") -> str:
            return f"{name} {unit}"

    made = opentelemetry._instrument(Meter(), METRICS["wait"])  # type: ignore[arg-type]
    assert made == "once.wait s"  # type: ignore[comparison-overlap]


def test_ended(reader: InMemoryMetricReader, tracer: Any) -> None:
    """After its end nothing is counted, and no span is told."""
    emit("started", task="shop.sync")
    for stop in [each.stop for each in opentelemetry._exports.values()]:
        stop()
    with tracer.start_as_current_span("other") as span:
        emit("started", task="shop.sync")

    assert points(reader)["once.started"][1].value == 1
    assert dict(span.attributes) == {}


def test_span_of_a_task(tracer: Any, guarded: Callable[..., Guard], beats: Heartbeat) -> None:
    """A start is told on the span in which it happens; what the body does is not."""
    guard = guarded()
    sent = publish.claim(guard, (1,), {}, "m1")
    attempt = Attempt(guard, sent.key, Message("m1", sent.ticket), sent.envelope)
    with tracer.start_as_current_span("run/shop.sync") as span:
        started = attempt.start()
        with attempt.body(), lease("inner", url="memory://span-inner"):
            pass
        attempt.end("success")

    assert dict(span.attributes) == {
        "once.state": "started",
        "once.key": sent.key,
        "once.waited": started.waited,
        "once.fence": started.fence,
    }


def test_span_of_a_caller(tracer: Any, guarded: Callable[..., Guard]) -> None:
    """A call is told apart from the task in whose body it is made."""
    guard = guarded()
    first = publish.claim(guard, (1,), {}, "m1")
    with tracer.start_as_current_span("GET /orders") as span:
        publish.claim(guard, (1,), {}, "m2")

    assert dict(span.attributes) == {
        "once.publish.state": "duplicate",
        "once.publish.cause": "waiting",
        "once.publish.key": first.key,
        "once.publish.holder_id": "m1",
    }
    assert_task_locked(guard, 1, state="waiting", holder="m1")


def test_no_span(reader: InMemoryMetricReader) -> None:
    """Without a span it counts, and says nothing."""
    emit("started", task="shop.sync", key="once:k")

    assert points(reader)["once.started"][1].value == 1


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the API the error names the extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)

    with pytest.raises(ConfigurationError, match=r'pip install "once-tasks\[opentelemetry\]"'):
        opentelemetry.measure(MeterProvider())
