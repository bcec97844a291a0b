from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _support.clusters import Cluster
from _support.promises import SCENES, Scene
from _support.sentinels import SentinelGroup

from once_core.devserver import DevServer

pytest.register_assert_rewrite("integration.test_promises")

Place = Cluster | SentinelGroup

PLACES: dict[str, type[Place]] = {"cluster": Cluster, "sentinel": SentinelGroup}


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """Where the locks are."""
    return str(request.param)


@pytest.fixture(scope="module")
def locks(place: str) -> Iterator[Place]:
    """Servers that no test kills."""
    with PLACES[place]() as locks:
        yield locks


@pytest.fixture
def own_locks(place: str) -> Iterator[Place]:
    """Servers of the test's own, to be killed."""
    with PLACES[place]() as locks:
        yield locks


@pytest.fixture(scope="module")
def scenes(
    tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer, locks: Any
) -> Iterator[Callable[[str], Scene]]:
    """One scene of each framework with a running worker; who kills it leaves another."""
    made: dict[str, Scene] = {}

    def scene_of(framework: str) -> Scene:
        if framework not in made:
            folder = tmp_path_factory.mktemp(framework)
            made[framework] = SCENES[framework](folder, shared_server, "redis", locks)
            made[framework].worker()
        return made[framework]

    yield scene_of
    for each in made.values():
        each.close()
    gc.collect()  # Celery's handles say goodbye to the result backend when they are collected


@pytest.fixture(params=[(framework, "redis") for framework in SCENES], ids="-".join)
def scene(
    request: pytest.FixtureRequest, scenes: Callable[[str], Scene], locks: Place, unit: str
) -> Iterator[Scene]:
    """A framework, on a plain Redis as its broker; at the end no key may lack a TTL."""
    scene = scenes(request.param[0])
    yield scene
    scene.let_go(unit)
    client = locks.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []


@pytest.fixture(params=[(framework, "redis") for framework in SCENES], ids="-".join)
def own_scene(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: DevServer, own_locks: Any
) -> Iterator[Scene]:
    """One of the test's own, without workers yet, with a lock store of its own."""
    scene = SCENES[request.param[0]](tmp_path, shared_server, "redis", own_locks)
    yield scene
    scene.close()
    gc.collect()
