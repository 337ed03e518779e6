"""The number formats that the operators compute in."""

import torch
from torch import Tensor


def promoted(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common dtype; under autocast their dtypes differ."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) for x in tensors]


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that the native kernels accumulate x in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
