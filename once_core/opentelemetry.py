"""Metrics and attributes of spans for OpenTelemetry: ``pip install "once-tasks[opentelemetry]"``.

Only its API is used: the program chooses the SDK, and what it exports to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from once_core.attempt import current_attempt
from once_core.errors import ConfigurationError
from once_core.events import Event, subscribe
from once_core.metrics import METRICS, Counting, Metric

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider

__all__ = ["measure"]

_AT_START = {"started", "deferred", "superseded", "repeated", "skipped", "settled"}
_AT_PUBLISH = {"claimed", "refreshed", "replaced", "moved", "duplicate"}
_FACTS = ("key", "cause", "holder_id", "waited", "delay", "fence")


def measure(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Count what once does in this process, and say on the span at hand what it decided.

    To be called in the module that workers and producers import, before or after the program sets
    its providers. The span that is current when a task starts, or is put back or settled, gets
    ``once.state``, ``once.key`` and what else is known; the one of a caller ``once.publish.state``
    and so on, of its last call. Called again for the same provider it changes nothing.

    Args:
        meter_provider: Gives the instruments; by default the program's own.

    Returns:
        A function that ends it.

    Raises:
        ConfigurationError: The API of OpenTelemetry is not installed.

    Example:
        >>> stop = measure()
        >>> stop()
    """
    found = _exports.get(meter_provider)
    if found is None:
        found = _exports.setdefault(meter_provider, _Export(meter_provider))
    return found.start()


class _Export:
    """The metrics of one provider, and the attributes of spans."""

    def __init__(self, meter_provider: MeterProvider | None) -> None:
        try:
            from opentelemetry.metrics import get_meter
            from opentelemetry.trace import get_current_span
        except ImportError as error:
            raise ConfigurationError(
                "once_core.opentelemetry.measure() needs opentelemetry-api, which is not "
                'installed; install it with pip install "once-tasks[opentelemetry]"'
            ) from error
        self._current_span = get_current_span
        meter = get_meter("once_core", meter_provider=meter_provider)
        self._instruments = {name: _instrument(meter, each) for name, each in METRICS.items()}
        self._unsubscribe: tuple[Callable[[], None], ...] = ()

    def start(self) -> Callable[[], None]:
        if not self._unsubscribe:
            self._unsubscribe = subscribe(Counting(self.add)), subscribe(self.describe)
        return self.stop

    def stop(self) -> None:
        ends, self._unsubscribe = self._unsubscribe, ()
        for end in ends:
            end()

    def add(self, metric: Metric, amount: float, labels: dict[str, str]) -> None:
        instrument = self._instruments[metric.name]
        if metric.buckets:
            instrument.record(amount, labels)  # type: ignore[union-attr]  # a histogram
        else:
            instrument.add(amount, labels)  # type: ignore[union-attr]  # a counter

    def describe(self, event: Event) -> None:
        """Write the decision on the span of the delivery, or of the caller."""
        is_publish = event.kind in _AT_PUBLISH or event.cause == "publish"
        if not (is_publish or event.kind in _AT_START or event.kind == "unguarded"):
            return
        if not is_publish and current_attempt() is not None:
            return  # a function or a block inside of a body, whose span speaks of its task
        span = self._current_span()
        if not span.is_recording():
            return
        prefix = "once.publish." if is_publish else "once."
        span.set_attribute(f"{prefix}state", event.kind)
        for name in _FACTS:
            value = getattr(event, name)
            if value not in ("", None):
                span.set_attribute(f"{prefix}{name}", value)


def _instrument(meter: Meter, metric: Metric) -> Counter | Histogram:
    name, text = metric.opentelemetry, metric.text
    if not metric.buckets:
        return meter.create_counter(name, description=text)
    try:
        return meter.create_histogram(
            name, "s", text, explicit_bucket_boundaries_advisory=metric.buckets
        )
    except TypeError:  # before 1.30 a view of the program has to say it
        return meter.create_histogram(name, "s", text)


_exports: dict[MeterProvider | None, _Export] = {}
