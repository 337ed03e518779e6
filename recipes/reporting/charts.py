"""The geometry of charts, which templates/charts.html.jinja draws as SVG.

Places are in pixels from the upper left corner. A table beside each chart has the same figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, WIDTH - 26, 12, HEIGHT - 46  # edges of the plot
COLOURS = 8  # different colours of systems, s0 to s7 in static/report.css
SHAPES = 4  # different markers of systems, `shapes` in the template

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The points (x, y) of one system."""

    system: int  # its number in the page, from 0
    points: Sequence[Point]
    faint: bool = False  # a thin line without markers


@dataclass(frozen=True)
class Tick:
    """A value on an axis."""

    label: str
    place: float


@dataclass(frozen=True)
class Line:
    """A line of a chart, with markers unless it is faint."""

    colour: int
    shape: int
    places: list[Point]
    faint: bool


@dataclass(frozen=True)
class Bar:
    """A bar of a chart; (x, y) is its upper left corner."""

    colour: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """Lines or bars with their axes."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()


def tick_values(low: float, high: float) -> list[float]:
    """About five round numbers that enclose `low` to `high`."""
    if low == high:
        high = low + (abs(low) or 1)
    return [float(value) for value in MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)]


def _axis(low: float, high: float, begin: float, end: float) -> tuple[list[Tick], Callable[[float], float]]:
    """The ticks of an axis from pixel `begin` to `end`, and the place of a value on it."""
    values = tick_values(low, high)

    def place(value: float) -> float:
        return begin + (value - values[0]) / (values[-1] - values[0]) * (end - begin)

    return [Tick(f"{value:,g}", place(value)) for value in values], place


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Chart:
    """A line for each of `series`, some of which must have points."""
    xs, ys = zip(*(point for one in series for point in one.points), strict=True)
    x_ticks, x_of = _axis(min(xs), max(xs), LEFT, RIGHT)
    y_ticks, y_of = _axis(min(ys), max(ys), BOTTOM, TOP)
    lines = [
        Line(one.system % COLOURS, one.system % SHAPES, [(x_of(x), y_of(y)) for x, y in sorted(one.points)], one.faint)
        for one in series
    ]
    return Chart(title, x_label, y_label, x_ticks, y_ticks, lines=lines)


def bar_chart(
    classes: Sequence[str], values: Sequence[Sequence[float]], *, title: str, x_label: str, y_label: str
) -> Chart:
    """A group of bars for each of `classes`: values[c][s] of class c and system s, none below 0."""
    y_ticks, y_of = _axis(0, max(max(row) for row in values) or 1, BOTTOM, TOP)
    group = (RIGHT - LEFT) / len(classes)
    step = 0.8 * group / len(values[0])
    x_ticks = [Tick(name, LEFT + (place + 0.5) * group) for place, name in enumerate(classes)]
    lefts = [LEFT + (place + 0.1) * group for place in range(len(classes))]
    bars = [
        Bar(system % COLOURS, x=left + system * step, y=y_of(value), width=0.92 * step, height=BOTTOM - y_of(value))
        for left, row in zip(lefts, values, strict=True)
        for system, value in enumerate(row)
    ]
    return Chart(title, x_label, y_label, x_ticks, y_ticks, bars=bars)
