"""Batch norm whose running statistics survive half precision and averages of checkpoints."""

from typing import Any

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """PyTorch's batch norm with a fixed momentum, running statistics (C,) in float32 or wider, and no batch count.

    In a module of half precision the statistics stay in float32: rounding after every batch would lose small changes.
    The count is for a momentum that is not fixed, and fairseq's --store-ema averages floating-point tensors only.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # earlier versions of this class had it
        # PyTorch would add a count to a state dict without a version, which it takes for one of an old PyTorch.
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": 2}, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, value in self.named_buffers():
            wide = torch.promote_types(value.dtype, torch.float32)
            if value.dtype != wide:
                setattr(self, name, before[name].to(value.device, wide))
        return self
