"""The pages under docs/: their examples run, and what they name exists."""

from __future__ import annotations

import builtins
import doctest
import gc
import importlib
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _support.waiting import wait_until

from once_core import lease, once
from once_core.__main__ import _parser
from once_core.devserver import DevServer
from once_core.events import _LEVELS
from once_core.metrics import METRICS
from once_core.options import OPTIONS, SCOPES
from once_pytest import _fixtures as fixtures

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EXAMPLE_URL = "redis://localhost:6379/0"
FENCE = re.compile(r"^```([a-z{][^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

WORKERS = {
    "celery -A shop worker": "celery -A shop worker -c 2 --loglevel INFO --without-mingle",
    "dramatiq shop": "dramatiq shop --processes 1 --threads 2",
}
"""What a page tells the reader to type, and how it is started here."""

NO_OPTIONS = {
    "once_celery", "once_core", "once_dramatiq", "once_pytest",  # packages
    "queue_lock", "running_lock", "once", "acks_late",  # attributes of a task
    "task_id", "ignore_result", "argsrepr", "expires", "pydantic",  # of Celery's calls
    "every_actor", "max_retries",  # of the middleware, and of Dramatiq's actors
    "leaks", "bypass", "strict", "server",  # of the toolkit's marker
    "lost", "task_cls", "lock_expiry", "base", "unlock_before_run",  # others' words
    "once_default_timeout", "once_redis_url", "once_queue_lock_timeout",  # the same
    "once_running_lock_timeout", "once_task",
}  # fmt: skip


def page_id(page: Path) -> str:
    """How a page is called in the output."""
    return str(page.relative_to(DOCS))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with its language."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[list[str]]:
    """The commands that a reader is told to type, as words."""
    text = "".join(block for language, block in blocks(page) if language == "console")
    return [line.removeprefix("$ ").split() for line in text.splitlines() if line]


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)
page_with_examples = pytest.mark.parametrize(
    "page",
    [page for page in PAGES if {"python", "pycon"} & {language for language, _ in blocks(page)}],
    ids=page_id,
)


