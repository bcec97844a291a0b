"""The plugin with the oldest pytest that is promised; tox runs all of this folder with it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    """What `pyproject.toml` says."""
    found: dict[str, object] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    return found


def test_the_cell_has_the_floor(project: dict[str, dict]) -> None:
    """The oldest pytest of the extra is what a cell of tox tests, on the oldest Python."""
    floor = next(
        each.partition(">=")[2]
        for each in project["project"]["optional-dependencies"]["pytest"]
        if each.startswith("pytest>=")
    )
    cell = project["tool"]["tox"]["env"]["pytest74"]

    assert [each for each in cell["deps"] if each.startswith(f"pytest=={floor}.")]
    assert cell["base_python"][0] == "python" + project["project"]["requires-python"].strip(">=")
    assert "pytest74" in project["tool"]["tox"]["env_list"]
    assert "tests/plugin" in str(cell["commands"])


def test_the_plugin_is_declared(project: dict[str, dict]) -> None:
    """By the name of its module, or ``-p once_pytest`` would register it twice."""
    assert project["project"]["entry-points"]["pytest11"] == {"once_pytest": "once_pytest"}


def test_pytest_is_new_enough() -> None:
    """These tests run on a pytest that is promised."""
    assert tuple(map(int, version("pytest").split(".")[:2])) >= (7, 4)
