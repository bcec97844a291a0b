"""Apps and tasks as users put them together: several apps, shared tasks, classes, models.

What a program does is a piece of code beside its test, for `shared_task` and `set_current` change
every app of their process. All pieces run in one program, which all tests share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _support import ledger
from _support.celery_app import SETTINGS
from _support.deployment import Deployment
from _support.scenes import let_go
from _support.waiting import wait_until
from _support.ways_in_tasks import is_logged
from _support.workers import TESTS, CeleryWorker
from celery import VERSION as CELERY

from once_core.devserver import DevServer

APPS = ["app", "other", "by_task_cls", "by_app_task"]

NUMBER = uuid.uuid4().int % 10**9
"""Of units of tasks whose argument is a number; those of others begin with it."""

PROGRAM = """
import json, sys, time, traceback
from celery import chord, group
from _support.ways_in_apps import *

def until_it_runs(task, *args):
    while not task.holder(*args) or task.holder(*args).state != "running":
        time.sleep(0.02)

def three_calls(task, first, second, third):
    one = task.delay(first, -1)
    until_it_runs(task, first, -1)
    calls = one, task.delay(second, -1), task.delay(third, -1)
    return [[each.once.state, each.id] for each in calls]

answers = {}
for name, code in json.loads(sys.argv[1]).items():
    names = dict(globals(), unit=f"{sys.argv[2]}-{name}", number=int(sys.argv[2]))
    try:
        exec(code, names)
        answers[name] = [names["answer"], ""]
    except Exception:
        answers[name] = [None, traceback.format_exc()]
print(json.dumps(answers))
"""

PIECES: dict[str, str] = {}
"""What the program does, by the name under which the test finds its answer."""


@pytest.fixture(scope="module")
def apps(
    tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Iterator[Deployment]:
    """A worker of each app; all use one Redis."""
    scene = Deployment(tmp_path_factory.mktemp("apps"), shared_server)
    scene.workers += [
        CeleryWorker(
            scene.settings,
            scene.folder,
            pool="threads",
            concurrency=20,
            app=f"_support.ways_in_apps:{name}",
        )
        for name in APPS
    ]
    for worker in scene.workers:
        worker.ready()
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def answer(apps: Deployment) -> Callable[[str], Any]:
    """Tells what a piece of the program answered."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(PIECES), str(NUMBER)],
        env={**os.environ, SETTINGS: json.dumps(apps.settings), "PYTHONPATH": str(TESTS)},
        cwd=apps.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])

    def of(piece: str) -> Any:
        found, error = answers[piece]
        assert not error, error
        return found

    return of


def is_guarded(apps: Deployment, unit: str, told: list[list[str]]) -> None:
    """Check that of three calls one ran, then one that waited, each under a lease."""
    let_go(apps, unit)
    (first, first_id), (second, second_id), (third, third_id) = told
    assert (first, second, third) == ("claimed", "claimed", "waiting")
    assert third_id == second_id
    wait_until(lambda: ended(apps, unit) == 2, "both ran")
    assert [(run.message_id, bool(run.fence)) for run in apps.runs(unit)] == [
        (first_id, True),
        (second_id, True),
    ]
    assert ledger.overlaps(apps.runs(unit)) == []


def ended(apps: Deployment, unit: str) -> int:
    """How many bodies of a unit are over."""
    return sum(1 for run in apps.runs(unit) if run.end)


# Tasks of every kind

KINDS = {
    "bound task": "app.tasks['of_a_base']",
    "unbound task": "app.tasks['unbound']",
    "task of a mixin": "app.tasks['mixed']",
    "shared_task": "shared",
    "task of task_cls": "by_task_cls.tasks['by_task_cls.work']",
    "task of app.Task": "by_app_task.tasks['by_app_task.work']",
}

for kind, task in KINDS.items():
    PIECES[kind] = f"answer = three_calls({task}, unit, unit, unit)"


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_of_every_kind(apps: Deployment, answer: Callable[[str], Any], kind: str) -> None:
    """However a task was made: one runs, one waits, the third call is refused."""
    is_guarded(apps, f"{NUMBER}-{kind}", answer(kind))


