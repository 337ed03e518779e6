"""The exit at which a token, or a sentence, should stop: the targets of halting (section 4.3 of the paper).

Axes: N exits, B batch, T target. Exits are counted from 1.
"""

import torch
from torch import Tensor

ORACLES = ("likelihood", "correctness")


def smoothed(scores: Tensor, mask: Tensor, *, sigma: float) -> Tensor:
    """Add to each token's scores those of its neighbours, weighted by an RBF kernel (equations 15 and 17).

    Args:
        scores: (N, B, T), log-likelihoods, or 1 where the exit predicts the right token.
        mask: (B, T), True at tokens that count; the others contribute nothing.
        sigma: width of the kernel exp(-|t - t'|^2 / sigma); 0: no smoothing.

    Returns:
        (N, B, T).
    """
    scores = scores.masked_fill(~mask, 0.0)
    if sigma == 0:
        return scores
    t = torch.arange(scores.size(-1), device=scores.device, dtype=scores.dtype)
    kernel = torch.exp(-((t[:, None] - t[None]) ** 2) / sigma)  # (T, T)
    return scores @ kernel


def token_oracle(scores: Tensor, mask: Tensor, *, penalty: float, sigma: float = 0.0) -> Tensor:
    """The best exit of each token: argmax over n of the smoothed scores - penalty * n (equations 14 to 17).

    Shapes are those of :func:`smoothed`. Of equal scores the first exit is chosen.

    Returns:
        (B, T) int64, from 1 to N.
    """
    return _best(smoothed(scores, mask, sigma=sigma), penalty)


def sequence_oracle(scores: Tensor, mask: Tensor, *, penalty: float) -> Tensor:
    """The best exit (B,) of each sentence, whose score is the sum over its tokens (equations 9 and 10)."""
    return _best(scores.masked_fill(~mask, 0.0).sum(-1), penalty)


def _best(scores: Tensor, penalty: float) -> Tensor:
    n = torch.arange(1, scores.size(0) + 1, device=scores.device, dtype=scores.dtype)
    penalised = scores - penalty * n.view(-1, *[1] * (scores.dim() - 1))
    # argmax does not guarantee the first of equal values.
    is_best = penalised == penalised.amax(0)
    return is_best.to(torch.int8).argmax(0) + 1
