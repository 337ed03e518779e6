"""Matplotlib figures that need no display and are written to the same bytes every time."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure of `width` by `height` inches with its axes, whatever backend the user's settings name.

    `options` are those of `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**options)


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as PNG."""
    with warnings.catch_warnings():
        # The font shows scripts that it lacks as boxes: no reason to fill the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Without the date and the version of Matplotlib the same figure gives the same file.
        figure.savefig(path, dpi=150, format="png", metadata={"Software": None})


def literal(text: str) -> str:
    """`text` for a label: Matplotlib would read what stands between dollars as mathematics."""
    return text.replace("$", r"\$")
