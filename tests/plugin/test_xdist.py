"""Tests of several processes at once do not see each other's locks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from once_core.devserver import DevServer

pytest.importorskip("xdist")

Run = Callable[..., Any]

TESTS = """
import pytest
from shop import *
from once_pytest import *


@pytest.mark.parametrize("number", range(12))
def test_it(once_locks, once_server, worker_id, number):
    for _ in range(3):
        sync_order.delay(42)
    assert_duplicate(sync_order, 42, times=2)
    assert_task_locked(sync_order, 42)
    if once_server.url:
        assert once_locks.opened.prefix.startswith(f"once-test:{worker_id}:")
    print("server:", once_server.url, worker_id)


def test_red(once_locks):
    sync_order.delay(42)
    assert_task_locked(sync_order, "42")


def test_leak(once_locks):
    sync_order.delay(42)


def test_warns(once_locks):
    pytest.mark.once
"""


@pytest.mark.parametrize("kind", ["fake", "spawn", "url"])
def test_it_runs_in_parallel(run: Run, server: DevServer, kind: str) -> None:
    """Green with ``-n 2`` in memory, on a server for each process, and on one for all."""
    place = server.url if kind == "url" else kind

    suite = run({"test_it.py": TESTS}, "-p", "xdist.plugin", "-n", "2", f"--once-redis={place}")

    numbers = {f"test_it[{number}]": ["passed"] for number in range(12)}
    assert suite.outcomes == {
        **numbers,
        "test_red": ["failed"],
        "test_leak": ["passed", "error"],
        "test_warns": ["passed"],
    }, suite.text
    suite.of("test_red").fnmatch_lines(
        ["E         ! order_id: expected '42' (str), held 42 (int)", "*- once locks -*"]
    )
    suite.of("test_leak").fnmatch_lines(["the test left a lock that is still held:"])
    servers = {line for line in suite.text.splitlines() if line.startswith("server: redis")}
    assert len(servers) == {"fake": 0, "spawn": 2, "url": 2}[kind]
    assert len({line.split()[1] for line in servers}) == {"fake": 0, "spawn": 2, "url": 1}[kind]
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
