"""The best slots of every query. Axes and the order of scores as in :mod:`memory_layers.reference`."""

import torch
from torch import Tensor

from memory_layers.reference.checks import check_select, check_topk
from memory_layers.reference.precision import accumulation, unrounded

_CELLS = 1 << 22  # scores compared at a time


def order(scores: Tensor) -> Tensor:
    """Integers in the order of the scores of :mod:`memory_layers.reference`: NaN is the largest, -0 = +0.

    Args:
        scores: float32 or float64, any shape.

    Returns:
        int32 or int64, same shape.
    """
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    largest = torch.iinfo(integer).max
    bits = (scores + 0.0).view(integer)  # -0 + 0 = +0
    # Negative floats are stored as sign and magnitude: the magnitude is reversed.
    return torch.where(scores.isnan(), largest, torch.where(bits < 0, bits ^ largest, bits))


def top(scores: Tensor, k: int) -> Tensor:
    """The places of the k best of each row, best first, in the order of :mod:`memory_layers.reference`.

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
    places = kept.nonzero()[:, 1].view(-1, k)  # k per row, ascending
    ranks = keys.gather(1, places).sort(dim=-1, descending=True, stable=True).indices
    return places.gather(1, ranks)


def half_scores(queries: Tensor, sub_keys: Tensor) -> Tensor:
    """Scores of both halves of the queries with their sub-keys, one matrix product per head and half.

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
        scores (T, H, K), float32 or float64, descending in the order of :mod:`memory_layers.reference`, and
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
