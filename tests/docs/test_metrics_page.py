"""The alert rules and the dashboard: they parse, and ask for what is counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from once_core.metrics import METRICS, Metric

HOWTO = Path(__file__).parent.parent.parent / "docs" / "howto"
RULES = HOWTO / "prometheus-rules.yml"
DASHBOARD = HOWTO / "grafana-dashboard.json"

BY_NAME = {each.prometheus: each for each in METRICS.values()}
FUNCTIONS = {"sum", "rate", "increase", "histogram_quantile", "vector", "label_values"}
WORDS = {"by", "or", "unless", "offset"}
SERIES = re.compile(r"\b(once_[a-z_]+?)(_bucket|_count|_sum)?\b(?:\{([^}]*)\})?(?![a-z_])")


def alerts() -> list[dict[str, Any]]:
    """All rules of the file."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[str]:
    """All expressions, those of the dashboard with numbers for what Grafana fills in."""
    yield from (rule["expr"] for rule in alerts())
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    yield from (each["definition"] for each in dashboard["templating"]["list"][1:])
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield re.sub(r"\$__\w+", "5m", target["expr"]).replace("$task", ".*")


every_query = pytest.mark.parametrize("query", list(queries()))


@every_query
def test_metrics_exist(query: str) -> None:
    """A query names metrics, buckets, labels and outcomes that there are."""
    found = SERIES.findall(query)

    assert found
    for name, suffix, chosen in found:
        assert bool(suffix) == bool(BY_NAME[name].buckets)
        for label, values in re.findall(r'(\w+)!?=~?"([^"]*)"', chosen):
            assert label in BY_NAME[name].labels
            known = BY_NAME[name].outcomes if label == "outcome" else (".*",)
            assert set(values.split("|")) <= set(known)


@every_query
def test_labels_of_sums_exist(query: str) -> None:
    """A query groups by labels that its metrics have."""
    metrics = [BY_NAME[name] for name, _, _ in SERIES.findall(query)]
    known = set.intersection(*({"instance", *each.labels, *_le(each)} for each in metrics))

    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        assert set(labels.split(", ")) <= known


def _le(metric: Metric) -> tuple[str, ...]:
    return ("le",) if metric.buckets else ()


@every_query
def test_functions_and_brackets(query: str) -> None:
    """A query calls functions that Prometheus has, and closes what it opens."""
    opened = ""
    for sign in re.sub(r'"[^"]*"', "", query):
        if sign in "({[":
            opened += sign
        elif sign in ")}]":
            assert opened[-1:] + sign in {"()", "{}", "[]"}
            opened = opened[:-1]

    assert opened == ""
    assert set(re.findall(r"\b([a-z_]+) ?\(", query)) - WORDS <= FUNCTIONS


def test_alerts() -> None:
    """Every alert has a name of its own, how bad it is, and what to do."""
    names = [rule["alert"] for rule in alerts()]

    assert len(set(names)) == len(names) == 7
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_every_metric_is_on_the_dashboard() -> None:
    """Nothing is counted that nobody is shown."""
    shown = DASHBOARD.read_text(encoding="utf-8")

    assert [name for name in BY_NAME if name not in shown] == []


def test_panels_do_not_cover_each_other() -> None:
    """The dashboard has a place for each panel, and an id."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    places = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]

    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
