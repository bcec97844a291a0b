"""Minutes of random triggers while everything is killed, frozen and restarted at random.

    pytest tests/chaos --chaos-seed=7 --chaos-seconds=600

The seed decides what is triggered and what is done to whom, and when. Which process is busy at
that moment, and with what, is up to the machine: the same seed gives a similar run, not the same.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _support import ledger
from _support.waiting import wait_until
from chaos.broker_log import read_fates
from chaos.judge import Account, Finding
from chaos.report import fates_of, figures, history
from chaos.scene import Producer, Scene

SECONDS = 120.0
"""Of chaos; with the start of the workers and the settling about 150."""

PATIENCE = 5.0
"""Seconds after which what could not be done to anybody is left out."""

HEALED_WITHIN = 75.0
"""Seconds from the next trigger to the run: a minute, and a machine that is busy."""

RATE = 110.0
"""Calls of `delay` each second by each producer."""

PRODUCERS = 3

# what, how often in SECONDS, and for how long (in seconds)
PLAN: list[tuple[Callable[..., Callable[[], None] | None], int, float, float]] = [
    (Scene.kill_child, 90, 0.0, 0.0),
    (Scene.kill_worker, 14, 0.0, 2.0),
    (Scene.kill_store, 11, 0.0, 1.0),
    (Scene.kill_store, 1, 7.0, 8.0),  # longer than a lease
    (Scene.empty_store, 2, 0.0, 1.4),
    (Scene.kill_broker, 6, 0.0, 1.5),
    (Scene.restart_warm, 4, 2.0, 4.0),
    (Scene.restart_cold, 3, 2.0, 4.0),
    (Scene.freeze_child, 6, 0.3, 1.4),
    (Scene.freeze_child, 6, 7.0, 9.0),  # longer than a lease
    (Scene.freeze_worker, 5, 0.3, 1.4),
    (Scene.freeze_worker, 3, 7.0, 9.0),  # longer than a lease
    (Scene.freeze_main, 3, 0.3, 8.0),
    (Scene.freeze_store, 6, 0.2, 1.4),
    (Scene.freeze_broker, 4, 0.3, 3.0),
    (Scene.freeze_broker, 1, 5.0, 6.0),  # longer than its clients wait for an answer
]


def planned(draw: random.Random, seconds: float) -> list[tuple[float, int, Callable, float, int]]:
    """What is done, when (in seconds), for how long, and a seed for who it is done to."""
    events = []
    for action, count, shortest, longest in PLAN:
        for _ in range(max(1, round(count * seconds / SECONDS))):
            at, length = draw.uniform(0.0, seconds), draw.uniform(shortest, longest)
            events.append((at, len(events), action, length, draw.getrandbits(32)))
    return sorted(events)


def rage(scene: Scene, draw: random.Random, seconds: float) -> None:
    """Do all that is planned, and undo it in time; whatever is done is undone at the end."""
    began = time.monotonic()
    plan = planned(draw, seconds)
    undo: list[tuple[float, int, Callable[[], None]]] = []
    count, looked = 0, 0.0
    while plan or undo:
        now = time.monotonic() - began
        if now > seconds + PATIENCE:
            plan.clear()
        if undo and undo[0][0] <= now:
            heapq.heappop(undo)[2]()
        elif plan and plan[0][0] <= now:
            _, order, action, length, seed = heapq.heappop(plan)
            ending = action(scene, random.Random(seed))
            if ending is not None:
                count += 1
                heapq.heappush(undo, (now + length, count, ending))
            else:  # nobody is there to do it to: later
                heapq.heappush(plan, (now + 0.3, order, action, length, seed))
        elif now - looked > 0.5:
            scene.supervise()
            scene.look()
            looked = now
        else:
            time.sleep(0.01)
    scene.supervise()


def settle(scene: Scene, within: float) -> list[Finding]:
    """Wait until the broker has nothing more to give out, and no body runs; tell if that fails."""
    quiet_since = 0.0
    seen: object = None

    def is_quiet() -> bool:
        nonlocal quiet_since, seen
        scene.look()
        messages, bodies = scene.messages(), scene.running()
        seen, is_busy = (messages, bodies), any(messages) or bodies
        quiet_since = 0.0 if is_busy else quiet_since or time.monotonic()
        time.sleep(0.1)
        return bool(quiet_since) and time.monotonic() - quiet_since > 1.5

    try:
        wait_until(is_quiet, "the broker is empty and no body runs", within=within)
    except AssertionError as error:
        return [Finding("", f"{error}; messages queued and with workers, and bodies: {seen}")]
    return []


def account_of(scene: Scene, producers: list[Producer]) -> Account:
    """What is known so far."""
    return Account(
        [each for producer in producers for each in producer.triggers],
        [each for producer in producers for each in producer.canvases],
        scene.faults,
        scene.ledger,
        read_fates(scene.broker_folder),
        scene.unsent(),
    )


def holders(scene: Scene, units: set[str]) -> dict[str, tuple[str, str]]:
    """Units that are held, with the state and the message id of the holder."""
    found = {}
    for unit in units:
        holder = scene.app.tasks[unit.partition("-")[0]].holder(unit)
        if holder is not None:
            found[unit] = (holder.state, holder.message_id)
    return found


def heal(scene: Scene, units: set[str], medic: Producer) -> dict[str, float]:
    """Trigger these units until each has run again; how long that took, if it was in time."""
    began = time.monotonic()
    took: dict[str, float] = {}
    while units - took.keys() and time.monotonic() < began + HEALED_WITHIN:
        for unit in sorted(units - took.keys()):
            kind, _, number = unit.partition("-")
            medic.triggers.append(medic.trigger(kind, int(number)))
        time.sleep(0.5)
        for body in ledger.runs(scene.ledger):
            if body.start > began and body.unit in units:
                took.setdefault(body.unit, body.start - began)
    return took


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Servers and an app; all processes end with the test."""
    made = Scene(tmp_path)
    yield made
    made.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As many runs as the command line asks for, each with time enough."""
    option = metafunc.config.getoption
    seconds = option("--chaos-seconds", None) or SECONDS
    limit = pytest.mark.timeout(480 + 2 * seconds)
    runs = range(option("--chaos-runs", None) or 1)
    metafunc.parametrize("run", [pytest.param(each, marks=limit) for each in runs])


@pytest.mark.slow
def test_promises_hold_while_everything_is_killed_frozen_and_restarted(
    scene: Scene,
    run: int,
    tmp_path: Path,
    shown: list[str],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """No overlap, no lost trigger, nothing stuck, no key for ever, by accounts of others."""
    option = request.config.getoption
    seed = option("--chaos-seed", None)
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed + run
    seconds = option("--chaos-seconds", None) or SECONDS
    with capsys.disabled():
        print(f"\nchaos: --chaos-seed={seed} --chaos-seconds={seconds:g}, notes in {tmp_path}")
    began = time.monotonic()

    scene.start()
    scene.ready()
    producers = [Producer(scene, f"{seed}-{number}", RATE) for number in range(PRODUCERS)]
    for each in producers:
        each.start()
    try:
        rage(scene, random.Random(seed), seconds)
    finally:
        for each in producers:
            each.stop()
    scene.ready()
    findings = settle(scene, within=90)

    medic = Producer(scene, f"{seed}-medic", RATE)
    producers.append(medic)
    account = account_of(scene, producers)
    debts, held = account.debts(), holders(scene, account.units)
    sick, healed = debts.keys() | held.keys(), {}
    if not findings:
        findings += account.unhealthy(debts, held)
        healed = heal(scene, sick, medic)
        findings += [
            Finding(unit, f"no run within {HEALED_WITHIN:g} s of the next trigger")
            for unit in sorted(sick - healed.keys())
        ]
        findings += settle(scene, within=60)

    account = account_of(scene, producers)
    findings += account.broken()
    for unit, holder in holders(scene, account.units).items():
        findings.append(Finding(unit, f"still held by {holder} after all has settled"))
    for text in [each for producer in producers for each in producer.unexpected]:
        findings.append(Finding("", f"unexpected error from a call: {text}"))
    findings += [Finding("", f"a key without TTL: {key}") for key in sorted(scene.immortal)]
    shown += [
        f"seed {seed}, {time.monotonic() - began:.0f} s in all",
        *figures(account),
        f"messages at once: at most {scene.most_messages}, of {len(account.units)} units",
        f"workers started: {scene.workers_started}",
        f"healed by one more trigger: {healed}",
        "",
    ]
    announce(account, findings, tmp_path)
    if seconds >= SECONDS:
        assert len(account.triggers) >= 20_000
        assert account.kills >= 100


def announce(account: Account, findings: list[Finding], folder: Path) -> None:
    """Fail if there is any, with all that a person needs to understand it."""
    if not findings:
        return
    text = "\n".join(f"- {unit}: {what}" for unit, what in findings)
    units = sorted({unit for unit, _ in findings} - {""})
    for unit in units:
        told = history(account, unit)
        path = folder / f"history-{unit}"
        path.write_text(f"{told}\n\n{fates_of(account, unit)}\n", encoding="utf-8")
        if unit in units[:2]:
            end = "\n".join(told.splitlines()[-40:])
            text += f"\n\nend of the history of {unit}:\n{end}"
    (folder / "findings").write_text(text, encoding="utf-8")
    pytest.fail(f"{text}\n\nall notes are in {folder}", pytrace=False)
