"""Registration of ``torch.ops.memory_layers``: schemas, definitions, autocast, shapes and gradients of the operators.

The compiled extension (``csrc/``) brings kernels for the CPU and for CUDA; where there is none for a device or a number
format, the plain definitions of :mod:`memory_layers.reference` run. :mod:`memory_layers.ops` calls the operators.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memory_layers import reference
from memory_layers.row_updates import AdamState, AdamStep, RowGradients
from thoth_core.extensions import load_beside

SCHEMAS = (
    "product_key_select(Tensor half_scores, int k) -> (Tensor scores, Tensor slots)",
    "product_key_select_backward(Tensor grad, Tensor slots, int n) -> Tensor",
    "product_key_topk(Tensor queries, Tensor sub_keys, int k) -> (Tensor scores, Tensor slots)",
    "product_key_topk_backward(Tensor grad, Tensor slots, Tensor queries, Tensor sub_keys)"
    " -> (Tensor grad_queries, Tensor grad_sub_keys)",
    "weighted_bag(Tensor values, Tensor slots, Tensor weights) -> Tensor",
    "weighted_bag_weights_backward(Tensor grad, Tensor values, Tensor slots) -> Tensor",
    "weighted_bag_values_backward(Tensor grad, Tensor slots, Tensor weights, int n_slots)"
    " -> (Tensor rows, Tensor row_gradients)",
    "product_key_memory(Tensor queries, Tensor sub_keys, Tensor values, int k)"
    " -> (Tensor output, Tensor weights, Tensor slots)",
    "rows_squared_norm(Tensor grad, Tensor slots, Tensor weights, int n_slots) -> Tensor",
    "rows_adam_(Tensor(a!) values, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? master, Tensor grad, "
    "Tensor slots, Tensor weights, float scale, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "int step) -> ()",
)

load_beside(__file__)
_library = torch.library.Library("memory_layers", "DEF")
for _schema in SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_ops = torch.ops.memory_layers


# ---- definitions where there is no kernel ------------------------------------------------------------------
# The larger operators are composed of the smaller ones, any of which may have a kernel.


def _topk(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _ops.product_key_select(reference.half_scores(queries, sub_keys), k)


def _topk_backward(grad: Tensor, slots: Tensor, queries: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
    grad_halves = _ops.product_key_select_backward(grad, slots, sub_keys.size(2))
    return reference.key_gradients(grad_halves, queries, sub_keys)


def _memory(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    scores, slots = _ops.product_key_topk(queries, sub_keys, k)
    weights = scores.softmax(dim=-1)
    return _ops.weighted_bag(values, slots.flatten(1), weights.flatten(1)), weights, slots


def _squared_norm(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> Tensor:
    return reference.rows_squared_norm(RowGradients(grad, slots, weights), n_slots)


def _adam(
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor | None,
    grad: Tensor,
    slots: Tensor,
    weights: Tensor,
    *numbers: Any,
) -> None:
    state, gradient = AdamState(exp_avg, exp_avg_sq, master), RowGradients(grad, slots, weights)
    reference.rows_adam_(values, state, gradient, AdamStep(*numbers))


for _name, _definition in (
    ("product_key_select", reference.product_key_select),
    ("product_key_select_backward", reference.product_key_select_backward),
    ("product_key_topk", _topk),
    ("product_key_topk_backward", _topk_backward),
    ("weighted_bag", reference.weighted_bag),
    ("weighted_bag_weights_backward", reference.weighted_bag_weights_backward),
    ("weighted_bag_values_backward", reference.weighted_bag_values_backward),
    ("product_key_memory", _memory),
    ("rows_squared_norm", _squared_norm),
    ("rows_adam_", _adam),
):
    _library.impl(_name, _definition, "CompositeExplicitAutograd")


# ---- autocast ----------------------------------------------------------------------------------------------
# The operators define their own precision: autocast must not round the matrix products inside.


def _without_autocast(operator: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operator(*arguments)

    return run


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
for _schema in SCHEMAS:
    _name = _schema.partition("(")[0]
    for _key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(_name, _without_autocast(getattr(_ops, _name).default), _key)


# ---- shapes ------------------------------------------------------------------------------------------------


def _select_fake(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*half_scores.shape[:2], k)
    scores = half_scores.new_empty(shape, dtype=reference.accumulation(half_scores))
    return scores, half_scores.new_empty(shape, dtype=torch.int64)


def _select_backward_fake(grad: Tensor, slots: Tensor, n: int) -> Tensor:
    return grad.new_empty((*grad.shape[:2], 2, n))


def _topk_fake(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], k)
    scores = queries.new_empty(shape, dtype=reference.accumulation(queries, sub_keys))
    return scores, queries.new_empty(shape, dtype=torch.int64)


def _topk_backward_fake(grad: Tensor, slots: Tensor, queries: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), sub_keys.new_empty(sub_keys.shape)


def _bag_fake(values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    return values.new_empty(slots.size(0), values.size(1))


def _bag_weights_backward_fake(grad: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    return grad.new_empty(slots.shape, dtype=reference.accumulation(grad, values))


def _bag_values_backward_fake(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
    touched = torch.library.get_ctx().new_dynamic_size()
    return slots.new_empty(touched), grad.new_empty(touched, grad.size(1))


def _memory_fake(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    weights, slots = _topk_fake(queries, sub_keys, k)
    return values.new_empty(queries.size(0), values.size(1)), weights, slots


def _squared_norm_fake(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> Tensor:
    return grad.new_empty((), dtype=torch.float64)


def _adam_fake(*arguments: Any) -> None:
    return None


for _name, _fake in (
    ("product_key_select", _select_fake),
    ("product_key_select_backward", _select_backward_fake),
    ("product_key_topk", _topk_fake),
    ("product_key_topk_backward", _topk_backward_fake),
    ("weighted_bag", _bag_fake),
    ("weighted_bag_weights_backward", _bag_weights_backward_fake),
    ("weighted_bag_values_backward", _bag_values_backward_fake),
    ("product_key_memory", _memory_fake),
    ("rows_squared_norm", _squared_norm_fake),
    ("rows_adam_", _adam_fake),
):
    torch.library.register_fake(f"memory_layers::{_name}", _fake, lib=_library)


# ---- gradients ---------------------------------------------------------------------------------------------


def _select_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.n = inputs[0].size(3)
    ctx.dtype = inputs[0].dtype
    _, slots = output
    ctx.mark_non_differentiable(slots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(slots)


def _select_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None
    return _ops.product_key_select_backward(grad, ctx.saved_tensors[0], ctx.n).to(ctx.dtype), None


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    queries, sub_keys, _ = inputs
    _, slots = output
    ctx.mark_non_differentiable(slots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, sub_keys, slots)


def _topk_autograd(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    queries, sub_keys, slots = ctx.saved_tensors
    return *_ops.product_key_topk_backward(grad, slots, queries, sub_keys), None


def _bag_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _values_gradient(grad: Tensor, values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """The coalesced sparse gradient of values."""
    rows, gradients = _ops.weighted_bag_values_backward(grad, slots, weights, values.size(0))
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), gradients.to(values.dtype), values.shape, check_invariants=False, is_coalesced=True
    )


def _bag_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, slots, weights = ctx.saved_tensors
    grad_values = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_values = _values_gradient(grad, values, slots, weights)
    if ctx.needs_input_grad[2]:
        grad_weights = _ops.weighted_bag_weights_backward(grad, values, slots).to(weights.dtype)
    return grad_values, None, grad_weights


def _memory_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    queries, sub_keys, values, _ = inputs
    _, weights, slots = output
    ctx.mark_non_differentiable(slots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, sub_keys, values, weights, slots)


def _memory_autograd(ctx: Any, grad: Tensor | None, grad_weights: Tensor | None, _: Any) -> tuple[Any, ...]:
    queries, sub_keys, values, weights, slots = ctx.saved_tensors
    grad_queries = grad_keys = grad_values = None
    bag = slots.flatten(1)
    if grad is not None and ctx.needs_input_grad[2]:
        grad_values = _values_gradient(grad, values, bag, weights.flatten(1))
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        if grad is not None:
            through = _ops.weighted_bag_weights_backward(grad, values, bag).to(weights.dtype).view(weights.shape)
            grad_weights = through if grad_weights is None else grad_weights + through
        if grad_weights is not None:
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_queries, grad_keys = _ops.product_key_topk_backward(grad_scores, slots, queries, sub_keys)
    return grad_queries, grad_keys, grad_values, None


for _name, _backward, _setup in (
    ("product_key_select", _select_backward, _select_setup),
    ("product_key_topk", _topk_autograd, _topk_setup),
    ("weighted_bag", _bag_autograd, _bag_setup),
    ("product_key_memory", _memory_autograd, _memory_setup),
):
    torch.library.register_autograd(f"memory_layers::{_name}", _backward, setup_context=_setup, lib=_library)
