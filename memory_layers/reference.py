"""The operators of :mod:`memory_layers.ops` in plain PyTorch: what they mean, and what runs where no kernel is built.

Lample, Sablayrolles, Ranzato, Denoyer, Jégou: *Large Memory Layers with Product Keys*, NeurIPS 2019 (arXiv 1907.05242),
section 3. All but the ``..._backward``, ``rows_...`` functions are differentiable by PyTorch itself.

Axes: T tokens, H heads, N sub-keys a half (a memory of product keys has N·N slots), K selected slots, D key dimension,
V value dimension, bag = H·K slots read for one token, U distinct slots.

**Accumulation.** Half scores, weighted sums and row gradients are accumulated in float32 (float64 for float64) whatever
the inputs are, see :func:`accumulation`.

**Order of scores.** NaN above +inf, then by value with -0 = +0; of equal scores (and among NaNs) the lowest slot comes
first. The score of slot i·N + j is one floating-point addition, half_scores[0, i] + half_scores[1, j], so that slots
and scores are defined to the bit by the half scores. +inf + -inf is NaN, and so ranks first.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

_PAIRS = 4096  # (slot, token) pairs whose row gradients are computed at a time: 8 MiB at V = 512
_CELLS = 1 << 22  # scores compared at a time


def accumulation(*tensors: Tensor) -> torch.dtype:
    """What is accumulated in: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def unrounded(x: Tensor) -> AbstractContextManager[object]:
    """A context for products on x's device that autocast leaves alone."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


# ---- selection ---------------------------------------------------------------------------------------------


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
        raise ValueError(f"key_dim must be even, for it is split in two halves, given {queries.size(2)}")
    if (sub_keys.size(0), sub_keys.size(1), 2 * sub_keys.size(3)) != (queries.size(1), 2, queries.size(2)):
        raise ValueError(f"sub_keys must be (heads, 2, n, key_dim/2) of the queries' heads and key_dim, given {shapes}")
    if not (queries.is_floating_point() and sub_keys.is_floating_point()):
        raise ValueError(f"queries and sub_keys must be floating point, given {queries.dtype} and {sub_keys.dtype}")
    _check_device(queries, sub_keys)
    _check_k(k, sub_keys.size(2))


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and the number of sub-keys n = {n}, given {k}")


def _check_device(*tensors: Tensor) -> None:
    if any(x.device != tensors[0].device for x in tensors):
        raise ValueError(f"all tensors must be on one device, given {', '.join(str(x.device) for x in tensors)}")


def order(scores: Tensor) -> Tensor:
    """Integers in the order of the scores (module docstring): NaN is the largest, -0 = +0.

    Args:
        scores: float32 or float64, any shape.

    Returns:
        int32 or int64, same shape.
    """
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    largest = torch.iinfo(integer).max
    bits = (scores + 0.0).view(integer)  # -0 + 0 = +0
    # Negative floats are stored as sign and magnitude: turn the magnitude round.
    return torch.where(scores.isnan(), largest, torch.where(bits < 0, bits ^ largest, bits))


def top(scores: Tensor, k: int) -> Tensor:
    """The places of the k best of each row, best first, in the order of the module docstring.

    Args:
        scores: (R, M) float32 or float64.
        k: 1 <= k <= M.

    Returns:
        (R, k) int64
    """
    return torch.cat([_top(rows, k) for rows in scores.split(max(1, _CELLS // scores.size(1)))])


def _top(scores: Tensor, k: int) -> Tensor:
    keys = order(scores)
    last = keys.topk(k, dim=-1).values[:, -1:]
    above, tied = keys > last, keys == last
    kept = above | (tied & (tied.cumsum(dim=-1) <= k - above.sum(dim=-1, keepdim=True)))
    places = kept.nonzero()[:, 1].view(-1, k)  # k a row, ascending
    ranks = keys.gather(1, places).sort(dim=-1, descending=True, stable=True).indices
    return places.gather(1, ranks)


def half_scores(queries: Tensor, sub_keys: Tensor) -> Tensor:
    """Scores of both halves of the queries with their sub-keys, one matrix product a head and half.

    Args:
        queries: (T, H, D).
        sub_keys: (H, 2, N, D/2).

    Returns:
        (T, H, 2, N), float32 or float64: a view of a (H, 2, T, N) tensor.
    """
    tokens, heads, key_dim = queries.shape
    dtype = accumulation(queries, sub_keys)
    halves = queries.to(dtype).reshape(tokens, 2 * heads, key_dim // 2).transpose(0, 1)  # (2H, T, D/2)
    with unrounded(queries):
        scores = halves @ sub_keys.to(dtype).flatten(0, 1).transpose(1, 2)  # (2H, T, N)
    return scores.unflatten(0, (heads, 2)).permute(2, 0, 1, 3)


def product_key_select(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best slots among all N·N, exactly (paper, section 3.2), given the scores of the halves.

    Args:
        half_scores: (T, H, 2, N), any strides; half precision is widened to float32.
        k: 1 <= k <= N.

    Returns:
        scores (T, H, K), float32 or float64, descending in the order of the module docstring, and
        slots (T, H, K) int64, slot = i·N + j.

    Raises:
        ValueError: other shapes, k out of range.
    """
    check_select(half_scores, k)
    tokens, heads, _, n = half_scores.shape
    half_scores = half_scores.to(accumulation(half_scores))
    slots = _select(half_scores.detach().reshape(tokens * heads, 2, n), k).view(tokens, heads, k)
    first = half_scores[:, :, 0].gather(-1, slots // n)
    second = half_scores[:, :, 1].gather(-1, slots % n)
    return first + second, slots


def _select(halves: Tensor, k: int) -> Tensor:
    """(R, 2, N) → slots (R, K).

    With both halves in descending order (of equal ones in any), the sum at ranks (a, b) is no larger than that at any
    a' <= a, b' <= b, for rounding is monotone. So a sum above the k-th best has (a + 1)(b + 1) < k, and the pairs with
    (a + 1)(b + 1) <= k hold the k best *values*. But a pair beyond them may round to the very k-th best value and have
    a lower slot: in (1, 2) + (1e9), k = 1, both sums are 1e9 and slot 0 is due. Then some pair on the border, just
    beyond, is as large as the k-th best too. Such rows, and those with NaN or +inf, are searched exhaustively.
    """
    n = halves.size(2)
    length = min(k + 1, n)
    values, indices = halves.topk(length, dim=-1)
    pairs = [(a, b) for a in range(k) for b in range(min(k // (a + 1), length))]
    border = [(a, k // (a + 1)) for a in range(length) if k // (a + 1) < length]
    a, b = torch.tensor(pairs, device=halves.device).unbind(1)
    slots, by_slot = (indices[:, 0, a] * n + indices[:, 1, b]).sort(dim=-1)
    sums = (values[:, 0, a] + values[:, 1, b]).gather(-1, by_slot)
    best = sums.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    slots = slots.gather(-1, best)
    unsure = ~(halves < torch.inf).flatten(1).all(dim=-1)
    if border:
        a, b = torch.tensor(border, device=halves.device).unbind(1)
        last = sums.gather(-1, best[:, -1:])
        unsure |= (values[:, 0, a] + values[:, 1, b] >= last).any(dim=-1)
    for rows in unsure.nonzero().squeeze(1).split(max(1, _CELLS // (n * n))):
        first, second = halves[rows].unbind(1)
        slots[rows] = top((first.unsqueeze(2) + second.unsqueeze(1)).flatten(1), k)
    return slots


def product_key_select_backward(grad: Tensor, slots: Tensor, n: int) -> Tensor:
    """The gradient of the half scores.

    Args:
        grad: (T, H, K), of the scores.
        slots: (T, H, K) int64.
        n: N.

    Returns:
        (T, H, 2, N) in grad's dtype. On CUDA, the sum over slots that share a sub-key may differ in its last bit from
        run to run (the kernel's does not).
    """
    halves = torch.stack((slots // n, slots % n), dim=2)  # (T, H, 2, K)
    result = grad.new_zeros((*grad.shape[:2], 2, n))
    return result.scatter_add_(-1, halves, grad.unsqueeze(2).expand(halves.shape))


def product_key_topk(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k slots whose product keys have the largest dot products with the query (paper, equation 1).

    Args:
        queries: (T, H, D), D even.
        sub_keys: (H, 2, N, D/2); the key of slot i·N + j of a head is (sub_keys[0, i], sub_keys[1, j]).
        k: 1 <= k <= N.

    Returns:
        scores (T, H, K), float32 or float64, and slots (T, H, K) int64, as of :func:`product_key_select`.

    Raises:
        ValueError: shapes that do not fit, odd D, k out of range.
    """
    check_topk(queries, sub_keys, k)
    return product_key_select(half_scores(queries, sub_keys), k)


def flat_key_topk(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k slots with the largest dot products, where every slot has a key of its own: all are compared.

    Args:
        queries: (T, H, D).
        keys: (H, n_slots, D).
        k: 1 <= k <= n_slots.

    Returns:
        scores (T, H, K), float32 or float64, descending, and slots (T, H, K) int64.

    Raises:
        ValueError: shapes that do not fit, k out of range.
    """
    if queries.dim() != 3 or keys.dim() != 3 or queries.shape[1:] != (keys.size(0), keys.size(2)):
        raise ValueError(
            "queries must be (tokens, heads, key_dim) and keys (heads, n_slots, key_dim), "
            f"given {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if not 1 <= k <= keys.size(1):
        raise ValueError(f"k must lie between 1 and the number of slots {keys.size(1)}, given {k}")
    dtype = accumulation(queries, keys)
    with unrounded(queries):
        scores = (queries.to(dtype).transpose(0, 1) @ keys.to(dtype).transpose(1, 2)).transpose(0, 1)  # (T, H, n_slots)
    slots = top(scores.detach().flatten(0, 1), k).view(*queries.shape[:2], k)
    return scores.gather(-1, slots), slots


def product_key_topk_backward(grad: Tensor, slots: Tensor, queries: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of queries and sub_keys, in their dtypes.

    Args:
        grad: (T, H, K), of the scores.
        slots: (T, H, K) int64.
        queries: (T, H, D).
        sub_keys: (H, 2, N, D/2).
    """
    return key_gradients(product_key_select_backward(grad, slots, sub_keys.size(2)), queries, sub_keys)


def key_gradients(grad: Tensor, queries: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
    """The backward of :func:`half_scores`: grad (T, H, 2, N) → as queries (T, H, D) and sub_keys (H, 2, N, D/2)."""
    tokens, heads, key_dim = queries.shape
    rows = grad.reshape(tokens, 2 * heads, grad.size(3)).transpose(0, 1)  # (2H, T, N)
    halves = queries.to(grad.dtype).reshape(tokens, 2 * heads, key_dim // 2).transpose(0, 1)  # (2H, T, D/2)
    with unrounded(grad):
        grad_queries = (rows @ sub_keys.to(grad.dtype).flatten(0, 1)).transpose(0, 1).reshape(queries.shape)
        grad_keys = (rows.transpose(1, 2) @ halves).view(sub_keys.shape)
    return grad_queries.to(queries.dtype), grad_keys.to(sub_keys.dtype)


# ---- weighted sums of rows ---------------------------------------------------------------------------------


def check_bag(values: Tensor, slots: Tensor, weights: Tensor) -> None:
    """Raise ValueError unless values is (n_slots, V), slots (T, bag) int64, weights (T, bag), floating point."""
    if values.dim() != 2 or not values.is_floating_point():
        raise ValueError(
            f"values must be floating point of shape (n_slots, dim), given {values.dtype} {tuple(values.shape)}"
        )
    _check_pairs(slots, weights)
    _check_device(values, slots, weights)


def check_triple(grad: Tensor, slots: Tensor, weights: Tensor) -> None:
    """Raise ValueError unless grad is (T, V), slots (T, bag) int64, weights (T, bag)."""
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
    check_triple(grad, slots, weights)
    parts = [(slots.new_empty(0), grad.new_empty(0, grad.size(1))), *_row_gradients(grad, slots, weights)]
    rows, gradients = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat([g.to(grad.dtype) for g in gradients])


def _row_gradients(grad: Tensor, slots: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the row gradient, slots (u,) ascending and gradients (u, V), without the whole (U, V).

    The gradient of row r is the sum of weights[t, b] · grad[t] over all (t, b) with slots[t, b] = r, in that order.
    """
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


def product_key_memory(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The whole memory: the k best slots a head, softmax over their scores, weighted sum over all heads' slots.

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


# ---- the touched rows --------------------------------------------------------------------------------------


def rows_squared_norm(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> Tensor:
    """The squared norm of the gradient of the table, which is given in factors.

    Args:
        grad: (T, V), of the outputs of :func:`weighted_bag`.
        slots: (T, bag) int64 in [0, n_slots).
        weights: (T, bag).
        n_slots: rows of the table.

    Returns:
        float64 scalar.
    """
    check_triple(grad, slots, weights)
    total = torch.zeros((), dtype=torch.float64, device=grad.device)
    for _, gradients in _row_gradients(grad, slots, weights):
        total += gradients.double().square().sum()
    return total


def check_adam(
    values: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, grad: Tensor, slots: Tensor,
    weights: Tensor, step: int,
) -> None:  # fmt: skip
    """Raise ValueError unless the arguments of :func:`rows_adam_` fit together."""
    check_triple(grad, slots, weights)
    wide = accumulation(values)
    for name, state in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("master", master)):
        if state is not None and (state.shape != values.shape or state.dtype != wide):
            raise ValueError(
                f"{name} must be {wide} of values' shape {tuple(values.shape)}, given {state.dtype} "
                f"{tuple(state.shape)}"
            )
    if values.dim() != 2 or grad.size(1) != values.size(1):
        raise ValueError(
            f"values must be (n_slots, dim) of grad's dim, given {tuple(values.shape)} and {tuple(grad.shape)}"
        )
    if step < 1:
        raise ValueError(f"step counts from 1, given {step}")
    _check_device(values, exp_avg, exp_avg_sq, grad, *(() if master is None else (master,)))


def rows_adam_(
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor | None,
    grad: Tensor,
    slots: Tensor,
    weights: Tensor,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """One step of Adam on the rows that were read; all other rows, and their moments, keep their bits.

    For a row p with gradient g, moments m and v, as ``torch.optim.SparseAdam`` (and fairseq's Adam)::

        g = scale · sum of weights[t, b] · grad[t] over its (t, b)
        m = beta1 · m + (1 - beta1) · g;  v = beta2 · v + (1 - beta2) · g²
        p = p · (1 - lr · weight_decay) - lr · sqrt(1 - beta2^step) / (1 - beta1^step) · m / (sqrt(v) + eps)

    Args:
        values: (n_slots, V), updated.
        exp_avg: m, (n_slots, V) float32 (float64 for float64 values), updated.
        exp_avg_sq: v, likewise.
        master: None, or the float32 copy of values in half precision, which is updated and rounded into values.
        grad: (T, V), of the outputs of :func:`weighted_bag`.
        slots: (T, bag) int64 in [0, n_slots).
        weights: (T, bag).
        scale: factor of the gradient.
        step: number of this step for the bias correction, from 1.

    Raises:
        ValueError: arguments that do not fit together.
    """
    check_adam(values, exp_avg, exp_avg_sq, master, grad, slots, weights, step)
    size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    with torch.no_grad():
        for rows, gradients in _row_gradients(grad.to(accumulation(values, grad)), slots, weights):
            g = gradients.to(exp_avg.dtype) * scale
            m = exp_avg[rows].mul_(beta1).add_(g, alpha=1 - beta1)
            v = exp_avg_sq[rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
            p = (values if master is None else master)[rows].to(exp_avg.dtype)
            p.mul_(1 - lr * weight_decay).addcdiv_(m, v.sqrt().add_(eps), value=-size)
            exp_avg[rows], exp_avg_sq[rows], values[rows] = m, v, p.to(values.dtype)
            if master is not None:
                master[rows] = p
