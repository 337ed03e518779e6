"""Normalisation of the grid's cells; padded cells come out zero.

Axes: B batch, T target rows, S source columns, C channels. ``padding`` is (B, S) or (B, T, S), True at padding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2d import ops
from attn2d.backend import Backend
from thoth_core.batch_norm import BatchNorm

HALF = (torch.bfloat16, torch.float16)

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def recomputing() -> Iterator[None]:
    """Within, batch norms leave their running statistics alone: recomputing a layer is not another training step."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def padded_cells(padding: Tensor, x: Tensor) -> Tensor:
    """The mask of the cells of x (B, T, S, C) that are padding, (B, T, S)."""
    return (padding.unsqueeze(1) if padding.dim() == 2 else padding).expand(x.shape[:-1])


class GridBatchNorm(BatchNorm):
    """Batch normalisation over the cells of real tokens; padded cells come out zero.

    Padding affects neither the batch's statistics nor the running ones. In training, a cell's value depends on the
    whole batch, later target rows included; in evaluation it does not.
    """

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__(channels)

    def normalise(self, cells: Tensor) -> Tensor:
        """(N, C) → same; a single cell has no variance, and is normalised by the running statistics."""
        training = self.training and len(cells) > 1
        momentum = 0.0 if _recomputing.get() else self.momentum
        weight, bias = (x.float() if x.dtype in HALF else x for x in (self.weight, self.bias))
        return F.batch_norm(cells, self.running_mean, self.running_var, weight, bias, training, momentum, self.eps)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        if padding is None:
            return self.normalise(x.reshape(-1, x.size(-1))).view(x.shape)
        padded = padded_cells(padding, x)
        if not self.training:
            y = self.normalise(x.reshape(-1, x.size(-1))).view(x.shape)
            return y.masked_fill(padded.unsqueeze(-1), 0)
        real = ~padded
        y = torch.zeros_like(x)
        y[real] = self.normalise(x[real])
        return y


class GridLayerNorm(nn.LayerNorm):
    """Layer normalisation of every cell by itself; padded cells come out zero."""

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__(channels)
        self.backend = backend

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        if padding is None and not torch.is_grad_enabled():
            return super().forward(x)  # PyTorch's is the faster one on a single row
        padded = None if padding is None else padded_cells(padding, x)
        return ops.layer_norm_masked(x, self.weight, self.bias, eps=self.eps, padding=padded, backend=self.backend)


class NoNorm(nn.Module):
    """No normalisation; padded cells come out zero."""

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        return x if padding is None else x.masked_fill(padded_cells(padding, x).unsqueeze(-1), 0)


# Each is built as NORMS[name](channels, backend=backend).
NORMS: dict[str, Callable[..., nn.Module]] = {
    "layer": GridLayerNorm,
    "batch": GridBatchNorm,
    "none": NoNorm,
}
