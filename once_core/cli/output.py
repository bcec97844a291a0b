"""What commands print: for people, with rich where it is installed; for scripts, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from once_core.errors import ConfigurationError

__all__ = ["Output", "agrees", "positive", "seconds"]


def seconds(value: float) -> str:
    """A duration for people.

    Example:
        >>> seconds(4.25), seconds(75), seconds(7300), seconds(200000)
        ('4.2 s', '1 min 15 s', '2 h 01 min', '2 d 07 h')
    """
    whole = round(value)
    if value < 60:  # noqa: PLR2004  # a minute
        return f"{value:.1f} s"
    if whole < 3600:  # noqa: PLR2004  # an hour
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:  # noqa: PLR2004  # a day
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def positive(text: str) -> float:
    """A number of seconds that somebody typed.

    Raises:
        ValueError: It is none, or not above 0.
    """
    value = float(text)
    if not value > 0:
        raise ValueError(text)
    return value


def agrees(question: str) -> bool:
    """Ask whoever is there; Ctrl-C is a no.

    Raises:
        ConfigurationError: Nobody is there.
    """
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked: say --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        Output.note("")
        return False


class Output:
    """Prints for people or for scripts.

    Args:
        is_json: For scripts.
    """

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self._console = None if is_json else _console()

    def data(self, value: object) -> None:
        """One JSON document; nothing for people."""
        if self.is_json:
            _say(json.dumps(value, indent=2, default=str))

    def item(self, value: object) -> None:
        """One of many JSON documents that come one after the other; nothing for people."""
        if self.is_json:
            _say(json.dumps(value, default=str))

    def line(self, text: str = "", style: str = "") -> None:
        """One line for people; nothing in JSON."""
        if self.is_json:
            return
        if self._console is None:
            _say(text)
        else:
            self._console.print(text, style=style or None, markup=False, highlight=False)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table for people; nothing in JSON."""
        if self.is_json:
            return
        found = [[*row] for row in rows]
        if self._console is not None:
            from rich.table import Table

            table = Table(box=None, pad_edge=False, header_style="bold")
            for head in heads:
                table.add_column(head, overflow="fold")
            for row in found:
                table.add_row(*row)
            self._console.print(table, markup=False, highlight=False)
            return
        widths = [max(map(len, column)) for column in zip(heads, *found, strict=True)]
        for row in ([*heads], *found):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            _say("  ".join(cells).rstrip())

    @staticmethod
    def note(text: str) -> None:
        """Something for whoever looks on, apart from the answer."""
        sys.stderr.write(f"{text}\n")


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()  # who reads along through a pipe wants to see it now


def _console() -> Any:  # noqa: ANN401  # rich need not be installed
    if not sys.stdout.isatty():
        return None  # a pipe has no width, and wants no colours
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()
