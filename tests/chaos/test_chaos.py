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
from _support.rabbitmq import is_rabbitmq_there
from _support.waiting import wait_until
from chaos.judge import Account, Finding
from chaos.report import canvas_history, fates_of, figures, history
from chaos.scene import Action, Producer, Scene

SECONDS = 90.0
"""Of chaos in all; with the starts of the workers and the settling about 165."""

BINDINGS = ("celery", "dramatiq")
"""Both, one after the other, unless the command line names one."""

SPAN = 120.0
"""Seconds in which a scene's plan is done once."""

STUCK = 20.0
"""Seconds without a body after which the framework is not expected to bring what is left."""

PATIENCE = 5.0
"""Seconds after which what could not be done to anybody is left out."""

HEALED_WITHIN = 75.0
"""Seconds from the next trigger to the run: a minute, and a machine that is busy."""

PRODUCERS = 3

LONG = 30.0
"""Seconds after which the counts of what was done are near what was planned."""

KILLS = ("kill_child", "kill_worker", "kill_store", "empty_store", "kill_broker")


def planned(
    plan: list[Action], draw: random.Random, seconds: float
) -> list[tuple[float, int, str, float, int]]:
    """What is done, when (in seconds), for how long, and a seed for who it is done to."""
    events = []
    for action in plan:
        for _ in range(max(1, round(action.count * seconds / SPAN))):
            at = draw.uniform(0.0, seconds)
            length = draw.uniform(action.shortest, action.longest)
            events.append((at, len(events), action.method, length, draw.getrandbits(32)))
    return sorted(events)


def rage(scene: Scene, draw: random.Random, seconds: float) -> None:
    """Do all that is planned, and undo it in time; whatever is done is undone at the end."""
    began = time.monotonic()
    plan = planned(scene.PLAN, draw, seconds)
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
            ending = getattr(scene, action)(random.Random(seed))
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
    quiet_since, ran_at = 0.0, time.monotonic()
    seen: object = None

    def is_quiet() -> bool:
        nonlocal quiet_since, ran_at, seen
        scene.look()
        messages, bodies = scene.messages(), scene.running()
        seen, is_busy = (messages, bodies), any(messages) or bodies
        now = time.monotonic()
        quiet_since = 0.0 if is_busy else quiet_since or now
        if bodies:
            ran_at = now
        elif is_busy and now - ran_at > STUCK:
            scene.freed += scene.free_messages()
            ran_at = time.monotonic()
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
        scene.fates(),
        scene.unsent(),
    )


def holders(scene: Scene, units: set[str]) -> dict[str, tuple[str, str]]:
    """Units that are held, with the state and the message id of the holder."""
    found = {unit: scene.holder(unit) for unit in units}
    return {unit: holder for unit, holder in found.items() if holder is not None}


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


def make_scene(binding: str, broker: str, folder: Path) -> Scene:
    """Servers and an app of a framework; none needs the other's to be installed."""
    if binding == "celery":
        from chaos.celery_scene import CeleryScene

        return CeleryScene(folder)
    from chaos.dramatiq_scene import RabbitmqScene, RedisScene

    return RabbitmqScene(folder) if broker == "rabbitmq" else RedisScene(folder)


@pytest.fixture
def seed(request: pytest.FixtureRequest, run: int) -> int:
    """Of this run; the next for each run that the command line asks for."""
    given = request.config.getoption("--chaos-seed", None)
    return random.SystemRandom().randrange(1_000_000) if given is None else given + run


@pytest.fixture
def broker(request: pytest.FixtureRequest, binding: str, seed: int) -> str:
    """Celery's is Redis; for Dramatiq the seed decides, if there is a RabbitMQ."""
    if binding == "celery":
        return "redis"
    chosen = request.config.getoption("--chaos-broker", None) or ("redis", "rabbitmq")[seed % 2]
    if chosen == "rabbitmq" and not is_rabbitmq_there():
        return "redis"
    return chosen


@pytest.fixture
def scene(binding: str, broker: str, tmp_path: Path) -> Iterator[Scene]:
    """Servers and an app; all processes end with the test."""
    made = make_scene(binding, broker, tmp_path)
    yield made
    made.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As many runs as the command line asks for, each with time enough."""
    option = metafunc.config.getoption
    binding = option("--chaos-binding", None)
    bindings = (binding,) if binding else BINDINGS
    seconds = option("--chaos-seconds", None) or SECONDS
    limit = pytest.mark.timeout(480 + 2 * seconds)
    runs = range(option("--chaos-runs", None) or 1)
    metafunc.parametrize("run", [pytest.param(each, marks=limit) for each in runs])
    metafunc.parametrize("binding", bindings)
    metafunc.parametrize("seconds", [seconds / len(bindings)], ids=lambda each: f"{each:g} s")


@pytest.mark.slow
def test_promises_hold_while_everything_is_killed_frozen_and_restarted(
    scene: Scene,
    binding: str,
    broker: str,
    seed: int,
    seconds: float,
    tmp_path: Path,
    shown: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No overlap, no lost trigger, nothing stuck, no key for ever, by accounts of others."""
    words = f"--chaos-seed={seed} --chaos-seconds={seconds:g} --chaos-binding={binding}"
    words += f" --chaos-broker={broker}" if binding == "dramatiq" else ""
    with capsys.disabled():
        print(f"\nchaos: {words}, notes in {tmp_path}")
    began = time.monotonic()

    scene.start()
    scene.ready()
    producers = [scene.producer(f"{seed}-{number}") for number in range(PRODUCERS)]
    for each in producers:
        each.start()
    try:
        rage(scene, random.Random(seed), seconds)
    finally:
        for each in producers:
            each.stop()
    scene.ready()
    findings = settle(scene, within=90)

    medic = scene.producer(f"{seed}-medic")
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
    findings += [Finding("", f"in a worker's log: {line}") for line in scene.complaints()]
    findings += [Finding("", f"a key without TTL: {key}") for key in sorted(scene.immortal)]
    shown += [
        f"{words}: {time.monotonic() - began:.0f} s in all",
        *figures(account),
        f"messages at once: at most {scene.most_messages}, of {len(account.units)} units",
        f"workers started: {scene.workers_started}",
        f"messages that workers kept until they were ended: {scene.freed}",
        f"healed by one more trigger: {healed}",
        "",
    ]
    announce(account, findings, tmp_path)
    if seconds >= LONG:
        killed = sum(each.count for each in scene.PLAN if each.method in KILLS)
        assert account.kills >= 0.8 * killed * seconds / SPAN
        assert len(account.triggers) >= 160 * seconds


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
    for canvas, excuse in account.unfinished_canvases():
        if not excuse:
            told = canvas_history(account, canvas)
            (folder / f"history-{canvas.name}").write_text(told, encoding="utf-8")
    (folder / "findings").write_text(text, encoding="utf-8")
    pytest.fail(f"{text}\n\nall notes are in {folder}", pytrace=False)
