from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from once_core.devserver import DevServer

README = Path(__file__).parent.parent.parent / "README.md"
EXAMPLE_URL = "redis://localhost:6379/0"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's modules, on a server of the test's own; a block without a name goes on."""
    name = ""
    for block in blocks("python"):
        head = re.match(r"# (\w+\.py)\n", block)
        name = head[1] if head else name
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(block.replace(EXAMPLE_URL, server.url))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    NAMES.clear()
    for each in tmp_path.glob("*.py"):
        sys.modules.pop(each.stem, None)


@contextmanager
def worker(folder: Path, command: str) -> Iterator[None]:
    """The worker that the README tells to start."""
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    except AssertionError:
        print(log.read_text(encoding="utf-8", errors="replace"))
        raise
    finally:
        process.terminate()
        process.wait(30)


def run_examples(block: str) -> None:
    """Run one block as a doctest."""
    test = doctest.DocTestParser().get_doctest(block, NAMES, "README", str(README), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    out: list[str] = []
    runner.run(test, out=out.append, clear_globs=False)
    NAMES.update(test.globs)
    assert not runner.failures, "".join(out)


NAMES: dict[str, object] = {}


def test_the_first_two_commands_are_the_demo_and_the_tests() -> None:
    """A newcomer needs two commands, and they come first."""
    demo, tests, *_ = blocks("console")

    assert "once demo" in demo
    assert "pytest" in tests


def test_sixty_seconds_with_celery(folder: Path) -> None:
    """They work as they are printed, with a real worker."""
    waiting, ended, *_ = blocks("pycon")

    run_examples(waiting)
    with worker(folder, "celery -A shop worker --concurrency 1"):
        run_examples(ended)
        from shop import charge, import_catalogue

        assert import_catalogue.delay(7).get(timeout=30) == "catalogue of shop 7"
        assert charge.delay(7).get(timeout=30) > 0


def test_sixty_seconds_with_dramatiq(folder: Path) -> None:
    """They work as they are printed, with a real worker."""
    *_, waiting, ended = blocks("pycon")

    run_examples(waiting)
    with worker(folder, "dramatiq warehouse --processes 1 --threads 2"):
        run_examples(ended)
        from warehouse import restock

        result = restock.send(7).get_result(block=True, timeout=30_000)
        assert result == "shelf 7 is full"


def test_the_suite_passes(folder: Path) -> None:
    """The test that is shown passes, by the plugin and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_billing.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "1 passed" in done.stdout, done.stdout


def test_there_are_no_other_examples() -> None:
    """Each block of the README is one of those that are run here."""
    assert len(blocks("pycon")) == 4
