"""The exits of a depth-adaptive decoder, as PNGs: tokens coloured by their exit, and BLEU against the mean exit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm

from recipes.reporting.plots import canvas

LINE_WIDTH = 100  # characters
_MARKERS = "osD^vP*X"


class _Label(NamedTuple):
    """A token at its place: column in characters, line in lines from the top."""

    column: int
    line: float
    text: str
    exit: int


def _place(sentences: Sequence[tuple[Sequence[str], Sequence[int]]]) -> Iterator[_Label]:
    """The tokens of `sentences` in lines of at most LINE_WIDTH characters, each sentence on a line of its own."""
    line = 0.0
    for tokens, exits in sentences:
        column = 0
        for token, exit in zip(tokens, exits, strict=True):
            text = token.replace("▁", " ").strip() or "▁"
            column += int(token.startswith("▁") and column > 0)
            if column + len(text) > LINE_WIDTH and column:
                column, line = 0, line + 1
            yield _Label(column, line, text, exit)
            column += len(text)
        line += 1.6


def plot_exits(sentences: Sequence[tuple[Sequence[str], Sequence[int]]], blocks: int, path: Path, title: str) -> None:
    """Draw sentences whose tokens are coloured by the block, of `blocks`, after which they left the decoder.

    Each sentence is (tokens, exits from 1), as many of one as of the other; ▁ begins a word.
    """
    colours, norm = colormaps["viridis_r"], BoundaryNorm(np.arange(0.5, blocks + 1), 256)
    labels = list(_place(sentences))
    lines = labels[-1].line + 1.6 if labels else 0.0
    figure, axis = canvas.new_figure(11, 0.9 + 0.26 * lines)
    axis.set(xlim=(0, LINE_WIDTH), ylim=(lines, -1))
    axis.set_axis_off()
    for label in labels:
        colour = colours(norm(label.exit))
        ink = "white" if sum(colour[:3]) < 1.5 else "black"
        box = dict(facecolor=colour, edgecolor="none", pad=1.5)
        axis.text(
            label.column, label.line, canvas.literal(label.text), family="monospace", fontsize=9, color=ink, bbox=box
        )
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axis, ticks=range(1, blocks + 1), shrink=0.9)
    bar.set_label("exit (decoder block)")
    figure.suptitle(canvas.literal(title), fontsize="medium")
    canvas.save(figure, path)


def plot_exit_curve(points: Sequence[tuple[str, float, float]], path: Path, title: str, *, dashed: str = "") -> None:
    """Draw BLEU against the mean exit.

    Each point is (series, mean exit, BLEU); a line, of the series `dashed` a dashed one, joins the points of a series.
    """
    figure, axis = canvas.new_figure(7, 4.5)
    for number, series in enumerate(dict.fromkeys(name for name, _, _ in points)):
        places = sorted((mean, bleu) for name, mean, bleu in points if name == series)
        style = "--" if series == dashed else "-"
        marker = _MARKERS[number % len(_MARKERS)]
        label = canvas.literal(series)
        axis.plot(*zip(*places, strict=True), style, marker=marker, markersize=5, linewidth=1.2, label=label)
    axis.set(xlabel="mean exit (decoder blocks)", ylabel="BLEU")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.suptitle(canvas.literal(title))
    canvas.save(figure, path)
