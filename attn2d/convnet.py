"""Convolutional networks over the grid: the paper's DenseNet and the authors' later ResNet.

Axes: B batch, T target rows, S source columns, C channels. ``padding`` is a boolean mask of the cells, True where
source or target is padding, (B, 1, S, 1) or (B, T, S, 1), or None when there is none. Padded cells are zeroed before
every convolution, so that a sentence's result does not depend on what it is batched with.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn2d import ops
from attn2d.linear import Linear, PackedWeights
from attn2d.masked_conv import MaskedConv2d
from thoth_core.batch_norm import BatchNorm

HALF = (torch.bfloat16, torch.float16)


class GridBatchNorm(BatchNorm):
    """Batch normalisation over the cells of real tokens; padded cells come out zero.

    Padding shifts neither the batch's statistics nor the running ones. In training, a cell's value depends on the
    whole batch, later target rows included; in evaluation it does not.
    """

    def normalise(self, cells: Tensor) -> Tensor:
        """(N, C) → same; a single cell has no variance, and is normalised by the running statistics."""
        training = self.training and len(cells) > 1
        weight, bias = (x.float() if x.dtype in HALF else x for x in (self.weight, self.bias))
        return F.batch_norm(cells, self.running_mean, self.running_var, weight, bias, training, self.momentum, self.eps)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        if padding is None or not self.training:
            y = self.normalise(x.reshape(-1, x.size(-1))).view(x.shape)
            return y if padding is None else y.masked_fill(padding, 0)
        real = ~padding.squeeze(-1).expand(x.shape[:-1])
        y = torch.zeros_like(x)
        y[real] = self.normalise(x[real])
        return y


class GridLayerNorm(nn.LayerNorm):
    """Layer normalisation of every cell by itself; padded cells come out zero."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        if padding is not None:
            padding = padding.squeeze(-1).expand(x.shape[:-1])
        elif not torch.is_grad_enabled():
            return super().forward(x)  # PyTorch's is the quicker one on a single row
        return ops.layer_norm_masked(x, self.weight, self.bias, eps=self.eps, padding=padding)


class NoNorm(nn.Module):
    """Leaves the cells as they are, but for the padded ones, which come out zero."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        return x if padding is None else x.masked_fill(padding, 0)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": GridLayerNorm,
    "batch": GridBatchNorm,
    "none": NoNorm,
}


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """The batch norms of ``module`` leave their running statistics alone: recomputing is not another step."""
    norms = [norm for norm in module.modules() if isinstance(norm, GridBatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)``, of which only the inputs are kept for the backward."""
    contexts = lambda: (nullcontext(), frozen_statistics(module))  # noqa: E731
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


class RowCache:
    """What incremental decoding keeps: for every layer, the last rows that its convolution was computed from.

    Rows stay where they were written: reordering the hypotheses only changes ``origins``, which says where to find
    the past of each.
    """

    def __init__(self, layers: int, depth: int):
        self.depth = depth  # rows that a convolution reaches above its own
        self.rows: list[list[Tensor]] = [[] for _ in range(layers)]  # the oldest first; (B', ...) each, B' of its step
        self.origins: Tensor | None = None  # (rows, B): which hypothesis of each row every one now continues
        self.weights: PackedWeights = {}

    def reorder(self, order: Tensor) -> None:
        """Follow the beam, (B,) → (len(order),)."""
        if self.origins is not None:
            self.origins = self.origins.index_select(1, order)

    def add(self, layer: int, row: Tensor) -> None:
        """Take a layer's new row (B, ...) and drop what its convolution reaches no more; the last layer ends a step."""
        rows = self.rows[layer]
        rows.append(row)
        del rows[: max(0, len(rows) - self.depth)]
        if layer == len(self.rows) - 1 and self.depth:
            here = torch.arange(row.size(0), device=row.device)[None]
            self.origins = here if self.origins is None else torch.cat((self.origins, here))[-self.depth :]


