"""How pages are made: the templates, and how figures look on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from once_core.cli.output import seconds
from once_core.web._gate import form_token, root_of
from once_core.web._recent import WARNINGS

__all__ = ["HERE", "Bar", "bars", "page", "part"]

HERE = Path(__file__).parent

BARS = 24
"""In a histogram."""


class Bar(NamedTuple):
    """One bar of a histogram: how tall, of 1, and what it stands for."""

    height: float
    runs: int
    shortest: float
    longest: float


def bars(times: Sequence[float]) -> list[Bar]:
    """How often runs took how long; each bar covers times a third longer than the one before.

    Args:
        times: Seconds, in order of size.

    Example:
        >>> found = bars([0.1, 0.1, 2.0])
        >>> [bar.runs for bar in found if bar.runs]
        [2, 1]
    """
    if not times:
        return []
    first, last = max(times[0], 0.001), max(times[-1], 0.001)
    step = max(math.log(last / first) / BARS, math.log(4 / 3))
    counts = [0] * BARS
    for each in times:
        place = int(math.log(max(each, 0.001) / first) / step + 1e-9)
        counts[min(place, BARS - 1)] += 1
    most = max(counts)
    return [
        Bar(count / most, count, first * math.exp(n * step), first * math.exp((n + 1) * step))
        for n, count in enumerate(counts)
    ]


def page(
    request: Request,
    name: str,
    facts: Mapping[str, object],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """An answer made from a template.

    Args:
        request: What it answers.
        name: Of the template, without ``.html``.
        facts: What the template shows.
        status: Of the answer.
        headers: More of them.
    """
    root = root_of(request.scope)

    def url(path: str, **query: object) -> str:
        given = {name: value for name, value in query.items() if value not in ("", None)}
        return root + path + (f"?{urlencode(given)}" if given else "")

    text = (
        _templates()
        .get_template(f"{name}.html")
        .render(
            url=url,
            form=form_token(request.scope),
            now=datetime.now(timezone.utc),
            is_wsgi="wsgi_environ" in request.scope,
            **facts,
        )
    )
    return HTMLResponse(text, status_code=status, headers=headers)


def part(request: Request, name: str, macro: str, *values: object) -> str:
    """A piece of a page: what one macro of a template makes.

    Args:
        request: What it answers.
        name: Of the template, without ``.html``.
        macro: In it.
        values: What the macro is given.
    """
    made = getattr(_templates().get_template(f"{name}.html").module, macro)
    return str(made(root_of(request.scope), *values))


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        brief=_brief, breaks=_breaks, clock=_clock, cut=_cut, iso=_iso, rate=_rate,
        seconds=seconds, short=_short,
    )  # fmt: skip
    made.globals.update(WARNINGS=WARNINGS, bars=bars, urlencode=urlencode)
    return made


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds")


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"  # noqa: PLR2004  # two digits


def _short(key: str, task: str = "") -> str:
    """A key without its prefix and task: the text of its template, and the first of its digest."""
    head, _, digest = key.rpartition(":")
    text = head.partition(f":{task}")[2].strip(":") if task else ""
    return f"{text} {digest[:8]}".strip()


def _brief(value: float) -> str:
    """A run time where there is little room."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return seconds(value)


def _cut(message_id: str) -> str:
    """As much of an id as tells it from others."""
    return message_id if len(message_id) <= 13 else f"{message_id[:8]}…"  # noqa: PLR2004  # room


def _breaks(name: str) -> Markup:
    """A dotted name that may be broken after its dots and underscores."""
    text = str(escape(name)).replace(".", ".<wbr>").replace("_", "_<wbr>")
    return Markup(text)  # noqa: S704  # escaped
