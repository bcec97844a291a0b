"""The benchmarks run: a page of numbers is worth nothing if nobody can make it again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parent.parent.parent
PEERS = ROOT / "tests" / "benchmarks" / "peers.py"
PAGE = ROOT / "docs" / "explanation" / "benchmarks.md"
PARTS = ["publish", "run", "held", "contenders", "processes", "narrow", "recovery"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the smallest run, without peers."""
    kept = tmp_path_factory.mktemp("benchmarks") / "results.json"
    command = [sys.executable, str(PEERS), "--quick", "--no-peers", "--json", str(kept)]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return kept


def test_comparison_measures_every_part_of_a_plain_task_and_of_ours(measured: Path) -> None:
    """None of the parts is skipped, and what must hold at any speed holds."""
    results = json.loads(measured.read_text(encoding="utf-8"))

    assert [part for part in PARTS if part in results] == PARTS
    assert {"plain", "once"} <= set(results["publish"])
    run = results["run"]["once"]
    assert (run["left"], run["fresh"]["requests"], run["duplicate"]["requests"]) == (0, 1, 1)
    assert 0 < run["waiting"]["bytes"] <= 400
    assert {row["sent"] for row in results["contenders"]["once"]} == {1}
    assert results["narrow"]["once"]["runs"] == results["narrow"]["once"]["calls"]


def test_page_and_plots_are_made_from_kept_results(measured: Path, tmp_path: Path) -> None:
    """Whoever measures again needs no editor: each marked place gets its table."""
    sys.path[:0] = [str(ROOT / "tests")]
    try:
        from benchmarks.comparison import page
    finally:
        del sys.path[0]
    (tmp_path / "explanation").mkdir()
    (tmp_path / "_static").mkdir()
    shutil.copy(PAGE, tmp_path / "explanation")
    results = json.loads(measured.read_text(encoding="utf-8"))

    page.write(results, tmp_path)

    text = (tmp_path / "explanation" / PAGE.name).read_text(encoding="utf-8")
    tables = page.tables(results)
    assert set(re.findall(r"made by peers\.py: (\w+)", text)) == set(tables)
    assert [name for name, table in tables.items() if table not in text] == []
    plots = {path.name for path in (tmp_path / "_static").iterdir()}
    assert plots == set(re.findall(r"_static/(bench-\w+\.svg)", text))
    for plot in (tmp_path / "_static").iterdir():
        named = {child.tag.rpartition("}")[2] for child in ET.parse(plot).getroot()}
        assert {"title", "desc"} <= named
