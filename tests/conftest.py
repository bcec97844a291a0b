from __future__ import annotations

import gc
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from _support.rabbitmq import AMQP_URL, is_rabbitmq_there

from once_core import stream
from once_core._heartbeat import heartbeat
from once_core._surroundings import process_options
from once_core.devserver import DevServer
from once_core.events import logger

if TYPE_CHECKING:
    from _support.deployment import Deployment


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    """Tests define tasks as users do: shared, so that Celery gives them to every later app."""
    state: Any = sys.modules.get("celery._state")
    before = set(state._on_app_finalizers) if state is not None else set()
    current = default = None
    if state is not None:
        # one that is closed, such as that of the worker of a whole module, gets no shared tasks
        current, default = (
            app if app in state._get_active_apps() else None
            for app in (state._tls.current_app, state.default_app)
        )
        state._tls.current_app, state.default_app = current, default
    yield
    state = sys.modules.get("celery._state")
    for each in set(state._on_app_finalizers) - before if state is not None else ():
        if each.__module__ != "celery.app.builtins":  # imported just now
            state._on_app_finalizers.discard(each)
    if state is not None:
        state._tls.current_app = current
        state.default_app = default  # Celery's own `start_worker` makes its app everybody's


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """What one process has once is none of the next test's: options, leases, events, a logger."""
    state = logger.level, logger.disabled, logger.propagate, list(logger.handlers)
    level = logging.root.level
    yield
    logging.root.setLevel(level)  # Celery's workers set it
    logger.level, logger.disabled, logger.propagate, logger.handlers = state
    process_options.clear()
    heartbeat()._held.clear()
    heartbeat()._unfinished.clear()
    stream._streams.clear()
    for writer in list(stream._process.values()):
        writer._waiting.clear()
        writer._batch = []


@pytest.fixture(scope="session")
def rabbitmq() -> str:
    """URL of a RabbitMQ; where there is none tests skip, and in CI they fail."""
    if not is_rabbitmq_there():
        reason = f"no RabbitMQ at {AMQP_URL}; set ONCE_TEST_AMQP_URL"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return AMQP_URL


@pytest.fixture(scope="session")
def shared_server() -> Iterator[DevServer]:
    """A server that no test stops, freezes or fills."""
    with DevServer() as server:
        yield server


@pytest.fixture
def server() -> Iterator[DevServer]:
    """A server of the test's own, to be stopped, frozen and filled."""
    with DevServer() as server:
        yield server


@pytest.fixture
def unit() -> str:
    """A unit of work that no other test uses."""
    return f"u-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def deploy(
    request: pytest.FixtureRequest, tmp_path: Any, shared_server: DevServer, server: DevServer
) -> Iterator[Callable[..., Deployment]]:
    """Makes deployments for one test, which end before their servers do.

    They share a server with other tests unless `store=` gives them their own.
    """
    from _support.deployment import Deployment  # where Celery is not installed nobody asks

    made: list[Deployment] = []

    def make(**options: Any) -> Deployment:
        if options.get("broker") == "rabbitmq":
            request.getfixturevalue("rabbitmq")
        made.append(Deployment(tmp_path, options.pop("store", shared_server), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
    gc.collect()  # Celery's handles say goodbye to the result backend when they are collected
