"""Applies each deliberate breakage to a copy of the project and sees a test turn red.

    python tests/mutations/run.py [--jobs 2] [--quick] [NAME ...]

A breakage that stays green is a promise without a test. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# run as a program, not by pytest, which does the same
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutations.breakage import Breakage
from mutations.breakages import BREAKAGES

ROOT = Path(__file__).resolve().parents[2]
PYTEST = (
    "-m", "pytest", "-q", "--timeout=90", "-p", "no:cacheprovider",
    # plugins that take a second to import, and no test of the list needs
    "-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:xdist.looponfail", "-p", "no:anyio",
)  # fmt: skip
PACKAGES = ("once_core", "once_celery", "once_dramatiq", "once_pytest")
HARD_LIMIT = 300
"""Seconds after which a whole run of pytest is killed."""

FAILED_TESTS = 1
"""Exit code of pytest; others say that nothing was tested."""

NO_PROGRAM = re.compile(
    r"attempt to (index|call|perform|compare|concatenate)|Error compiling|Script attempted|"
    r"^E +((Syntax|Name|Import)Error|Unbound)",
    re.MULTILINE,
)
"""In the output of pytest: the breakage is no program, so whatever is red says nothing."""


class Result(NamedTuple):
    """What pytest said."""

    code: int
    seconds: float
    failed: tuple[str, ...]
    output: str


class StaleError(Exception):
    """The code has changed and the list has not: the text to break is not there, or not once."""


class Copy:
    """The project in a folder of its own, where it may be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file() and not name.startswith(".tox/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # workers and other processes of the tests have the tests' folder alone on their path
        for package in PACKAGES:
            (folder / "tests" / package).symlink_to(folder / package)
        # checked by content: a breakage may come within the clock's resolution of the last one
        self.python("-m", "compileall", "-q", "--invalidation-mode", "checked-hash", ".")
        self._check_what_is_imported()

    def python(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python in the copy, and end all that it started."""
        environment = {
            **os.environ,
            "PYTHONPATH": path or str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1" if "pytest" in arguments else "",
        }
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._process = process
        try:
            output, _ = process.communicate(timeout=HARD_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    def kill(self) -> None:
        """End what runs here."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _check_what_is_imported(self) -> None:
        for path in (self.folder, self.folder / "tests"):
            code = "import once_core, once_celery; print(once_core.__file__, once_celery.__file__)"
            output = self.python("-c", code, path=str(path)).stdout
            found = [Path(name).resolve() for name in output.split()]
            inside = [each for each in found if each.is_relative_to(self.folder.resolve())]
            if len(inside) != len(("once_core", "once_celery")):
                raise AssertionError(f"not the copy would be tested but {output}")

    def test(self, *arguments: str) -> Result:
        """Run pytest in the copy."""
        began = time.monotonic()
        try:
            done = self.python(*PYTEST, *arguments)
        except subprocess.TimeoutExpired:
            return Result(-1, time.monotonic() - began, (), f"ended after {HARD_LIMIT} s")
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
        return Result(done.returncode, time.monotonic() - began, tuple(failed), done.stdout)

    @contextmanager
    def broken(self, breakage: Breakage) -> Iterator[None]:
        """The copy with this breakage, and without it afterwards."""
        texts: dict[Path, str] = {}
        try:
            for edit in breakage.edits:
                file = self.folder / edit.file
                text = file.read_text(encoding="utf-8")
                texts.setdefault(file, text)
                if text.count(edit.old) != 1:
                    raise StaleError(f"not once in {edit.file}: {edit.old!r}")
                file.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
            yield
        finally:
            for file, text in texts.items():
                file.write_text(text, encoding="utf-8")


def verdict(result: Result) -> str:
    """In one word: red, GREEN, or that it was no test at all."""
    if result.code == 0:
        return "GREEN"
    if result.code != FAILED_TESTS or NO_PROGRAM.search(result.output):
        return "ERROR"
    return "red"


def red_before(copies: Sequence[Copy], tests: Sequence[str]) -> set[str]:
    """Tests that are red without any breakage; each is run once, many in one pytest."""
    parts = [tests[index :: len(copies)] for index in range(len(copies))]
    pairs = [(copy, part) for copy, part in zip(copies, parts, strict=True) if part]
    with ThreadPoolExecutor(len(copies)) as pool:
        results = list(pool.map(lambda pair: pair[0].test(*pair[1]), pairs))
    red: set[str] = set()
    for (_, part), result in zip(pairs, results, strict=True):
        if result.code != 0:
            named = {test for test in part for failed in result.failed if failed.startswith(test)}
            print(result.output[-6000:])
            red |= named or set(part)
    return red


def wanted(names: Sequence[str]) -> list[Breakage]:
    """The breakages of these names, which may have wildcards, or of these rules; or all."""
    if not names:
        return list(BREAKAGES)
    found = [
        each
        for each in BREAKAGES
        if any(fnmatch.fnmatch(each.name, name) or each.breaks == name for name in names)
    ]
    if not found:
        raise SystemExit(f"no breakage is called {' or '.join(names)}")
    return found


def main() -> int:
    """Break, test, restore, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of breakages or rules; all")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tested at once")
    parser.add_argument(
        "--quick", action="store_true", help="do not see first that the tests are green"
    )
    parser.add_argument("--show", action="store_true", help="print what pytest said of each")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    breakages = wanted(given.names)
    with tempfile.TemporaryDirectory(prefix="once-mutations-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(given.jobs)]
        if not given.quick:
            tests = sorted({test for each in breakages for test in each.tests})
            red = red_before(copies, tests)
            took = time.monotonic() - began
            print(f"{len(tests)} tests, {len(red)} of them red before any breakage; {took:.0f} s")
            if red:
                print("\n".join(f"  red: {test}" for test in sorted(red)))
                return 1
        bad = _run(copies, breakages, show=given.show)
    took = time.monotonic() - began
    print(f"{len(breakages)} breakages, {len(bad)} not red; {took:.0f} s")
    print("".join(f"  not red: {name}\n" for name in bad), end="")
    return 1 if bad else 0


def _run(copies: Sequence[Copy], breakages: Sequence[Breakage], *, show: bool) -> list[str]:
    """Names of breakages that turned nothing red."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def one(breakage: Breakage) -> Result:
        copy = free.get()
        try:
            with copy.broken(breakage):
                return copy.test("-x", *breakage.tests)
        except StaleError as error:
            return Result(-1, 0.0, (), f"{error}\n")
        finally:
            free.put(copy)

    bad: list[str] = []
    width = max(len(each.name) for each in breakages)
    rule_width = max(len(each.breaks) for each in breakages)
    pool = ThreadPoolExecutor(len(copies))
    try:
        for breakage, result in zip(breakages, pool.map(one, breakages), strict=True):
            word = verdict(result)
            first = result.failed[0].rpartition("/")[2] if result.failed else ""
            print(
                f"{breakage.name:<{width}}  {breakage.breaks:<{rule_width}}  {word:<5} "
                f"{result.seconds:5.1f}  {first}",
                flush=True,
            )
            if show or word == "ERROR":
                print(result.output[-6000:])
            if word != "red":
                bad.append(breakage.name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for copy in copies:  # there is something to end only after Ctrl-C
            copy.kill()
    return bad


if __name__ == "__main__":
    sys.exit(main())
