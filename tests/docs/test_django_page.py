"""The page for Django: its settings are those of a process, so its examples have one of their own.

Its blocks are ``py`` and ``python-console``, which `test_docs` leaves to this file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from once_core.devserver import DevServer

PAGE = Path(__file__).parent.parent.parent / "docs" / "howto" / "django.md"
FENCE = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

READ = """
import doctest, sys
import django

django.setup()
failed = doctest.testfile(sys.argv[1], module_relative=False).failed
sys.exit(failed > 0)
"""


def test_examples_do_what_the_page_says(tmp_path: Path, shared_server: DevServer) -> None:
    """A reader who types what the page says sees what it shows."""
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    for language, block in blocks:
        if language == "py":
            path = tmp_path / block.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                block.replace("redis://localhost:6379/0", shared_server.url), encoding="utf-8"
            )
    session = "\n".join(block for language, block in blocks if language == "python-console")
    (tmp_path / "session.txt").write_text(session, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-c", READ, "session.txt"],
        cwd=tmp_path,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert session.count(">>> ") > 5
    assert done.returncode == 0, done.stdout + done.stderr
    assert {language for language, _ in blocks} == {"py", "python-console", "text"}
