"""Batch norm whose running statistics outlive half precision and an average of parameters."""

from typing import Any

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """PyTorch's with a fixed momentum, running statistics (C,) in float32 or better, and no count of batches.

    In a module of half precision they stay in float32: rounded after every batch they would fall short. The count is
    for a momentum that is not fixed, and fairseq's --store-ema averages floating-point tensors only.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of an earlier version
        # A state dict that says no version is not one of before there was a count: none is to be added.
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": 2}, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, value in self.named_buffers():
            wide = torch.promote_types(value.dtype, torch.float32)
            if value.dtype != wide:
                setattr(self, name, before[name].to(value.device, wide))
        return self
