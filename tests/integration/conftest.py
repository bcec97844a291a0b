from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _support.dramatiq_deployment import DramatiqDeployment
from _support.scenes import PREFORK

from once_core.devserver import DevServer

if TYPE_CHECKING:
    from _support.deployment import Deployment


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where Celery is not installed only the tests of Dramatiq can be imported."""
    name = collection_path.name
    needs_celery = name.startswith("test_") and not name.startswith("test_dramatiq")
    return True if needs_celery and importlib.util.find_spec("celery") is None else None


@pytest.fixture(scope="session")
def scenes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
) -> Iterator[Callable[[str], Deployment]]:
    """One deployment of each kind with running workers, for all tests that kill none."""
    from _support.deployment import Deployment  # Celery may not be installed

    made: dict[str, Deployment] = {}

    def scene_of(kind: str) -> Deployment:
        if kind not in made:
            pool, broker = kind.split("+")
            if broker == "rabbitmq":
                request.getfixturevalue("rabbitmq")
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = Deployment(folder, shared_server, broker=broker, pool=pool)
            for _ in range(2 if pool == "solo" else 1):
                made[kind].worker()
        return made[kind]

    yield scene_of
    for each in made.values():
        each.close()
    # A handle that is collected after the server has ended tries for 20 s to tell it
    gc.collect()


@pytest.fixture(scope="session")
def dramatiq_scenes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
) -> Iterator[Callable[[str], DramatiqDeployment]]:
    """One Dramatiq deployment for each broker with a running worker, for tests that kill none."""
    made: dict[str, DramatiqDeployment] = {}

    def scene_of(broker: str) -> DramatiqDeployment:
        if broker not in made:
            if broker == "rabbitmq":
                request.getfixturevalue("rabbitmq")
            folder = tmp_path_factory.mktemp(f"dramatiq-{broker}")
            made[broker] = DramatiqDeployment(folder, shared_server, broker=broker)
            made[broker].worker()
        return made[broker]

    yield scene_of
    for each in made.values():
        each.close()


@pytest.fixture(params=["redis", "rabbitmq"])
def dramatiq_scene(
    request: pytest.FixtureRequest,
    dramatiq_scenes: Callable[[str], DramatiqDeployment],
    shared_server: DevServer,
) -> Iterator[DramatiqDeployment]:
    """Redis and RabbitMQ, or what the test is parametrized with; no key may lack a TTL."""
    yield dramatiq_scenes(request.param)
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []


@pytest.fixture(scope="module", params=["stub", "redis", "rabbitmq"])
def dramatiq_crew(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
) -> Iterator[DramatiqDeployment]:
    """A worker with many threads on each broker, for one file; no key may lack a TTL."""
    if request.param == "rabbitmq":
        request.getfixturevalue("rabbitmq")
    folder = tmp_path_factory.mktemp(f"crew-{request.param}")
    made = DramatiqDeployment(folder, shared_server, broker=request.param, threads=24)
    made.start()
    yield made
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []
    made.close()


@pytest.fixture
def deploy_dramatiq(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: DevServer
) -> Iterator[Callable[..., DramatiqDeployment]]:
    """A deployment of the test's own, without workers yet: ``deploy_dramatiq(broker="redis")``."""
    made: list[DramatiqDeployment] = []

    def deploy(**options: Any) -> DramatiqDeployment:
        if options.get("broker") == "rabbitmq":
            request.getfixturevalue("rabbitmq")
        options.setdefault("store", shared_server)
        made.append(DramatiqDeployment(tmp_path, **options))
        return made[-1]

    yield deploy
    for each in made:
        each.close()


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, scenes: Callable[[str], Deployment], shared_server: DevServer
) -> Iterator[Deployment]:
    """Prefork and Redis, or what the test is parametrized with; no key may lack a TTL."""
    yield scenes(getattr(request, "param", PREFORK))
    client = shared_server.client()
    assert [key for key in client.keys("once:*") if client.pttl(key) == -1] == []