PIECES["class-based task"] = """
def told(handle):
    return [handle.once.state, handle.once.key.split(":")[1]]

one, two = app.tasks["class_based"], app.tasks["derived"]
calls = one.delay(unit, -1, note="a"), one.delay(unit, -1, note="b")
answer = [told(each) for each in (*calls, two.delay(unit, -1), two.delay("any", 0.0))]
"""


def test_class_based_tasks(apps: Deployment, answer: Callable[[str], Any]) -> None:
    """Options are those of the class; a derived class has its own, and its own units."""
    unit = f"{NUMBER}-class-based task"
    let_go(apps, unit)

    first, again, derived, equal = answer("class-based task")

    assert (first, derived) == (["claimed", "class_based"], ["claimed", "derived"])
    assert {again[0], equal[0]} <= {"waiting", "running"}
    wait_until(lambda: ended(apps, unit) == 2, "one of each ran")


PIECES["house base class"] = "answer = app.tasks['of_a_base'].delay(unit).get(timeout=20)"


def test_a_house_base_class_wraps_the_guarded_body(
    apps: Deployment, answer: Callable[[str], Any]
) -> None:
    """A base class that overrides __call__ and calls super() still does what it did."""
    unit = f"{NUMBER}-house base class"

    assert answer("house base class") == {"called": f"done {unit}"}
    assert [bool(run.fence) for run in apps.runs(unit)] == [True]


# Several apps in one process

PIECES["several apps"] = """
calls = [each.tasks["shared"].delay(unit, -1) for each in (app, other)]
answer = [[each.once.state, each.once.key.split(":")[0], each.id] for each in calls]
"""


def test_tasks_of_several_apps_in_one_process(
    apps: Deployment, answer: Callable[[str], Any]
) -> None:
    """Each app has its own settings: units of one prefix know nothing of those of another."""
    unit = f"{NUMBER}-several apps"

    ours, theirs = answer("several apps")
    wait_until(lambda: len(apps.runs(unit)) == 2, "both run at once")
    let_go(apps, unit)

    assert (ours[:2], theirs[:2]) == (["claimed", "once"], ["claimed", "other"])
    assert {run.message_id for run in apps.runs(unit)} == {ours[2], theirs[2]}
    assert all(run.fence for run in apps.runs(unit))


PIECES["current app"] = """
first = shared.delay(unit)
other.set_current()
second = shared.delay(unit)
app.set_current()
answer = [[each.once.key.split(":")[0], each.id] for each in (first, second)]
"""


def test_a_shared_task_follows_the_current_app(
    apps: Deployment, answer: Callable[[str], Any]
) -> None:
    """A call of the proxy is a call in the app that is current, with that app's settings."""
    unit = f"{NUMBER}-current app"

    first, second = answer("current app")

    assert (first[0], second[0]) == ("once", "other")
    wait_until(lambda: ended(apps, unit) == 2, "both ran")
    assert {run.message_id for run in apps.runs(unit)} == {first[1], second[1]}


# Every task under guard: task_cls and app.Task

for which in ("by_task_cls", "by_app_task"):
    PIECES[f"celery's own, {which}"] = """
sent = []
send = APP.amqp.send_task_message

def note(producer, name, message, **options):
    sent.append([name, "once" in message.headers])
    return send(producer, name, message, **options)

APP.amqp.send_task_message = note
work = APP.tasks["APP.work"]
states = [APP.tasks["celery.backend_cleanup"].delay().once.state for _ in range(2)]
items = work.starmap([(unit,), (unit,)]).apply_async()
chunks = work.chunks([(unit,), (unit,)], 1).apply_async()
values = [items.get(timeout=20), chunks.get(timeout=20)]
free = [APP.tasks["APP.free"].delay(unit).once.state for _ in range(2)]
APP.amqp.send_task_message = send
answer = [states, values, free, sent]
""".replace("APP", which)


