"""What is counted of which event, and under which labels."""

from __future__ import annotations

from typing import Any

import pytest

from once_core.events import _LEVELS, Event
from once_core.metrics import METRICS, MOST_TASKS, Counting

T = "shop.sync"

COUNTED = [
    (Event("claimed", T), [("published", 1, "claimed")]),
    (Event("refreshed", T), [("published", 1, "refreshed")]),
    (Event("replaced", T), [("published", 1, "replaced")]),
    (Event("moved", T), [("published", 1, "moved")]),
    (Event("duplicate", T, cause="kept"), [("published", 1, "duplicate")]),
    (
        Event("unguarded", T, cause="publish"),
        [("published", 1, "unguarded"), ("store_errors", 1, "unguarded")],
    ),
    (
        Event("unguarded", T, cause="start"),
        [("started", 1, None), ("store_errors", 1, "unguarded")],
    ),
    (Event("unavailable", T), [("store_errors", 1, "raised")]),
    (Event("store_unavailable"), [("store_errors", 1, "outage")]),
    (Event("store_recovered"), []),
    (Event("started", T, waited=2.5), [("started", 1, None), ("wait", 2.5, None)]),
    (Event("started", T), [("started", 1, None)]),
    (
        Event("finished", T, reason="failure", ran=1.5, held=2.0),
        [("run", 1.5, "failure"), ("held", 2.0, None)],
    ),
    (Event("finished", T, reason="interrupted", held=2.0), [("held", 2.0, None)]),
    (Event("deferred", T, cause="overlap"), [("deferred", 1, "overlap")]),
    (
        Event("deferred", T, cause="store"),
        [("deferred", 1, "store"), ("store_errors", 1, "deferred")],
    ),
    (Event("superseded", T), [("not_run", 1, "superseded")]),
    (Event("repeated", T), [("not_run", 1, "repeated")]),
    (Event("skipped", T), [("not_run", 1, "skipped")]),
    (Event("settled", T), [("not_run", 1, "settled")]),
    (Event("withdrawn", T), [("not_run", 1, "withdrawn")]),
    (Event("lease_lost", T), [("leases_lost", 1, None)]),
    (Event("renewed", lag=0.25), [("renewal_lag", 0.25, None)]),
    (Event("slow", T), [("warnings", 1, "slow")]),
    (Event("lease_restored", T), [("warnings", 1, "lease_restored")]),
    (Event("reaped", T), [("warnings", 1, "reaped")]),
    (Event("released", T), [("warnings", 1, "released")]),
    (Event("other_store", T), [("warnings", 1, "other_store")]),
    (Event("heartbeat_failed"), [("warnings", 1, "heartbeat_failed")]),
]


class Counted(list[tuple[str, float, dict[str, str]]]):
    """What an exporter was given."""

    def __call__(self, metric: Any, amount: float, labels: dict[str, str]) -> None:
        self.append((metric.name, amount, labels))


@pytest.mark.parametrize(("event", "expected"), COUNTED, ids=lambda each: getattr(each, "kind", ""))
def test_counted(event: Event, expected: list[tuple[str, float, str | None]]) -> None:
    """Each kind of event is counted where the table says, with known labels alone."""
    counted = Counted()
    Counting(counted)(event)

    assert [(name, amount, labels.get("outcome")) for name, amount, labels in counted] == expected
    for name, _, labels in counted:
        assert tuple(labels) == METRICS[name].labels
        assert labels.get("task", event.task) == event.task
        assert labels.get("outcome") in (METRICS[name].outcomes or (None,))


def test_every_kind_is_counted_on_purpose() -> None:
    """A new kind of event needs its lines in the table above."""
    assert {event.kind for event, _ in COUNTED} == set(_LEVELS)


def test_every_outcome_comes_about() -> None:
    """The documented outcomes are those that events have."""
    found = {(name, outcome) for _, expected in COUNTED for name, _, outcome in expected}
    elsewhere = {("deferred", each) for each in ("early", "result", "broker")}
    elsewhere |= {("run", each) for each in ("success", "retry", "interrupted")}

    promised = {(name, each) for name, metric in METRICS.items() for each in metric.outcomes}
    assert {pair for pair in found if pair[1]} | elsewhere == promised


def test_names_of_blocks_are_no_labels() -> None:
    """`lease(f"tenant-{id}")` makes one series, not one for each tenant."""
    counted = Counted()
    count = Counting(counted)
    for number in range(3):
        count(Event("started", f"lease:tenant-{number}"))

    assert counted == [("started", 1, {"task": "lease"})] * 3


def test_names_without_end_are_no_labels() -> None:
    """Tasks whose names hold values end as one series; those known before go on as they are."""
    counted = Counted()
    count = Counting(counted)
    for number in range(MOST_TASKS + 5):
        count(Event("started", f"task-{number}"))
    count(Event("started", "task-0"))

    names = [labels["task"] for _, _, labels in counted]
    assert len(set(names)) == MOST_TASKS + 1
    assert names[-3:] == ["(other)", "(other)", "task-0"]


def test_no_key_is_a_label() -> None:
    """Whatever an event knows of one unit of work stays out of the labels."""
    assert {label for each in METRICS.values() for label in each.labels} == {"task", "outcome"}
