"""When to stop: learned distributions over exits, and policies that choose an exit while decoding.

Section 4 of the paper. Axes: N exits (counted from 1), B batch, T target, D dimension of the decoder, E that of the
encoder; ``...`` are any leading axes.

A halting module names its weights by its kind, so that they cannot be loaded into another kind, whose weights may have
the same shapes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_adaptive import ops

HALTINGS = ("none", "sequence", "token", "geometric")
POLICIES = ("full", "fixed", "random", "confidence", "halting")

Logits = Callable[[], Tensor]


def _exact(x: Tensor) -> Tensor:
    """``x`` in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SequenceHalting(nn.Module):
    """One exit for a sentence, from the mean encoder output: softmax(W s + b) (equation 8)."""

    kind = "sequence"

    def __init__(self, *, dim: int, exits: int) -> None:
        super().__init__()
        self.sequence = nn.Linear(dim, exits)

    def log_distribution(self, sentence: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Log-probabilities (N, B) of the exits from ``sentence`` (B, E); ``states`` are not used."""
        return F.log_softmax(_exact(self.sequence(sentence)), dim=-1).movedim(-1, 0)

    def planned(self, sentence: Tensor, first: Tensor) -> Tensor:
        """The most likely exits (...) from ``sentence`` (..., E)."""
        return self.sequence(sentence).argmax(-1) + 1


class TokenHalting(nn.Module):
    """An exit for each token from the first block's output: softmax(W h + b) (equation 11)."""

    kind = "token"

    def __init__(self, *, dim: int, exits: int) -> None:
        super().__init__()
        self.token = nn.Linear(dim, exits)

    def log_distribution(self, sentence: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Log-probabilities (N, B, T) of the exits from the first of ``states``, (B, T, D) each."""
        return F.log_softmax(_exact(self.token(states[0])), dim=-1).movedim(-1, 0)

    def planned(self, sentence: Tensor, first: Tensor) -> Tensor:
        """The most likely exits (...) from ``first`` (..., D), the first block's output."""
        return self.token(first).argmax(-1) + 1


class GeometricHalting(nn.Module):
    """Stop or go on after every block but the last, by one sigmoid unit for all blocks (equations 12 and 13)."""

    kind = "geometric"

    def __init__(self, *, dim: int, exits: int) -> None:
        super().__init__()
        self.exits = exits
        self.geometric = nn.Linear(dim, 1)

    def log_distribution(self, sentence: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Log-probabilities (N, B, T) of the exits: of chi_n * prod_{m<n} (1 - chi_m), and of the rest at N.

        ``states`` are the outputs of the N blocks, (B, T, D) each.
        """
        if self.exits == 1:
            return torch.zeros_like(_exact(states[0][None, ..., 0]))
        unit = _exact(self.geometric(torch.stack(list(states[:-1])))).squeeze(-1)
        go_on = F.logsigmoid(-unit).cumsum(0)  # (N - 1, B, T)
        before = torch.cat([torch.zeros_like(go_on[:1]), go_on[:-1]])
        return torch.cat([F.logsigmoid(unit) + before, go_on[-1:]])

    def probability(self, state: Tensor) -> Tensor:
        """The probability chi (...) of stopping with ``state`` (..., D)."""
        return torch.sigmoid(self.geometric(state).float()).squeeze(-1)


Halting = SequenceHalting | TokenHalting | GeometricHalting


def build_halting(kind: str, *, decoder_dim: int, encoder_dim: int, exits: int) -> Halting | None:
    """The halting module of this kind, one of ``HALTINGS``; None for ``none``."""
    if kind == "none":
        return None
    if kind == "sequence":
        return SequenceHalting(dim=encoder_dim, exits=exits)
    return (TokenHalting if kind == "token" else GeometricHalting)(dim=decoder_dim, exits=exits)


class Policy:
    """Chooses the exit of each token of a decoder with ``exits`` blocks. This base class always chooses the last.

    Rows are independent of each other. A policy keeps nothing from one call to the next.
    """

    def __init__(self, *, exits: int) -> None:
        self.exits = exits

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """The exits (...), if the policy knows them after the first block; otherwise None.

        Args:
            sentence: (..., E), the mean encoder output.
            first: (..., D), the first block's output.
            tokens: (...) int64, the input tokens.
            positions: (...) int64, their positions from 0.
        """
        return None

    def stops(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        """Whether to stop (...) after block n < N with ``state`` (..., D). It is called if nothing is planned.

        ``logits`` computes the logits (..., V) of exit n.
        """
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    #: the kind of a decision, which determines its cost: one of ``depth_adaptive.flops.DECISIONS``
    decision = "none"


class FixedPolicy(Policy):
    """The same exit for every token."""

    def __init__(self, *, exits: int, exit: int) -> None:
        super().__init__(exits=exits)
        if not 1 <= exit <= exits:
            raise ValueError(f"the exit must be from 1 to {exits}, given {exit}")
        self.exit = exit

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        return torch.full_like(tokens, self.exit)


class RandomPolicy(Policy):
    """Exits drawn from a distribution, as an ablation.

    A draw depends on the seed, the token and its position alone, so that it is the same in every batch.
    """

    def __init__(self, *, exits: int, weights: Sequence[float] | None = None, seed: int = 1) -> None:
        super().__init__(exits=exits)
        weights = [1.0] * exits if weights is None else list(weights)
        if len(weights) != exits or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"{exits} weights of at least 0, one of them above, are needed, given {weights}")
        self.cumulated = torch.tensor(weights, dtype=torch.float64).cumsum(0) / sum(weights)
        self.seed = seed

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        uniform = _hash(tokens * 1_000_003 + positions * 7_919 + self.seed)
        cumulated = self.cumulated.to(uniform.device)
        return torch.bucketize(uniform, cumulated[:-1], right=True) + 1


def _hash(x: Tensor) -> Tensor:
    """Uniform float64 numbers in [0, 1) from int64: an integer hash of 32 bits, computed in int64 without overflow."""
    mask = 0xFFFFFFFF
    x = x & mask
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B)):
        x = ((x ^ (x >> shift)) * factor) & mask
    x = x ^ (x >> 16)
    return x.double() / 2.0**32


class ThresholdPolicy(Policy, ABC):
    """Stop after the first block whose score exceeds its threshold."""

    def __init__(self, *, exits: int, thresholds: Sequence[float]) -> None:
        super().__init__(exits=exits)
        self.thresholds = _thresholds(thresholds, exits)

    @abstractmethod
    def score(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        """The score (...), from 0 to 1, of ``state`` (..., D) after block n < N."""

    def stops(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        return self.score(n, state, logits) > self.thresholds[n - 1]


class ConfidencePolicy(ThresholdPolicy):
    """Stops where the largest probability exceeds the threshold (section 4.2)."""

    decision = "confidence"

    def score(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        return ops.top_probability(logits())


class HaltingPolicy(ThresholdPolicy):
    """Follows a halting module: the most likely exit or, if it is geometric, the first block above its threshold."""

    def __init__(self, *, exits: int, halting: Halting, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__(exits=exits, thresholds=thresholds)
        self.halting = halting
        self.decision = halting.kind

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor | None:
        if isinstance(self.halting, GeometricHalting):
            return None
        return self.halting.planned(sentence, first)

    def score(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        """The probability chi of stopping after block n, by a geometric halting."""
        assert isinstance(self.halting, GeometricHalting)
        return self.halting.probability(state)


def _thresholds(thresholds: Sequence[float], exits: int) -> list[float]:
    """One threshold for each block but the last, from one for all blocks or one for each.

    Raises:
        ValueError: another number of thresholds, or a threshold outside [0, 1].
    """
    values = [float(value) for value in thresholds]
    if len(values) == 1:
        values *= exits - 1
    if len(values) != exits - 1:
        raise ValueError(f"1 or {exits - 1} thresholds are needed for {exits} exits, given {len(thresholds)}")
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"a threshold must be from 0 to 1, given {value:g}")
    return values
