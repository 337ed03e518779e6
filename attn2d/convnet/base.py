"""What the networks over the grid share: running a layer with a cache or with gradient checkpointing."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn2d.convnet.norms import recomputing
from attn2d.convnet.row_cache import RowCache


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)``, of which only the inputs are kept for the backward pass."""

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), recomputing()

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


class ConvNet(nn.Module):
    """A stack of layers over the grid.

    A network has ``out_channels``, C of its result, and a final ``norm``. Its ``forward`` computes the layers,
    ``finish`` what follows them; they are apart so that the caller can finish and aggregate a few rows at a time.
    Each of its layers has ``forward`` for whole grids, ``step`` for one row, and a convolution ``conv``.
    """

    out_channels: int
    norm: nn.Module
    finish: Callable[[Tensor, Tensor | None], Tensor]

    def __init__(self, layers: list[nn.Module], *, checkpointing: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpointing = checkpointing

    @property
    def rows_above(self) -> int:
        """Rows that a layer reaches above its own; all layers' kernels are of one size."""
        layer: Any = self.layers[0]
        return layer.conv.rows_above

    def run(self, index: int, x: Tensor, padding: Tensor | None, cache: RowCache | None) -> Tensor:
        """Apply layer ``index`` to x (B, T, S, C); T = 1 if there is a cache, which is brought up to date."""
        layer: Any = self.layers[index]
        if cache is not None:
            y, row = layer.step(x, padding, cache.rows[index], cache.origins)
            cache.add(index, row)
        elif self.checkpointing and self.training and torch.is_grad_enabled():
            y = checkpointed(layer, x, padding)
        else:
            y = layer(x, padding)
        return y
