"""The tutorial of the toolkit: its suites are run by pytest, as a reader would."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "tutorial" / "testing.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the page has its reader write."""
    for language, block in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        name = re.match(r"# (\w+\.py)\n", block)
        if language == "python" and name is not None:
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    """What pytest prints there."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "PY_COLORS": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("where", ["fake", "spawn"])
def test_the_suites_of_the_page_pass(folder: Path, where: str) -> None:
    """All tests but the one that is wrong on purpose pass, on fakeredis and on a server."""
    (folder / "test_wrong.py").unlink()

    assert re.search(r"^9 passed in", run(folder, f"--once-redis={where}"), re.MULTILINE)


def test_the_wrong_test_says_what_the_page_shows(folder: Path) -> None:
    """What the page prints as the failure is what pytest prints, without a frame of ours."""
    shown = next(
        block
        for language, block in FENCE.findall(PAGE.read_text(encoding="utf-8"))
        if language == "text"
    )
    printed = run(folder, "test_wrong.py")
    lines = [line[1:].strip() for line in printed.splitlines() if line.startswith("E ")]
    lines[0] = lines[0].removeprefix("AssertionError: ")

    for line in shown.splitlines():
        pattern = line.strip().replace("[", "[[]").replace("…", "*")
        assert any(fnmatch.fnmatchcase(each, pattern) for each in lines), (line, lines)
    assert "once_pytest/" not in printed  # as in the place of a frame
