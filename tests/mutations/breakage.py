"""What a deliberate breakage is."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """One text of a file that is replaced; it occurs there exactly once."""

    file: str
    old: str
    new: str


class Breakage(NamedTuple):
    """One promise taken out of the code on purpose, and the tests that have to notice.

    Attributes:
        name: By which it is asked for.
        breaks: The rule of `rules.md` ("claim 1") or the hook (see `HOOKS`).
        edits: What is changed.
        tests: Node ids of which at least one turns red.
    """

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
