from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
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
def shop(tmp_path: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's `shop.py`, on a server of the test's own."""
    module, *rest = blocks("python")
    text = (module + "".join(rest)).replace(EXAMPLE_URL, server.url)
    (tmp_path / "shop.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("shop", None)


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


def test_every_example_does_what_the_readme_says(shop: Path) -> None:
    """The sixty seconds work as they are printed, with a real worker."""
    waiting, ended = blocks("pycon")

    run_examples(waiting)
    log = shop / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "--concurrency", "1"],
            cwd=shop,
            env={**os.environ, "PYTHONPATH": str(shop)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        run_examples(ended)
        from shop import charge, import_catalogue

        assert import_catalogue.delay(7).get(timeout=30) == "catalogue of shop 7"
        assert charge.delay(7).get(timeout=30) > 0
    except AssertionError:
        print(log.read_text(encoding="utf-8", errors="replace"))
        raise
    finally:
        worker.terminate()
        worker.wait(30)
        NAMES.clear()
