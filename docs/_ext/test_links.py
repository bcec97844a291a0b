"""The role ``once-test``: a link from a sentence to the test that shows it.

Names a test as ``file::test``, without ``tests/`` and ``.py``, or as ``shown <file::test>``. A
name that is not there is a warning, so a page cannot promise what nothing tests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.util.docutils import SphinxRole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

TESTS = Path(__file__).parent.parent.parent / "tests"
_NAMED = re.compile(r"(?:(.*) <)?([^<>]+)>?")
_DEFINED = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


class TestLink(SphinxRole):
    """Links to the test in a page made from its file."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Shown is the name of the test, in words, unless something else is given."""
        shown, target = _NAMED.fullmatch(self.text).groups()
        file, _, name = target.partition("::")
        found = sorted(TESTS.rglob(f"{file}.py"))
        if len(found) != 1 or name not in _DEFINED.findall(found[0].read_text(encoding="utf-8")):
            message = self.inliner.reporter.warning(f"there is no test {target}", line=self.lineno)
            return [nodes.literal(text=self.text)], [message]
        page = f"_tests/{file}"
        pages = self.env.metadata.setdefault(self.env.docname, {}).setdefault("tests", {})
        pages[page] = str(found[0])
        uri = f"{self.env.app.builder.get_relative_uri(self.env.docname, page)}#{name}"
        words = name.removeprefix("test_").replace("_", " ")
        place = {"refuri": uri, "reftitle": words, "internal": True}
        return [nodes.reference("", shown or words, **place)], []


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, object], str]]:
    """A page for each file of tests that some page links to."""
    linked = {}
    for metadata in app.env.metadata.values():
        linked.update(metadata.get("tests", {}))
    for page, file in sorted(linked.items()):
        code = Path(file).read_text(encoding="utf-8")
        lines = highlight(code, PythonLexer(), HtmlFormatter(nowrap=True)).splitlines()
        for number, line in enumerate(code.splitlines()):
            for name in _DEFINED.findall(line):
                lines[number] = f'<span id="{name}">{lines[number]}</span>'
        title = str(Path(file).relative_to(TESTS.parent))
        body = f"<h1>{title}</h1><div class='highlight'><pre>{chr(10).join(lines)}</pre></div>"
        yield page, {"title": title, "body": body}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect what this file defines."""
    app.add_role("once-test", TestLink())
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
