"""Code in processes of its own, forked from one that has imported Django and Celery already.

Those imports are most of what a small script costs; settings and apps are the fork's own.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

IMPORTED = (
    "celery.app.builtins",
    "celery.backends.redis",
    "django.core.management.commands.check",
    "django.db.models",
    "kombu.transport.redis",
    "once_celery.django.apps",
)
"""For all forks; none of them makes an app or reads settings."""


class Forks:
    """The process that forks. Use as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=10)

    def run(
        self, code: str, folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run code to its end.

        Args:
            code: Python; `SystemExit` gives the return code.
            folder: Where it runs; the first entry of its `sys.path`.
            environment: What is added to its environment.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"code": code, "folder": str(folder), "environment": dict(environment)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess([code], *answer)


def _fork(request: Mapping[str, object]) -> list[object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _exit(_run(request))
        _, status = os.waitpid(child, 0)
        found = []
        for file in (out, err):
            file.seek(0)
            found.append(file.read().decode(errors="replace"))
    return [os.waitstatus_to_exitcode(status), *found]


def _run(request: Mapping[str, object]) -> int:
    folder = str(request["folder"])
    os.environ.update(request["environment"])  # type: ignore[arg-type]  # as `Forks.run` made it
    os.chdir(folder)
    sys.path.insert(0, folder)
    try:
        exec(compile(str(request["code"]), "<fork>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # shown, as Python itself would
        traceback.print_exc()
        return 1
    return 0


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    sys.path.insert(0, str(Path(__file__).parent.parent))
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are imported as `_support`
    _main()
