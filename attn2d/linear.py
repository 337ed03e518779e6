"""Linear layers over the grid: most of the model's arithmetic.

On the CPU, PyTorch computes float32 products by MKL. oneDNN, which PyTorch includes and uses for bfloat16, is faster at
the grid's shapes (many cells, few channels) and applies bias and ReLU in the same pass.

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
from attn2d.backend import Backend
from thoth_core import onednn

PackedWeights = dict[nn.Module, Tensor]
_packed: ContextVar[PackedWeights | None] = ContextVar("packed", default=None)


@contextmanager
def packed_weights(store: PackedWeights) -> Iterator[None]:
    """Within, without gradients, keep weights in ``store`` in oneDNN's own layout instead of converting them each time.

    That is three times faster where there are few cells, as in a step of decoding. A store is valid as long as the
    weights do not change, for example during one search. It applies to the calling thread only.
    """
    token = _packed.set(store)
    try:
        yield
    finally:
        _packed.reset(token)


class _OneDNNLinear(torch.autograd.Function):
    """x weightᵀ + bias, then ReLU if ``relu``, of x normalised if a norm's weight and bias are given.

    The normalised x is recomputed in the backward pass instead of kept, which saves one grid for every linear layer.
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
        backend: Backend,
    ) -> Tensor:
        h, mean, rstd = x, None, None
        if norm_weight is not None and norm_bias is not None:
            h, mean, rstd = ops.layer_norm_parts(x, norm_weight, norm_bias, eps=eps, backend=backend)
        y = onednn.product(h, weight, bias, "relu" if relu else "none")
        ctx.save_for_backward(x, weight, y if relu else None, norm_weight, norm_bias, mean, rstd)
        ctx.eps, ctx.backend = eps, backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, y, norm_weight, norm_bias, mean, rstd = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        rows = grad.reshape(-1, grad.size(-1))
        grad_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        h = x
        if mean is not None:
            h, *_ = ops.layer_norm_parts(x, norm_weight, norm_bias, eps=ctx.eps, backend=ctx.backend)
        grad_weight = rows.t() @ h.reshape(-1, h.size(-1)) if ctx.needs_input_grad[1] else None
        del h, rows  # grids are large: none is held longer than it is needed
        if mean is None:
            grad_x = onednn.product(grad, weight.t(), None, "none") if ctx.needs_input_grad[0] else None
            return grad_x, grad_weight, grad_bias, None, None, None, None, None
        grad = onednn.product(grad, weight.t(), None, "none")
        grad_x, grad_norm_weight, grad_norm_bias = ops.layer_norm_gradients(
            grad, x, norm_weight, norm_bias, (mean, rstd), backend=ctx.backend
        )
        return grad_x, grad_weight, grad_bias, None, grad_norm_weight, grad_norm_bias, None, None


class Linear(nn.Linear):
    """``nn.Linear``, on the CPU through oneDNN unless the backend is ``TORCH``.

    It can normalise its input and apply ReLU to its output.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, backend: Backend = Backend.AUTO):
        super().__init__(in_features, out_features, bias)
        self.backend = backend

    def forward(self, x: Tensor, *, norm: nn.Module | None = None, relu: bool = False) -> Tensor:
        """(..., I) → (..., O)."""
        if self.backend is not Backend.TORCH and onednn.takes(x, self.weight):
            if not torch.is_grad_enabled():
                h = x if norm is None else norm(x)
                return onednn.product(h, self.inference_weight(h), self.bias, "relu" if relu else "none")
            parameters: tuple[Any, ...] = (None, None, 0.0)  # of the norm, where the product can include it
            if isinstance(norm, nn.LayerNorm):
                parameters = (norm.weight, norm.bias, norm.eps)
            elif norm is not None:
                x = norm(x)
            return _OneDNNLinear.apply(x, self.weight, self.bias, relu, *parameters, self.backend)
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
