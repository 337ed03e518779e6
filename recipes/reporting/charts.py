"""Charts as SVG: lines over a scale, bars over classes. Colours, by the class s0, s1, ... of a series, are the page's.

Where each is used, the same figures stand in a table: the pictures are hidden from screen readers but for their title.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting import markup

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 26, 12, 46  # margins
COLOURS = 8  # of series, then they begin again
MARKERS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one system, by its `number` from 0."""

    number: int
    points: Sequence[tuple[float, float]]
    faint: bool = False  # a thin line without markers


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose `low` to `high`."""
    step = max(high - low, 1e-9 * max(abs(high), 1)) / count
    unit = 10.0 ** math.floor(math.log10(step))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= step * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _frame(title: str, x_label: str, y_label: str, ys: Sequence[float], body: str, below: str) -> str:
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(y, ys):.1f}" y2="{_y(y, ys):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{_y(y, ys) + 4:.1f}" text-anchor="end">{y:,g}</text>'
        for y in ys
    )
    across = _text(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6)
    upwards = f'<g transform="rotate(-90)">{_text(y_label, -(TOP + HEIGHT - BOTTOM) / 2, 14)}</g>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{markup.plain(title)}">'
        f"<title>{markup.plain(title)}</title>{grid}{below}{body}{across}{upwards}</svg>"
    )


def _text(label: str, x: float, y: float) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{markup.plain(label)}</text>'


def _y(value: float, ys: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)


def marker(number: int, x: float, y: float) -> str:
    """The mark of a series at a place."""
    kind, colour = MARKERS[number % len(MARKERS)], f'class="s{number % COLOURS} mark"'
    if kind == "circle":
        return f'<circle {colour} cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "diamond": ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0)),
        "triangle": ((0, -4), (4, 3), (-4, 3)),
    }[kind]
    return f'<polygon {colour} points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def lines(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> str:
    """A line a series; some must have points."""
    places = [point for one in series for point in one.points]
    xs, ys = (ticks(min(values), max(values)) for values in zip(*places, strict=True))

    def x_of(value: float) -> float:
        return LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    body = []
    for one in series:
        drawn = [(x_of(x), _y(y, ys)) for x, y in sorted(one.points)]
        faint = " faint" * one.faint
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        body.append(f'<polyline class="s{one.number % COLOURS}{faint}" points="{path}"/>')
        body += [] if one.faint else [marker(one.number, x, y) for x, y in drawn]
    below = "".join(_text(f"{x:,g}", x_of(x), HEIGHT - BOTTOM + 18) for x in xs)
    return _frame(title, x_label, y_label, ys, "".join(body), below)


def bars(parts: Sequence[str], values: Sequence[Sequence[float]], *, title: str, x_label: str, y_label: str) -> str:
    """values[p][s] of part p and series s, none below 0."""
    ys = ticks(0, max(max(row) for row in values) or 1)
    wide = (WIDTH - LEFT - RIGHT) / len(parts)
    bar = 0.8 * wide / len(values[0])
    body, below = [], []
    for place, (part, row) in enumerate(zip(parts, values, strict=True)):
        left = LEFT + place * wide
        below.append(_text(part, left + wide / 2, HEIGHT - BOTTOM + 18))
        for number, value in enumerate(row):
            x, y = left + 0.1 * wide + number * bar, _y(value, ys)
            size = f'width="{bar * 0.92:.1f}" height="{_y(0, ys) - y:.1f}"'
            body.append(f'<rect class="s{number % COLOURS} mark" x="{x:.1f}" y="{y:.1f}" {size}/>')
    return _frame(title, x_label, y_label, ys, "".join(body), "".join(below))
