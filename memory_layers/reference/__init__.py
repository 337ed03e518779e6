"""The operators of :mod:`memory_layers.ops` in plain PyTorch: their definition, and what runs without a kernel.

Lample, Sablayrolles, Ranzato, Denoyer, Jégou: *Large Memory Layers with Product Keys*, NeurIPS 2019 (arXiv 1907.05242),
section 3. All functions but the ``..._backward`` and ``rows_...`` ones are differentiable by PyTorch itself.

Axes: T tokens, H heads, N sub-keys per half (a memory of product keys has N·N slots), K selected slots per head, D key
dimension, V value dimension, bag = H·K slots read for one token, U distinct slots, n_slots rows of a table.

**Accumulation.** Half scores, weighted sums and row gradients are accumulated in float32 (float64 for float64) whatever
the inputs are, see :func:`accumulation`.

**Order of scores.** NaN above +inf, then by value with -0 = +0; of equal scores (and among NaNs) the lowest slot comes
first. The score of slot i·N + j is one floating-point addition, half_scores[0, i] + half_scores[1, j], so that slots
and scores are defined to the bit by the half scores. +inf + -inf is NaN, and so ranks first.
"""

from torch import Tensor

from memory_layers.reference.bag import weighted_bag, weighted_bag_values_backward, weighted_bag_weights_backward
from memory_layers.reference.checks import check_memory
from memory_layers.reference.precision import accumulation
from memory_layers.reference.rows import rows_adam_, rows_squared_norm
from memory_layers.reference.selection import (
    flat_key_topk,
    half_scores,
    key_gradients,
    order,
    product_key_select,
    product_key_select_backward,
    product_key_topk,
    product_key_topk_backward,
)

__all__ = [
    "accumulation",
    "flat_key_topk",
    "half_scores",
    "key_gradients",
    "order",
    "product_key_memory",
    "product_key_select",
    "product_key_select_backward",
    "product_key_topk",
    "product_key_topk_backward",
    "rows_adam_",
    "rows_squared_norm",
    "weighted_bag",
    "weighted_bag_values_backward",
    "weighted_bag_weights_backward",
]


def product_key_memory(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The whole memory: the k best slots per head, softmax over their scores, weighted sum over all heads' slots.

    Paper, equations 1 to 3; the heads' outputs are summed (section 3.3).

    Args:
        queries: (T, H, D), D even.
        sub_keys: (H, 2, N, D/2).
        values: (N·N, V), shared by the heads.
        k: 1 <= k <= N.

    Returns:
        output (T, V) in values' dtype, weights (T, H, K), float32 or float64, and slots (T, H, K) int64.

    Raises:
        ValueError: shapes that do not fit, odd D, k out of range.
    """
    check_memory(queries, sub_keys, values, k)
    scores, slots = product_key_topk(queries, sub_keys, k)
    weights = scores.softmax(dim=-1)
    return weighted_bag(values, slots.flatten(1), weights.flatten(1)), weights, slots
