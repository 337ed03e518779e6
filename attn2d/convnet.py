"""Convolutional networks over the grid: the paper's DenseNet and the authors' later ResNet.

Axes: B batch, T target rows, S source columns, C channels. ``padding`` is a boolean mask of the cells, True where
source or target is padding, (B, 1, S, 1) or (B, T, S, 1), or None when there is none. Padded cells are zeroed before
every convolution, so that a sentence's result does not depend on what it is batched with.

``rows`` in the ``forward`` of the networks is the cache of incremental decoding: for every layer the last rows
of its convolution's input, (B, rows_above, S, C); it is replaced in place by the new ones.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn2d import ops
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


def last_rows(above: Tensor | None, x: Tensor, count: int) -> Tensor:
    """The last ``count`` rows of ``above`` (B, count, S, C; None for zeros) followed by x (B, T, S, C)."""
    if above is None:
        above = x.new_zeros(x.size(0), count, x.size(2), x.size(3))
    return torch.cat((above, x), dim=1)[:, x.size(1) :] if count else above


class ConvNet(nn.Module):
    """What both networks share: the layers' caches and gradient checkpointing.

    ``out_channels`` is C of the result.
    """

    out_channels: int

    def __init__(self, layers: list[nn.Module], *, checkpointing: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpointing = checkpointing

    def run(self, index: int, x: Tensor, padding: Tensor | None, rows: list[Tensor | None] | None) -> Tensor:
        """Apply layer ``index`` to x (B, T, S, C); keep the rows that the next target rows need in ``rows``."""
        layer = self.layers[index]
        if rows is not None:
            y, rows[index] = layer(x, padding, rows[index], True)
        elif self.checkpointing and self.training and torch.is_grad_enabled():
            y, _ = checkpoint(layer, x, padding, use_reentrant=False)
        else:
            y, _ = layer(x, padding)
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
        self.expand = nn.Linear(channels, ffn_dim)
        self.contract = nn.Linear(ffn_dim, channels)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """√½ (x + dropout(branch)), both (B, T, S, C)."""
        return ops.dropout_residual(x, branch, p=self.dropout if self.training else 0.0, scale=0.5**0.5)

    def forward(
        self, x: Tensor, padding: Tensor | None, above: Tensor | None = None, keep_rows: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, S, C) → same, and the convolution's last input rows if ``keep_rows``."""
        h = self.conv_norm(x, padding)
        kept = last_rows(above, h, self.conv.rows_above) if keep_rows else None
        x = self.join(x, self.conv(h, above))
        h = F.relu_(self.expand(self.ffn_norm(x)))  # (B, T, S, ffn_dim)
        return self.join(x, self.contract(h)), kept


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

    def forward(self, x: Tensor, padding: Tensor | None = None, rows: list[Tensor | None] | None = None) -> Tensor:
        """(B, T, S, C) → (B, T, S, C)."""
        x = total = self.run(0, x, padding, rows)
        for index in range(1, len(self.layers)):
            x = self.run(index, x, padding, rows)
            total = total + x
        return self.norm(total / len(self.layers), padding)


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
        self.reduce = nn.Linear(channels, bottleneck, bias=False)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        self.norm2 = NORMS[norm](bottleneck)
        self.conv = MaskedConv2d(bottleneck, growth, kernel_size=kernel_size, dilation=dilation, groups=groups or 1)

    def forward(
        self, x: Tensor, padding: Tensor | None, above: Tensor | None = None, keep_rows: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, S, C) → (B, T, S, growth), and the convolution's last input rows if ``keep_rows``."""
        h = self.reduce(F.relu(self.norm1(x, padding)))  # (B, T, S, bottleneck)
        h = self.norm2(h, padding)
        h = F.relu(h)
        kept = last_rows(above, h, self.conv.rows_above) if keep_rows else None
        h = self.conv(h, above)
        return ops.dropout(h, p=self.dropout if self.training else 0.0), kept


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

    def forward(self, x: Tensor, padding: Tensor | None = None, rows: list[Tensor | None] | None = None) -> Tensor:
        """(B, T, S, C) → (B, T, S, C + layers · growth)."""
        for index in range(len(self.layers)):
            x = torch.cat((x, self.run(index, x, padding, rows)), dim=-1)
        return F.relu(self.norm(x, padding))


CONVNETS: dict[str, Callable[..., ConvNet]] = {"resnet": ResNet, "densenet": DenseNet}
