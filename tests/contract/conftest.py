from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _support.servers import Unit, make_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


@pytest.fixture(params=["fakeredis", "server"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of fakeredis, and of a real server (`ONCE_SERVER` names another binary)."""
    is_real = request.param == "server"
    made = make_client(request.param, request.getfixturevalue("shared_server") if is_real else None)
    yield made
    made.close()


@pytest.fixture
def store(client: redis.Redis) -> Unit:
    """One unit of work whose time the test decides."""
    return Unit(client)
