"""What the overview says of each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from once_core.web._census import Census, Held
from once_core.web._recent import Figures
from once_core.web._records import guard_of

if TYPE_CHECKING:
    from once_core.cli.program import Program

__all__ = ["Card", "cards_of"]


@dataclass(frozen=True)
class Card:
    """One task on the overview.

    Attributes:
        task: Its name.
        held: How much is held.
        figures: What happened in the window.
        slow: Attempts that run for longer than `warn_after` at present.
        warn_after: Of the task.
    """

    task: str
    held: Held
    figures: Figures
    slow: int = 0
    warn_after: float | None = None

    @property
    def module(self) -> str:
        """What stands before the last dot of its name."""
        return self.task.rpartition(".")[0]

    @property
    def name(self) -> str:
        """What stands after it."""
        return self.task.rpartition(".")[2]

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to say."""
        held, figures = self.held, self.figures
        is_held = held.running or held.waiting or held.kept
        return not (is_held or figures.runs or figures.refused or figures.warnings)

    @property
    def weight(self) -> tuple[int, float, str]:
        """Those that want attention first, then what is held for longest."""
        return -sum(self.figures.warnings.values()) - self.slow, -self.held.oldest, self.task


def cards_of(program: Program, census: Census, figures: Mapping[str, Figures]) -> list[Card]:
    """One for each task that is under guard, is held, or had an event.

    Args:
        program: The user's.
        census: What is held.
        figures: What happened, by task.
    """
    limits = {}
    for task in program.guards:
        guard = guard_of(program, task)
        if guard is not None and guard.options.warn_after:
            limits[task] = guard.options.warn_after
    slow: dict[str, int] = {}
    for row in census.rows:
        limit = limits.get(row.task)
        if limit is not None:
            late = [each for each in row.holders if each.state == "running" and each.age > limit]
            slow[row.task] = slow.get(row.task, 0) + len(late)
    tasks = {*program.guards, *census.tasks, *figures} - {""}
    none = Figures(figures[""].minutes)
    cards = [
        Card(
            task,
            census.tasks.get(task, Held()),
            figures.get(task, none),
            slow.get(task, 0),
            limits.get(task),
        )
        for task in tasks
    ]
    return sorted(cards, key=lambda card: card.weight)
