from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "once"
author = "once contributors"
project_copyright = "2026, once contributors"
release = importlib.metadata.version("once-tasks")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"once {version}"

# No intersphinx: the documentation builds without a network.
nitpicky = False
# Docstrings write names in single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3


def fences_to_code_blocks(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    lines: list[str],
) -> None:
    """Turn fenced code in docstrings into what reStructuredText understands."""
    result: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("```"):
            inside = not inside
            result += [f".. code-block:: {line[3:] or 'text'}", ""] if inside else [""]
        else:
            result.append(f"    {line}" if inside and line else line)
    lines[:] = result


def setup(app: Sphinx) -> None:
    """Connect what this file defines."""
    # Before napoleon (priority 500), which reads sections and not fences.
    app.connect("autodoc-process-docstring", fences_to_code_blocks, priority=400)
