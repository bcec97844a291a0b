"""``once watch``: what is decided, as it is decided."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from once_core import stream
from once_core._clock import elapsed
from once_core.cli.output import Output, positive, seconds
from once_core.cli.program import Program
from once_core.errors import StoreUnavailableError
from once_core.survey import survey

if TYPE_CHECKING:
    from once_core.store import Store

__all__ = ["watch_command", "watch_parser"]

MOST = 10_000
"""Units of work that are compared where events are off; memory is bounded."""

_Part = tuple[str, str, str]
"""State, task and message id of one holder."""

_STYLES = {
    "finished": "green",
    "duplicate": "yellow",
    "deferred": "yellow",
    "superseded": "yellow",
    "repeated": "yellow",
    "slow": "bold yellow",
    "lease_lost": "bold red",
    "lease_restored": "bold yellow",
    "reaped": "bold yellow",
    "released": "bold yellow",
    "store_unavailable": "bold red",
    "heartbeat_failed": "bold red",
    "other_store": "bold red",
    "unguarded": "bold red",
    "dropped": "bold yellow",
}


def watch_parser(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("--task", default="", help="only of this task (a part of its name)")
    parser.add_argument(
        "--last", type=int, default=20, help="events from before, to begin with (20)"
    )
    parser.add_argument(
        "--every", type=positive, default=2.0, metavar="SECONDS",
        help="where events are off: how often to look at what is held (2)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=positive, default=float("inf"), help="end after so long; by default never"
    )


def watch_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """Print each event as it is told, or each change of what is held. 0: always."""
    places = program.places()
    until = elapsed() + parsed.seconds
    try:
        if program.keeps_events() or any(stream.read(*place, count=1) for place in places):
            _follow(places, parsed, output, until)
        else:
            Output.note(
                "no events are kept: what is held is looked at every "
                f"{parsed.every:g} s. For every decision set events=10000 (once_events of a Celery "
                "app, OnceMiddleware(events=10000), ONCE_EVENTS=10000) and restart the workers"
            )
            _compare(program, places, parsed, output, until)
    except KeyboardInterrupt:
        pass  # how it is meant to end
    return 0


def _follow(
    places: list[tuple[Store, str]], parsed: argparse.Namespace, output: Output, until: float
) -> None:
    last: dict[int, str] = {}
    begin: list[stream.Entry] = []
    for number, (store, prefix) in enumerate(places):
        found = stream.read(store, prefix, count=max(1, parsed.last))
        last[number] = found[-1].id if found else "0"
        begin.extend(found[len(found) - min(parsed.last, len(found)) :])
    for entry in sorted(begin, key=lambda each: each.event.at):
        _show(entry, parsed, output)
    while elapsed() < until:
        for number, (store, prefix) in enumerate(places):
            for entry in _patiently(
                lambda: stream.read(
                    store,  # noqa: B023  # called at once
                    prefix,  # noqa: B023  # the same
                    after=last[number],  # noqa: B023  # the same
                    wait=min(stream.LONGEST_WAIT, max(0.01, until - elapsed())),
                ),
                until,
            ):
                last[number] = entry.id
                _show(entry, parsed, output)


def _patiently(read: Callable[[], list[stream.Entry]], until: float) -> list[stream.Entry]:
    """A store that is away comes back, and who watches it wants to see that."""
    is_away = False
    while True:
        try:
            found = read()
        except StoreUnavailableError as error:
            if not is_away:
                Output.note(f"{error}; waiting for it")
            is_away = True
            if elapsed() > until:
                return []
            time.sleep(min(1.0, max(0.0, until - elapsed())))
            continue
        if is_away:
            Output.note("it answers again")
        return found


def _show(entry: stream.Entry, parsed: argparse.Namespace, output: Output) -> None:
    event = entry.event
    if event.task and parsed.task not in event.task:
        return
    told = {name: value for name, value in asdict(event).items() if value not in (None, "")}
    output.item({"id": entry.id, "where": entry.where, **told})
    at = time.strftime("%H:%M:%S", time.localtime(event.at))
    facts = [
        f"{word} {seconds(value)}"
        for word, value in (("waited", event.waited), ("ran", event.ran), ("back in", event.delay))
        if value is not None
    ]
    parts = (
        f"{at}  {event.kind:17} {event.task or '-'}",
        event.preview,
        event.message_id,
        event.reason,
        ", ".join(facts),
        f"holder {event.holder_id}" if event.holder_id not in ("", event.message_id) else "",
        f"at {entry.where.rpartition(':')[0]}",
    )
    output.line("  ".join(filter(None, parts)), _STYLES.get(event.kind, ""))


def _compare(
    program: Program,
    places: list[tuple[Store, str]],
    parsed: argparse.Namespace,
    output: Output,
    until: float,
) -> None:
    before: dict[str, set[_Part]] = {}
    while True:
        now = dict(islice(_held(program, places, parsed.task), MOST))
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key, set()), now.get(key, set())
            for part in sorted(new - old):
                _changed(output, "begins", part, key)
            for part in sorted(old - new):
                _changed(output, "ends", part, key)
        before = now
        left = until - elapsed()
        if left <= 0:
            return
        time.sleep(min(parsed.every, left))


def _held(
    program: Program, places: list[tuple[Store, str]], task: str
) -> Iterator[tuple[str, set[_Part]]]:
    for store, prefix in places:
        for unit in survey(store, prefix):
            name = program.task_of(unit.task)
            if task in name and unit.holders:
                yield unit.key, {(each.state, name, each.message_id) for each in unit.holders}


def _changed(output: Output, change: str, part: _Part, key: str) -> None:
    state, task, message_id = part
    output.item({"change": change, "state": state, "task": task,
                 "message_id": message_id, "key": key})  # fmt: skip
    at, style = time.strftime("%H:%M:%S"), "" if change == "begins" else "dim"
    output.line(f"{at}  {state:8} {change:7} {task}  {message_id}  {key}", style)
