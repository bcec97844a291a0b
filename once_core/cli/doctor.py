"""``once doctor``: looks for what will hurt, before it does."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TypeVar

from once_core.backlog import Overdue, of_backlog
from once_core.checkup import of_replicas, of_store, of_units
from once_core.cli.acl import acl_command
from once_core.cli.output import Output
from once_core.cli.program import Program
from once_core.errors import ConfigurationError, OnceError
from once_core.finding import CODES, LEVELS, Finding
from once_core.options import nearest
from once_core.task_checkup import of_guard

__all__ = ["doctor_command", "doctor_parser"]

T = TypeVar("T")

BROKER_PATIENCE = 5.0
"""Seconds; many clients of brokers wait for ever by default."""

_MARKS = {"ok": ("ok", "green"), "note": ("note", ""), "warning": ("WARN", "yellow"),
          "error": ("ERROR", "bold red")}  # fmt: skip


def doctor_parser(parser: argparse.ArgumentParser) -> None:
    """Add what only this command takes."""
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="CODE", help="leave out findings of this "
        "kind, as shown in brackets; may be given again"
    )  # fmt: skip
    parser.add_argument(
        "--acl", action="store_true", help="print what users of the lock store have to be allowed"
    )


def doctor_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """Check the lock stores and all tasks. 0: nothing to be done; 1: warnings; 2: errors."""
    if parsed.acl:
        return acl_command(program, parsed, output)
    for code in parsed.ignore:
        if code not in CODES:
            raise ConfigurationError(f"--ignore {code} is no code of a finding{_hint(code)}")
    found = [each for each in _findings(program) if each.code not in parsed.ignore]
    found.sort(key=lambda finding: -LEVELS.index(finding.level))
    output.data([asdict(each) for each in found])
    for each in found:
        mark, style = _MARKS[each.level]
        code = "" if each.code == "ok" else f"  [{each.code}]"
        output.line(f"{mark:6}{each.about}: {each.text}{code}", style)
        if each.advice:
            output.line(f"      -> {each.advice}")
    worst = max((LEVELS.index(each.level) for each in found), default=0)
    return max(0, worst - 1)


def _hint(code: str) -> str:
    return nearest(code, CODES) or "; `once doctor` shows the code of each finding in brackets"


def within(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns, which may never do so.

    Raises:
        TimeoutError: It has not within so many seconds.
        Exception: What it raises.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(function())
        except Exception as error:  # noqa: BLE001  # raised by who waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def _findings(program: Program) -> Iterator[Finding]:
    try:
        places = program.places()
    except ConfigurationError as error:
        yield Finding("error", "no-store", "lock store", str(error))
        places = []
    for store in {id(store): store for store, _ in places}.values():
        yield from of_store(store)
    overdue = Overdue()
    for store, prefix in places:
        try:
            yield from of_units(store, prefix, overdue)
        except OnceError:
            continue  # it is away: said above
    try:
        yield from of_backlog(overdue, within(BROKER_PATIENCE, program.queued))
    except Exception as error:  # noqa: BLE001  # whatever a broker's client raises
        yield _failed("broker", error)
    guards = []
    for name, find in program.guards.items():
        try:
            guard = find()
            guard.store  # noqa: B018  # of a function it is looked for at its first call
            yield from of_guard(guard)
            guards.append(guard)
        except OnceError as error:
            yield Finding("error", "refused-options", name, str(error))
    yield from of_replicas(guards)
    for check in program.checks:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001  # whatever a transport that is missing raises
            yield _failed("configuration", error)


def _failed(about: str, error: Exception) -> Finding:
    text = f"it could not be looked at: {type(error).__name__}: {error}"
    return Finding("error", "check-failed", about, text, "mend that first, and ask again")
