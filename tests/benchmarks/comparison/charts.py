"""Line charts as SVG, without a library; readable in light and dark, by shape and by colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 74, 190, 48, 52

_STYLE = """
  .card { fill: #ffffff; }
  text { fill: #3a3f45; font: 13px system-ui, sans-serif; }
  .title { font-weight: 600; font-size: 15px; }
  .grid { stroke: #d5d9dd; stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #16191d; }
    text { fill: #ccd1d6; }
    .grid { stroke: #33393f; }
  }
"""
COLOURS = ("#7b8189", "#b08600", "#2f7fd6", "#c2571a", "#2e9463", "#a254c4", "#c23f74")
"""At least 3:1 against either card; where colours fail, shape and dash tell lines apart."""
_LOOKS = (
    *("plain", "SET NX + DEL", "once", "celery-once", "celery-singleton", "celery-once-task"),
    *("py-cachify", "ideal", "redeliveries"),
)
_DASHES = ("2 3", "7 4", "", "10 3 2 3", "5 3", "1 4", "12 4")


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: What it shows, with its unit.
        is_log: Whether equal steps are equal factors.
    """

    label: str
    is_log: bool = True

    def place(self, value: float, low: float, high: float) -> float:
        """Where a value lies between the ends of the axis, 0 to 1."""
        if self.is_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return (value - low) / (high - low)


Lines = Mapping[str, Sequence[tuple[float, float]]]


def line_chart(title: str, desc: str, x: Axis, y: Axis, lines: Lines, *, dots: bool = True) -> str:
    """A chart as the text of an SVG file.

    Args:
        title: Shown, and what a screen reader says first.
        desc: What the chart shows, in a sentence, for who cannot see it.
        x: The axis below.
        y: The axis at the left.
        lines: Points of each line, by its name, in the order of the legend.
        dots: Whether each point is marked.
    """
    points = [point for some in lines.values() for point in some]
    xs = _ends([point[0] for point in points], x, is_x=True)
    ys = _ends([point[1] for point in points], y, is_x=False)

    def across(value: float) -> float:
        return LEFT + x.place(value, *xs) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - y.place(value, *ys) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(desc)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="card" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>',
    ]
    for value in _ticks(*ys, y):
        at = up(value)
        out.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        out.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    known = sorted({point[0] for point in points})
    for value in known if x.is_log and len(known) < 9 else _ticks(*xs, x):
        at = across(value)
        low = HEIGHT - BOTTOM
        out.append(f'<path class="grid" d="M{at:.1f} {TOP}V{low}"/>')
        out.append(_text(at, low + 18, _short(value), "middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(_text(middle, HEIGHT - 12, x.label, "middle"))
    half = (TOP + HEIGHT - BOTTOM) / 2
    out.append(
        f'<text transform="translate(18 {half}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    for row, (name, some) in enumerate(lines.items()):
        out += _line(row, name, [(across(a), up(b)) for a, b in some], dots=dots)
    return "\n".join([*out, "</svg>", ""])


def _text(across: float, up: float, text: str, anchor: str) -> str:
    return f'<text x="{across:.1f}" y="{up:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(row: int, name: str, places: list[tuple[float, float]], *, dots: bool) -> list[str]:
    number = _LOOKS.index(name)  # the same in all charts
    colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]
    stroke = f'stroke="{colour}" stroke-width="{3 if name == "once" else 1.8}" fill="none"'
    stroke += f' stroke-dasharray="{dash}"' if dash else ""
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    out = [f'<path {stroke} d="M{path}"/>']
    if dots:
        out += [_mark(number, a, b, colour) for a, b in places]
    at = TOP + 10 + 24 * row
    begin = WIDTH - RIGHT + 14
    out.append(f'<path {stroke} d="M{begin} {at}H{begin + 28}"/>')
    if dots:
        out.append(_mark(number, begin + 14, at, colour))
    out.append(_text(begin + 36, at + 4, name, "start"))
    return out


def _mark(number: int, a: float, b: float, colour: str) -> str:
    shapes = (
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4"',
        f'<path d="M{a - 4:.1f} {b - 4:.1f}h8v8h-8z"',
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5"',
        f'<path d="M{a:.1f} {b - 5:.1f}l5 9h-10z"',
        f'<path d="M{a:.1f} {b + 5:.1f}l5 -9h-10z"',
        f'<path d="M{a:.1f} {b - 5:.1f}l5 5l-5 5l-5 -5z"',
        f'<path d="M{a - 5:.1f} {b - 2:.1f}h10v4h-10z"',
    )
    return f'{shapes[number % len(shapes)]} fill="{colour}"/>'


def _ends(values: Sequence[float], axis: Axis, *, is_x: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if not axis.is_log:
        return 0.0, high * 1.05 or 1.0
    if is_x:
        return (low, high) if low < high else (low / 2, high * 2)
    return 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.001))


def _ticks(low: float, high: float, axis: Axis) -> list[float]:
    if axis.is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if last - first < 3 else (1,)
        found = [each * 10.0**power for power in range(first, last + 1) for each in steps]
    else:
        step = 10.0 ** math.floor(math.log10(high / 2))
        step *= next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= 8)
        found = [number * step for number in range(int(high / step) + 1)]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def _short(value: float) -> str:
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
