"""What the commands do. Each answers an exit code: 0, 1 for "no", 2 for what cannot be."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from once_core import protocol
from once_core.cli.doctor import doctor_command, doctor_parser
from once_core.cli.output import Output, agrees, seconds
from once_core.cli.program import Program, load
from once_core.cli.purge import purge_command, purge_parser
from once_core.cli.watch import watch_command, watch_parser
from once_core.errors import ConfigurationError, OnceError
from once_core.events import emit
from once_core.explain import explain
from once_core.guard import holders
from once_core.options import nearest
from once_core.survey import Unit, is_record, survey, task_in
from once_core.web.command import web_command, web_parser

if TYPE_CHECKING:
    from once_core.guard import Guard, Holder
    from once_core.store import Store

__all__ = ["add_to", "run"]

STATES = ("running", "waiting", "kept", "marks", "broken")

Command = Callable[[Program, argparse.Namespace, Output], int]


def add_to(commands: Any) -> None:  # noqa: ANN401  # argparse's subparsers have no public type
    """Add the commands to a parser's."""
    for name, command, about, details in (
        (
            "explain",
            explain_command,
            "say whether a call would be sent and run now, and if not, why",
            _explain_parser,
        ),
        ("ls", list_command, "list what is held, the oldest first", _list_parser),
        ("show", show_command, "show one unit of work: who holds it, its record", _show_parser),
        (
            "release",
            release_command,
            "free a unit of work whose holder you know to be gone",
            _release_parser,
        ),
        ("doctor", doctor_command, "look for what will hurt, before it does", doctor_parser),
        ("purge", purge_command, "empty queues, and free what waited in them", purge_parser),
        ("stats", stats_command, "count what is held, by task and state", _no_details),
        ("watch", watch_command, "print what is decided, as it is decided", watch_parser),
        ("web", web_command, "serve the dashboard: what is held, by a browser", web_parser),
    ):
        details(_new(commands, name, command, about))


def _no_details(parser: argparse.ArgumentParser) -> None: ...


def _new(commands: Any, name: str, command: Command, about: str) -> argparse.ArgumentParser:  # noqa: ANN401  # see above
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--url", default="", help="of the lock store, if -A does not say")
    parser.set_defaults(command=lambda parsed, program=None: run(command, parsed, program))
    return parser


def run(command: Command, parsed: argparse.Namespace, program: Program | None = None) -> int:
    """Run one command.

    Args:
        command: The command.
        parsed: Its arguments.
        program: The user's; loaded by its name if not given.
    """
    output = Output(is_json=parsed.json)
    try:
        found = program or load(getattr(parsed, "app", "") or "", parsed.url)
        return command(found, parsed, output)
    except OnceError as error:
        output.data({"error": str(error), "kind": type(error).__name__})
        output.note(f"once: {error}")
        return 2


# explain


def _explain_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="name of the task, or its last part")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="ARG",
        help="arguments as JSON, or as text where they are none: 42 is a number, '\"42\"' and abc "
        "are text; NAME=ARG by name",
    )


def explain_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """Would this call be sent and run now? 0: yes; 1: it is refused, or would wait."""
    guard = program.guard(parsed.task)
    args, kwargs = _call(guard, parsed.arguments)
    told = explain(guard, args, kwargs)
    output.data({**asdict(told), "store": guard.store.place})
    is_sent, does_start = told.publish == "sent", told.run == "starts"
    output.line(f"{told.task}   scope={told.scope}", "bold")
    output.line(f"key       {told.key}")
    parts = ", ".join(f"{name}={value}" for name, value in told.parameters.items())
    output.line(f"made of   {parts or 'the task alone'}   (values: only those that preview= names)")
    output.line(f"store     {guard.store.place}")
    output.line()
    style = "green" if is_sent else "yellow"
    output.line(f"A call now would be {told.publish.upper()}: {told.publish_why}.", style)
    style = "green" if does_start else "yellow"
    verb = {"starts": "START", "waits": "WAIT", "ends": "END without a run"}[told.run]
    output.line(f"A message that starts now would {verb}: {told.run_why}.", style)
    if told.holders:
        output.line()
        _holders(told.holders, output)
    if told.renewed_ago is not None:
        lease = guard.options.lease
        is_late = told.renewed_ago > lease / 2
        late = "; its worker does not renew it: it is dead, frozen, or cut off" if is_late else ""
        output.line(
            f"lease of {seconds(lease)} renewed {seconds(told.renewed_ago)} ago{late}",
            "yellow" if is_late else "",
        )
    return 0 if is_sent and does_start else 1


