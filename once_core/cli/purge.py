"""``once purge``: throws the messages of queues away, and frees what waited in them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from once_core.cli.output import Output, agrees
from once_core.cli.program import Program
from once_core.errors import ConfigurationError, OnceError
from once_core.options import nearest

__all__ = ["purge_command", "purge_parser"]


def purge_parser(parser: argparse.ArgumentParser) -> None:
    """Add what only this command takes."""
    parser.add_argument(
        "-Q", "--queues", type=_names, default=None, metavar="QUEUES",
        help="names of queues with commas between them; by default all of the program's",
    )  # fmt: skip
    parser.add_argument(
        "-X", "--exclude-queues", type=_names, default=[], metavar="QUEUES",
        help="queues that are left alone",
    )  # fmt: skip
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def purge_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """Empty queues. 0: emptied; 1: you said no, or units could not be freed and have to heal."""
    found = [(purger, set(purger.queues())) for purger in program.purgers]
    known = set().union(*(names for _, names in found))
    if not known:
        raise ConfigurationError("no queue is known: name the module of your program, once -A proj")
    _check([*(parsed.queues or ()), *parsed.exclude_queues], known)
    chosen = (set(parsed.queues) if parsed.queues is not None else known) - set(
        parsed.exclude_queues
    )
    if parsed.queues == []:
        raise ConfigurationError("-Q names no queue; leave it out to purge all of the program's")
    if not chosen:
        raise ConfigurationError("no queue is left to purge: take one from -X, or add one to -Q")
    if not parsed.yes and not _agrees(sorted(chosen)):
        output.data({"purged": False, "reason": "not confirmed"})
        return 1
    try:
        done = [
            purger.purge(sorted(names & chosen)) for purger, names in found if names & chosen
        ]  # an empty choice would stand for all
    except Exception as error:
        raise OnceError(
            f"the queues could not be emptied ({type(error).__name__}: {error}); what was taken "
            "out before that is gone: look at the broker, and purge again"
        ) from error
    messages, released, left = (sum(numbers) for numbers in zip(*done, strict=True))
    output.data({"purged": True, "queues": sorted(chosen), "messages": messages,
                 "released": released, "left": left})  # fmt: skip
    output.line(f"Messages thrown away: {messages}. Units of work freed: {released}.")
    if left:
        output.line(
            f"Not freed: {left}, for the lock store is away: they refuse calls for up to "
            "heal_after seconds, or as long again as they had waited.",
            "yellow",
        )
    return 1 if left else 0


def _check(names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; there are {', '.join(sorted(known))}"
            raise ConfigurationError(f"the program has no queue {name!r}{hint}")


def _agrees(names: list[str]) -> bool:
    Output.note(f"This throws away all messages of: {', '.join(names)}.\nThere is no undo.")
    return agrees("Go on?")
