"""Thresholds with a guarantee, or for a wanted mean exit, and temperatures.

With a guarantee: fixed-sequence learn-then-test, as in Confident Adaptive Language Modeling (Schuster et al., NeurIPS
2022, section 4). One for each block: coordinate descent, where the Depth-Adaptive Transformer draws 10,000 at random.
Axes: N exits (counted from 1), T tokens, K thresholds, B sentences. Nothing here knows fairseq.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def exits_at(confidences: Tensor, threshold: float | Tensor) -> Tensor:
    """The exits (T,) of ``confidences`` (N - 1, T): the first block above its threshold (one or (N - 1, 1)), else N."""
    above = confidences > threshold
    last = torch.ones_like(above[:1])
    return torch.cat([above, last]).int().argmax(0) + 1


def disagreement(predictions: Tensor, confidences: Tensor, sentences: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The share (K, B) of each sentence's tokens that differ from full depth.

    Args:
        predictions: (N, T) int64, the most likely token of each exit.
        confidences: (N - 1, T).
        sentences: (T,) int64, each token's sentence, from 0; none without tokens.
    """
    lengths = sentences.bincount()
    shares = []
    for threshold in thresholds:
        exits = exits_at(confidences, threshold)
        differ = predictions.gather(0, exits[None] - 1)[0] != predictions[-1]
        shares.append(torch.bincount(sentences, differ.double(), lengths.numel()) / lengths)
    return torch.stack(shares)


