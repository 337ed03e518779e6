"""The losses of a training, as a PNG."""

from collections.abc import Sequence
from pathlib import Path

from fairseq_compat.events import Figures
from recipes.reporting import losses
from recipes.reporting.plots import canvas

_TRAIN, _VALID = "#7a8ca3", "#c0392b"


def plot_training(figures: Sequence[Figures], path: Path, title: str) -> bool:
    """Draw the loss in bits per token against updates and against minutes; False if there is nothing to draw.

    `figures` are those that the training has reported. The best validation is marked.
    """
    train, valid = ([each for each in part if losses.loss(each) is not None] for part in losses.with_losses(figures))
    if not train and not valid:
        return False
    best = min(valid, key=losses.minimised, default=None)
    picture, axes = canvas.new_figure(11, 4.2, ncols=len(losses.AXES), sharey=True)
    for axis, (key, scale, label) in zip(axes, losses.AXES, strict=True):
        for kind, part, colour, marker in (("training", train, _TRAIN, ""), ("validation", valid, _VALID, "o")):
            if places := losses.points(part, key, scale):
                axis.plot(*zip(*places, strict=True), color=colour, marker=marker, markersize=3.5, label=kind)
        for x, y in losses.points([best], key, scale) if best else ():
            axis.plot(x, y, marker="o", markersize=10, fillstyle="none", color=_VALID)
            axis.annotate(f"best: {y:.2f}", (x, y), (0, 12), textcoords="offset points", ha="center", color=_VALID)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss (bits per token)")
    axes[0].legend(frameon=False)
    picture.suptitle(title)
    canvas.save(picture, path)
    return True
