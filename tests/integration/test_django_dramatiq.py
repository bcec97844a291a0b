"""django_dramatiq: the middleware is a dotted path there, made without any arguments.

Django's settings are those of a process, so everything happens in processes of the project's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from _support import ledger
from _support.dramatiq_deployment import PIKA_URL
from _support.waiting import wait_until
from _support.workers import TESTS

from once_core.devserver import DevServer

SETTINGS = """
import json, os
from pathlib import Path

SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django_dramatiq", "shop"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "shop.sqlite3",
        "OPTIONS": {"timeout": 20},
    }
}
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.redis.RedisBroker",
    "OPTIONS": {"url": "URL"},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Retries",
        "dramatiq.middleware.CurrentMessage",
        "django_dramatiq.middleware.AdminMiddleware",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
        "once_dramatiq.OnceMiddleware",
    ],
}
globals().update(json.loads(os.environ.get("TEST_SETTINGS", "{}")))
"""

ACTORS = """
import dramatiq
from dramatiq.middleware import CurrentMessage
from _support import ledger

@dramatiq.actor(once=True, queue_name="QUEUE")
def ship(order_id, seconds=0.0):
    message = CurrentMessage.get_current_message()
    ledger.run_body("LEDGER", message.message_id, 0, order_id, seconds)
"""

PREAMBLE = """
import json
from functools import partial
import django

django.setup()

import dramatiq
import once_core
from django.db import transaction
from django_dramatiq.models import Task
from once_dramatiq import holder, is_locked, published
from shop.tasks import ship
"""


class Project:
    """A Django project in a folder of its own; its queue is its own too."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self._url = url
        self._workers: list[subprocess.Popen[bytes]] = []
        self._prefix = f"once-{uuid.uuid4().hex[:8]}"
        (folder / "shop").mkdir()
        queue = f"once_test_{uuid.uuid4().hex[:12]}"
        actors = ACTORS.replace("QUEUE", queue).replace("LEDGER", str(self.ledger))
        self._write("shop/__init__.py", "")
        self._write("shop/settings.py", SETTINGS.replace("URL", url))
        self._write("shop/tasks.py", actors)
        self._write(
            "manage.py",
            "from django.core.management import execute_from_command_line\n"
            "import sys\nexecute_from_command_line(sys.argv)\n",
        )
        self._run("manage.py", "migrate", "--verbosity", "0")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def _environment(self, settings: dict[str, object] | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(self.folder)]),
            "ONCE_PREFIX": self._prefix,
            "TEST_SETTINGS": json.dumps(settings or {}),
        }

    def _run(self, *arguments: str, settings: dict[str, object] | None = None) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._environment(settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def script(self, code: str, **settings: object) -> Any:
        """What a script of the project prints as JSON."""
        output = self._run("-c", PREAMBLE + dedent(code), settings=settings)
        return json.loads(output.splitlines()[-1])

    def rundramatiq(self) -> None:
        """``manage.py rundramatiq``, until its processes are ready."""
        path = self.folder / f"worker-{len(self._workers)}.log"
        processes = 2
        with path.open("wb") as log:
            self._workers.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "manage.py", "rundramatiq"),
                        *("--processes", str(processes), "--threads", "4"),
                    ],
                    cwd=self.folder,
                    env=self._environment(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

        def is_ready() -> bool:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert self._workers[-1].poll() is None, text[-4000:]
            return text.count("Worker process is ready for action.") == processes

        wait_until(is_ready, "the worker is ready", within=40)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)


@pytest.fixture
def project(tmp_path: Path, shared_server: DevServer) -> Iterator[Project]:
    """A project without workers."""
    made = Project(tmp_path, shared_server.url)
    yield made
    made.close()


def test_a_dotted_path_is_all_it_takes(project: Project) -> None:
    """No arguments, no URL: the locks are in the Redis of the broker; one message is one row."""
    states, adopts, locked, rows = project.script(
        """
        sent = [ship.send(1), ship.send(order_id=1), ship.send(2)]
        states = [published(message).state for message in sent]
        adopts = sent[1].message_id == sent[0].message_id
        locked = [is_locked(ship, order) for order in (1, 2, 3)]
        print(json.dumps([states, adopts, locked, Task.tasks.count()]))
        """
    )

    assert states == ["claimed", "waiting", "claimed"]
    assert adopts
    assert locked == [True, True, False]
    assert rows == 2


