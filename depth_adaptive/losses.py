"""Losses over exits: weights of the exits, and cross-entropy that never holds all logits at once.

Axes: M tokens (any that are flattened), D dimension of the features, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor

from depth_adaptive.ops import cross_entropy_

# omega_n of equation 4.
WEIGHTINGS = {
    "uniform": lambda n: 1.0,
    "n": float,
    "sqrt": math.sqrt,
    "inverse-sqrt": lambda n: 1 / math.sqrt(n),
    "inverse": lambda n: 1 / n,
}
# Logits that are held at one time, at most; of a single token, if it has more.
CHUNK = 2**24


def exit_weights(kind: str, exits: int) -> list[float]:
    """The weight of each exit in the mean, omega_n / sum of omega: the name is one of ``WEIGHTINGS``."""
    weights = [WEIGHTINGS[kind](n) for n in range(1, exits + 1)]
    return [weight / sum(weights) for weight in weights]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are formed in the forward pass, chunk by chunk, so that no logits outlive their chunk."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, smoothing: float, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, v = features.size(0), weight.size(0)
        spread = smoothing / (v - 1)
        kept = 1.0 - smoothing - spread  # fairseq's label_smoothed_nll_loss
        exact = torch.promote_types(features.dtype, torch.float32)
        likelihood = features.new_empty(m, dtype=exact)
        correct = torch.empty(m, dtype=torch.bool, device=features.device)
        loss = features.new_zeros((), dtype=exact)
        wanted = [training and needed for needed in ctx.needs_input_grad[:2]]
        d_features = torch.empty_like(features) if wanted[0] else None
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if wanted[1] else None
        rows = max(1, CHUNK // v)
        for begin in range(0, m, rows):
            part = slice(begin, begin + rows)
            logits = features[part] @ weight.t()  # (rows, V), and then their gradient
            likelihood[part], total, correct[part] = cross_entropy_(
                logits, targets[part], kept=kept, spread=spread, gradient=any(wanted)
            )
            loss -= kept * likelihood[part].sum() + spread * total.sum()
            if d_features is not None:
                d_features[part] = logits @ weight
            if d_weight is not None:
                d_weight += (logits.t() @ features[part]).to(exact)
        ctx.save_for_backward(d_features, None if d_weight is None else d_weight.to(weight.dtype))
        ctx.mark_non_differentiable(likelihood, correct)
        return loss, likelihood, correct

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        d_features, d_weight = ctx.saved_tensors
        return (
            None if d_features is None else d_features * d_loss.to(d_features.dtype),
            None if d_weight is None else d_weight * d_loss.to(d_weight.dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of softmax(features @ weight.T), as fairseq smooths labels, summed over tokens.

    Args:
        features: (M, D).
        weight: (V, D).
        targets: (M,) int64.
        smoothing: weight that is spread over all other words.

    Returns:
        The loss (), differentiable in ``features`` and ``weight``; the log-likelihoods (M,) in float32 or
        better and whether the target is the most likely word (M,), both without gradient.
    """
    # Only here is it known whether gradients are recorded.
    return _LinearCrossEntropy.apply(features, weight, targets, smoothing, torch.is_grad_enabled())


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, None]:
        return d_x * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``factor``: SCALE of algorithm 1 (appendix A)."""
    return _Scale.apply(x, factor)


def gradient_scales(factor: float | None, exits: int) -> list[float] | None:
    """gamma_n of appendix A for n = 1 to N: factor * (N - n + 1); None without a factor.

    The paper has N - n, which is 0 for the last block and divides by it: with the blocks counted from 0 it is ours.
    """
    return None if factor is None else [factor * (exits - n + 1) for n in range(1, exits + 1)]
