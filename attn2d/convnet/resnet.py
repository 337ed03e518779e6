"""The residual network over the grid: depth-wise masked convolutions between position-wise feed-forwards.

Axes: B batch, T target rows, S source columns, C channels. ``padding`` is (B, S) or (B, T, S), True at padding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn2d import ops
from attn2d.backend import Backend
from attn2d.convnet.base import ConvNet
from attn2d.convnet.norms import NORMS, GridBatchNorm, GridLayerNorm
from attn2d.convnet.row_cache import RowCache
from attn2d.linear import Linear
from attn2d.masked_conv import MaskedConv2d

BRANCH_SCALE = 0.5**0.5  # keeps the variance of a sum of two


class ResNetLayer(nn.Module):
    """x ← √½ (x + conv(norm(x))), then x ← √½ (x + ffn(norm(x))), with dropout on both branches."""

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int,
        dilation: int,
        groups: int,
        ffn_dim: int,
        dropout: float,
        norm: str,
        backend: Backend = Backend.AUTO,
    ):
        super().__init__()
        self.dropout = dropout
        self.backend = backend
        self.conv_norm = NORMS[norm](channels, backend=backend)
        self.conv = MaskedConv2d(
            channels,
            channels,
            kernel_size=kernel_size,
            dilation=dilation,
            groups=groups or channels,
            backend=backend,
        )
        self.ffn_norm = NORMS[norm](channels, backend=backend)
        self.expand = Linear(channels, ffn_dim, backend=backend)
        self.contract = Linear(ffn_dim, channels, backend=backend)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """√½ (x + dropout(branch)), both (B, T, S, C)."""
        p = self.dropout if self.training else 0.0
        return ops.dropout_residual(x, branch, p=p, scale=BRANCH_SCALE, backend=self.backend)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → same."""
        return self.feed_forward(self.join(x, self.normed_conv(x, padding)), padding)

    def step(
        self, x: Tensor, padding: Tensor | None, rows: list[Tensor], origins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One row (B, 1, S, C) → same, and the row to be kept; ``rows`` and ``origins`` as in :class:`RowCache`."""
        if self.has_row_operators(x):
            return self.step_by_row_operators(x, padding, rows, origins)
        row = self.conv_norm(x, padding)
        return self.feed_forward(self.join(x, self.conv.step(row, rows, origins)), padding), row

    def has_row_operators(self, x: Tensor) -> bool:
        """Whether the operators of ``attn2d.ops.decoding``, which have no gradient, compute this layer's step."""
        norms = (self.conv_norm, self.ffn_norm)
        return (
            not torch.is_grad_enabled()
            and self.conv.depthwise
            and all(isinstance(norm, GridLayerNorm) and norm.weight.dtype == x.dtype for norm in norms)
            and self.conv.conv.weight.dtype == x.dtype
        )

    def step_by_row_operators(
        self, x: Tensor, padding: Tensor | None, rows: list[Tensor], origins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`step` in fewer passes over the row."""
        columns = padding[:, 0] if padding is not None and padding.dim() == 3 else padding  # (B, S)
        norm: Any = self.conv_norm
        row = ops.norm_row(
            x,
            norm.weight,
            norm.bias,
            eps=norm.eps,
            margin=self.conv.columns_beside,
            padding=columns,
            backend=self.backend,
        )
        x = ops.residual_conv_row(
            x,
            row,
            above=rows,
            origins=origins,
            weight=self.conv.conv.weight,
            dilation=self.conv.dilation,
            scale=BRANCH_SCALE,
            backend=self.backend,
        )
        norm = self.ffn_norm
        h, *_ = ops.layer_norm_parts(x, norm.weight, norm.bias, eps=norm.eps, backend=self.backend)
        return self.join(x, self.contract(self.expand(h, relu=True))), row

    def feed_forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """√½ (x + ffn(norm(x))), (B, T, S, C) → same."""
        if isinstance(self.ffn_norm, GridBatchNorm):  # its statistics must not count padding
            h = self.expand(self.ffn_norm(x, padding), relu=True)  # (B, T, S, ffn_dim)
        else:  # cell by cell: the values at padding do not matter
            h = self.expand(x, norm=self.ffn_norm, relu=True)
        return self.join(x, self.contract(h))

    def normed_conv(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """conv(norm(x)), (B, T, S, C) → same; the normalised grid is recomputed in the backward pass."""

        def run(x: Tensor) -> Tensor:
            return self.conv(self.conv_norm(x, padding))

        if torch.is_grad_enabled() and isinstance(self.conv_norm, GridLayerNorm):
            return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return run(x)


class ResNet(ConvNet):
    """The authors' later network (arXiv 2005.08595, section 3): its result is the mean of all layers' outputs.

    Departs from the published code in what is padding: padded cells never enter a convolution.

    Args:
        in_channels: C of the grid, kept throughout.
        layers, kernel_size, dilation, dropout, norm, groups: see ``attn2d.config``; groups 0 is depth-wise.
        ffn_dim: inner dimension of the position-wise feed-forward.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        layers: int,
        kernel_size: int,
        dilation: int,
        groups: int,
        dropout: float,
        norm: str,
        checkpointing: bool,
        ffn_dim: int,
        backend: Backend = Backend.AUTO,
    ):
        super().__init__(
            [
                ResNetLayer(
                    in_channels,
                    kernel_size=kernel_size,
                    dilation=dilation,
                    groups=groups,
                    ffn_dim=ffn_dim,
                    dropout=dropout,
                    norm=norm,
                    backend=backend,
                )
                for _ in range(layers)
            ],
            checkpointing=checkpointing,
        )
        self.out_channels = in_channels
        self.norm = NORMS[norm](in_channels, backend=backend)

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: RowCache | None = None) -> Tensor:
        """(B, T, S, C) → (B, T, S, C), to be given to :meth:`finish`."""
        x = total = self.run(0, x, padding, cache)
        for index in range(1, len(self.layers)):
            x = self.run(index, x, padding, cache)
            total = total + x
        return total / len(self.layers)

    def finish(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The final normalisation, (B, T, S, C) → same."""
        return self.norm(x, padding)
