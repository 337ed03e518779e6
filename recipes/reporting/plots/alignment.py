"""The alignment of a sentence, as a PNG heat map."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.reporting.plots import canvas


def plot_alignment(
    source: Sequence[str], target: Sequence[str], weights: np.ndarray, path: Path, title: str = ""
) -> None:
    """Draw weights[t, s] of target word t (rows) on source word s (columns).

    Raises:
        ValueError: `weights` is not of shape (T target words, S source words).
    """
    if weights.shape != (len(target), len(source)):
        raise ValueError(
            f"weights of shape {weights.shape} for {len(target)} target and {len(source)} source words: "
            "rows are target words, columns source words"
        )
    longest = max((len(word) for word in [*source, *target]), default=1)
    margin = 0.7 + 0.085 * longest
    figure, axis = canvas.new_figure(max(4.0, 0.42 * len(source) + margin + 0.8), max(3.0, 0.36 * len(target) + margin))
    image = axis.imshow(weights, cmap="Blues", vmin=0.0, aspect="auto")
    labels = [canvas.literal(word) for word in source]
    axis.set_xticks(range(len(source)), labels, rotation=45, ha="left", rotation_mode="anchor")
    axis.set_yticks(range(len(target)), [canvas.literal(word) for word in target])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    # Thin white lines separate the cells.
    axis.set_xticks(np.arange(-0.5, len(source)), minor=True)
    axis.set_yticks(np.arange(-0.5, len(target)), minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, shrink=0.8, label="weight")
    if title:
        figure.suptitle(canvas.literal(title), fontsize="medium")
    canvas.save(figure, path)
