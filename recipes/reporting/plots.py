"""Pictures as PNG files: training curves, alignment heat maps, slots of a memory, exits of a decoder."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_TRAIN, _VALID = "#7a8ca3", "#c0392b"


def _figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    """A matplotlib figure that needs no display, whatever backend the user's settings name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**options)


def _save(figure: Any, path: Path) -> None:
    with warnings.catch_warnings():
        # A script that the font lacks is shown as boxes; no reason to fill the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Without the date and version of the writing the same picture is the same file.
        figure.savefig(path, dpi=150, format="png", metadata={"Software": None})


def loss(record: dict[str, Any]) -> float | None:
    """The plain loss of a record of `curves`, not the one minimised (label smoothing), in bits a sub-word."""
    found = record["nll_loss"] if "nll_loss" in record else record["loss"]
    return None if found is None else float(found)


def curves(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of training and of validation that have a `loss`, of those of progress.jsonl.

    What is not finite is None: a loss that overflowed once says nothing against the checkpoints before and after it.
    """
    usable = [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in r.items()}
        for r in records
        if "updates" in r and ("nll_loss" in r or "loss" in r)
    ]
    train = [r for r in usable if r["kind"] == "train"] or [r for r in usable if r["kind"] == "epoch"]
    return train, [r for r in usable if r["kind"] == "valid"]


def points(records: Sequence[dict[str, Any]], key: str, scale: float) -> list[tuple[float, float]]:
    """(figure `key` times `scale`, loss) of the records of `curves` that have both."""
    return [(r[key] * scale, found) for r in records if r.get(key) is not None and (found := loss(r)) is not None]


def training(records: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Loss in bits a sub-word against updates, and against minutes; False if there is nothing to draw.

    `records` are those of progress.jsonl. The best validation is marked. Where training reports the loss that
    it minimises and the plain one (label smoothing), the plain one is drawn.
    """
    train, valid = ([r for r in known if loss(r) is not None] for known in curves(records))
    if not train and not valid:
        return False
    figure, axes = _figure(11, 4.2, ncols=2, sharey=True)
    for axis, key, scale, label in (
        (axes[0], "updates", 1.0, "updates"),
        (axes[1], "seconds", 1 / 60, "minutes of training"),
    ):
        for kind, chosen, colour, marker in (
            ("training", train, _TRAIN, ""),
            ("validation", valid, _VALID, "o"),
        ):
            if places := points(chosen, key, scale):
                axis.plot(*zip(*places, strict=True), color=colour, marker=marker, markersize=3.5, label=kind)
        if valid:
            best = min(valid, key=lambda r: r["nll_loss"] if r.get("loss") is None else r["loss"])
            if best.get(key) is not None:
                place = (best[key] * scale, loss(best))
                axis.plot(*place, marker="o", markersize=10, fillstyle="none", color=_VALID)
                axis.annotate(
                    f"best: {loss(best):.2f}",
                    place,
                    (0, 12),
                    textcoords="offset points",
                    ha="center",
                    color=_VALID,
                )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss (bits a sub-word)")
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    _save(figure, path)
    return True


def alignment(source: Sequence[str], target: Sequence[str], weights: np.ndarray, path: Path, title: str = "") -> None:
    """A heat map: weights[t, s] of target word t (rows) on source word s (columns)."""
    if weights.shape != (len(target), len(source)):
        raise ValueError(
            f"weights of shape {weights.shape} for {len(target)} target and {len(source)} source words: "
            "rows are target words, columns source words"
        )
    longest = max((len(word) for word in [*source, *target]), default=1)
    margin = 0.7 + 0.085 * longest
    figure, axis = _figure(max(4.0, 0.42 * len(source) + margin + 0.8), max(3.0, 0.36 * len(target) + margin))
    image = axis.imshow(weights, cmap="Blues", vmin=0.0, aspect="auto")
    axis.set_xticks(range(len(source)), [_plain(w) for w in source], rotation=45, ha="left", rotation_mode="anchor")
    axis.set_yticks(range(len(target)), [_plain(w) for w in target])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    # Cells are told apart by thin white lines.
    axis.set_xticks(np.arange(-0.5, len(source)), minor=True)
    axis.set_yticks(np.arange(-0.5, len(target)), minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, shrink=0.8, label="weight")
    if title:
        figure.suptitle(_plain(title), fontsize="medium")
    _save(figure, path)


def exits(sentences: Sequence[tuple[Sequence[str], Sequence[int]]], blocks: int, path: Path, title: str) -> None:
    """Sentences whose sub-words are coloured by the block that they left the decoder after, of so many `blocks`.

    Each sentence is (sub-words, exits from 1), as many of one as of the other.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    colours, norm = colormaps["viridis_r"], BoundaryNorm(np.arange(0.5, blocks + 1), 256)
    width, lines = 100, 0.0  # characters a line; lines so far
    places = []
    for pieces, chosen in sentences:
        column = 0
        for piece, exit in zip(pieces, chosen, strict=True):
            text = piece.replace("▁", " ").strip() or "▁"
            column += int(piece.startswith("▁") and column > 0)
            if column + len(text) > width and column:
                column, lines = 0, lines + 1
            places.append((column, lines, text, exit))
            column += len(text)
        lines += 1.6
    figure, axis = _figure(11, 0.9 + 0.26 * lines)
    axis.set(xlim=(0, width), ylim=(lines, -1))
    axis.set_axis_off()
    for column, line, text, exit in places:
        colour = colours(norm(exit))
        ink = "white" if sum(colour[:3]) < 1.5 else "black"
        box = dict(facecolor=colour, edgecolor="none", pad=1.5)
        axis.text(column, line, _plain(text), family="monospace", fontsize=9, color=ink, bbox=box)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axis, ticks=range(1, blocks + 1), shrink=0.9)
    bar.set_label("exit (decoder block)")
    figure.suptitle(_plain(title), fontsize="medium")
    _save(figure, path)


def exit_curve(points: Sequence[tuple[str, float, float]], path: Path, title: str) -> None:
    """BLEU against the mean exit; each point is (policy, mean exit, BLEU), and points of a policy make a line."""
    figure, axis = _figure(7, 4.5)
    markers = "osD^vP*X"
    for number, series in enumerate(dict.fromkeys(name for name, _, _ in points)):
        places = sorted((mean, bleu) for name, mean, bleu in points if name == series)
        style = "--" if series == "models of this depth" else "-"
        marker = markers[number % len(markers)]
        axis.plot(*zip(*places, strict=True), style, marker=marker, markersize=5, linewidth=1.2, label=_plain(series))
    axis.set(xlabel="mean exit (decoder blocks)", ylabel="BLEU")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.suptitle(_plain(title))
    _save(figure, path)


def slots(shares: np.ndarray, path: Path, title: str) -> None:
    """How often each head reads each part of a memory; shares[h, i, j] of cell (i, j) of the plane of sub-keys.

    The colour is the share over that of uniform use, on a logarithmic scale.
    """
    from matplotlib.colors import LogNorm

    heads, cells, _ = shares.shape
    columns = min(heads, 4)
    rows = -(-heads // columns)
    figure, axes = _figure(2.4 * columns + 0.8, 2.4 * rows + 0.5, nrows=rows, ncols=columns, squeeze=False)
    norm = LogNorm(vmin=1 / 32, vmax=32, clip=True)
    for head, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if head < heads:
            image = axis.imshow(np.maximum(shares[head] * cells**2, 1e-9), cmap="viridis", norm=norm)
            axis.set_title(f"head {head + 1}", fontsize="small")
    figure.colorbar(image, ax=axes, shrink=0.8, label="use / uniform use")
    figure.suptitle(_plain(title), fontsize="medium")
    _save(figure, path)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib takes dollars for mathematics
