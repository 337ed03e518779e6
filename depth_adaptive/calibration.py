"""Thresholds with a guarantee or for a target mean exit, and temperatures.

The guarantee is that of fixed-sequence learn-then-test, as in Confident Adaptive Language Modeling (Schuster et al.,
NeurIPS 2022, section 4). Thresholds of single blocks come from coordinate descent, where the Depth-Adaptive Transformer
samples 10,000 vectors. Axes: N exits (counted from 1), T tokens, K thresholds, B sentences, V vocabulary.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def exits_at(confidences: Tensor, threshold: float | Tensor) -> Tensor:
    """The exits (T,): the first block whose confidence (N - 1, T) exceeds the threshold, otherwise N.

    The threshold is one number, or (N - 1, 1).
    """
    above = confidences > threshold
    last = torch.ones_like(above[:1])
    return torch.cat([above, last]).int().argmax(0) + 1


def disagreement(predictions: Tensor, confidences: Tensor, sentences: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The share (K, B) of each sentence's tokens that differ from full depth.

    Args:
        predictions: (N, T) int64, the most likely token of each exit.
        confidences: (N - 1, T).
        sentences: (T,) int64, the sentence of each token, from 0; every sentence has tokens.
    """
    lengths = sentences.bincount()
    shares = []
    for threshold in thresholds:
        exits = exits_at(confidences, threshold)
        differ = predictions.gather(0, exits[None] - 1)[0] != predictions[-1]
        shares.append(torch.bincount(sentences, differ.double(), lengths.numel()) / lengths)
    return torch.stack(shares)


def p_value(risk: float, count: int, tolerated: float) -> float:
    """The p-value of the hypothesis that the true risk exceeds ``tolerated``, given ``count`` losses of mean ``risk``.

    The losses are in [0, 1]. It is Hoeffding's bound in its first form, exp(-n KL(risk || tolerated)), which is at most
    exp(-2n (tolerated - risk)²).
    """
    if risk >= tolerated:
        return 1.0
    divergence = (1 - risk) * math.log((1 - risk) / (1 - tolerated))
    if risk > 0:
        divergence += risk * math.log(risk / tolerated)
    return math.exp(-count * divergence)