def test_a_worker_of_rundramatiq_runs_one_at_a_time(project: Project) -> None:
    """What was put back meanwhile is a row that is done in the end."""
    path = project.ledger
    project.rundramatiq()

    project.script("ship.send(1, -1); print(1)")
    wait_until(lambda: ledger.runs(path, "1"), "the first body runs")
    states = project.script(
        "print(json.dumps([published(ship.send(1, -1)).state for _ in range(5)]))"
    )
    wait_until(
        lambda: (
            "skipped" in project.script("print(json.dumps([t.status for t in Task.tasks.all()]))")
        ),
        "the second one was put back",
    )
    ledger.gate(path, "1").touch()
    wait_until(
        lambda: (
            project.script("print(json.dumps([t.status for t in Task.tasks.all()]))")
            == ["done", "done"]
        ),
        "both are done",
    )

    assert states == ["claimed", *["waiting"] * 4]
    assert len(ledger.runs(path, "1")) == 2
    assert ledger.overlaps(ledger.runs(path)) == []
    assert project.script("print(json.dumps(holder(ship, 1, -1)))") is None


def test_on_commit_locks_at_the_commit(project: Project) -> None:
    """Neither a lock nor a message before the commit, or after a rollback."""
    seen = project.script(
        """
        seen = []
        with transaction.atomic():
            transaction.on_commit(partial(ship.send, 1))
            seen.append(is_locked(ship, 1))
        seen.append(is_locked(ship, 1))
        with transaction.atomic():
            transaction.on_commit(partial(ship.send, 2))
            transaction.set_rollback(True)
        seen.append(is_locked(ship, 2))
        print(json.dumps(seen))
        """
    )

    assert seen == [False, True, False]


@pytest.mark.rabbitmq
def test_with_rabbitmq_the_store_is_named_by_configure(
    project: Project, shared_server: DevServer, rabbitmq: object
) -> None:
    """`once_core.configure` is enough; without it the error says what is missing."""
    broker = {
        "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
        "OPTIONS": {"url": PIKA_URL},
        "MIDDLEWARE": ["once_dramatiq.OnceMiddleware"],
    }

    error = project.script(
        """
        try:
            ship.send(1)
        except Exception as caught:
            print(json.dumps(f"{type(caught).__name__}: {caught}"))
        """,
        DRAMATIQ_BROKER=broker,
    )
    states = project.script(
        f"""
        from dramatiq.common import dq_name, xq_name

        once_core.configure(url={shared_server.url!r}, prefix="shop")
        try:
            states = [published(ship.send(1)).state for _ in range(2)]
        finally:
            for name in (ship.queue_name, dq_name(ship.queue_name), xq_name(ship.queue_name)):
                ship.broker.channel.queue_delete(name)
        print(json.dumps([*states, holder(ship, 1).state]))
        """,
        DRAMATIQ_BROKER=broker,
    )

    assert error.startswith("ConfigurationError: once has no lock store: RabbitmqBroker")
    assert "once_core.configure(url=" in error
    assert states == ["claimed", "waiting", "waiting"]


def test_cases_of_django_dramatiq_run_actors(project: Project) -> None:
    """`DramatiqTestCase` with a `StubBroker`: locks in memory, released when the actor has run."""
    states = project.script(
        """
        import unittest
        from django_dramatiq.test import DramatiqTestCase

        states = []

        class Case(DramatiqTestCase):
            def test_it(self):
                for _ in range(2):
                    states.append(published(ship.send(7)).state)
                    self.broker.join(ship.queue_name)
                    self.worker.join()
                    states.append(is_locked(ship, 7))

        result = unittest.TestResult()
        Case("test_it")(result)
        print(json.dumps([states, [text for _, text in result.errors + result.failures]]))
        """,
        DRAMATIQ_BROKER={
            "BROKER": "dramatiq.brokers.stub.StubBroker",
            "MIDDLEWARE": [
                "dramatiq.middleware.CurrentMessage",
                "once_dramatiq.OnceMiddleware",
            ],
        },
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )

    assert states == [["claimed", False, "claimed", False], []]
