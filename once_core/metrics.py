"""What is counted of all events, and by which labels: the same for Prometheus and OpenTelemetry.

Labels are the task and the outcome, never a key: there are as many series as the program has
tasks, however much it does. Nothing here talks to anybody, and nothing asks Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from once_core.events import Event

__all__ = ["METRICS", "Counting", "Metric"]

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_LAG = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60)

MOST_TASKS = 1000
"""Values of the label ``task`` in one process; more are names that hold values."""

OTHER_TASKS = "(other)"
"""What tasks beyond those are counted under."""

BLOCKS = "lease"
"""What all blocks under `once_core.lease` are counted under: their names may hold values."""


@dataclass(frozen=True)
class Metric:
    """One thing that is counted or measured.

    Attributes:
        name: Without what each exporter adds to it.
        text: What it counts.
        use: What to look at it for.
        labels: Of ``task`` and ``outcome``, those that it has.
        outcomes: All values of the label ``outcome``.
        buckets: Upper ends, in seconds, of a histogram's; a counter has none.

    Example:
        >>> [METRICS["run"].prometheus, METRICS["run"].opentelemetry]
        ['once_run_seconds', 'once.run']
    """

    name: str
    text: str
    use: str
    labels: tuple[str, ...] = ("task", "outcome")
    outcomes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def prometheus(self) -> str:
        """Its name there."""
        return f"once_{self.name}_{'seconds' if self.buckets else 'total'}"

    @property
    def opentelemetry(self) -> str:
        """Its name there, of which exporters to Prometheus make the same."""
        return f"once.{self.name}"


METRICS = {
    each.name: each
    for each in (
        Metric(
            "published",
            "Calls on which the lock store decided, and calls sent without it",
            "how many triggers are duplicates, and whether anything is published at all",
            outcomes=("claimed", "refreshed", "replaced", "moved", "duplicate", "unguarded"),
        ),
        Metric(
            "started",
            "Bodies that began",
            "tasks of which calls are published and none starts",
            labels=("task",),
        ),
        Metric(
            "not_run",
            "Messages that ended without their body, and calls of functions that were skipped",
            "what becomes of the messages that do not run",
            outcomes=("superseded", "repeated", "skipped", "settled", "withdrawn"),
        ),
        Metric(
            "deferred",
            "Times a message was put back, by what it waits for",
            "tasks that meet themselves: runs that take longer than the time between triggers",
            outcomes=("overlap", "early", "store", "result", "broker"),
        ),
        Metric(
            "wait",
            "From the accepted call to the start of its body, a countdown included",
            "queues that grow, and workers that are too few",
            labels=("task",),
            buckets=_SECONDS,
        ),
        Metric(
            "run",
            "Run time of the bodies, by how they ended",
            "slow tasks, and the share of failures and retries",
            outcomes=("success", "failure", "retry", "interrupted"),
            buckets=_SECONDS,
        ),
        Metric(
            "held",
            "From the question for a lease to its end",
            "what the lease outlasts the body by: slow results, a slow lock store",
            labels=("task",),
            buckets=_SECONDS,
        ),
        Metric(
            "leases_lost",
            "Attempts that lost their lease while they ran",
            "bodies that may have overlapped; it should stay at 0",
            labels=("task",),
        ),
        Metric(
            "store_errors",
            "What became of work for which the lock store was away; outages are counted once "
            "in each process, without a task",
            "outages of the lock store, and whom they hit",
            outcomes=("raised", "unguarded", "deferred", "outage"),
        ),
        Metric(
            "renewal_lag",
            "By how much the renewal of the leases of a process came later than it was due",
            "processes that stand still or hold the GIL; near two thirds of lease= leases lapse",
            labels=(),
            buckets=_LAG,
        ),
        Metric(
            "warnings",
            "Events of the same name that somebody should look at",
            "the line in the log that says why",
            outcomes=(
                "slow",
                "lease_restored",
                "reaped",
                "released",
                "other_store",
                "heartbeat_failed",
            ),
        ),
    )
}
"""All metrics by name."""

_OF_KINDS = {
    kind: metric
    for metric in ("published", "not_run", "warnings")
    for kind in METRICS[metric].outcomes
    if kind != "unguarded"
}
"""Kinds of events that are counted as outcomes of the same name."""

_ABSENT = {"unguarded": "unguarded", "unavailable": "raised", "store_unavailable": "outage"}
"""Kinds of events that speak of a lock store that is away, and the outcomes they are."""

Add = Callable[[Metric, float, "dict[str, str]"], None]


class Counting:
    """Hands every measurement that an event holds to an exporter. Safe for threads.

    Args:
        add: Takes a metric, an amount, and the values of its labels.

    Example:
        >>> count = Counting(lambda metric, amount, labels: print(metric.name, amount, labels))
        >>> count(Event("duplicate", task="shop.sync", cause="waiting"))
        published 1 {'task': 'shop.sync', 'outcome': 'duplicate'}
        >>> count(Event("started", task="lease:tenant-42", waited=0.25))
        started 1 {'task': 'lease'}
        wait 0.25 {'task': 'lease'}
    """

    def __init__(self, add: Add) -> None:
        self._add = add
        self._tasks: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Subscriber of events."""
        task = self._task(event.task)
        for name, amount, outcome in _measured(event):
            metric = METRICS[name]
            values = {"task": task, "outcome": outcome}
            self._add(metric, amount, {label: values[label] for label in metric.labels})

    def _task(self, name: str) -> str:
        if name.startswith("lease:"):
            return BLOCKS
        if name not in self._tasks:
            if len(self._tasks) >= MOST_TASKS:
                return OTHER_TASKS
            self._tasks.add(name)
        return name


def _measured(event: Event) -> Iterator[tuple[str, float, str]]:
    """Name of the metric, amount, outcome."""
    kind = event.kind
    if kind in _OF_KINDS:
        yield _OF_KINDS[kind], 1, kind
    if kind == "unguarded":
        yield "published" if event.cause == "publish" else "started", 1, kind
    if kind in _ABSENT:
        yield "store_errors", 1, _ABSENT[kind]
    if kind == "started":
        yield "started", 1, ""
        yield from _seconds("wait", event.waited)
    elif kind == "finished":
        yield from _seconds("run", event.ran, event.reason)
        yield from _seconds("held", event.held)
    elif kind == "deferred":
        yield "deferred", 1, event.cause
        if event.cause == "store":
            yield "store_errors", 1, "deferred"
    elif kind == "lease_lost":
        yield "leases_lost", 1, ""
    elif kind == "renewed":
        yield from _seconds("renewal_lag", event.lag)


def _seconds(
    name: str, amount: float | None, outcome: str = ""
) -> Iterator[tuple[str, float, str]]:
    if amount is not None:
        yield name, amount, outcome
