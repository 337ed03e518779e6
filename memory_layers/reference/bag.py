"""Weighted sums of rows of the table, and their gradients. Axes as in :mod:`memory_layers.reference`."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_layers.reference.checks import check_bag, check_gradient
from memory_layers.reference.precision import accumulation, unrounded
from memory_layers.row_updates import RowGradients

_PAIRS = 4096  # (slot, token) pairs whose row gradients are computed at a time: 8 MiB at V = 512


def weighted_bag(values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """Each token's weighted sum of rows of the table (paper, equation 3).

    Args:
        values: (n_slots, V).
        slots: (T, bag) int64 in [0, n_slots).
        weights: (T, bag).

    Returns:
        (T, V) in values' dtype. The gradient of values is sparse.

    Raises:
        ValueError: shapes that do not fit.
        RuntimeError, IndexError: a slot out of range (on CUDA, PyTorch's device-side assertion).
    """
    check_bag(values, slots, weights)
    dtype = accumulation(values, weights)
    if values.dtype == dtype and slots.numel():
        return F.embedding_bag(slots, values, per_sample_weights=weights.to(dtype), mode="sum", sparse=True)
    rows = F.embedding(slots, values, sparse=True).to(dtype)  # (T, bag, V)
    with unrounded(values):
        return (weights.to(dtype).unsqueeze(1) @ rows).squeeze(1).to(values.dtype)


def weighted_bag_weights_backward(grad: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """The gradient of the weights: the dot product of each row read with its token's gradient.

    Args:
        grad: (T, V).
        values: (n_slots, V).
        slots: (T, bag) int64.

    Returns:
        (T, bag), float32 or float64.
    """
    dtype = accumulation(grad, values)
    tokens = max(1, _PAIRS // max(slots.size(1), 1))
    parts = zip(slots.split(tokens), grad.to(dtype).split(tokens), strict=True)
    with unrounded(values):
        return torch.cat([(values[s].to(dtype) @ g.unsqueeze(2)).squeeze(2) for s, g in parts])


def weighted_bag_values_backward(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
    """The gradient of the values: the rows that were read, in ascending order, and their gradients.

    Args:
        grad: (T, V).
        slots: (T, bag) int64 in [0, n_slots).
        weights: (T, bag).
        n_slots: rows of the table.

    Returns:
        slots (U,) int64 and their gradients (U, V) in grad's dtype.
    """
    gradient = RowGradients(grad, slots, weights)
    check_gradient(gradient)
    parts = [(slots.new_empty(0), grad.new_empty(0, grad.size(1))), *row_gradients(gradient)]
    rows, gradients = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat([g.to(grad.dtype) for g in gradients])


def row_gradients(gradient: RowGradients) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the gradient by rows, slots (u,) ascending and gradients (u, V), without the whole (U, V).

    The gradient of row r is the sum of weights[t, b] · grad[t] over all (t, b) with slots[t, b] = r, in that order.
    """
    grad, slots, weights = gradient
    if slots.numel() == 0:
        return
    dtype = accumulation(grad, weights)
    pairs = slots.flatten().argsort(stable=True)
    rows, counts = slots.flatten()[pairs].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    # Cut where a row ends, after about _PAIRS pairs.
    marks = torch.tensor(range(_PAIRS, slots.numel(), _PAIRS), dtype=torch.int64, device=slots.device)
    cuts = [0, *torch.searchsorted(ends, marks).add_(1).unique().tolist(), len(rows)]
    places = [0, *(ends[i - 1].item() for i in cuts[1:])]
    for i in range(len(cuts) - 1):
        if cuts[i] == cuts[i + 1]:
            continue
        part = pairs[places[i] : places[i + 1]]
        products = grad[part // slots.size(1)].to(dtype) * weights.flatten()[part].to(dtype).unsqueeze(1)
        lengths = counts[cuts[i] : cuts[i + 1]]
        yield rows[cuts[i] : cuts[i + 1]], torch.segment_reduce(products, "sum", lengths=lengths, unsafe=True)
