"""An account of what bodies did, kept by the bodies themselves and not by once.

One line an entry, appended in one write, so that processes can share the file. Times are
CLOCK_MONOTONIC, which all processes of one machine share.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from once_core._lease import current_lease


@dataclass(frozen=True)
class Run:
    """One body: `end` is None if it never ended."""

    unit: str
    pid: int
    message_id: str
    retries: int
    fence: int | None
    start: float
    end: float | None
    payload: object = None


def note(path: str | Path, kind: str, **facts: object) -> None:
    """Append one entry."""
    line = json.dumps({"kind": kind, "pid": os.getpid(), "at": time.monotonic(), **facts}) + "\n"
    descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def entries(path: str | Path, kind: str | None = None) -> list[dict]:
    """All entries so far, of one kind if it is named."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]  # the last line may be on its way
    found = [json.loads(line) for line in whole.splitlines()]
    return [each for each in found if kind is None or each["kind"] == kind]


def gate(path: str | Path, unit: str) -> Path:
    """Bodies with negative `seconds` work until this file is there (30 s at most)."""
    return Path(f"{path}-gate-{unit}")


@contextmanager
def noted_run(
    path: str | Path, message_id: str, retries: int, unit: str, payload: object = None
) -> Iterator[None]:
    """Around a body: note its start and its end."""
    lease = current_lease()
    run = uuid.uuid4().hex
    note(
        path,
        "start",
        run=run,
        unit=str(unit),
        id=message_id,
        retries=retries,
        fence=lease.fence if lease else None,
        payload=payload,
    )
    try:
        yield
    finally:
        note(path, "end", run=run, unit=str(unit), lost=lease.lost if lease else None)


def run_body(
    path: str | Path,
    message_id: str,
    retries: int,
    unit: str,
    seconds: float = 0.0,
    payload: object = None,
) -> object:
    """A body: work for a while, or, if `seconds` is negative, until its gate is open."""
    with noted_run(path, message_id, retries, unit, payload):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.01, max(0.0, end - time.monotonic())))
        while seconds < 0 and not gate(path, unit).exists() and time.monotonic() < end + 30:
            time.sleep(0.01)
    return payload if payload is not None else f"done {unit}"


def runs(path: str | Path, unit: str | None = None) -> list[Run]:
    """Every body that started, in the order of their starts."""
    ends = {each["run"]: each["at"] for each in entries(path, "end")}
    found = [
        Run(
            each["unit"],
            each["pid"],
            each["id"],
            each["retries"],
            each.get("fence"),
            each["at"],
            ends.get(each["run"]),
            each.get("payload"),
        )
        for each in entries(path, "start")
        if unit is None or each["unit"] == unit
    ]
    return sorted(found, key=lambda run: run.start)


def overlaps(some: list[Run], dead_at: dict[int, float] | None = None) -> list[tuple[Run, Run]]:
    """Pairs of bodies of one unit that were alive at the same time.

    Args:
        some: Runs of one or more units.
        dead_at: When processes were killed; a body without an end ends there.
    """
    killed = dead_at or {}
    found = []
    last: dict[str, tuple[Run, float]] = {}
    for run in sorted(some, key=lambda each: each.start):
        end = run.end if run.end is not None else killed.get(run.pid, float("inf"))
        before = last.get(run.unit)
        if before and run.start < before[1]:
            found.append((before[0], run))
        if not before or end > before[1]:
            last[run.unit] = (run, end)
    return found
