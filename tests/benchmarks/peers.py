"""What once costs beside a plain task and its peers, on one machine in one run.

usage: python tests/benchmarks/peers.py [--quick] [--no-peers] [--json FILE] [--write]
       python tests/benchmarks/peers.py --from FILE --write

Compares with each of celery-once, celery-singleton, celery-once-task and py-cachify that is
installed; none has to be. Starts its own servers. ``--quick`` tries everything with tiny numbers,
of no meaning. ``--json`` keeps the results; ``--write`` makes the tables and plots of
``docs/explanation/benchmarks.md`` from them; ``--from`` reads kept results and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import page
from benchmarks.comparison.cost import publishing, running
from benchmarks.comparison.growth import contending, holding, machine, spreading
from benchmarks.comparison.recovery import narrowing, recovering
from benchmarks.comparison.scene import Scene
from benchmarks.comparison.sides import installed

from once_core.devserver import DevServer

DOCS = Path(__file__).parent.parent.parent / "docs"

FULL: dict[str, Any] = {
    "publishes": 1500,
    "tasks": (1000, 5),
    "held": ((10**3, 10**4, 10**5, 10**6), 200),
    "contenders": ((1, 2, 4, 8, 16, 32, 64), 640, 3),
    "processes": ((1, 2, 4, 8), 250, 3),
    "narrow": (1000, 400.0),
    "recovery": (75.0, ("child", "worker")),
}
QUICK: dict[str, Any] = {
    "publishes": 5,
    "tasks": (20, 1),
    "held": ((10, 20), 5),
    "contenders": ((1, 4), 8, 2),
    "processes": ((1,), 5, 1),
    "narrow": (4, 60.0),
    "recovery": (1.5, ("child",)),
}


def measure(sizes: dict[str, Any], *, with_peers: bool) -> dict[str, Any]:
    """Do all of it; says on the error channel where it is."""
    sides = installed(with_peers=with_peers)
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load": {"begin": os.getloadavg()[0]},
        "machine": machine(),
        "sizes": sizes,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        DevServer() as store,
        DevServer() as broker,
    ):
        versions = {name: importlib.metadata.version(name) for name in ("celery", "redis")}
        peers = {side.name: side.version for side in sides if side.version}
        results["versions"] = {**versions, "server": store.version, **peers}
        scene = Scene(Path(folder), store, broker, sides)
        steps = {
            "publish": lambda: publishing(scene, sizes["publishes"]),
            "run": lambda: running(scene, *sizes["tasks"]),
            "held": lambda: holding(scene, *sizes["held"]),
            "contenders": lambda: contending(scene, *sizes["contenders"]),
            "processes": lambda: spreading(scene, *sizes["processes"]),
            "narrow": lambda: {
                side.name: narrowing(scene, side, *sizes["narrow"])
                for side in sides
                if side.name in {"once", "py-cachify"}  # the others have no such scope
            },
            "recovery": lambda: recovering(scene, *sizes["recovery"]),
        }
        try:
            for name, step in steps.items():
                begin = time.monotonic()
                load = os.getloadavg()[0]
                results[name] = step()
                results["load"][name] = load
                print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
        finally:
            scene.close()
    return results


def main() -> None:
    """Measure, or read, then show."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny numbers, to try it out")
    parser.add_argument("--no-peers", action="store_true", help="ours and a plain task alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results here")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="kept", help="read them here")
    parser.add_argument("--write", action="store_true", help="make the page's tables and plots")
    chosen = parser.parse_args()
    if chosen.kept:
        results = json.loads(chosen.kept.read_text(encoding="utf-8"))
    else:
        results = measure(QUICK if chosen.quick else FULL, with_peers=not chosen.no_peers)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for title, table in page.tables(results).items():
        print(f"\n## {title}\n\n{table}")
    if chosen.write:
        page.write(results, DOCS)


if __name__ == "__main__":
    main()
