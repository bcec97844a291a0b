"""The tables and plots of ``docs/explanation/benchmarks.md``, made from kept results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.charts import Axis, line_chart

_PATTERN = re.compile(r"(<!-- made by peers\.py: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """All tables in Markdown, by the name of their place on the page."""
    return {name: make(results) for name, make in _TABLES.items()}


def write(results: dict[str, Any], docs: Path) -> None:
    """Put the tables into the page, and the plots beside it."""
    page = docs / "explanation" / "benchmarks.md"
    made = tables(results)
    text = _PATTERN.sub(
        lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}",
        page.read_text(encoding="utf-8"),
    )
    page.write_text(text, encoding="utf-8")
    for name, chart in charts(results).items():
        (docs / "_static" / f"bench-{name}.svg").write_text(chart, encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: dict[str, float], scale: float = 1.0, form: str = ".0f") -> str:
    """Median, and in brackets the quartiles."""
    median, q1, q3 = (format(values[name] * scale, form) for name in ("median", "q1", "q3"))
    return f"{median} ({q1}-{q3})"


def _machine(results: dict[str, Any]) -> str:
    machine, versions, load = results["machine"], results["versions"], results["load"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    loads = ", ".join(f"{name} {value:.1f}" for name, value in load.items() if name != "begin")
    hardware = f"{machine['processor']}, {machine['memory']}, {machine['system']}"
    return "\n".join(
        [
            f"- Measured: {results['date']}",
            f"- Machine: {hardware}; servers, workers and producers all on it",
            f"- Versions: Python {machine['python']}, {software}",
            f"- Load of the machine (one minute) before each part: {loads}",
        ]
    )


def _publish(results: dict[str, Any]) -> str:
    head = ("", "fresh, us", "x plain", "duplicate, us", "x plain")
    return _table(
        head,
        (
            [
                name,
                *(
                    cell
                    for kind in ("fresh", "duplicate")
                    for cell in (
                        _spread(side[kind]["seconds"], 1e6),
                        _spread(side[kind]["ratio"], form=".2f"),
                    )
                ),
            ]
            for name, side in results["publish"].items()
        ),
    )


def _run(results: dict[str, Any]) -> str:
    head = ("", "tasks a second", "x plain")
    return _table(
        head,
        (
            [name, _spread(side["rate"]), _spread(side["ratio"], form=".2f")]
            for name, side in results["run"].items()
        ),
    )


def _requests(results: dict[str, Any]) -> str:
    def row(name: str, side: dict[str, Any]) -> list[str]:
        parts = [side[part] for part in ("fresh", "duplicate", "run")]
        trips = [f"{part['requests']:.2f}" for part in parts]
        whole = (f"{side['fresh'][each] + side['run'][each]:.2f}" for each in parts[0])
        return [name, *trips, *whole, str(side["left"])]

    head = ("", "fresh publish", "duplicate", "run", "whole life", "commands inside", "keys left")
    return _table(head, (row(name, side) for name, side in results["run"].items()))


def _memory(results: dict[str, Any]) -> str:
    held = results["recovery"]["held"]
    many = {name: rows[-1] for name, rows in results["held"].items()}

    def row(name: str, side: dict[str, Any]) -> list[str]:
        waiting = side["waiting"]["bytes"]
        running = held[name]
        last = f"{many[name]['bytes']:.0f}" if name in many else "-"
        parts = (waiting, running["running"], running["running and triggered"])
        return [name, *(f"{part:.0f}" if part else "-" for part in parts), last]

    level = next(iter(many.values()))["held"]
    head = ("", "waiting", "running", "running, triggered again", f"share of {level:,} waiting")
    return _table(head, (row(name, side) for name, side in results["run"].items()))


def _recovery(results: dict[str, Any]) -> str:
    within = results["recovery"]["within"]

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return "-"
        if found["seconds"] is not None:
            return f"{found['seconds']:.1f} s"
        blocked = found["blocked for"]
        rest = "no end" if blocked is None else f"{blocked:.0f} s more"
        return f"not in {within:.0f} s; {rest}"

    after = results["recovery"]["after"]
    head = ("", "pool process killed", "whole worker killed, a new one started")
    return _table(
        head,
        ([name, cell(side.get("child")), cell(side.get("worker"))] for name, side in after.items()),
    )


def _held(results: dict[str, Any]) -> str:
    levels = [row["held"] for row in next(iter(results["held"].values()))]
    lines = []
    for name, rows in results["held"].items():
        lines.append([f"{name}: server, us", *(f"{row['server us']:.1f}" for row in rows)])
        for kind in ("fresh", "duplicate"):
            cells = (_spread(row[f"{kind} ratio"], form=".2f") for row in rows)
            lines.append([f"{name}: {kind}, x plain", *cells])
    return _table(["units held", *(f"{level:,}" for level in levels)], lines)


def _growing(part: str, unit: str) -> Callable[[dict[str, Any]], str]:
    def make(results: dict[str, Any]) -> str:
        levels = [row[unit] for row in results[part]["plain"]]
        lines = [
            [name, *(_spread(row["rate"]) for row in rows)] for name, rows in results[part].items()
        ]
        return _table([unit, *map(str, levels)], lines)

    return make


def _contenders(results: dict[str, Any]) -> str:
    sent = [
        [name, *(f"{row['sent']} of {row['calls']}" for row in rows)]
        for name, rows in results["contenders"].items()
    ]
    levels = [str(row["contenders"]) for row in results["contenders"]["plain"]]
    rates = _growing("contenders", "contenders")(results)
    return f"{rates}\n\nMessages that came of it:\n\n{_table(['contenders', *levels], sent)}"


def _narrow(results: dict[str, Any]) -> str:
    def row(name: str, found: dict[str, Any]) -> list[str]:
        each = found["deferrals"] / found["calls"]
        return [
            name,
            *(str(found[part]) for part in ("calls", "runs", "deferrals")),
            f"{each:.2f}",
            f"{found['ideal']:.0f} s",
            f"{found['half']:.1f} s",
            f"{found['took']:.1f} s",
        ]

    head = ("", "calls", "runs", "redeliveries", "a call", "ideal", "half had run", "last had run")
    return _table(head, (row(name, found) for name, found in results["narrow"].items()))


_TABLES = {
    "machine": _machine,
    "publish": _publish,
    "run": _run,
    "requests": _requests,
    "memory": _memory,
    "recovery": _recovery,
    "held": _held,
    "contenders": _contenders,
    "processes": _growing("processes", "processes"),
    "narrow": _narrow,
}


def charts(results: dict[str, Any]) -> dict[str, str]:
    """All plots, by the name of their file."""
    held = {
        name: [(row["held"], row["server us"]) for row in rows]
        for name, rows in results["held"].items()
    }
    found = {
        "held": line_chart(
            "What the lock server does for one publish",
            "Microseconds of the server for one accepted publish, against the units held. "
            + _in_words(held, "microseconds"),
            Axis("units held"),
            Axis("microseconds"),
            held,
        )
    }
    for part, unit, what in (
        ("contenders", "contenders", "Calls a second on one unit"),
        ("processes", "processes", "Fresh publishes a second, all processes together"),
    ):
        lines = {
            name: [(row[unit], row["rate"]["median"]) for row in rows]
            for name, rows in results[part].items()
        }
        desc = f"{what}, against the number of {unit}. {_in_words(lines, 'a second')}"
        found[part] = line_chart(what, desc, Axis(unit), Axis("calls a second"), lines)
    ours = results["narrow"]["once"]
    total, start = ours["calls"], (0.0, 0.0)
    lines = {
        "ideal": [start, (ours["ideal"], total)],
        "redeliveries": [start, *ours["deferred"]],
        "once": [start, *ours["ended"]],
    }
    found["narrow"] = line_chart(
        f"{total:,} calls that run one at a time",
        f"Runs that have ended, and redeliveries, against seconds. Ideal: {ours['ideal']:.0f} s. "
        f"Measured: {ours['took']:.0f} s and {ours['deferrals']} redeliveries.",
        Axis("seconds since the first run", is_log=False),
        Axis("so far", is_log=False),
        lines,
        dots=False,
    )
    return found


def _in_words(lines: dict[str, list[tuple[float, float]]], unit: str) -> str:
    ends = (f"{name} {some[0][1]:.0f} to {some[-1][1]:.0f}" for name, some in lines.items())
    return f"From left to right, in {unit}: {', '.join(ends)}."