def p_value(risk: float, count: int, tolerated: float) -> float:
    """Of the hypothesis that the true risk is above ``tolerated``, where ``count`` losses in [0, 1] have mean ``risk``.

    Hoeffding's inequality in its first form, exp(-n KL(risk || tolerated)), never above exp(-2n (tolerated - risk)²).
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
    """The lowest threshold whose risk is at most ``tolerated``, wrong with probability ``level`` at most.

    From the first threshold on, each is tested at the full level, and the first that fails ends it: no correction for
    their number is needed. None: not even the first is valid, so full depth.

    Args:
        losses: (K, B) in [0, 1], of sentences that are independent of each other.
        thresholds: K, chosen without looking at the losses, from the most conservative (highest) down.

    Raises:
        ValueError: thresholds that do not go down, or a number out of its range.
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
    """``count`` random halves (count, sentences // 2) of the sentences, by their numbers from 0."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(sentences, generator=draw)[: sentences // 2] for _ in range(count)])


@dataclass(frozen=True)
class Resplits:
    """How often a threshold that was chosen on one half of the sentences exceeds the tolerated risk."""

    count: int
    on_all: int  # times that the risk on all sentences is above
    on_other_half: int  # times that the risk on the other half is above
    full_depth: int  # times that no threshold was valid

    def bound(self, level: float) -> float:
        """The share of times that a promise of ``level`` allows, plus two standard errors."""
        return level + 2 * math.sqrt(level * (1 - level) / self.count)


def resplit(losses: Tensor, thresholds: Sequence[float], halves: Tensor, *, tolerated: float, level: float) -> Resplits:
    """Choose a threshold on each half as :func:`lowest_valid_threshold` does, and look at the other sentences.

    A half is drawn from all sentences without replacement, for which Hoeffding's inequality holds as well (Hoeffding
    1963, section 6): so ``on_all`` is at most ``level`` of the times but for chance. The other half's mean is that of
    all sentences and the luck of the draw, of which nothing is promised.

    Args:
        losses: (K, B) in [0, 1].
        halves: (R, B // 2) int64, numbers of sentences.
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


def threshold_for_mean_exit(confidences: Tensor, wanted: float) -> float:
    """The highest threshold at which the mean exit of ``confidences`` (N - 1, T) is at most ``wanted``.

    Raises:
        ValueError: ``wanted`` is not from 1 to N.
    """
    exits = confidences.size(0) + 1
    if not 1 <= wanted <= exits:
        raise ValueError(f"the mean exit must be from 1 to {exits}, given {wanted:g}")
    # The mean exit grows with the threshold, and changes only at these.
    steps = [0.0, *confidences.double().flatten().unique().tolist(), 1.0]
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        if exits_at(confidences.double(), steps[middle]).double().mean() <= wanted:
            low = middle
        else:
            high = middle
    return steps[low]


def slope_and_curvature(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and curvature at β = 1 of the sum of -log softmax(β · ``logits``)[target], for Newton's method.

    The temperature 1 / β at which the targets are most likely is that of Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017, section 4.2. The sum is convex in β.

    Args:
        logits: (T, V).
        targets: (T,) int64.

    Returns:
        Both in float64, without axes.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.softmax(-1)
    mean = (weights * logits).sum(-1)
    square = (weights * logits.square()).sum(-1)
    slope = mean - logits.gather(-1, targets[:, None]).squeeze(1)
    return slope.double().sum(), (square - mean.square()).double().sum()


def thresholds_at_price(scores: Tensor, wrong: Tensor, price: float, steps: int) -> list[int]:
    """A threshold for each block but the last, in multiples of 1 / ``steps``: few errors at a price of blocks.

    What is made small is the mean over tokens of ``wrong`` at their exit + ``price`` · exit. One threshold after the
    other is put where that is the smallest, until none moves any more: once from no exits at all, and once from the
    best single threshold for all blocks, than which the better of both results is therefore no worse. Of equal ones
    the highest is taken.

    Args:
        scores: (N - 1, T) in [0, 1]; a token stops where its score exceeds the threshold.
        wrong: (N, T), what an exit does wrong.
    """
    exits, tokens = wrong.shape
    cost = wrong.double() + price * torch.arange(1, exits + 1, dtype=torch.float64)[:, None]  # (N, T)
    level = (scores * steps).ceil().long()  # stops at the threshold k / steps if k is below

    def total(chosen: Sequence[int]) -> float:
        taken = exits_at(level, torch.tensor(chosen)[:, None])
        return float(cost.gather(0, taken[None] - 1).sum())

    def best(n: int, chosen: Sequence[int]) -> int:
        """The threshold of the block n, from 0, that suits the others."""
        arrives = torch.ones(tokens, dtype=torch.bool)
        for m in range(n):
            arrives &= level[m] <= chosen[m]
        further = cost[-1]
        for m in range(exits - 2, n, -1):
            further = torch.where(level[m] > chosen[m], cost[m], further)
        gain = torch.bincount(level[n][arrives], (cost[n] - further)[arrives], steps + 2)
        stopping = gain.flip(0).cumsum(0).flip(0)[1:]  # at k = 0 to steps, the sum over tokens whose level is above
        return int((stopping <= stopping.min() + 1e-9).nonzero().max())

    found = []
    same = min(range(steps, -1, -1), key=lambda k: total([k] * (exits - 1)))
    for chosen in ([steps] * (exits - 1), [same] * (exits - 1)):
        before: list[int] = []
        while chosen != before:
            before = list(chosen)
            for n in range(exits - 2, -1, -1):
                chosen[n] = best(n, chosen)
        found.append(chosen)
    return min(found, key=total)


def thresholds_for_mean_exit(scores: Tensor, wrong: Tensor, wanted: float, steps: int) -> list[int]:
    """Those of :func:`thresholds_at_price` at the lowest price at which the mean exit is at most ``wanted``.

    Raises:
        ValueError: ``wanted`` is not from 1 to N.
    """
    exits = wrong.size(0)
    if not 1 <= wanted <= exits:
        raise ValueError(f"the mean exit must be from 1 to {exits}, given {wanted:g}")
    low, high = 0.0, 1.0 + 1e-6  # where a block costs more than an error, all tokens leave at the first
    found = [0] * (exits - 1)
    while high - low > 1e-6:
        price = (low + high) / 2
        chosen = thresholds_at_price(scores, wrong, price, steps)
        taken = exits_at((scores * steps).ceil().long(), torch.tensor(chosen)[:, None])
        if taken.double().mean() <= wanted:
            high, found = price, chosen
        else:
            low = price
    return found
