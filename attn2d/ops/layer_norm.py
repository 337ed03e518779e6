"""Layer norm over the channels, with zeros at padded cells.

Axes: B batch, T target rows, S source columns, C channels (innermost).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn2d.backend import BUILT, Backend
from attn2d.ops.dtypes import accumulator, promoted


def layer_norm_masked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    padding: Tensor | None = None,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """Layer norm over the channels, with zeros written at padded cells, in one pass.

    Args:
        x: (B, T, S, C).
        weight, bias: (C,).
        padding: (B, S) or (B, T, S) bool, True at padded columns or cells; None if there are none.
    """
    x, weight, bias = promoted(x, weight, bias)
    if not backend.is_native_for(x, weight, bias):
        return torch_layer_norm_masked(x, weight, bias, eps=eps, padding=padding)
    if padding is not None and padding.dim() == x.dim() - 2:
        padding = padding.unsqueeze(1).expand(x.shape[:-1])
    return torch.ops.attn2d.layer_norm_masked(x, weight, bias, eps, padding)[0]


def torch_layer_norm_masked(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, padding: Tensor | None = None
) -> Tensor:
    """Twin of :func:`layer_norm_masked`."""
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if padding is None:
        return y
    if padding.dim() == x.dim() - 2:
        padding = padding.unsqueeze(1)
    return y.masked_fill(padding.unsqueeze(-1), 0)


def layer_norm_parts(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, backend: Backend = Backend.AUTO
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the channels, without autograd: its result and what :func:`layer_norm_gradients` needs.

    Args:
        x: (..., C) of four axes; weight, bias: (C,); all of one dtype.

    Returns:
        y as x, and each cell's mean and inverse standard deviation.
    """
    if backend.is_native_for(x, weight, bias):
        return torch.ops.attn2d.layer_norm_masked(x, weight, bias, eps, None)
    return torch.ops.aten.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def layer_norm_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor],
    *,
    backend: Backend = Backend.AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, from that of y.

    Args:
        statistics: the mean and the inverse standard deviation that :func:`layer_norm_parts` returned.
    """
    mean, rstd = statistics
    if backend.is_native_for(x, weight, bias):
        return torch.ops.attn2d.layer_norm_masked_grad(grad, x, weight, mean, rstd, None)
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True]
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, _, padding = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, mean, rstd, padding)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None
    x, weight, mean, rstd, padding = ctx.saved_tensors
    return *torch.ops.attn2d.layer_norm_masked_grad(grad, x, weight, mean, rstd, padding), None, None


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    cells = x.numel() // x.size(-1)
    return x.new_empty(x.shape), x.new_empty(cells, dtype=accumulator(x)), x.new_empty(cells, dtype=accumulator(x))


def _grad_fake(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


if BUILT:
    torch.library.register_fake("attn2d::layer_norm_masked", _fake)
    torch.library.register_fake("attn2d::layer_norm_masked_grad", _grad_fake)
    torch.library.register_autograd("attn2d::layer_norm_masked", _backward, setup_context=_setup)
