"""Checks of the operators' arguments. Axes as in :mod:`memory_layers.reference`."""

import torch
from torch import Tensor

from memory_layers.reference.precision import accumulation
from memory_layers.row_updates import AdamState, AdamStep, RowGradients


def check_select(half_scores: Tensor, k: int) -> None:
    """Raise ValueError unless half_scores is (T, H, 2, N) floating point and 1 <= k <= N."""
    if half_scores.dim() != 4 or half_scores.size(2) != 2 or not half_scores.is_floating_point():
        raise ValueError(
            "half_scores must be floating point of shape (tokens, heads, 2, n), "
            f"given {half_scores.dtype} {tuple(half_scores.shape)}"
        )
    _check_k(k, half_scores.size(3))


def check_topk(queries: Tensor, sub_keys: Tensor, k: int) -> None:
    """Raise ValueError unless queries is (T, H, D), sub_keys (H, 2, N, D/2), both floating point, and 1 <= k <= N."""
    shapes = f"queries {tuple(queries.shape)} and sub_keys {tuple(sub_keys.shape)}"
    if queries.dim() != 3 or sub_keys.dim() != 4:
        raise ValueError(f"queries must be (tokens, heads, key_dim), sub_keys (heads, 2, n, key_dim/2), given {shapes}")
    if queries.size(2) % 2:
        raise ValueError(f"key_dim must be even, since it is split in two halves, given {queries.size(2)}")
    if (sub_keys.size(0), sub_keys.size(1), 2 * sub_keys.size(3)) != (queries.size(1), 2, queries.size(2)):
        raise ValueError(f"sub_keys must be (heads, 2, n, key_dim/2) of the queries' heads and key_dim, given {shapes}")
    if not (queries.is_floating_point() and sub_keys.is_floating_point()):
        raise ValueError(f"queries and sub_keys must be floating point, given {queries.dtype} and {sub_keys.dtype}")
    _check_device(queries, sub_keys)
    _check_k(k, sub_keys.size(2))


def check_bag(values: Tensor, slots: Tensor, weights: Tensor) -> None:
    """Raise ValueError unless values is (n_slots, V), slots (T, bag) int64, weights (T, bag), floating point."""
    if values.dim() != 2 or not values.is_floating_point():
        raise ValueError(
            f"values must be floating point of shape (n_slots, dim), given {values.dtype} {tuple(values.shape)}"
        )
    _check_pairs(slots, weights)
    _check_device(values, slots, weights)


def check_gradient(gradient: RowGradients) -> None:
    """Raise ValueError unless grad is (T, V), slots (T, bag) int64, weights (T, bag)."""
    grad, slots, weights = gradient
    _check_pairs(slots, weights)
    if grad.dim() != 2 or grad.size(0) != slots.size(0):
        raise ValueError(f"grad must be (tokens, dim) of {slots.size(0)} tokens, given {tuple(grad.shape)}")
    _check_device(grad, slots, weights)


def _check_pairs(slots: Tensor, weights: Tensor) -> None:
    if slots.dim() != 2 or slots.shape != weights.shape:
        raise ValueError(
            f"slots and weights must have one shape (tokens, bag), given {tuple(slots.shape)} and "
            f"{tuple(weights.shape)}"
        )
    if slots.dtype != torch.int64 or not weights.is_floating_point():
        raise ValueError(f"slots must be int64 and weights floating point, given {slots.dtype} and {weights.dtype}")


def check_memory(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> None:
    """Raise ValueError unless :func:`check_topk` passes and values is (N·N, V), floating point."""
    check_topk(queries, sub_keys, k)
    n = sub_keys.size(2)
    if values.dim() != 2 or values.size(0) != n * n or not values.is_floating_point():
        raise ValueError(
            f"values must be floating point of shape (n·n, dim) for n = {n} sub-keys, "
            f"given {values.dtype} {tuple(values.shape)}"
        )
    _check_device(queries, values)


def check_adam(values: Tensor, state: AdamState, gradient: RowGradients, step: AdamStep) -> None:
    """Raise ValueError unless the arguments of :func:`memory_layers.reference.rows_adam_` fit together."""
    check_gradient(gradient)
    wide = accumulation(values)
    for name, tensor in state._asdict().items():
        if tensor is not None and (tensor.shape != values.shape or tensor.dtype != wide):
            raise ValueError(
                f"{name} must be {wide} of values' shape {tuple(values.shape)}, given {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    if values.dim() != 2 or gradient.grad.size(1) != values.size(1):
        raise ValueError(
            f"values must be (n_slots, dim) of grad's dim, given {tuple(values.shape)} and {tuple(gradient.grad.shape)}"
        )
    if step.step < 1:
        raise ValueError(f"step counts from 1, given {step.step}")
    _check_device(values, gradient.grad, *(tensor for tensor in state if tensor is not None))


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and the number of sub-keys n = {n}, given {k}")


def _check_device(*tensors: Tensor) -> None:
    if any(x.device != tensors[0].device for x in tensors):
        raise ValueError(f"all tensors must be on one device, given {', '.join(str(x.device) for x in tensors)}")