def lowest_valid_threshold(
    losses: Tensor, thresholds: Sequence[float], *, tolerated: float, level: float
) -> float | None:
    """The lowest threshold whose risk is shown to be at most ``tolerated``, wrongly with probability at most ``level``.

    Thresholds are tested in order, each at the full level, until the first that fails. This needs no correction for
    their number. The result is None if the first fails, which leaves full depth.

    Args:
        losses: (K, B) in [0, 1], of sentences that are independent of each other.
        thresholds: K of them, chosen without looking at the losses, from the most conservative (highest) down.

    Raises:
        ValueError: thresholds are not in descending order, or a number is out of its range.
    """
    if any(low >= high for high, low in itertools.pairwise(thresholds)):
        raise ValueError(f"thresholds must go down, given {list(thresholds)}")
    if losses.dim() != 2 or losses.size(0) != len(thresholds) or not losses.size(1):
        raise ValueError(f"losses must be ({len(thresholds)}, sentences), given {tuple(losses.shape)}")
    if not bool(((losses >= 0) & (losses <= 1)).all()):
        raise ValueError("losses must be from 0 to 1")
    for name, value in (("tolerated", tolerated), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be above 0 and below 1, given {value:g}")
    valid = None
    for threshold, risk in zip(thresholds, losses.double().mean(1).tolist(), strict=True):
        if p_value(risk, losses.size(1), tolerated) > level:
            break
        valid = threshold
    return valid


def halves(sentences: int, count: int, *, seed: int = 1) -> Tensor:
    """Random halves of the sentences: (count, sentences // 2) numbers of sentences, from 0."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(sentences, generator=draw)[: sentences // 2] for _ in range(count)])


@dataclass(frozen=True)
class Resplits:
    """How often a threshold chosen on one half of the sentences exceeds the tolerated risk."""

    count: int  # number of halves
    on_all: int  # how often the risk on all sentences exceeds it
    on_other_half: int  # how often the risk on the other half exceeds it
    full_depth: int  # how often no threshold was valid

    def bound(self, level: float) -> float:
        """The share that a guarantee at ``level`` allows, plus two standard errors."""
        return level + 2 * math.sqrt(level * (1 - level) / self.count)


def resplit(losses: Tensor, thresholds: Sequence[float], halves: Tensor, *, tolerated: float, level: float) -> Resplits:
    """Choose a threshold on each half by :func:`lowest_valid_threshold`, and count how often the risk is exceeded.

    A half is drawn from all sentences without replacement, for which Hoeffding's inequality holds as well (Hoeffding
    1963, section 6). So ``on_all`` is at most ``level`` of ``count`` up to chance. There is no such guarantee for the
    mean of the other half, which varies with the draw.

    Args:
        losses: (K, B) in [0, 1].
        halves: (halves, B // 2) int64, numbers of sentences.
    """
    losses = losses.double()
    total = losses.sum(1)  # (K,)
    on_all = on_other_half = full_depth = 0
    for half in halves:
        chosen = lowest_valid_threshold(losses[:, half], thresholds, tolerated=tolerated, level=level)
        if chosen is None:
            full_depth += 1
            continue
        k = thresholds.index(chosen)
        rest = total[k] - losses[k, half].sum()
        on_all += bool(total[k] / losses.size(1) > tolerated)
        on_other_half += bool(rest / (losses.size(1) - half.numel()) > tolerated)
    return Resplits(halves.size(0), on_all, on_other_half, full_depth)


def threshold_for_mean_exit(confidences: Tensor, target: float) -> float:
    """The highest threshold at which the mean exit of ``confidences`` (N - 1, T) is at most ``target``.

    Raises:
        ValueError: ``target`` is not from 1 to N.
    """
    exits = confidences.size(0) + 1
    if not 1 <= target <= exits:
        raise ValueError(f"the mean exit must be from 1 to {exits}, given {target:g}")
    # The mean exit grows with the threshold, and changes at these values only.
    steps = [0.0, *confidences.double().flatten().unique().tolist(), 1.0]
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        if exits_at(confidences.double(), steps[middle]).double().mean() <= target:
            low = middle
        else:
            high = middle
    return steps[low]


def slope_and_curvature(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative at β = 1 of the sum of -log softmax(β · ``logits``)[target], for Newton's method.

    Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2) divides logits by
    the temperature 1 / β at which the targets are most likely. The sum is convex in β.

    Args:
        logits: (T, V).
        targets: (T,) int64.

    Returns:
        Two scalars in float64.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.softmax(-1)
    mean = (weights * logits).sum(-1)
    square = (weights * logits.square()).sum(-1)
    slope = mean - logits.gather(-1, targets[:, None]).squeeze(1)
    return slope.double().sum(), (square - mean.square()).double().sum()


def thresholds_at_price(scores: Tensor, wrong: Tensor, price: float, steps: int) -> list[int]:
    """A threshold for each block but the last, in multiples of 1 / ``steps``, that trades errors for blocks.

    Coordinate descent minimises the mean over tokens of ``wrong`` at their exit + ``price`` · exit. It starts once
    without any exits and once with the best single threshold for all blocks; so the better of both results is no worse
    than the best single threshold. Of equally good thresholds the highest is chosen.

    Args:
        scores: (N - 1, T) in [0, 1]; a token stops where its score exceeds the threshold.
        wrong: (N, T), the loss of each exit.

    Returns:
        The numerators k of the thresholds k / ``steps``, N - 1 of them.
    """
    exits, tokens = wrong.shape
    cost = wrong.double() + price * torch.arange(1, exits + 1, dtype=torch.float64)[:, None]  # (N, T)
    level = (scores * steps).ceil().long()  # a token stops at the threshold k / steps if k is below its level

    def total(chosen: Sequence[int]) -> float:
        taken = exits_at(level, torch.tensor(chosen)[:, None])
        return float(cost.gather(0, taken[None] - 1).sum())

    def best(n: int, chosen: Sequence[int]) -> int:
        """The best threshold of block n, from 0, given those of the other blocks."""
        arrives = torch.ones(tokens, dtype=torch.bool)
        for m in range(n):
            arrives &= level[m] <= chosen[m]
        further = cost[-1]
        for m in range(exits - 2, n, -1):
            further = torch.where(level[m] > chosen[m], cost[m], further)
        gain = torch.bincount(level[n][arrives], (cost[n] - further)[arrives], steps + 2)
        # For k = 0 to steps, the sum over the tokens that stop.
        stopping = gain.flip(0).cumsum(0).flip(0)[1:]
        return int((stopping <= stopping.min() + 1e-9).nonzero().max())

    results = []
    same = min(range(steps, -1, -1), key=lambda k: total([k] * (exits - 1)))
    for chosen in ([steps] * (exits - 1), [same] * (exits - 1)):
        before: list[int] = []
        while chosen != before:
            before = list(chosen)
            for n in range(exits - 2, -1, -1):
                chosen[n] = best(n, chosen)
        results.append(chosen)
    return min(results, key=total)


def thresholds_for_mean_exit(scores: Tensor, wrong: Tensor, target: float, steps: int) -> list[int]:
    """The result of :func:`thresholds_at_price` at the lowest price at which the mean exit is at most ``target``.

    Raises:
        ValueError: ``target`` is not from 1 to N.
    """
    exits = wrong.size(0)
    if not 1 <= target <= exits:
        raise ValueError(f"the mean exit must be from 1 to {exits}, given {target:g}")
    low, high = 0.0, 1.0 + 1e-6  # if a block costs more than an error, all tokens leave at the first
    best = [0] * (exits - 1)
    while high - low > 1e-6:
        price = (low + high) / 2
        chosen = thresholds_at_price(scores, wrong, price, steps)
        taken = exits_at((scores * steps).ceil().long(), torch.tensor(chosen)[:, None])
        if taken.double().mean() <= target:
            high, best = price, chosen
        else:
            low = price
    return best
