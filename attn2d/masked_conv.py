"""Convolution over the grid that is causal along the target axis.

Axes: B batch, T target rows, S source columns, C channels; k kernel width, h = ⌊k/2⌋ + 1 kernel rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2d import ops
from attn2d.backend import Backend


class MaskedConv2d(nn.Module):
    """k x k convolution whose row t sees rows ≤ t only (paper, section 3.2, figure 2).

    The kernel's lower half, which the mask would zero, does not exist: the weight is (C_out, C_in / groups, h, k),
    its last row on row t itself. Same output size as input; zeros above the first row and beside the columns.

    Args:
        in_channels, out_channels: C before and after.
        kernel_size: k, odd.
        dilation: distance between taps, along both axes.
        groups: groups of channels; ``in_channels`` for a depth-wise convolution.
        backend: implementation of a depth-wise convolution; others are PyTorch's.

    Raises:
        ValueError: an even kernel size, or groups that do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
        backend: Backend = Backend.AUTO,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"the kernel size must be odd and positive, given {kernel_size}")
        if dilation < 1:
            raise ValueError(f"the dilation must be at least 1, given {dilation}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide the convolution's channels, given {groups} groups for {in_channels} input and "
                f"{out_channels} output channels"
            )
        self.backend = backend
        self.dilation = dilation
        self.groups = groups
        self.depthwise = groups == in_channels == out_channels
        self.rows_above = (kernel_size // 2) * dilation
        self.columns_beside = (kernel_size // 2) * dilation
        # Conv2d holds and initialises the parameters; its own forward, which pads both ends of T, is not used.
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            (kernel_size // 2 + 1, kernel_size),
            dilation=dilation,
            groups=groups,
            bias=False,  # a normalisation or a residual sum follows every convolution of ours
        )
        nn.init.kaiming_uniform_(self.conv.weight, nonlinearity="linear")

    def forward(self, x: Tensor, top: int | None = None) -> Tensor:
        """Convolve x (B, T, S, C_in) → (B, T, S, C_out), with rows of zeros above the first.

        With ``top`` only that many rows of zeros stand above: (B, T + top - rows_above, S, C_out).
        """
        top = self.rows_above if top is None else top
        if self.depthwise:
            return ops.causal_depthwise_conv(x, self.conv.weight, dilation=self.dilation, top=top, backend=self.backend)
        # The permuted view of a channels-innermost tensor is PyTorch's channels_last: no copy on either device.
        image = F.pad(x.permute(0, 3, 1, 2), (0, 0, top, 0))
        y = F.conv2d(
            image,
            self.conv.weight,
            padding=(0, self.columns_beside),
            dilation=self.dilation,
            groups=self.groups,
        )
        return y.permute(0, 2, 3, 1)

    def step(self, x: Tensor, rows: list[Tensor], origins: Tensor | None) -> Tensor:
        """Convolve the next row x (B, 1, S, C_in) → (B, 1, S, C_out).

        Args:
            rows: the inputs (B', 1, S, C_in) of the steps before, the oldest first, at most ``rows_above``.
            origins: (len(rows), B) int64, which hypothesis of each row every one of x continues; None without rows.
        """
        return self(torch.cat((*ops.follow(rows, origins), x), dim=1), top=self.rows_above - len(rows))