class ConvNet(nn.Module):
    """What both networks share: the layers' caches and gradient checkpointing.

    Each has ``out_channels``, C of its result, a final ``norm``, and ``finish`` to apply it.
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
            y = recomputed(layer, x, padding)
        else:
            y = layer(x, padding)
        return y


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
    ):
        super().__init__()
        self.dropout = dropout
        self.conv_norm = NORMS[norm](channels)
        self.conv = MaskedConv2d(
            channels, channels, kernel_size=kernel_size, dilation=dilation, groups=groups or channels
        )
        self.ffn_norm = NORMS[norm](channels)
        self.expand = Linear(channels, ffn_dim)
        self.contract = Linear(ffn_dim, channels)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """√½ (x + dropout(branch)), both (B, T, S, C)."""
        return ops.dropout_residual(x, branch, p=self.dropout if self.training else 0.0, scale=0.5**0.5)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → same."""
        return self.feed_forward(self.join(x, self.normed_conv(x, padding)), padding)

    def step(
        self, x: Tensor, padding: Tensor | None, rows: list[Tensor], origins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One row (B, 1, S, C) → same, and the row to be kept; ``rows`` and ``origins`` as in :class:`RowCache`."""
        norm, next_norm = self.conv_norm, self.ffn_norm
        if self.conv.depthwise and isinstance(norm, GridLayerNorm) and isinstance(next_norm, GridLayerNorm):
            x, h, row = ops.residual_conv_step(
                x,
                rows,
                origins,
                weight=self.conv.conv.weight,
                dilation=self.conv.dilation,
                scale=0.5**0.5,
                norm=norm,
                next_norm=next_norm,
                padding=None if padding is None else padding[:, 0, :, 0],
            )
            return self.join(x, self.contract(self.expand(h, relu=True))), row
        row = norm(x, padding)
        return self.feed_forward(self.join(x, self.conv.step(row, rows, origins)), padding), row

    def feed_forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """√½ (x + ffn(norm(x))), (B, T, S, C) → same."""
        if isinstance(self.ffn_norm, GridBatchNorm):  # its statistics must not count padding
            h = self.expand(self.ffn_norm(x, padding), relu=True)  # (B, T, S, ffn_dim)
        else:  # cell by cell: what becomes of padding matters to nobody
            h = self.expand(x, norm=self.ffn_norm, relu=True)
        return self.join(x, self.contract(h))

    def normed_conv(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """conv(norm(x)), (B, T, S, C) → same; the normalised grid is not kept for the backward but made again."""

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
                )
                for _ in range(layers)
            ],
            checkpointing=checkpointing,
        )
        self.out_channels = in_channels
        self.norm = NORMS[norm](in_channels)

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


class DenseNetLayer(nn.Module):
    """norm, ReLU, 1x1 to the bottleneck, norm, ReLU, masked k x k to ``growth`` channels, dropout."""

    def __init__(
        self,
        channels: int,
        *,
        growth: int,
        bottleneck: int,
        kernel_size: int,
        dilation: int,
        groups: int,
        dropout: float,
        norm: str,
    ):
        super().__init__()
        self.dropout = dropout
        self.norm1 = NORMS[norm](channels)
        self.reduce = Linear(channels, bottleneck, bias=False)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        self.norm2 = NORMS[norm](bottleneck)
        self.conv = MaskedConv2d(bottleneck, growth, kernel_size=kernel_size, dilation=dilation, groups=groups or 1)

    def bottleneck(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → (B, T, S, bottleneck): the convolution's input, zero at padding."""
        h = self.reduce(F.relu(self.norm1(x, padding)))
        return F.relu(self.norm2(h, padding))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → (B, T, S, growth)."""
        h = self.conv(self.bottleneck(x, padding))
        return ops.dropout(h, p=self.dropout if self.training else 0.0)

    def step(
        self, x: Tensor, padding: Tensor | None, rows: list[Tensor], origins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One row (B, 1, S, C) → (B, 1, S, growth), and the row to be kept, as in :meth:`ResNetLayer.step`."""
        row = self.bottleneck(x, padding)
        return self.conv.step(row, rows, origins), row


class DenseNet(ConvNet):
    """The paper's network (section 3.2): every layer sees the channels of all before it and adds ``growth``.

    Args:
        in_channels: C of the grid; the result has in_channels + layers · growth.
        bottleneck: the 1x1 convolution gives ``bottleneck · growth`` channels (4 in the paper).
        groups: of the masked convolutions; 0 is one group, as in the paper.
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
        growth: int,
        bottleneck: int,
    ):
        super().__init__(
            [
                DenseNetLayer(
                    in_channels + index * growth,
                    growth=growth,
                    bottleneck=bottleneck * growth,
                    kernel_size=kernel_size,
                    dilation=dilation,
                    groups=groups,
                    dropout=dropout,
                    norm=norm,
                )
                for index in range(layers)
            ],
            checkpointing=checkpointing,
        )
        self.out_channels = in_channels + layers * growth
        self.norm = NORMS[norm](self.out_channels)

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: RowCache | None = None) -> Tensor:
        """(B, T, S, C) → (B, T, S, C + layers · growth), to be given to :meth:`finish`."""
        for index in range(len(self.layers)):
            x = torch.cat((x, self.run(index, x, padding, cache)), dim=-1)
        return x

    def finish(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The final normalisation and ReLU, (B, T, S, C) → same."""
        return F.relu(self.norm(x, padding))


CONVNETS: dict[str, Callable[..., ConvNet]] = {"resnet": ResNet, "densenet": DenseNet}
