"""The maximum over the source, plain and of a gated linear unit.

Axes: B batch, T target rows, S source columns, C channels (innermost).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn2d.backend import BUILT, Backend


def max_over_source(
    x: Tensor, padding: Tensor | None = None, *, backend: Backend = Backend.AUTO
) -> tuple[Tensor, Tensor]:
    """The maximum over the columns that are not padding, and where it is.

    Args:
        x: (B, T, S, C).
        padding: (B, S) bool, True at padded columns; None if there are none.

    Returns:
        values (B, T, C) and indices (B, T, C) int64: the lowest index of the maximum. A sentence without a
        real column gives zeros and index 0, and has no gradient.
    """
    if backend.is_native_for(x):
        return torch.ops.attn2d.max_over_source(x, _mask(x, padding), False)
    return torch_max_over_source(x, padding)


def gated_max(x: Tensor, padding: Tensor | None = None, *, backend: Backend = Backend.AUTO) -> tuple[Tensor, Tensor]:
    """:func:`max_over_source` of a gated linear unit, x (B, T, S, 2C) → a · sigmoid(b) → (B, T, C).

    The unit's output is not written, and the backward computes gates at the maxima only.
    """
    if backend.is_native_for(x):
        return torch.ops.attn2d.max_over_source(x, _mask(x, padding), True)
    return torch_gated_max(x, padding)


def _mask(x: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None:
        return torch.zeros(x.size(0), x.size(2), dtype=torch.bool, device=x.device)
    return padding


def torch_max_over_source(x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Twin of :func:`max_over_source`."""
    if padding is None:
        values, indices = x.max(dim=2)
        return values, indices
    values, indices = x.masked_fill(padding[:, None, :, None], float("-inf")).max(dim=2)
    empty = padding.all(dim=1)[:, None, None]
    return values.masked_fill(empty, 0), indices.masked_fill(empty, 0)


def torch_gated_max(x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Twin of :func:`gated_max`."""
    return torch_max_over_source(F.glu(x, dim=-1), padding)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, padding, ctx.gated = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    if not ctx.gated:
        x = x.new_empty(()).expand(x.shape)  # the backward needs the shape alone
    ctx.save_for_backward(x, output[1], padding)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    x, indices, padding = ctx.saved_tensors
    return torch.ops.attn2d.max_over_source_grad(grad, indices, x, padding, ctx.gated), None, None


def _fake(x: Tensor, padding: Tensor, gated: bool) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], x.size(3) // 2 if gated else x.size(3))
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _grad_fake(grad: Tensor, indices: Tensor, x: Tensor, padding: Tensor, gated: bool) -> Tensor:
    return x.new_empty(x.shape)


if BUILT:
    torch.library.register_fake("attn2d::max_over_source", _fake)
    torch.library.register_fake("attn2d::max_over_source_grad", _grad_fake)
    torch.library.register_autograd("attn2d::max_over_source", _backward, setup_context=_setup)
