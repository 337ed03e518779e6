"""The mean of several checkpoints' parameters."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fairseq_compat import checkpoints
from fairseq_compat.checkpoints import CheckpointError, StrPath


def average(paths: Iterable[StrPath]) -> dict[str, Any]:
    """A checkpoint whose parameters are the mean of those in `paths` (float32 or wider), without an optimizer's state.

    Integer tensors and everything else are those of the last path.

    Raises:
        CheckpointError: the models differ, or a file is not a checkpoint.
    """
    total: dict[str, torch.Tensor] = {}
    count = 0
    state: dict[str, Any] = {}
    first: Path | None = None
    for path in map(Path, paths):
        state = checkpoints.load(path)
        model = state.get("model")
        if not isinstance(model, dict):
            raise CheckpointError(f"checkpoint {path} holds no model; give checkpoints that fairseq-train wrote")
        count += 1
        if first is None:
            first = path
            total = {name: _accumulator(value) for name, value in model.items()}
            continue
        if {name: value.shape for name, value in model.items()} != {name: value.shape for name, value in total.items()}:
            raise CheckpointError(
                f"checkpoints {first} and {path} cannot be averaged: their models differ; "
                "average checkpoints of one training only"
            )
        for name, value in model.items():
            if value.is_floating_point():
                total[name] += value
            else:
                total[name] = value
    if first is None:
        raise CheckpointError("no checkpoints to average; give at least one path")
    for value in total.values():
        if value.is_floating_point():
            value /= count
    state["model"] = total
    state.pop("last_optimizer_state", None)
    return state


def _accumulator(value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value.clone()
    return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