def _call(guard: Guard, words: Sequence[str]) -> tuple[list[object], dict[str, object]]:
    """Arguments as a shell gives them; names are those of the task's own parameters."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    names = guard.keys.signature.parameters
    for word in words:
        name, equals, value = word.partition("=")
        is_any = any(each.kind is each.VAR_KEYWORD for each in names.values())
        if equals and (name in names or (is_any and name.isidentifier())):
            kwargs[name] = _value(value)
        elif equals and name.isidentifier():
            raise ConfigurationError(
                f"{guard.task} has no parameter {name!r}{nearest(name, names)}; if {word!r} is the "
                f"text of an argument, quote it as JSON: '{json.dumps(word)}'"
            )
        else:
            args.append(_value(word))
    return args, kwargs


def _value(word: str) -> object:
    try:
        found: object = json.loads(word)
    except (ValueError, RecursionError):
        return word
    return found


def _holders(holders: Sequence[Holder], output: Output) -> None:
    output.table(
        ("state", "message", "since", "at most", "where", "retries", "refused since"),
        (
            (
                each.state,
                each.message_id,
                seconds(each.age),
                seconds(each.remaining) + (" (renewed)" if each.state == "running" else ""),
                each.where.rpartition(":")[0],
                str(each.retries),
                str(each.suppressed),
            )
            for each in holders
        ),
    )


# ls, stats


def _list_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="", help="only of this task (a part of its name)")
    parser.add_argument("--state", choices=STATES, help="only in this state")
    parser.add_argument(
        "--older", type=float, default=0.0, metavar="SECONDS", help="only what is held that long"
    )
    parser.add_argument("--limit", type=int, default=1000, help="rows at most; 0 for all (1000)")


def _units(program: Program) -> Iterator[tuple[Store, Unit]]:
    for store, prefix in program.places():
        for number, unit in enumerate(survey(store, prefix), start=1):
            if number % 10_000 == 0 and sys.stderr.isatty():
                Output.note(f"{number} records …")
            yield store, unit
    if program.unlisted:
        names = ", ".join(sorted(program.unlisted))
        Output.note(f"not listed: {names}, whose prefix= is a function; ONCE_PREFIX=… once ls")


def list_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """What is held, the oldest first. 0: something; 1: nothing."""
    count = 0

    def fitting() -> Iterator[Unit]:
        nonlocal count
        for _, unit in _units(program):
            states = {each.state for each in unit.holders} or {unit.state}
            state_fits = bool(unit.holders) if parsed.state is None else parsed.state in states
            is_meant = unit.age >= parsed.older and parsed.task in program.task_of(unit.task)
            if state_fits and is_meant:
                count += 1
                yield unit

    # bounded memory: of a million units only those that are shown are kept
    found = nlargest(parsed.limit or sys.maxsize, fitting(), key=lambda unit: unit.age)
    left_out = count - len(found)
    output.data([_as_data(program, unit) for unit in found])
    output.table(
        ("task", "state", "since", "at most", "message", "where", "refused", "key"),
        (
            (
                program.task_of(unit.task),
                holder.state,
                seconds(holder.age),
                seconds(holder.remaining),
                holder.message_id,
                holder.where.rpartition(":")[0],
                str(holder.suppressed),
                unit.key,
            )
            for unit in found
            for holder in unit.holders
            if parsed.state in (None, holder.state)
        ),
    )
    for unit in found:
        if not unit.holders:
            output.line(f"{program.task_of(unit.task)}  {unit.state}  {unit.key}  {unit.broken}")
    if left_out:
        output.note(f"and {left_out} more; --limit 0 shows all")
    return 0 if found else 1


def _as_data(program: Program, unit: Unit) -> dict[str, object]:
    return {
        "task": program.task_of(unit.task),
        "key": unit.key,
        "state": unit.state,
        "age": unit.age,
        "holders": [asdict(each) for each in unit.holders],
    }


def stats_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:  # noqa: ARG001  # none of its own
    """How much is held, by task and state."""
    counts: Counter[tuple[str, str]] = Counter()
    refused: Counter[tuple[str, str]] = Counter()
    oldest: dict[tuple[str, str], float] = {}
    for _, unit in _units(program):
        for each in unit.holders:
            place = program.task_of(unit.task), each.state
            counts[place] += 1
            refused[place] += each.suppressed
            oldest[place] = max(oldest.get(place, 0.0), each.age)
    rows = sorted(counts)
    output.data(
        [
            {"task": task, "state": state, "count": counts[task, state],
             "oldest": oldest[task, state], "refused": refused[task, state]}
            for task, state in rows
        ]
    )  # fmt: skip
    output.table(
        ("task", "state", "held", "oldest", "refused since"),
        (
            (*place, str(counts[place]), seconds(oldest[place]), str(refused[place]))
            for place in rows
        ),
    )
    return 0


# show, release


def _show_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("unit", metavar="KEY|TASK", help="a key, or a task with arguments")
    parser.add_argument("arguments", nargs="*", metavar="ARG", help="as for explain")


def _find(program: Program, parsed: argparse.Namespace) -> tuple[str, str, list[Store]]:
    """Key, task and the stores where the unit of work may be."""
    if is_record(parsed.unit) and not parsed.arguments:
        places = program.places()
        prefix = next((each for _, each in places if parsed.unit.startswith(f"{each}:")), "once")
        task = program.task_of(task_in(parsed.unit, prefix))
        return parsed.unit, task, [store for store, _ in places]
    guard = program.guard(parsed.unit)
    args, kwargs = _call(guard, parsed.arguments)
    return guard.key(args, kwargs), guard.task, [guard.store]


def show_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """One unit of work. 0: it has a record; 1: it has none."""
    key, task, stores = _find(program, parsed)
    for store in stores:
        fields = store.run(protocol.inspect(key))
        if len(fields) == 1:  # the time and nothing else
            continue
        found = list(holders(fields))
        output.data({"task": task, "key": key, "store": store.place,
                     "holders": [asdict(each) for each in found], "record": fields})  # fmt: skip
        output.line(task, "bold")
        output.line(f"key     {key}")
        output.line(f"store   {store.place}")
        output.line()
        _holders(found, output)
        output.line()
        output.line("record  " + " ".join(f"{k}={v}" for k, v in sorted(fields.items())), "dim")
        return 0
    output.data({"task": task, "key": key, "holders": [], "record": {}})
    output.line(f"{task}: free, nothing is known of {key}")
    return 1


def _release_parser(parser: argparse.ArgumentParser) -> None:
    _show_parser(parser)
    parser.add_argument(
        "--holder", default="", metavar="ID", help="only if this message holds it; by default "
        "whoever is shown when you are asked"
    )  # fmt: skip
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--force", action="store_true", help="whoever holds it, also if that changes meanwhile"
    )


def release_command(program: Program, parsed: argparse.Namespace, output: Output) -> int:
    """Free a unit of work. 0: freed; 1: not, for it is free, held by another, or you said no."""
    key, task, stores = _find(program, parsed)
    for store in stores:
        fields = store.run(protocol.inspect(key))
        found = list(holders(fields))
        if not found:
            continue
        holder_id = parsed.holder or found[0].message_id
        output.line(f"{task}   {key}", "bold")
        _holders(found, output)
        if any(each.state == "running" for each in found):
            output.line(
                "It runs: its body is NOT stopped, and the next message starts beside it.",
                "bold red",
            )
        if parsed.force:
            output.line("--force frees it from whoever holds it then.", "bold red")
        if not parsed.yes and not agrees("Free it?"):
            output.data({"released": False, "reason": "not confirmed"})
            return 1
        answer = store.run(protocol.release(key, "" if parsed.force else holder_id))
        if answer.status == "released":
            emit("released", task=task, key=key, holder_id=answer.holder_id,
                 reason="the command `once release`")  # fmt: skip
            output.data({"released": True, "holder_id": answer.holder_id})
            output.line(f"Freed from {answer.holder_id}.", "green")
            return 0
        reason = f"{answer.holder_id or 'nobody'} holds it now, and not {holder_id}"
        output.data({"released": False, "reason": reason})
        output.line(f"Not freed: {reason}. Look again, or use --force.", "yellow")
        return 1
    output.data({"released": False, "reason": "it is free"})
    output.line(f"{task}: it is free already.")
    return 1
