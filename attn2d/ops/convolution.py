"""Depthwise convolution over the grid that is causal along the target.

Axes: B batch, R input rows, S source columns, C channels (innermost); kernels have h rows and k columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn2d.backend import BUILT, Backend
from attn2d.ops.dtypes import promoted


def causal_depthwise_conv(
    x: Tensor, weight: Tensor, *, dilation: int = 1, top: int = 0, backend: Backend = Backend.AUTO
) -> Tensor:
    """Depthwise convolution that is "valid" along the rows and "same" along the columns.

    Output row t uses rows t, t + dilation, ..., t + (h - 1)·dilation of x with ``top`` rows of zeros above;
    with top = (h - 1)·dilation the convolution is causal and keeps the number of rows.

    Args:
        x: (B, R, S, C).
        weight: (C, 1, h, k), k odd.
        dilation: distance between taps, along both axes.
        top: rows of zeros above x; they are not materialised.

    Returns:
        (B, R + top - (h - 1)·dilation, S, C)

    Raises:
        RuntimeError: shapes that do not fit, or an even k.
    """
    x, weight = promoted(x, weight)
    if backend.is_native_for(x, weight):
        return torch.ops.attn2d.causal_depthwise_conv(x, weight, dilation, top)
    return torch_causal_depthwise_conv(x, weight, dilation=dilation, top=top)


def torch_causal_depthwise_conv(x: Tensor, weight: Tensor, *, dilation: int = 1, top: int = 0) -> Tensor:
    """Twin of :func:`causal_depthwise_conv`."""
    channels, _, height, width = weight.shape
    if width % 2 == 0:
        raise RuntimeError(f"the kernel must have an odd number of columns, given {height} x {width}")
    if x.numel() == 0:  # some of PyTorch's convolutions refuse an empty image
        rows = x.size(1) + top - (height - 1) * dilation
        return x.sum() * weight.sum() * x.new_zeros(x.size(0), rows, x.size(2), channels)
    # The permuted view of a channels-innermost tensor is PyTorch's channels_last: no copy on either device.
    image = F.pad(x.permute(0, 3, 1, 2), (0, 0, top, 0))
    padding = (0, (width // 2) * dilation)
    return F.conv2d(image, weight, padding=padding, dilation=dilation, groups=channels).permute(0, 2, 3, 1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.dilation, ctx.top = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.attn2d.causal_depthwise_conv_input_grad(grad, weight, ctx.dilation, ctx.top)
    if ctx.needs_input_grad[1]:
        height, width = weight.shape[2:]
        grad_weight = torch.ops.attn2d.causal_depthwise_conv_weight_grad(x, grad, height, width, ctx.dilation, ctx.top)
    return grad_x, grad_weight, None, None


def _fake(x: Tensor, weight: Tensor, dilation: int, top: int) -> Tensor:
    return x.new_empty(x.size(0), x.size(1) + top - (weight.size(2) - 1) * dilation, x.size(2), x.size(3))


def _input_grad_fake(grad: Tensor, weight: Tensor, dilation: int, top: int) -> Tensor:
    return grad.new_empty(grad.size(0), grad.size(1) + (weight.size(2) - 1) * dilation - top, *grad.shape[2:])


def _weight_grad_fake(x: Tensor, grad: Tensor, height: int, width: int, dilation: int, top: int) -> Tensor:
    return x.new_empty(x.size(3), 1, height, width)


if BUILT:
    torch.library.register_fake("attn2d::causal_depthwise_conv", _fake)
    torch.library.register_fake("attn2d::causal_depthwise_conv_input_grad", _input_grad_fake)
    torch.library.register_fake("attn2d::causal_depthwise_conv_weight_grad", _weight_grad_fake)
    torch.library.register_autograd("attn2d::causal_depthwise_conv", _backward, setup_context=_setup)
