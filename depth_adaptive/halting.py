"""When to stop: distributions over exits that are learnt, and policies that choose an exit while decoding.

Section 4 of the paper. Axes: N exits (counted from 1), B batch, T target, D dimension of the decoder, E that of the
encoder; ``...`` are any leading axes. Nothing here knows fairseq.

A halting has its weights under the name of its kind: so none is loaded into another, whose shapes may be the same.
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
    """In float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SequenceHalting(nn.Module):
    """One exit for a sentence, from the mean encoder output: softmax(W s + b) (equation 8)."""

    kind = "sequence"

    def __init__(self, *, dim: int, exits: int) -> None:
        super().__init__()
        self.sequence = nn.Linear(dim, exits)

    def log_distribution(self, sentence: Tensor, states: Sequence[Tensor]) -> Tensor:
        """(N, B) from ``sentence`` (B, E); ``states`` are not looked at."""
        return F.log_softmax(_exact(self.sequence(sentence)), dim=-1).movedim(-1, 0)

    def planned(self, sentence: Tensor, first: Tensor) -> Tensor:
        """(..., ) exits from ``sentence`` (..., E)."""
        return self.sequence(sentence).argmax(-1) + 1


class TokenHalting(nn.Module):
    """An exit for each token from the first block's output: softmax(W h + b) (equation 11)."""

    kind = "token"

    def __init__(self, *, dim: int, exits: int) -> None:
        super().__init__()
        self.token = nn.Linear(dim, exits)

    def log_distribution(self, sentence: Tensor, states: Sequence[Tensor]) -> Tensor:
        """(N, B, T) from the first of ``states``, (B, T, D) each."""
        return F.log_softmax(_exact(self.token(states[0])), dim=-1).movedim(-1, 0)

    def planned(self, sentence: Tensor, first: Tensor) -> Tensor:
        """(..., ) exits from ``first`` (..., D)."""
        return self.token(first).argmax(-1) + 1


class GeometricHalting(nn.Module):
    """Stop or go on after every block but the last: one sigmoid unit for all of them (equations 12 and 13)."""

    kind = "geometric"

    def __init__(self, *, dim: int, exits: int) -> None:
        super().__init__()
        self.exits = exits
        self.geometric = nn.Linear(dim, 1)

    def log_distribution(self, sentence: Tensor, states: Sequence[Tensor]) -> Tensor:
        """(N, B, T): log of chi_n * prod_{m<n} (1 - chi_m), the rest at N; ``states`` (B, T, D), N of them."""
        if self.exits == 1:
            return torch.zeros_like(_exact(states[0][None, ..., 0]))
        unit = _exact(self.geometric(torch.stack(list(states[:-1])))).squeeze(-1)
        go_on = F.logsigmoid(-unit).cumsum(0)  # (N - 1, B, T)
        before = torch.cat([torch.zeros_like(go_on[:1]), go_on[:-1]])
        return torch.cat([F.logsigmoid(unit) + before, go_on[-1:]])

    def probability(self, state: Tensor) -> Tensor:
        """chi (...) of ``state`` (..., D)."""
        return torch.sigmoid(self.geometric(state).float()).squeeze(-1)


Halting = SequenceHalting | TokenHalting | GeometricHalting


def build_halting(kind: str, *, decoder_dim: int, encoder_dim: int, exits: int) -> Halting | None:
    """The halting module of that name in ``HALTINGS``; None for ``none``."""
    if kind == "none":
        return None
    if kind == "sequence":
        return SequenceHalting(dim=encoder_dim, exits=exits)
    return (TokenHalting if kind == "token" else GeometricHalting)(dim=decoder_dim, exits=exits)


class Policy:
    """Chooses the exit of each token of a decoder of ``exits`` blocks: by itself the last. Rows are independent."""

    def __init__(self, *, exits: int) -> None:
        self.exits = exits

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """The exits (...), if they are known once the first block has been computed; else None.

        Args:
            sentence: (..., E), the mean encoder output.
            first: (..., D), the first block's output.
            tokens: (...) int64, the input tokens.
            positions: (...) int64, their positions from 0.
        """
        return None

    def stops(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        """(...) bool: whether to stop after block n < N, of ``state`` (..., D); asked where nothing is planned."""
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    #: what a decision costs, one of ``depth_adaptive.flops.DECISIONS``
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
    """Exits drawn from a distribution: the ablation.

    The draw depends on the seed, the token and its position alone, so that it is the same in every batch.
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
    """Float64 in [0, 1) from int64: splitmix64's finaliser on 32 bits, which int64 arithmetic holds."""
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
        """(...) from 0 to 1, of ``state`` (..., D) after block n < N."""

    def stops(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        return self.score(n, state, logits) > self.thresholds[n - 1]


class ConfidencePolicy(ThresholdPolicy):
    """The score is the largest probability (section 4.2)."""

    decision = "confidence"

    def score(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        return ops.top_probability(logits())


class HaltingPolicy(ThresholdPolicy):
    """What a halting module says: the most likely exit, or, geometric, the first block that exceeds its threshold."""

    def __init__(self, *, exits: int, halting: Halting, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__(exits=exits, thresholds=thresholds)
        self.halting = halting
        self.decision = halting.kind

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor | None:
        if isinstance(self.halting, GeometricHalting):
            return None
        return self.halting.planned(sentence, first)

    def score(self, n: int, state: Tensor, logits: Logits) -> Tensor:
        """chi of block n; of a geometric halting."""
        assert isinstance(self.halting, GeometricHalting)
        return self.halting.probability(state)


def _thresholds(given: Sequence[float], exits: int) -> list[float]:
    """One threshold for each block but the last.

    Raises:
        ValueError: neither 1 nor exits - 1 of them, or one out of [0, 1].
    """
    values = [float(value) for value in given]
    if len(values) == 1:
        values *= exits - 1
    if len(values) != exits - 1:
        raise ValueError(f"1 or {exits - 1} thresholds are needed for {exits} exits, given {len(given)}")
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"a threshold must be from 0 to 1, given {value:g}")
    return values
