"""The promise tests of both bindings once more, with the lock store on a Cluster and on Sentinel.

They are those of `integration.test_promises`; only where the locks are differs, see `conftest`.
"""

from __future__ import annotations

import pytest
from integration import test_promises

globals().update(
    {name: test for name, test in vars(test_promises).items() if name.startswith("test_")}
)


@pytest.fixture(autouse=True)
def countable(request: pytest.FixtureRequest, place: str) -> None:
    """Round trips are counted by the log of one server, to which no script has to be sent."""
    if place == "cluster" and "three_round_trips" in request.node.name:
        pytest.skip("each node is sent the scripts once")
