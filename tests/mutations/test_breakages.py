"""The list of deliberate breakages is whole; `run.py` sees that each of them is noticed."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from lupa.lua51 import LuaRuntime
from mutations.breakage import Breakage
from mutations.breakages import BREAKAGES, HOOKS, RULES

ROOT = Path(__file__).parents[2]
COMMAND = "python tests/mutations/run.py"

LUA = LuaRuntime()
"""Of fakeredis' own version of Lua: two versions in one process crash."""

each_breakage = pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda each: each.name)


@cache
def text_of(file: str) -> str:
    """A file as it is."""
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def functions_of(file: str) -> set[str]:
    """Names of all functions of a file."""
    tree = ast.parse(text_of(file))
    return {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}


def broken(breakage: Breakage) -> dict[str, str]:
    """The files of a breakage, broken."""
    texts: dict[str, str] = {}
    for file, old, new in breakage.edits:
        text = texts.get(file) or text_of(file)
        assert text.count(old) == 1, (
            f"{breakage.name}: {old!r} is not once in {file}; see {COMMAND}"
        )
        texts[file] = text.replace(old, new)
    return texts


@pytest.mark.parametrize("name", RULES + HOOKS)
def test_each_rule_and_hook_is_broken(name: str) -> None:
    """No rule and no hook without a breakage."""
    assert [each.name for each in BREAKAGES if each.breaks == name]


def test_each_breakage_breaks_what_is_listed() -> None:
    """A breakage names a rule or a hook of the lists, and is itself named once."""
    assert {each.breaks for each in BREAKAGES} <= {*RULES, *HOOKS}
    assert [
        name for name, times in Counter(each.name for each in BREAKAGES).items() if times > 1
    ] == []


@each_breakage
def test_what_is_broken_is_there_and_is_still_a_program(breakage: Breakage) -> None:
    """The old text is there once; what it becomes compiles, or anything would turn red."""
    assert breakage.edits
    for file, text in broken(breakage).items():
        assert text != text_of(file)
        if file.endswith(".lua"):
            body = text if "-- prelude\n" not in text else text.replace("-- prelude\n", "")
            LUA.compile(f"return function(KEYS, ARGV, redis) {body}\nend")
        else:
            compile(text, file, "exec")


@each_breakage
def test_the_tests_that_notice_it_are_there(breakage: Breakage) -> None:
    """A test that was renamed is renamed in the list too."""
    assert breakage.tests
    for test in breakage.tests:
        file, _, name = test.partition("::")
        assert re.sub(r"\[.*", "", name) in functions_of(file)
