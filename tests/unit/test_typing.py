"""The types that users see, for pyright; mypy checks `tests/typing` with everything else."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import once_core

EXAMPLES = Path(__file__).parent.parent / "typing" / "functions.py"

SETTINGS = {
    "include": ["functions.py"],
    "typeCheckingMode": "strict",
    "pythonVersion": "3.10",  # the floor
    # where an error is expected and does not come, that is one
    "reportUnnecessaryTypeIgnoreComment": "error",
    "enableTypeIgnoreComments": False,
    "extraPaths": [str(Path(once_core.__file__).parent.parent)],
}


@pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None or shutil.which("node") is None,
    reason="needs pyright and node, which it would download",
)
def test_pyright_sees_what_mypy_sees(tmp_path: Path) -> None:
    """Signatures, results, what is refused: the examples hold for pyright, strictly."""
    shutil.copy(EXAMPLES, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]

    done = subprocess.run(
        [*command, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )

    assert done.returncode == 0, done.stdout + done.stderr
