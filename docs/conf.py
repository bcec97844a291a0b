from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from once_core import events, metrics, options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sphinx.application import Sphinx

project = "once"
author = "once contributors"
project_copyright = "2026, once contributors"
# Not from the installed metadata, which a path on sys.path has not.
release = re.findall(
    r'^version = "(.+)"$',
    Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8"),
    re.MULTILINE,
)[0]
version = ".".join(release.split(".")[:2])

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "test_links"]
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


class Table(SphinxDirective):
    """A table made from the code, so that no copy of it can drift."""

    def run(self) -> list[nodes.Node]:
        """Read the table as Markdown, as if it stood on the page."""
        head, *rows = self.rows()
        lines = [head, ["---"] * len(head), *rows]
        text = ["| " + " | ".join(line) + " |" for line in lines]
        place = nodes.Element()
        self.state.nested_parse(StringList(text, self.env.docname), self.content_offset, place)
        return place.children

    def rows(self) -> Iterable[list[str]]:
        """The head, then the lines."""
        raise NotImplementedError


class Options(Table):
    """All options: name, default, what may be given, what it does."""

    def rows(self) -> Iterable[list[str]]:
        """From `OPTIONS`; what is allowed is what a refused value is told."""
        yield ["option", "default", "may be", "what it does"]
        for name, option in options.OPTIONS.items():
            default = option.default
            if isinstance(default, float):
                default = int(default)
            text = option.text
            if name in options._TASK_ONLY:  # noqa: SLF001  # part of the table
                text += " Not for a single call."
            yield [f"`{name}`", f"`{default!r}`", self.allowed(option), text]

    @staticmethod
    def allowed(option: options.Option) -> str:
        """The words of the option's own check."""
        try:
            option.check(-1.0)
        except ValueError as error:
            text = str(error)
        else:
            return ""
        try:
            option.check(None)
        except ValueError:
            return text
        return f"{text}, or None"


class Scopes(Table):
    """All scopes and what they limit."""

    def rows(self) -> Iterable[list[str]]:
        """From `SCOPES`."""
        yield ["`scope=`", "at most one waiting", "publish refused while running",
               "at most one running"]  # fmt: skip
        for name, scope in options.SCOPES.items():
            limits = (scope.waiting, scope.while_running, scope.running)
            words = ["yes" if each else "no" for each in limits]
            if name == "window":
                words[:2] = ["until the window ends", "until the window ends"]
            default = " (default)" if name == options.OPTIONS["scope"].default else ""
            yield [f'`"{name}"`{default}', *words]


class Events(Table):
    """All kinds of events; the page says what they mean, the code their levels."""

    has_content = True

    def rows(self) -> Iterable[list[str]]:
        """From the lines ``kind: meaning`` of the page, and the levels in the code."""
        meanings = dict(line.split(": ", 1) for line in self.content if line)
        levels = events._LEVELS  # noqa: SLF001  # the table this one is made from
        wrong = ", ".join(sorted(set(meanings) ^ set(levels)))
        if wrong:
            raise self.error(f"the page and once_core.events disagree on: {wrong}")
        yield ["kind", "level", "meaning"]
        for kind, level in levels.items():
            yield [f"`{kind}`", logging.getLevelName(level), meanings[kind]]


class Metrics(Table):
    """All metrics: name, type, labels, what it counts, what it is for."""

    def rows(self) -> Iterable[list[str]]:
        """From `METRICS`."""
        yield ["metric", "type", "labels", "what it counts", "look at it for"]
        for metric in metrics.METRICS.values():
            outcomes = f" ({', '.join(f'`{each}`' for each in metric.outcomes)})"
            labels = [f"`{each}`" + outcomes * (each == "outcome") for each in metric.labels]
            kind = "histogram" if metric.buckets else "counter"
            name = f"`{metric.prometheus}`"
            yield [name, kind, ", ".join(labels), metric.text, metric.use]


def setup(app: Sphinx) -> None:
    """Connect what this file defines."""
    app.add_directive("once-options", Options)
    app.add_directive("once-scopes", Scopes)
    app.add_directive("once-events", Events)
    app.add_directive("once-metrics", Metrics)
    # Before napoleon (priority 500), which reads sections and not fences.
    app.connect("autodoc-process-docstring", fences_to_code_blocks, priority=400)
