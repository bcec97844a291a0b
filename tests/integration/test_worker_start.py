"""What a worker says of its lock server when it starts; it never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from _support.deployment import Deployment
from _support.dramatiq_deployment import DramatiqDeployment
from _support.waiting import wait_until

from once_core.devserver import DevServer

TOLD = "it evicts keys (maxmemory-policy allkeys-lru)"


@pytest.fixture
def evicting() -> Iterator[DevServer]:
    """A server that throws keys away when it is full."""
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with DevServer(arguments=options) as server:
        yield server


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_celery_worker_says_that_its_locks_may_be_evicted(
    deploy: Callable[..., Deployment], evicting: DevServer, unit: str, pool: str
) -> None:
    """One WARNING, with what to do; it works all the same."""
    scene = deploy(conf={"once_url": evicting.url}, pool=pool)

    worker = scene.worker()

    wait_until(lambda: TOLD in worker.log, "it is told")
    assert scene.task("work").delay(unit).get(timeout=20) == f"done {unit}"
    (line,) = [line for line in worker.log.splitlines() if TOLD in line]
    assert "WARNING" in line
    assert "maxmemory-policy noeviction" in line


def test_a_dramatiq_worker_says_that_its_locks_may_be_evicted(
    deploy_dramatiq: Callable[..., DramatiqDeployment], evicting: DevServer, unit: str
) -> None:
    """The same; one line for each of its processes."""
    scene = deploy_dramatiq(store=evicting)

    worker = scene.worker()

    wait_until(lambda: TOLD in worker.log, "it is told")
    assert scene.result(scene.task("work").send(unit)) == f"done {unit}"
    (line,) = [line for line in worker.log.splitlines() if TOLD in line]
    assert "WARNING" in line


def test_of_a_good_server_a_worker_says_nothing(
    deploy: Callable[..., Deployment],
    deploy_dramatiq: Callable[..., DramatiqDeployment],
    unit: str,
) -> None:
    """Neither kind of worker."""
    celery, actors = deploy(), deploy_dramatiq()

    logs = [celery.worker(), actors.worker()]
    celery.task("work").delay(unit).get(timeout=20)
    actors.result(actors.task("work").send(unit))

    assert not [worker.log for worker in logs if "once doctor" in worker.log]


def test_a_store_that_is_away_holds_up_no_worker(
    deploy: Callable[..., Deployment],
    deploy_dramatiq: Callable[..., DramatiqDeployment],
    server: DevServer,
) -> None:
    """They start, and say nothing of what they do not know; nor where it hangs."""
    server.pause()
    celery = deploy(conf={"once_url": server.url})
    actors = deploy_dramatiq(conf={"once": {"url": server.url}})

    logs = [celery.worker(), actors.worker()]

    assert not [worker.log for worker in logs if "once doctor" in worker.log]
    assert not [worker.log for worker in logs if "Traceback" in worker.log]
    server.resume()
