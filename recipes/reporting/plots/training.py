"""The losses of a training, as a PNG."""

from collections.abc import Sequence
from pathlib import Path

from recipes.reporting import training_records
from recipes.reporting.plots import canvas
from recipes.reporting.training_records import ProgressRecord

_TRAIN, _VALID = "#7a8ca3", "#c0392b"


def plot_training(records: Sequence[ProgressRecord], path: Path, title: str) -> bool:
    """Draw the loss in bits per token against updates and against minutes; False if there is nothing to draw.

    `records` are those of progress.jsonl. The best validation is marked.
    """
    train, valid = (
        [record for record in part if training_records.loss(record) is not None]
        for part in training_records.with_losses(records)
    )
    if not train and not valid:
        return False
    best = min(valid, key=training_records.minimised, default=None)
    figure, axes = canvas.new_figure(11, 4.2, ncols=2, sharey=True)
    for axis, key, scale, label in (
        (axes[0], "updates", 1.0, "updates"),
        (axes[1], "seconds", 1 / 60, "minutes of training"),
    ):
        for kind, part, colour, marker in (("training", train, _TRAIN, ""), ("validation", valid, _VALID, "o")):
            if places := training_records.points(part, key, scale):
                axis.plot(*zip(*places, strict=True), color=colour, marker=marker, markersize=3.5, label=kind)
        for x, y in training_records.points([best], key, scale) if best else ():
            axis.plot(x, y, marker="o", markersize=10, fillstyle="none", color=_VALID)
            axis.annotate(f"best: {y:.2f}", (x, y), (0, 12), textcoords="offset points", ha="center", color=_VALID)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss (bits per token)")
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    canvas.save(figure, path)
    return True
