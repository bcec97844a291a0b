"""What people see of a run: figures when all went well, histories when it did not."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator

from _support import ledger
from chaos.judge import NEWEST, Account
from chaos.scene import FOREVER, Canvas

__all__ = ["canvas_history", "fates_of", "figures", "history"]

Line = tuple[float, str]


def history(account: Account, unit: str) -> str:
    """Everything about one unit, in the order of time."""
    ids = _ids(account, unit)
    lines = [
        *_calls(account, unit),
        *_bodies(account, unit),
        *_faults(account),
        *_messages(account, ids),
    ]
    for each in ledger.entries(f"{account.path}-events", "event"):
        if f":{unit}:" in each["key"]:
            text = each["text"].replace(each["key"], "KEY")
            lines.append((each["at"], f"once pid={each['pid']}: {text}"))
    return "\n".join(f"{at:.3f} {text}" for at, text in sorted(lines))


def canvas_history(account: Account, canvas: Canvas) -> str:
    """Everything about the messages of one canvas, in the order of time."""
    lines = [(canvas.at, f"sent {canvas.ids}"), *_faults(account), *_messages(account, canvas.ids)]
    lines += [
        (each["at"], f"once pid={each['pid']}: {each['text']}")
        for each in ledger.entries(f"{account.path}-events", "event")
        if any(message_id in each["text"] for message_id in canvas.ids)
    ]
    return "\n".join(f"{at:.3f} {text}" for at, text in sorted(lines))


def fates_of(account: Account, unit: str) -> str:
    """What the broker did with each message of a unit."""
    ids = sorted(_ids(account, unit))
    return "\n".join(f"{each}: {account.fates.steps.get(each)}" for each in ids)


def _ids(account: Account, unit: str) -> set[str]:
    ids = {each.holder for each in account.triggers_of(unit)}
    return (ids | {body.id for body in account.bodies[unit]}) - {""}


def _calls(account: Account, unit: str) -> Iterator[Line]:
    """Of many that were refused alike the first."""
    told = ""
    for each in account.triggers_of(unit):
        text = f"delay() -> {each.state} {each.holder} {each.payload}"
        if text != told or each.was_sent:
            yield each.at, f"{text} {each.error[-120:]} [took {each.done - each.at:.3f}]"
        told = text


def _bodies(account: Account, unit: str) -> Iterator[Line]:
    for body in account.bodies[unit]:
        who = f"{body.id} retries={body.retries} pid={body.pid} group={body.group}"
        yield body.start, f"BODY {body.run[:6]} starts: {who} payload={body.payload}"
        if body.end < FOREVER:
            yield body.end, f"BODY {body.run[:6]} {'KILLED' if body.was_killed else 'ends'}"


def _faults(account: Account) -> Iterator[Line]:
    for fault in account.faults:
        what = f"### {fault.what} pid={fault.pid} group={fault.group} until {fault.until:.3f}"
        empty = ", back empty" if fault.came_back_empty else ""
        yield fault.at, f"{what}{empty}; ran {fault.ran}"


def _messages(account: Account, ids: Iterable[str]) -> Iterator[Line]:
    for message_id in ids:
        for at, group in account.received[message_id]:
            yield at, f"received {message_id} group={group}"
        for at, pid, group in account.begun[message_id]:
            yield at, f"begun {message_id} pid={pid} group={group}"


def figures(account: Account) -> list[str]:
    """What people want to know of a run."""
    bodies = list(account.all_bodies)
    unfinished = _excused(each for _, each in account.unfinished_canvases())
    killed = sum(body.was_killed for body in bodies)
    done = Counter(each.what for each in account.faults)
    return [
        f"triggers {_counted(each.state for each in account.triggers)}",
        f"runs {len(bodies)}, {killed} of them killed",
        f"kills {account.kills}; done to processes {_counted(done.elements())}",
        f"overlaps {_excused(pair.excuse for pair in account.overlaps())}",
        f"messages that never ran {_excused(each for _, each in account.lost_messages())}",
        f"canvases {len(account.canvases)}, of which did not end {unfinished}",
        f"stale payloads that ran last {_excused(each for _, _, each in account.stale())}",
        *_times(account),
    ]


def _times(account: Account) -> Iterator[str]:
    for what, some in sorted(account.recoveries().items()):
        yield f"time to recover from {what}: {_worst(some)}"
    waits = [(wait, trigger.unit) for wait, trigger in account.waits()]
    kept = [each for each in waits if not each[1].startswith(NEWEST)]
    replaced = [each for each in waits if each[1].startswith(NEWEST)]
    yield f"from a trigger to the next run: {_worst(kept)}"
    yield f"the same where newer payloads replace those that wait: {_worst(replaced)}"


def _worst(times: list[tuple[float, str]]) -> str:
    if not times:
        return "none"
    longest, unit = max(times)
    median = statistics.median(each for each, _ in times)
    return f"worst {longest:.1f} s ({unit or 'any unit'}), median {median:.2f} s, of {len(times)}"


def _counted(words: Iterable[str]) -> str:
    counted = Counter(words)
    told = ", ".join(f"{count} {word}" for word, count in counted.most_common())
    return f"{counted.total()}: {told}" if told else "0"


def _excused(excuses: Iterable[str]) -> str:
    return _counted(each or "WITHOUT EXCUSE" for each in excuses)
