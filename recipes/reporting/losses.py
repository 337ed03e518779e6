"""Losses among the figures that a training has reported, for charts and tables."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from fairseq_compat.events import Figures

Axis = Literal["updates", "seconds"]
# What losses are drawn against: the field, the factor to the unit of the axis, and its label.
AXES: tuple[tuple[Axis, float, str], ...] = (("updates", 1.0, "updates"), ("seconds", 1 / 60, "minutes of training"))


class Losses(NamedTuple):
    """The figures of a training that have a loss, which may be infinite or not a number."""

    train: list[Figures]
    valid: list[Figures]


def with_losses(figures: Sequence[Figures]) -> Losses:
    """The figures with a loss, of training and of validation.

    Training is that of the log intervals, or of the epochs where there are none.
    """
    usable = [each for each in figures if each.nll_loss is not None or each.loss is not None]
    train, epochs, valid = ([each for each in usable if each.kind == kind] for kind in ("train", "epoch", "valid"))
    return Losses(train or epochs, valid)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def loss(figures: Figures) -> float | None:
    """The loss in bits per token; None where it is not finite.

    Where training reports the loss that it minimises and the plain one (label smoothing), it is the plain one.
    A loss that overflowed once does not invalidate the checkpoints before and after it.
    """
    return _finite(figures.loss if figures.nll_loss is None else figures.nll_loss)


def minimised(figures: Figures) -> float:
    """The loss that decides which validation is the best: the one that training minimises, else the plain one.

    One of them must be finite.
    """
    objective = _finite(figures.loss)
    value = loss(figures) if objective is None else objective
    assert value is not None
    return value


def points(figures: Sequence[Figures], axis: Axis, scale: float) -> list[tuple[float, float]]:
    """(value of the field `axis` times `scale`, loss) of each of `figures` that has both."""
    pairs = ((_finite(getattr(each, axis)), loss(each)) for each in figures)
    return [(x * scale, y) for x, y in pairs if x is not None and y is not None]
