"""The slots of a product-key memory that a model reads, as a PNG."""

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm

from recipes.reporting.plots import canvas


def plot_slots(shares: np.ndarray, path: Path, title: str) -> None:
    """Draw how often each head reads each part of a memory.

    `shares` has shape (H heads, C, C): shares[h, i, j] is the share of head h's reads that fall into cell (i, j) of the
    plane of sub-keys. The colour is the share over that of uniform use, on a logarithmic scale.
    """
    heads, cells, _ = shares.shape
    columns = min(heads, 4)
    rows = -(-heads // columns)
    figure, axes = canvas.new_figure(2.4 * columns + 0.8, 2.4 * rows + 0.5, nrows=rows, ncols=columns, squeeze=False)
    norm = LogNorm(vmin=1 / 32, vmax=32, clip=True)
    for head, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if head < heads:
            image = axis.imshow(np.maximum(shares[head] * cells**2, 1e-9), cmap="viridis", norm=norm)
            axis.set_title(f"head {head + 1}", fontsize="small")
    figure.colorbar(image, ax=axes, shrink=0.8, label="use / uniform use")
    figure.suptitle(canvas.literal(title), fontsize="medium")
    canvas.save(figure, path)
