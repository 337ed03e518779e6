"""Linear layers over the grid: most of the model's arithmetic.

On the CPU, PyTorch gives float32 products to MKL; oneDNN, which PyTorch brings along and uses for bfloat16, is faster
at the grid's shapes (many cells, few channels) and applies bias and ReLU on the way.

Axes: ... any, I input and O output channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attn2d import ops
from thoth_core import onednn

PackedWeights = dict[nn.Module, Tensor]
_packed: ContextVar[PackedWeights | None] = ContextVar("packed", default=None)


@contextmanager
def packed_weights(store: PackedWeights) -> Iterator[None]:
    """Within, without gradients, weights are kept in ``store`` in oneDNN's own layout, instead of brought into it at
    every call: three times faster where there are few cells, as in a step of decoding.

    For as long as the weights do not change: the store of one search, say.
    """
    token = _packed.set(store)
    try:
        yield
    finally:
        _packed.reset(token)


class _OneDNNLinear(torch.autograd.Function):
    """x weightᵀ + bias, then ReLU if asked, of x normalised if a norm's weight and bias are given.

    The normalised x is not kept for the backward but made again: a grid less for every linear layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        relu: bool,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        h, mean, rstd = x, None, None
        if norm_weight is not None and norm_bias is not None:
            h, mean, rstd = ops.layer_norm_parts(x, norm_weight, norm_bias, eps=eps)
        y = onednn.product(h, weight, bias, "relu" if relu else "none")
        ctx.save_for_backward(x, weight, y if relu else None, norm_weight, norm_bias, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, y, norm_weight, norm_bias, mean, rstd = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        rows = grad.reshape(-1, grad.size(-1))
        grad_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        h = x if mean is None else ops.layer_norm_parts(x, norm_weight, norm_bias, eps=ctx.eps)[0]
        grad_weight = rows.t() @ h.reshape(-1, h.size(-1)) if ctx.needs_input_grad[1] else None
        del h, rows  # grids are large: none is held longer than it is needed
        if mean is None:
            grad_x = onednn.product(grad, weight.t(), None, "none") if ctx.needs_input_grad[0] else None
            return grad_x, grad_weight, grad_bias, None, None, None, None
        grad = onednn.product(grad, weight.t(), None, "none")
        grad_x, grad_norm_weight, grad_norm_bias = ops.layer_norm_gradients(grad, x, norm_weight, norm_bias, mean, rstd)
        return grad_x, grad_weight, grad_bias, None, grad_norm_weight, grad_norm_bias, None


class Linear(nn.Linear):
    """``nn.Linear``, on the CPU through oneDNN; optionally of the normalised input, optionally followed by ReLU."""

    def forward(self, x: Tensor, *, norm: nn.Module | None = None, relu: bool = False) -> Tensor:
        """(..., I) → (..., O)."""
        if ops.backend() != "torch" and onednn.takes(x, self.weight):
            if not torch.is_grad_enabled():
                h = x if norm is None else norm(x)
                return onednn.product(h, self.inference_weight(h), self.bias, "relu" if relu else "none")
            if isinstance(norm, nn.LayerNorm):
                return _OneDNNLinear.apply(x, self.weight, self.bias, relu, norm.weight, norm.bias, norm.eps)
            h = x if norm is None else norm(x)
            return _OneDNNLinear.apply(h, self.weight, self.bias, relu, None, None, 0.0)
        y = F.linear(x if norm is None else norm(x), self.weight, self.bias)
        return F.relu_(y) if relu else y

    def inference_weight(self, x: Tensor) -> Tensor:
        """The weight in the layout to multiply x with, from the store of :func:`packed_weights` if there is one."""
        store = _packed.get()
        if store is None:
            return self.weight
        if self not in store:
            store[self] = onednn.packed(self.weight)
        return store[self]
