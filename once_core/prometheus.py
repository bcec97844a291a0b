"""Metrics for Prometheus, with ``pip install "once-tasks[prometheus]"``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from once_core.errors import ConfigurationError
from once_core.events import subscribe
from once_core.metrics import Counting, Metric

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["measure"]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def measure(registry: CollectorRegistry | None = None) -> Callable[[], None]:
    """Count what once does in this process, for Prometheus.

    To be called in the module that workers and producers import; forked children count on. It
    costs no round trip: numbers are kept in memory, or, in the multiprocess mode of
    ``prometheus_client``, in files of each process, which outlive it however it ends. Called
    again for the same registry it changes nothing.

    Args:
        registry: Where the metrics are registered; by default where `prometheus_client` registers
            all.

    Returns:
        A function that ends the counting; what was counted stays.

    Raises:
        ConfigurationError: `prometheus_client` is not installed, or the folder of its
            multiprocess mode is not there.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> from once_core import lease
        >>> registry = CollectorRegistry()
        >>> stop = measure(registry)
        >>> with lease("nightly", url="memory://prometheus-example"):
        ...     pass
        >>> stop()
        >>> registry.get_sample_value("once_started_total", {"task": "lease"})
        1.0
    """
    _refuse_what_cannot_count()
    if registry is not None and registry is _usual_registry():
        registry = None
    found = _exports.get(registry)
    if found is None:
        found = _exports.setdefault(registry, _Export(registry))
    return found.start()


def _refuse_what_cannot_count() -> None:
    # not by importing it: see `_Export.add`
    if find_spec("prometheus_client") is None:
        raise ConfigurationError(
            "once_core.prometheus.measure() needs prometheus_client, which is not installed; "
            'install it with pip install "once-tasks[prometheus]"'
        )
    folder = os.environ.get(_FOLDER)
    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112  # may be empty
        raise ConfigurationError(
            f"{_FOLDER}={folder!r} is not a folder, so prometheus_client could count nothing; "
            "make it, empty, before the processes start"
        )


def _usual_registry() -> CollectorRegistry | None:
    module = sys.modules.get("prometheus_client")
    return module.REGISTRY if module is not None else None


class _Export:
    """The metrics in one registry."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._registry = registry
        self._instruments: dict[str, Counter | Histogram] = {}
        self._series: dict[tuple[str, ...], Counter | Histogram] = {}
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> Callable[[], None]:
        if self._unsubscribe is None:
            self._unsubscribe = subscribe(Counting(self.add))
        return self.stop

    def stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def add(self, metric: Metric, amount: float, labels: dict[str, str]) -> None:
        """Import the client no sooner than now: it looks at its import where to count.

        Dramatiq's own middleware says so when a worker process has booted, which is after the
        module of its actors was imported.
        """
        key = (metric.name, *labels.values())
        series = self._series.get(key)
        if series is None:  # finding it by its labels takes longer than counting
            instrument = self._instruments.get(metric.name) or self._make(metric)
            series = self._series[key] = instrument.labels(**labels) if labels else instrument
        if metric.buckets:
            series.observe(amount)  # type: ignore[union-attr]  # a histogram
        else:
            series.inc(amount)  # type: ignore[union-attr]  # a counter

    def _make(self, metric: Metric) -> Counter | Histogram:
        from prometheus_client import REGISTRY, Counter, Histogram

        made: Counter | Histogram
        if metric.buckets:
            made = Histogram(
                metric.prometheus, metric.text, metric.labels, registry=None, buckets=metric.buckets
            )
        else:
            made = Counter(metric.prometheus, metric.text, metric.labels, registry=None)
        # atomic: two threads must not register two, nor count in one that is not registered
        found = self._instruments.setdefault(metric.name, made)
        if found is made:
            (self._registry or REGISTRY).register(found)
        return found


_exports: dict[CollectorRegistry | None, _Export] = {}
