"""What the tests of the pytest plugin share: suites that run in a pytest of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from once_pytest import OnceHarness
from once_pytest._places import Place

SHOP = """
import os

import dramatiq
from celery import Celery
from dramatiq.brokers.stub import StubBroker

from once_celery import OnceTask
from once_dramatiq import OnceMiddleware

app = Celery("shop", broker="memory://", set_as_current=False)
app.conf.once_url = os.environ.get("SHOP_REDIS", "redis://127.0.0.1:1/0")
broker = StubBroker()
broker.add_middleware(OnceMiddleware(url=app.conf.once_url))


@app.task(base=OnceTask, name="shop.sync_order")
def sync_order(order_id, lang="en"):
    return order_id


@app.task(base=OnceTask, name="shop.login")
def login(user, password=""):
    return user


@app.task(name="shop.plain")
def plain(order_id):
    return order_id


@dramatiq.actor(broker=broker, once=True)
def send_mail(user_id, lang="en"):
    return None
"""
"""Tasks as a project has them: their lock store is one where nothing listens."""

FAST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Without the plugins of others a run takes half the time; `test_loading` is with them."""


@dataclass
class Suite:
    """A run of pytest.

    Attributes:
        status: Its exit status.
        text: All that it printed.
    """

    status: int
    text: str

    @property
    def lines(self) -> pytest.LineMatcher:
        """All lines."""
        return pytest.LineMatcher(self.text.splitlines())

    @property
    def outcomes(self) -> dict[str, list[str]]:
        """By name of the test: passed, failed, error, skipped ..."""
        found: dict[str, list[str]] = {}
        for outcome, name in re.findall(r"^([A-Z]+) \S+?\.py::(\S+)", self.text, re.MULTILINE):
            found.setdefault(name.rpartition("::")[2], []).append(outcome.lower())
        return found

    def of(self, name: str) -> pytest.LineMatcher:
        """The lines of what went wrong in one test."""
        title = rf"_{{2,}} (?:ERROR at \w+ of )?(?:\w+\.)?{re.escape(name)} _+"
        pattern = rf"^{title}$\n(.*?)(?=^(?:_{{2,}} .* _+|={{2,}} .* =+)$)"
        found = re.findall(pattern, self.text, re.MULTILINE | re.DOTALL)
        assert found, f"nothing went wrong in {name}:\n{self.text}"
        return pytest.LineMatcher("\n".join(found).splitlines())


def run_pytest(
    folder: Path,
    files: Mapping[str, str],
    *args: str,
    env: Mapping[str, str] | None = None,
    shop: bool = True,
) -> Suite:
    """Run pytest in a folder, with these files.

    Args:
        folder: Where; made if need be.
        files: Name and text.
        args: Of the command line.
        env: What the environment has more than ours.
        shop: Whether `SHOP` is there as the module ``shop``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**files, **({"shop.py": SHOP} if shop else {})}.items():
        (folder / name).write_text(text, encoding="utf-8")
    if not (folder / "pytest.ini").exists():
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    given = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "ONCE_", "COV_"))}
    path = os.pathsep.join(filter(None, [str(folder), given.get("PYTHONPATH")]))
    given |= {"PYTHONPATH": path, **FAST, **(env or {})}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "once_pytest", *args]
    done = subprocess.run(
        command, cwd=folder, env=given, capture_output=True, text=True, timeout=100, check=False
    )
    return Suite(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Suite]:
    """Runs pytest in a folder of the test."""
    return lambda files, *args, **options: run_pytest(tmp_path, files, *args, **options)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Suite]:
    """Runs pytest for all tests of a file, each of which looks at one thing that it printed."""
    return lambda files, *args, **options: run_pytest(
        tmp_path_factory.mktemp("suite"), files, *args, **options
    )


@pytest.fixture(scope="session")
def shop() -> str:
    """Text of the module that `run` and `run_once` have as ``shop``."""
    return SHOP


@pytest.fixture(params=["fake", "server"])
def place(request: pytest.FixtureRequest) -> Place:
    """Where locks live: in fakeredis, and on a real server."""
    if request.param == "fake":
        return Place("fake")
    return request.getfixturevalue("spawned")


@pytest.fixture(scope="session")
def spawned() -> Iterator[Place]:
    """A server that was started for the session, as with ``--once-redis=spawn``."""
    place = Place("spawn")
    yield place
    place.close()


@pytest.fixture
def harness() -> Iterator[OnceHarness]:
    """A harness in memory."""
    with OnceHarness() as opened:
        yield opened


class Task:
    """A task of one of the two frameworks, with the same signature and the same behaviour.

    Attributes:
        task: What assertions are given.
        bodies: Called with the arguments, one for each run; without one the body does nothing.
    """

    def __init__(self, framework: str, **options: Any) -> None:
        self.framework = framework
        self.bodies: list[Callable[..., object]] = []
        name = f"t-{uuid.uuid4().hex[:8]}"

        def sync_order(order_id, lang="en"):  # noqa: ANN001, ANN202  # as users write them
            return self.bodies.pop(0)(order_id) if self.bodies else None

        if framework == "celery":
            from celery import Celery

            from once_celery import OnceTask

            app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
            app.conf.task_default_queue = name
            self.target: Any = app
            self.task: Any = app.task(
                base=OnceTask,
                name="shop.sync_order",
                shared=False,  # else all apps of this process would have it
                **({"once": options} if options else {}),
            )(sync_order)
        else:
            import dramatiq

            from once_pytest._brokers import new_broker

            self.target = new_broker("", "", {})
            self.task = dramatiq.actor(
                broker=self.target, actor_name="shop.sync_order", once=options or True
            )(sync_order)

    def send(self, *args: object, **kwargs: object) -> str:
        """Send it; returns the id of the message."""
        sent = (self.task.delay if self.framework == "celery" else self.task.send)(*args, **kwargs)
        return sent.id if self.framework == "celery" else sent.message_id

    def drain(self, harness: OnceHarness, **options: Any) -> None:
        """Run what was sent."""
        from once_pytest.drain import drain

        drain(self.target, clock=harness.clock, **options)

    def close(self) -> None:
        """End it."""
        self.target.close()


@pytest.fixture(params=["celery", "dramatiq"])
def make_task(request: pytest.FixtureRequest) -> Iterator[Callable[..., Task]]:
    """Makes tasks of either framework."""
    made: list[Task] = []

    def make(**options: Any) -> Task:
        made.append(Task(request.param, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def order(make_task: Callable[..., Task]) -> Task:
    """A task ``shop.sync_order(order_id, lang="en")`` of either framework."""
    return make_task()