class Reader:
    """Does what a page says, block by block, in an empty folder and on a server of its own."""

    def __init__(self, page: Path, folder: Path, server: DevServer) -> None:
        self._page = page
        self._folder = folder
        self._server = server
        self._names: dict[str, object] = {}
        self._worker: subprocess.Popen[bytes] | None = None
        self._runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        self.modules: list[str] = []
        self.log = folder / "worker.log"

    def read(self) -> None:
        """Go through the page."""
        for language, block in blocks(self._page):
            if language == "python":
                self._python(block)
            elif language == "pycon":
                self._pycon(block)
            elif language == "console":
                for told, command in WORKERS.items():
                    if told in block:
                        self._console(block, command)
        for module in self.modules:
            importlib.import_module(module)

    def close(self) -> None:
        """Leave nothing behind while the server is there: handles unsubscribe when they go."""
        self._kill_worker()
        for module in self.modules:
            sys.modules.pop(module, None)
        self._names.clear()
        vars(builtins).pop("_", None)
        gc.collect()

    def _console(self, block: str, command: str) -> None:
        if "pkill" in block:
            self._wait_for_a_run()
            self._kill_worker()
        else:
            self._start_worker(command)
            self._wait_for_a_run()

    def _python(self, block: str) -> None:
        block = block.replace(EXAMPLE_URL, self._server.url)
        block = block.replace("time.sleep(20)", "time.sleep(2)")
        code = compile(block, page_id(self._page), "exec")
        name = re.match(r"# (\w+)\.py\n", block)
        if name is None:
            exec(code, self._names)
            return
        with (self._folder / f"{name[1]}.py").open("a", encoding="utf-8") as file:
            file.write(block)
        if name[1] not in self.modules:
            self.modules.append(name[1])

    def _pycon(self, block: str) -> None:
        page = str(self._page)
        test = doctest.DocTestParser().get_doctest(block, self._names, page, page, 0)
        output: list[str] = []

        self._runner.run(test, out=output.append, clear_globs=False)

        self._names.update(test.globs)
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        assert not self._runner.failures, "".join(output) + log[-4000:]

    def _start_worker(self, command: str) -> None:
        with self.log.open("ab") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(self._folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _kill_worker(self) -> None:
        if self._worker is not None:
            if self._worker.poll() is None:
                os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait(10)
            self._worker = None

    def _wait_for_a_run(self) -> None:
        client = self._server.client()

        def is_running() -> bool:
            """Whether one runs and none waits; the lease of a killed one may still be there."""
            keys = list(client.scan_iter("once:*import_catalogue:*"))
            return any(client.hexists(k, "x0a") and not client.hexists(k, "wi") for k in keys)

        wait_until(is_running, "a worker runs the message that waited", within=40)


@pytest.fixture
def reader(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    """Reads the page of the test."""
    page = request.getfixturevalue("page")
    monkeypatch.syspath_prepend(tmp_path)
    level, root = logging.getLogger("once").level, logging.getLogger()
    handlers = list(root.handlers)
    with DevServer() as server:
        made = Reader(page, tmp_path, server)
        yield made
        made.close()
    logging.getLogger("once").setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning")
@page_with_examples
def test_examples_do_what_the_page_says(page: Path, reader: Reader) -> None:
    """A reader who types what a page says sees what it shows."""
    reader.read()

    if reader.log.exists():
        log = reader.log.read_text(encoding="utf-8", errors="replace")
        for kind in ("deferred", "reaped"):
            assert re.search(rf"{kind} (shop\.)?import_catalogue: ", log)


@every_page
def test_settings_and_options_exist(page: Path) -> None:
    """Every setting, option, scope and kind of event that a page names is there."""
    text = page.read_text(encoding="utf-8")
    settings = set(re.findall(r"\b(?:CELERY_)?(?:once|ONCE)_[A-Za-z_]+", text))
    names = {name.lower().removeprefix("celery_") for name in settings} - NO_OPTIONS
    names -= {name.lower() for name in ("ONCE_SERVER", "ONCE_TEST_AMQP_URL", "ONCE_WEB_TOKEN")}
    names -= {each.prometheus for each in METRICS.values()}
    names -= {*fixtures.__all__, "once_redis", "once_leaks", "once_strict", "once_report"}
    options = {name.removeprefix("once_") for name in names}
    options |= set(re.findall(r"`([a-z_]+)=", prose(page))) - NO_OPTIONS
    options -= {*inspect.signature(once).parameters, *inspect.signature(lease).parameters}
    scopes = set(re.findall(r'"?scope"?[=:] ?"([^"]+)"', text))

    assert options - set(OPTIONS) == set()
    assert scopes - set(SCOPES) == set()


def test_every_kind_of_event_is_explained() -> None:
    """The page of events has a meaning for each kind, and no other kinds."""
    page = DOCS / "reference" / "events.md"
    lines = next(block for language, block in blocks(page) if language == "{once-events}")
    kinds = [line.partition(": ")[0] for line in lines.splitlines()]

    assert list(_LEVELS) == kinds


def test_log_lines_on_the_pages_are_of_known_kinds() -> None:
    """A log line that a page shows could have been written."""
    shown = [block for page in PAGES for language, block in blocks(page) if language == "text"]
    line = re.compile(r"^(INFO|WARNING|ERROR)(?:/\S+\])? (?!Task )(\w+)[ :]", re.MULTILINE)

    found = line.findall("\n".join(shown))

    assert len(found) >= 5
    for level, kind in found:
        assert level == logging.getLevelName(_LEVELS[kind])


@every_page
def test_commands_are_plausible(page: Path) -> None:
    """The subcommands of `once` and `celery` that a page tells people to type are there."""
    from celery.bin.celery import celery

    ours = next(each.choices for each in _parser()._actions if each.choices)
    for words in commands(page):
        program = Path(words[0]).name
        if program == "once":
            assert words[3 if words[1] == "-A" else 1] in ours
        if program == "celery":
            assert [word for word in words[1:] if word in celery.commands]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub and MyST make them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to another page, and to a heading in it, resolves."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page

        assert other.exists(), target
        assert not anchor or anchor in slugs(other), target


def test_every_page_is_in_one_table_of_contents() -> None:
    """No page is out of reach, and no table of contents names a page that is not there."""
    listed: list[Path] = []
    for page in PAGES:
        for language, block in blocks(page):
            if language == "{toctree}":
                names = [line for line in block.splitlines() if line and line[0] != ":"]
                listed += [(page.parent / f"{name}.md").resolve() for name in names]

    assert sorted(listed) == sorted(set(PAGES) - {DOCS / "index.md"})
