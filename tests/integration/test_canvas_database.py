"""As test_canvas.py, with results in SQLite: there a task of Celery's polls for chords."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from _support import canvases
from _support.canvases import EQUAL_MEMBERS, READ_BY_CHORD_UNLOCK, Make, making, start_workers
from _support.deployment import Deployment

from once_core.devserver import DevServer


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Iterator[Deployment]:
    """Workers for all canvases of this file."""
    folder = tmp_path_factory.mktemp("canvas-database")
    conf = {
        "result_backend": f"db+sqlite:///{folder}/results",
        "result_chord_retry_interval": 0.5,
        "database_engine_options": {"connect_args": {"timeout": 60}},
    }
    scene = Deployment(folder, shared_server, conf=conf)
    start_workers(scene)
    yield scene
    for worker in scene.workers:
        worker.kill()
    scene.app.close()
    del scene.app  # it holds handles that say goodbye to the server when they are collected
    gc.collect()


@pytest.fixture
def make(scene: Deployment, unit: str) -> Iterator[Make]:
    """Makes canvases whose held bodies end with the test."""
    yield from making(scene, unit)


KINDS: dict[str, Callable[[Make], None]] = {
    "celery itself": partial(canvases.undisturbed, task="plain_member"),
    "duplicate": canvases.duplicate,
    "duplicate, raise": canvases.duplicate_that_raises,
    "superseded": canvases.superseded,
    "skipped": canvases.skipped,
    "deferred": canvases.deferred,
    "repeated": canvases.repeated,
    "shared": canvases.shared,
    "ignored by the call": partial(
        canvases.ignored, hanging=READ_BY_CHORD_UNLOCK, task="member", ignore_result=True
    ),
    "shared failure": canvases.shared_failure,
}


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
@pytest.mark.parametrize("kind", KINDS)
def test_every_position(make: Make, kind: str) -> None:
    """All canvases complete, each `get()` returns, and each value is in its place."""
    KINDS[kind](make)


@pytest.mark.parametrize("build", EQUAL_MEMBERS)
def test_equal_members_are_duplicates_of_each_other(
    scene: Deployment, unit: str, build: str
) -> None:
    """The commonest mistake: the canvas completes, with a real value and None for the others."""
    canvases.equal_members(scene, unit, EQUAL_MEMBERS[build])


def test_errbacks_run_once_beside_duplicates(scene: Deployment, unit: str) -> None:
    """A chord with one failure and many duplicates calls its errback once."""
    canvases.a_failure_beside_duplicates(scene, unit)
