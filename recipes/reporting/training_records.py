"""Losses in the records of progress.jsonl, for charts and tables of a training."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

ProgressRecord = dict[str, Any]  # a line of progress.jsonl


class LossRecords(NamedTuple):
    """The records of a training that have a loss; figures that are not finite are None."""

    train: list[ProgressRecord]
    valid: list[ProgressRecord]


def with_losses(records: Sequence[ProgressRecord]) -> LossRecords:
    """The records of training and of validation among those of progress.jsonl.

    Training is that of the log intervals, or of the epochs where there are none. A loss that overflowed once does not
    invalidate the checkpoints before and after it: it becomes None.
    """
    usable = [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in r.items()}
        for r in records
        if "updates" in r and ("nll_loss" in r or "loss" in r)
    ]
    train = [r for r in usable if r["kind"] == "train"] or [r for r in usable if r["kind"] == "epoch"]
    return LossRecords(train, [r for r in usable if r["kind"] == "valid"])


def loss(record: ProgressRecord) -> float | None:
    """The loss of a record of `with_losses`, in bits per token; None where it is not finite.

    Where training reports the loss that it minimises and the plain one (label smoothing), it is the plain one.
    """
    value = record["nll_loss"] if "nll_loss" in record else record["loss"]
    return None if value is None else float(value)


def minimised(record: ProgressRecord) -> float:
    """The loss that decides which validation is the best: the one that training minimises, else the plain one."""
    return float(record["nll_loss"] if record.get("loss") is None else record["loss"])


def points(records: Sequence[ProgressRecord], key: str, scale: float) -> list[tuple[float, float]]:
    """(value of `key` times `scale`, loss) for each of the records of `with_losses` that has both."""
    pairs = ((record.get(key), loss(record)) for record in records)
    return [(x * scale, y) for x, y in pairs if x is not None and y is not None]
