"""The memory's operators, with gradients, for eager PyTorch and ``torch.compile``.

Their definitions are the functions of the same names in :mod:`memory_layers.reference`; see there for shapes, the order
of equal scores, and errors. Every operator takes the keyword ``backend``:

- ``cpu``, ``cuda``: that device's kernels; TypeError for tensors that they do not take.
- ``torch``: the plain definitions.
- ``auto``: the kernels where they are built and take the tensors, else the definitions.

The results of the kernels do not depend on the number of threads, bit for bit.
"""

import torch
from torch import Tensor

from memory_layers import reference
from memory_layers.backends import BACKENDS, KERNELS, backends, check_available, check_takes, has_kernel, takes
from memory_layers.library import SCHEMAS
from memory_layers.reference import checks
from memory_layers.row_updates import AdamState, AdamStep, RowGradients

__all__ = [
    "BACKENDS",
    "KERNELS",
    "SCHEMAS",
    "backends",
    "check_available",
    "check_takes",
    "product_key_memory",
    "product_key_select",
    "product_key_topk",
    "rows_adam_",
    "rows_squared_norm",
    "weighted_bag",
    "weighted_bag_weights_backward",
]

_registered = torch.ops.memory_layers


def _runs_plainly(name: str, backend: str, *tensors: Tensor, k: int = 0, n: int = 0) -> bool:
    """Whether the plain definition runs on ``tensors``, with k slots of n sub-keys, and not the registered operator."""
    check_takes(backend, *tensors, k=k, n=n)
    device = tensors[0].device.type
    return backend == "torch" or (not takes(device, tensors, k, n) and has_kernel(name, device))


def product_key_select(half_scores: Tensor, k: int, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """See :func:`memory_layers.reference.product_key_select`: (T, H, 2, N) → scores, slots (T, H, K)."""
    checks.check_select(half_scores, k)
    half_scores = half_scores.to(reference.accumulation(half_scores))
    if _runs_plainly("product_key_select", backend, half_scores, k=k, n=half_scores.size(3)):
        return reference.product_key_select(half_scores, k)
    return _registered.product_key_select(half_scores, k)


def product_key_topk(queries: Tensor, sub_keys: Tensor, k: int, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """See :func:`memory_layers.reference.product_key_topk`: (T, H, D), (H, 2, N, D/2) → scores, slots (T, H, K).

    Differentiable in queries and sub_keys, deterministically.
    """
    checks.check_topk(queries, sub_keys, k)
    if _runs_plainly("product_key_topk", backend, queries, sub_keys, k=k, n=sub_keys.size(2)):
        return reference.product_key_topk(queries, sub_keys, k)
    return _registered.product_key_topk(queries, sub_keys, k)


def weighted_bag(values: Tensor, slots: Tensor, weights: Tensor, *, backend: str = "auto") -> Tensor:
    """See :func:`memory_layers.reference.weighted_bag`: (n_slots, V), (T, bag), (T, bag) → (T, V).

    Differentiable in weights and, with a sparse (coalesced) gradient, in values, deterministically.
    """
    checks.check_bag(values, slots, weights)
    if _runs_plainly("weighted_bag", backend, values, weights):
        return reference.weighted_bag(values, slots, weights)
    return _registered.weighted_bag(values, slots, weights)


def weighted_bag_weights_backward(grad: Tensor, values: Tensor, slots: Tensor, *, backend: str = "auto") -> Tensor:
    """See :func:`memory_layers.reference.weighted_bag_weights_backward`: (T, V), (n_slots, V), (T, bag) → (T, bag)."""
    if _runs_plainly("weighted_bag_weights_backward", backend, values, grad):
        return reference.weighted_bag_weights_backward(grad, values, slots)
    return _registered.weighted_bag_weights_backward(grad, values, slots)


def product_key_memory(
    queries: Tensor, sub_keys: Tensor, values: Tensor, k: int, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`memory_layers.reference.product_key_memory`: the fused lookup, softmax and bag.

    (T, H, D), (H, 2, N, D/2), (N·N, V) → output (T, V), weights and slots (T, H, K). Differentiable as
    :func:`product_key_topk` and :func:`weighted_bag` are, from the output and the weights.
    """
    checks.check_memory(queries, sub_keys, values, k)
    if _runs_plainly("product_key_memory", backend, queries, sub_keys, values, k=k, n=sub_keys.size(2)):
        return reference.product_key_memory(queries, sub_keys, values, k)
    return _registered.product_key_memory(queries, sub_keys, values, k)


def rows_squared_norm(gradient: RowGradients, n_slots: int, *, backend: str = "auto") -> Tensor:
    """See :func:`memory_layers.reference.rows_squared_norm`: a float64 scalar."""
    checks.check_gradient(gradient)
    if _runs_plainly("rows_squared_norm", backend, gradient.grad, gradient.weights):
        return reference.rows_squared_norm(gradient, n_slots)
    return _registered.rows_squared_norm(*gradient, n_slots)


def rows_adam_(
    values: Tensor, state: AdamState, gradient: RowGradients, step: AdamStep, *, backend: str = "auto"
) -> None:
    """See :func:`memory_layers.reference.rows_adam_`: one step of Adam on the rows that were read."""
    checks.check_adam(values, state, gradient, step)
    with torch.no_grad():
        if _runs_plainly("rows_adam_", backend, values, gradient.grad, gradient.weights):
            reference.rows_adam_(values, state, gradient, step)
        else:
            _registered.rows_adam_(values, *state, *gradient, *step)
    # Autograd does not see what the kernels write.
    torch.autograd.graph.increment_version([x for x in (values, *state) if x is not None])
