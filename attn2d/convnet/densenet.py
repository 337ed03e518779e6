"""The densely connected network over the grid (arXiv 1808.03867, section 3.2).

Axes: B batch, T target rows, S source columns, C channels. ``padding`` is (B, S) or (B, T, S), True at padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2d import ops
from attn2d.backend import Backend
from attn2d.convnet.base import ConvNet
from attn2d.convnet.norms import NORMS
from attn2d.convnet.row_cache import RowCache
from attn2d.linear import Linear
from attn2d.masked_conv import MaskedConv2d


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
        backend: Backend = Backend.AUTO,
    ):
        super().__init__()
        self.dropout = dropout
        self.backend = backend
        self.norm1 = NORMS[norm](channels, backend=backend)
        self.reduce = Linear(channels, bottleneck, bias=False, backend=backend)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        self.norm2 = NORMS[norm](bottleneck, backend=backend)
        self.conv = MaskedConv2d(
            bottleneck, growth, kernel_size=kernel_size, dilation=dilation, groups=groups or 1, backend=backend
        )

    def bottleneck(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → (B, T, S, bottleneck): the convolution's input, zero at padding."""
        h = self.reduce(F.relu(self.norm1(x, padding)))
        return F.relu(self.norm2(h, padding))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → (B, T, S, growth)."""
        h = self.conv(self.bottleneck(x, padding))
        return ops.dropout(h, p=self.dropout if self.training else 0.0, backend=self.backend)

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
        backend: Backend = Backend.AUTO,
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
                    backend=backend,
                )
                for index in range(layers)
            ],
            checkpointing=checkpointing,
        )
        self.out_channels = in_channels + layers * growth
        self.norm = NORMS[norm](self.out_channels, backend=backend)

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: RowCache | None = None) -> Tensor:
        """(B, T, S, C) → (B, T, S, C + layers · growth), to be given to :meth:`finish`."""
        for index in range(len(self.layers)):
            x = torch.cat((x, self.run(index, x, padding, cache)), dim=-1)
        return x

    def finish(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The final normalisation and ReLU, (B, T, S, C) → same."""
        return F.relu(self.norm(x, padding))
