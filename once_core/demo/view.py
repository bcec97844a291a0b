"""How it looks: a live view in a terminal, plain lines elsewhere. Both end with the summary."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from once_core._clock import elapsed
from once_core.demo import scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from once_core.demo.board import Board, Unit

__all__ = ["LiveView", "PlainView", "View", "make_view"]

_STYLES = {
    "idle": "dim",
    "waits": "cyan",
    "runs": "green",
    "runs, 1 waits": "green",
    "cut off": "bold red",
}
_FEWEST_LINES, _MOST_LINES = 3, 12
_OTHER_LINES = 15
"""Lines below the header besides those of the recent events."""
_MOST_BROKEN = 12
_WIDE = 110
"""Columns of a terminal with room for more."""
_WIDE_COLUMNS = ("triggers", "put back")


class View(ABC):
    """Shows the demo. One thread.

    Attributes:
        board: What is shown.
    """

    def __init__(self, board: Board) -> None:
        self.board = board

    @abstractmethod
    def open(self, header: Sequence[str]) -> None:
        """Say what was started, and show from now on."""

    @abstractmethod
    def show(self, lines: Sequence[str], phase: str, progress: float) -> None:
        """Show the board as it is now.

        Args:
            lines: What happened since the last call.
            phase: What the demo does now.
            progress: From 0 to 1.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the terminal back."""

    @abstractmethod
    def conclude(self, rows: Sequence[tuple[str, str]], broken: Sequence[str]) -> None:
        """Print the summary and the verdict."""


class PlainView(View):
    """A line for each happening, for files and pipes."""

    def open(self, header: Sequence[str]) -> None:
        """See `View`."""
        for line in header:
            print(line, flush=True)

    def show(self, lines: Sequence[str], phase: str, progress: float) -> None:  # noqa: ARG002  # for the live view
        """See `View`."""
        for line in lines:
            print(line, flush=True)

    def close(self) -> None:
        """See `View`."""

    def conclude(self, rows: Sequence[tuple[str, str]], broken: Sequence[str]) -> None:
        """See `View`."""
        print()
        for name, text in rows:
            print(f"{name:<16} {text}")
        print()
        print(_verdict(broken), flush=True)


class LiveView(View):
    """A table that changes in place, in a terminal.

    Args:
        board: What is shown.
        console: Where.
    """

    def __init__(self, board: Board, console: Console) -> None:
        super().__init__(board)
        self._console = console
        self._header_height = 0
        # no thread of its own: the story calls `show` often enough
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def open(self, header: Sequence[str]) -> None:
        """See `View`."""
        text = Text("\n".join(header), overflow="fold")
        panel = Panel(text, title="[bold]once demo[/bold]", border_style="blue")
        self._header_height = len(self._console.render_lines(panel))
        self._console.print(panel)
        self._live.start()

    def show(self, lines: Sequence[str], phase: str, progress: float) -> None:  # noqa: ARG002  # the board has them
        """See `View`."""
        self._live.update(self._render(phase, progress), refresh=True)

    def close(self) -> None:
        """See `View`."""
        self._live.stop()

    def conclude(self, rows: Sequence[tuple[str, str]], broken: Sequence[str]) -> None:
        """See `View`."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(name, Text(text))
        colour = "red" if broken else "green"
        verdict = Text(_verdict(broken), style=f"bold {colour}")
        summary = Group(table, Text(), verdict)
        self._console.print(Panel(summary, title="summary", border_style=colour))

    def _render(self, phase: str, progress: float) -> Group:
        return Group(self._progress(phase, progress), self._units(), self._recent())

    def _progress(self, phase: str, progress: float) -> Table:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True, width=9, justify="right")
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        seconds = Text(f"{elapsed() - self.board.begin:.1f} s", style="bold")
        line.add_row(seconds, ProgressBar(total=1.0, completed=progress), Text(phase))
        return line

    def _units(self) -> Table:
        is_wide = self._console.width >= _WIDE
        table = Table(expand=True, box=SIMPLE_HEAD, header_style="bold")
        table.add_column("unit", no_wrap=True)
        table.add_column("state", no_wrap=True, width=13)
        table.add_column("holder", ratio=1, no_wrap=True)
        table.add_column("fence", no_wrap=True, width=16)
        for name in ("runs", "refused", *(_WIDE_COLUMNS if is_wide else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for unit in self.board.units.values():
            table.add_row(*_row(unit, is_wide=is_wide))
        return table

    def _recent(self) -> Panel:
        room = self._console.height - self._header_height - _OTHER_LINES
        count = max(_FEWEST_LINES, min(_MOST_LINES, room))
        lines = list(self.board.recent)[-count:]
        lines += [""] * (count - len(lines))
        text = Text("\n".join(lines), overflow="ellipsis", no_wrap=True)
        text.highlight_regex(r"RECOVERED[^,]*", "bold yellow")
        text.highlight_regex(r"KILLED worker \w+", "bold red")
        return Panel(text, title="what happened", border_style="dim")


def make_view(board: Board) -> View:
    """The live view in a terminal that can show it, else plain lines."""
    console = Console(highlight=False)
    # not rich's own guess, for which FORCE_COLOR makes a terminal of any file
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveView(board, console)
    return PlainView(board)


def _row(unit: Unit, *, is_wide: bool) -> tuple[Text, ...]:
    run, holder = unit.run, ""
    if run is not None:
        holder = f"{run.host}:{run.pid}"
        if is_wide:
            holder += f" of {run.worker}, {elapsed() - run.at:.1f} of {scenario.BODY:.0f} s"
    elif unit.cut_off is not None:
        holder = f"dead {elapsed() - unit.killed_at:.1f} s"
    style = _STYLES[unit.state]
    cells = (unit.name, unit.state, holder, str(run.fence) if run else "")
    counts = [unit.runs, unit.refused]
    if is_wide:
        counts += [unit.triggers, unit.deferred]
    return (*(Text(cell, style=style) for cell in cells), *(Text(str(each)) for each in counts))


def _verdict(broken: Sequence[str]) -> str:
    if not broken:
        return "All promises kept: nothing piled up, overlapped, was lost or got stuck."
    count = len(broken)
    head = "1 promise was broken:" if count == 1 else f"{count} times a promise was broken:"
    lines = [f"  {each}" for each in broken[:_MOST_BROKEN]]
    if count > _MOST_BROKEN:
        lines.append(f"  ... and {count - _MOST_BROKEN} more")
    return "\n".join([head, *lines])
