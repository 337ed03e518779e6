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
from attn2d.linear import Linear
from attn2d.masked_conv import MaskedConv2d


class GridBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the cells of real tokens; padded cells come out zero.

    Padding shifts neither the batch's statistics nor the running ones. In training, a cell's value depends on the
    whole batch, later target rows included; in evaluation it does not.
    """

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, S, C) → same."""
        if padding is None:
            return super().forward(x.reshape(-1, x.size(-1))).view(x.shape)
        if not self.training:
            return super().forward(x.reshape(-1, x.size(-1))).view(x.shape).masked_fill(padding, 0)
        real = ~padding.squeeze(-1).expand(x.shape[:-1])
        y = torch.zeros_like(x)
        y[real] = super().forward(x[real])
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
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)``, of which only the inputs are kept for the backward."""
    contexts = lambda: (nullcontext(), frozen_statistics(module))  # noqa: E731
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


class RowCache:
    """What incremental decoding keeps: for every layer, the rows that its last convolution was computed from.

    Reordering is put off until the rows are copied anyway, to make room for the next one.
    """

    def __init__(self, layers: int):
        self.rows: list[Tensor | None] = [None] * layers  # (B, rows_above + 1, S, C) each
        self.order: Tensor | None = None  # (B,): which of the hypotheses in ``rows`` each one now continues

    def reorder(self, order: Tensor) -> None:
        """Follow the beam, (B,) → (len(order),)."""
        self.order = order if self.order is None else self.order.index_select(0, order)


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

    def run(self, index: int, x: Tensor, padding: Tensor | None, cache: RowCache | None) -> Tensor:
        """Apply layer ``index`` to x (B, T, S, C); T = 1 if there is a cache, which is brought up to date."""
        layer: Any = self.layers[index]
        if cache is not None:
            y, cache.rows[index] = layer.step(x, padding, cache.rows[index], cache.order)
            if index == len(self.layers) - 1:
                cache.order = None
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
        return self.feed_forward(self.join(x, self.normed_conv(x, padding)))

    def step(
        self, x: Tensor, padding: Tensor | None, seen: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One row (B, 1, S, C) → same; ``seen`` and ``order`` as in :meth:`MaskedConv2d.step`."""
        h, seen = self.conv.step(self.conv_norm(x, padding), seen, order)
        return self.feed_forward(self.join(x, h)), seen

    def feed_forward(self, x: Tensor) -> Tensor:
        """√½ (x + ffn(norm(x))), (B, T, S, C) → same."""
        h = self.expand(x, norm=self.ffn_norm, relu=True)  # (B, T, S, ffn_dim)
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
        self, x: Tensor, padding: Tensor | None, seen: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One row (B, 1, S, C) → (B, 1, S, growth); ``seen`` and ``order`` as in :meth:`MaskedConv2d.step`."""
        return self.conv.step(self.bottleneck(x, padding), seen, order)


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