@pytest.mark.parametrize("which", ["by_task_cls", "by_app_task"])
def test_tasks_of_celery_itself_stay_untouched(answer: Callable[[str], Any], which: str) -> None:
    """Where every task is an OnceTask, `celery.*` tasks are sent each time, without a header."""
    unit = f"{NUMBER}-celery's own, {which}"

    states, values, free, sent = answer(f"celery's own, {which}")

    assert values == [[f"done {unit}"] * 2, [[f"done {unit}"]] * 2]
    assert states == free == ["off", "off"]
    by_celery = [each for each in sent if each[0].startswith("celery.")]
    assert {name for name, _ in by_celery} == {"celery.backend_cleanup", "celery.starmap"}
    assert not any(marked for _, marked in sent)


PIECES["chord"] = """
work = by_task_cls.tasks["by_task_cls.work"]
header = [work.si(unit + "-1"), work.si(unit + "-2")]
chorded = chord(header, app=by_task_cls)(work.si(unit + "-body"))
first = chorded.get(timeout=20)
grouped = (group(header, app=by_task_cls) | work.si(unit + "-end"))()
answer = [first, grouped.get(timeout=20)]
"""


def test_a_chord_where_every_task_is_under_guard(
    apps: Deployment, answer: Callable[[str], Any]
) -> None:
    """Chords, groups and their bookkeeping work, and their members are guarded."""
    unit = f"{NUMBER}-chord"

    assert answer("chord") == [f"done {unit}-body", f"done {unit}-end"]
    for name in ("1", "2", "body", "end"):
        assert [bool(run.fence) for run in apps.runs(f"{unit}-{name}")] in ([True], [True] * 2)


# Tasks with pydantic=True

models = pytest.mark.skipif(CELERY < (5, 5), reason="Celery 5.5 brought pydantic=True")

if CELERY >= (5, 5):
    PIECES["keys of models"] = """
key = app.tasks["modelled"].once_guard().key
forms = [Order(x=number), {"x": number}, {"x": str(number)}, {"x": number, "y": "default"}]
answer = [key((form,), {}) for form in forms] + [key((), {"order": form}) for form in forms]
"""
    PIECES["forms of a model"] = """
first = number + 1
answer = three_calls(app.tasks["modelled"], Order(x=first), {"x": first}, {"x": str(first)})
"""
    PIECES["deferred model"] = """
model = Order(x=number + 2)
answer = three_calls(app.tasks["modelled"], model, model, model)
"""
    PIECES["foreign model"] = """
task, model = app.tasks["modelled"], Order(x=number + 3)
first = task.delay(model, -1)
until_it_runs(task, model, -1)
answer = [first.id, app.send_task("modelled", ({"x": number + 3}, -1)).id]
"""


@models
def test_a_model_its_dump_and_its_raw_form_are_one_unit_of_work(
    answer: Callable[[str], Any],
) -> None:
    """One key for all forms in which callers pass what reaches the body as one model."""
    assert len(set(answer("keys of models"))) == 1


@models
def test_calls_with_every_form_of_a_model(apps: Deployment, answer: Callable[[str], Any]) -> None:
    """A call with the model runs, one with its dump waits, one with raw values is refused."""
    is_guarded(apps, f"modelled-{NUMBER + 1}", answer("forms of a model"))


@models
def test_a_deferred_message_with_a_model_runs(
    apps: Deployment, answer: Callable[[str], Any]
) -> None:
    """What waits is put back with its dump, and its body gets the model."""
    is_guarded(apps, f"modelled-{NUMBER + 2}", answer("deferred model"))


@models
def test_a_model_by_send_task_meets_the_same_unit(
    apps: Deployment, answer: Callable[[str], Any]
) -> None:
    """A dump that `send_task` sends is deferred while a call with the model runs."""
    unit = f"modelled-{NUMBER + 3}"
    first, second = answer("foreign model")

    wait_until(lambda: is_logged(apps, "modelled", second), "its start was decided")
    let_go(apps, unit)
    wait_until(lambda: ended(apps, unit) == 2, "both ran")

    assert is_logged(apps, "deferred modelled", second)
    assert [run.message_id for run in apps.runs(unit)] == [first, second]
    assert ledger.overlaps(apps.runs(unit)) == []
