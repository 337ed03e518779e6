"""The definition of product-key selection by brute force over all N·N slots, in NumPy, and difficult rows of scores.

Axes: R rows (tokens and heads), N sub-keys per half, K selected slots.
"""

import numpy as np
import torch
from torch import Tensor

KINDS = ("normal", "ties", "rounding", "zeros", "infinite", "masked", "nan", "overflow", "subnormal", "one peak")


def best(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(..., 2, N) → scores and slots (..., K): NaN first, then descending, ties to the lowest slot."""
    first, second = (half_scores.select(-2, half).numpy() for half in (0, 1))
    with np.errstate(invalid="ignore", over="ignore"):
        sums = (first[..., :, None] + second[..., None, :]).reshape(*first.shape[:-1], -1)
    nan = np.isnan(sums)
    # lexsort is stable, and its last key is the most significant.
    slots = np.lexsort((-np.where(nan, 0, sums), ~nan), axis=-1)[..., :k]
    return torch.from_numpy(np.take_along_axis(sums, slots, axis=-1)), torch.from_numpy(slots)


def hard_rows(kind: str, shape: tuple[int, ...], draw: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Half scores (..., 2, N) of one of KINDS."""
    normal = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    small = torch.randint(-2, 3, shape, generator=draw).to(dtype)
    sparse = torch.rand(shape, generator=draw) < 0.15
    signs = torch.where(torch.rand(shape, generator=draw) < 0.5, -1.0, 1.0).to(dtype)
    if kind == "normal":
        return normal
    if kind == "ties":
        return small
    if kind == "rounding":  # one half is so large that different values of the other round to equal sums
        large = 2.0 ** (24 if dtype == torch.float32 else 53)
        offset = torch.zeros(shape, dtype=dtype)
        offset[..., 1, :] = large
        return offset + small + normal.mul(2).round()
    if kind == "zeros":
        return 0.0 * signs
    if kind == "infinite":
        return torch.where(sparse, torch.inf * signs, small)
    if kind == "masked":
        return torch.where(torch.rand(shape, generator=draw) < 0.7, -torch.inf, small)
    if kind == "nan":
        return torch.where(sparse, torch.where(signs > 0, torch.nan, torch.inf * signs.roll(1, -1)), small)
    if kind == "overflow":
        return torch.finfo(dtype).max * torch.where(sparse, signs, signs * 0.6)
    if kind == "subnormal":
        return torch.finfo(dtype).smallest_normal * small / 4
    if kind == "one peak":  # all of a head's best pairs share one sub-key
        normal[..., 0, shape[-1] // 2] = 100
        return normal
    raise ValueError(kind)


def same_bits(one: Tensor, two: Tensor) -> bool:
    """The same bits, of float32 or float64; any NaN equals any other."""
    integer = torch.int64 if one.dtype == torch.float64 else torch.int32
    return one.dtype == two.dtype and torch.equal(*(x.view(integer).masked_fill(x.isnan(), -1) for x in (one, two)))
