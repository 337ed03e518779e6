"""The precision in which the definitions compute."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def accumulation(*tensors: Tensor) -> torch.dtype:
    """What is accumulated in: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def unrounded(x: Tensor) -> AbstractContextManager[object]:
    """A context for products on x's device that autocast leaves alone."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
