"""The Lua scripts of the record: one file a step, one prelude for all of them.

The head of each file names its KEYS and ARGV; the loader reads it, so a head that lies about
the number of arguments fails the first call that builds them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["STEPS", "Script", "script"]

STEPS = (
    "age",
    "claim",
    "confirm",
    "finish",
    "inspect",
    "leave",
    "reap",
    "release",
    "renew",
    "start",
    "withdraw",
)


_PRELUDE = "-- prelude\n"
"""Line of a step that the prelude takes the place of; without it the prelude comes first."""


@dataclass(frozen=True)
class Script:
    """One step: its text, the SHA-1 that EVALSHA wants, and the names of its arguments.

    Attributes:
        answers_text: Whether it answers with one text; else with a list of them.
    """

    name: str
    text: str
    sha: str
    arguments: tuple[str, ...]
    answers_text: bool = True


@cache
def script(name: str) -> Script:
    """Load a step, once a process and only when it is needed.

    Args:
        name: One of `STEPS`.
    """
    folder = files("once_core") / "lua"
    step = (folder / f"{name}.lua").read_text(encoding="utf-8")
    head = re.search(r"^-- ARGV:(.*)$", step, re.MULTILINE)
    if head is None or not step.startswith(f"-- {name}:"):
        raise AssertionError(f"lua/{name}.lua has no head that names it and its ARGV")
    before, _, after = step.rpartition(_PRELUDE)
    text = before + (folder / "prelude.lua").read_text(encoding="utf-8") + after
    # SHA-1 names scripts in Redis; nothing rests on its strength
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha, tuple(head[1].split()), answers_text=name != "inspect")
