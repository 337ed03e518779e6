"""One row of the grid at a time, without autograd: what a step of incremental decoding computes.

A step normalises its row (:func:`norm_row`), keeps it for the steps after it, and convolves it with the rows kept
before it (:func:`residual_conv_row`). Kept rows stay where they are when hypotheses are reordered: ``origins`` says
which hypothesis of each kept row every hypothesis of now continues.

Axes: B batch (times beam), B' that of an earlier step, S source columns, C channels (innermost); kernels have h rows
and k columns.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attn2d.backend import BUILT, Backend
from attn2d.ops.convolution import torch_causal_depthwise_conv
from attn2d.ops.dtypes import accumulator

_LANES = 16  # channels side by side in a packed row, kLanes of csrc/kernels.h


def norm_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    margin: int,
    padding: Tensor | None = None,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """Layer norm of a row, zero at padded columns, in the form that :func:`residual_conv_row` takes.

    Args:
        x: (B, 1, S, C).
        weight, bias: (C,), of x's dtype.
        margin: columns beside the row that the convolution reaches, ⌊k/2⌋·dilation.
        padding: (B, S) bool, True at padded columns; None if there are none.

    Returns:
        The row in a form that depends on the backend.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, or a gradient would be needed.
    """
    _refuse_gradients(x, weight, bias)
    if backend.is_native_for(x, weight, bias):
        return torch.ops.attn2d.packed_norm_row(x, weight, bias, eps, padding, margin)
    return torch_norm_row(x, weight, bias, eps=eps, padding=padding)


def torch_norm_row(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, padding: Tensor | None = None) -> Tensor:
    """Twin of :func:`norm_row`, whose rows are (B, 1, S, C)."""
    row = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return row if padding is None else row.masked_fill(padding[:, None, :, None], 0)


def residual_conv_row(
    x: Tensor,
    row: Tensor,
    *,
    above: list[Tensor],
    origins: Tensor | None,
    weight: Tensor,
    dilation: int,
    scale: float,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """(x + convolution of the rows above and ``row``) · scale, (B, 1, S, C).

    Args:
        x: (B, 1, S, C).
        row: of :func:`norm_row`, the row that the convolution ends on.
        above: those of the steps before, the oldest first, at most (h - 1)·dilation; missing ones are zeros.
        origins: (len(above), B) int64, which hypothesis of each row above every one of x continues; None without rows.
        weight: (C, 1, h, k), k odd.

    Raises:
        RuntimeError: rows or origins that do not fit x, or a gradient would be needed.
        IndexError: origins outside the rows.
    """
    _refuse_gradients(x, row, weight)
    if backend.is_native_for(x, weight):
        return torch.ops.attn2d.residual_conv_row(x, row, above, origins, weight, dilation, scale)
    return torch_residual_conv_row(x, row, above=above, origins=origins, weight=weight, dilation=dilation, scale=scale)


def torch_residual_conv_row(
    x: Tensor,
    row: Tensor,
    *,
    above: list[Tensor],
    origins: Tensor | None,
    weight: Tensor,
    dilation: int,
    scale: float,
) -> Tensor:
    """Twin of :func:`residual_conv_row`."""
    stack = torch.cat((*follow(above, origins), row), dim=1)
    top = (weight.size(2) - 1) * dilation - len(above)
    return (x + torch_causal_depthwise_conv(stack, weight, dilation=dilation, top=top)) * scale


def follow(rows: Sequence[Tensor], origins: Tensor | None) -> list[Tensor]:
    """Rows (B', 1, S, C) as each hypothesis continues them, (B, 1, S, C); ``origins`` (len(rows), B)."""
    return [] if origins is None else [row.index_select(0, origin) for row, origin in zip(rows, origins, strict=True)]


def _refuse_gradients(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError("the operators of a decoding step have no gradient: call them within torch.no_grad()")


def _norm_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, padding: Tensor | None, margin: int) -> Tensor:
    blocks = (x.size(3) + _LANES - 1) // _LANES
    return x.new_empty(x.size(0), blocks, x.size(2) + 2 * margin, _LANES, dtype=accumulator(x))


def _conv_fake(
    x: Tensor,
    row: Tensor,
    above: list[Tensor],
    origins: Tensor | None,
    weight: Tensor,
    dilation: int,
    scale: float,
) -> Tensor:
    return x.new_empty(x.shape)


if BUILT:
    torch.library.register_fake("attn2d::packed_norm_row", _norm_fake)
    torch.library.register_fake("attn2d::residual_conv_row", _conv_fake)
