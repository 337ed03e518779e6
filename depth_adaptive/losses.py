"""Losses over exits: weights of the exits, and a cross-entropy that never holds all logits at once.

Axes: N exits, M tokens (flattened), D dimension of the features, V vocabulary.
"""

import math
from collections.abc import Sequence
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
# The most logits held at one time, unless a single token has more.
CHUNK = 2**24


def exit_weights(kind: str, exits: int) -> list[float]:
    """The weight of each exit in the average, omega_n / sum of omega; ``kind`` is one of ``WEIGHTINGS``."""
    weights = [WEIGHTINGS[kind](n) for n in range(1, exits + 1)]
    return [weight / sum(weights) for weight in weights]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are formed in the forward pass, chunk by chunk, so that no logits outlive their chunk.

    The gradient of exit n's smoothed cross-entropy with respect to its logits z_n is s_n = softmax(z_n) - target. If a
    part of the target is replaced by softmax(z_N), held fixed, the gradient is s_n - part * s_N, and the loss is that
    cross-entropy minus part * s_N·z_n. So s_N is all that is needed of the last exit.
    """

    @staticmethod
    def forward(
        ctx: Any, targets: Tensor, smoothing: float, distillation: float, training: bool, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        exits, m = len(inputs) // 2, targets.size(0)
        features, weights = inputs[:exits], inputs[exits:]
        v = weights[0].size(0)
        spread = smoothing / (v - 1)
        kept = 1.0 - smoothing - spread  # as in fairseq's label_smoothed_nll_loss
        exact = torch.promote_types(features[0].dtype, torch.float32)
        loss = features[0].new_zeros(exits, dtype=exact)
        likelihood = features[0].new_empty(exits, m, dtype=exact)
        correct = torch.empty(exits, m, dtype=torch.bool, device=targets.device)
        wanted = [training and needed for needed in ctx.needs_input_grad[4:]]
        d_features = [torch.zeros_like(x) if w else None for x, w in zip(features, wanted[:exits], strict=True)]
        d_weights = [
            torch.zeros_like(x, dtype=exact) if w else None for x, w in zip(weights, wanted[exits:], strict=True)
        ]
        gradient = any(wanted) or distillation > 0
        # In distillation, the logits of the last exit are held beside those of another.
        rows = max(1, CHUNK // (2 * v if distillation > 0 else v))
        for begin in range(0, m, rows):
            part = slice(begin, begin + rows)
            last = None  # s_N, known after the last exit, which comes first
            for n in reversed(range(exits)):
                logits = features[n][part] @ weights[n].t()  # (rows, V); then their gradient
                if last is not None:
                    loss[n] -= distillation * (last * logits).sum(dtype=exact)
                likelihood[n, part], total, correct[n, part] = cross_entropy_(
                    logits, targets[part], kept=kept, spread=spread, gradient=gradient
                )
                loss[n] -= kept * likelihood[n, part].sum() + spread * total.sum()
                if last is not None:
                    logits.sub_(last, alpha=distillation)
                elif distillation > 0:
                    last = logits
                if (d_feature := d_features[n]) is not None:
                    d_feature[part] = logits @ weights[n]
                if (d_weight := d_weights[n]) is not None:
                    d_weight += (logits.t() @ features[n][part]).to(exact)
        ctx.save_for_backward(
            *d_features, *(None if d is None else d.to(x.dtype) for d, x in zip(d_weights, weights, strict=True))
        )
        ctx.mark_non_differentiable(likelihood, correct)
        return loss, likelihood, correct

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        exits = d_loss.size(0)
        scaled = [None if g is None else g * d_loss[n % exits].to(g.dtype) for n, g in enumerate(gradients)]
        return (None, None, None, None, *scaled)


def linear_cross_entropy(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    distillation: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies of softmax(features @ weight.T), summed over tokens, with fairseq's label smoothing.

    Args:
        features: (M, D) for each of the N exits.
        weights: (V, D) for each exit; exits may share a tensor.
        targets: (M,) int64.
        smoothing: probability mass that is spread over all other tokens of the vocabulary.
        distillation: at every exit but the last, the part of the (smoothed) target that is replaced by the
            distribution of the last exit. No gradient flows through it.

    Returns:
        The losses (N,), differentiable with respect to ``features`` and ``weights``; the log-likelihoods (N, M) in
        float32 or better, and whether the target is the most likely token (N, M), both without gradient.
    """
    # Inside forward, gradients are always disabled.
    training = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(targets, smoothing, distillation, training, *features, *weights)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, None]:
        return d_x * ctx.factor, None


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """``x`` with its gradient multiplied by ``factor``, a number or one for each element (SCALE of algorithm 1)."""
    return _Scale.apply(x, factor)


def gradient_scales(factor: float | None, exits: int) -> list[float] | None:
    """gamma_n of appendix A for n = 1 to N: factor * (N - n + 1); None without a factor.

    The paper divides by N - n, which is 0 for the last block. With blocks counted from 0, the formula is ours.
    """
    return None if factor is None else [factor * (exits - n + 1) for n in range(1, exits + 1)]
