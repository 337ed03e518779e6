"""The loss of depth_adaptive written as loops over sentences, exits and tokens, from the paper's equations.

Every block runs on one sentence without padding, by fairseq's code of a single block; exits, copies, scales of the
gradient, oracles and distributions are written out. In float64, and differentiable where the paper's loss is.

Axes: N blocks and exits (counted from 1), T target, S source, D dimension of the decoder.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# omega_n below equation 4.
WEIGHTS: dict[str, Callable[[int], float]] = {
    "uniform": lambda n: 1,
    "n": lambda n: n,
    "sqrt": lambda n: n**0.5,
    "inverse-sqrt": lambda n: n**-0.5,
    "inverse": lambda n: 1 / n,
}


@dataclass
class Loss:
    """The result of :func:`loss`. ``total`` is equation 7; the others are sums over tokens."""

    total: Tensor
    exits: Tensor  # L_dec
    halting: Tensor  # L_exit
    oracle: list[list[int]] = field(default_factory=list)  # the exit of each token of each sentence
    nll: list[float] = field(default_factory=list)  # of each exit, on all tokens
    sampled_nll: list[float] = field(default_factory=list)  # of each exit, on the tokens that were sampled for it
    sampled_tokens: list[int] = field(default_factory=list)  # how many these are


def scaled(x: Tensor, gamma: float) -> Tensor:
    """SCALE_GRADIENT of algorithm 1."""
    return gamma * x + (1 - gamma) * x.detach()


def gammas(scale: float | None, exits: int) -> list[float]:
    """gamma_1 to gamma_N; the N - n of the paper, counted so that the last is not 0."""
    return [1.0 if scale is None else scale * (exits - n + 1) for n in range(1, exits + 1)]


def encoded(model: Any, source: Tensor) -> Tensor:
    """The encoder's output (S, D) of one sentence (S,)."""
    return model.encoder(source[None], torch.tensor([len(source)]))["encoder_out"][0][:, 0]


def embedded(decoder: Any, previous: Tensor) -> Tensor:
    """The input (T, D) of the first block, for words (T,)."""
    x = decoder.embed_scale * decoder.embed_tokens(previous)
    if decoder.project_in_dim is not None:
        x = decoder.project_in_dim(x)
    x = x + decoder.embed_positions(previous[None])[0]
    return x if decoder.layernorm_embedding is None else decoder.layernorm_embedding(x)


def states(
    model: Any, memory: Tensor, previous: Tensor, exits: list[int] | None = None, scale: float | None = None
) -> list[list[Tensor]]:
    """The output (D,) of every block at every token of ``previous`` (T,) (equations 1 and 2).

    Blocks above the ``exits`` of a token, if given, copy what is below them.
    """
    decoder = model.decoder
    count, gamma = len(decoder.layers), gammas(scale, len(decoder.layers))
    below = list(embedded(decoder, previous))
    future = torch.full((len(previous), len(previous)), -math.inf, dtype=torch.float64).triu(1)
    result = []
    for n in range(1, count + 1):
        if n > 1:
            below = [scaled(state, 1 / gamma[n - 1]) for state in below]
        # forward and not the call: hooks on a block are left out.
        output = decoder.layers[n - 1].forward(torch.stack(below)[:, None], memory[:, None], self_attn_mask=future)[0]
        below = [output[t, 0] if exits is None or exits[t] >= n else below[t] for t in range(len(previous))]
        result.append(below)
    return result


def log_probabilities(model: Any, n: int, state: Tensor) -> Tensor:
    """log p(. | h^n) over the vocabulary (equation 3)."""
    decoder = model.decoder
    last = n == len(decoder.layers)
    norm = decoder.layer_norm if last else decoder.exit_norms[n - 1] if len(decoder.exit_norms) else None
    shared = last or not len(decoder.exit_projections)
    projection = decoder.output_projection if shared else decoder.exit_projections[n - 1]
    state = state if norm is None else norm(state)
    if decoder.project_out_dim is not None:
        state = decoder.project_out_dim(state)
    scores = projection.weight @ state
    return scores - scores.exp().sum().log()


def word_loss(
    lprobs: Tensor, word: int, smoothing: float, distillation: float = 0.0, last: Tensor | None = None
) -> Tensor:
    """The negative log-likelihood of a word.

    Smoothing spreads its mass over all other words, as in fairseq. With distillation, a part of the target is the
    distribution of the last exit, whose log-probabilities are ``last`` (V,).
    """
    weights = torch.full_like(lprobs, smoothing / (len(lprobs) - 1))
    weights[word] = 1 - smoothing
    if last is not None:
        weights = (1 - distillation) * weights + distillation * last.detach().exp()
    return -(weights @ lprobs)


def first_best(scores: list[float], penalty: float) -> int:
    """argmax over n of score_n - lambda n, the earliest of equals."""
    best = 1
    for n in range(2, len(scores) + 1):
        if scores[n - 1] - penalty * n > scores[best - 1] - penalty * best + 1e-12:
            best = n
    return best


def oracle(kind: str, scores: list[list[float]], penalty: float, sigma: float) -> list[int]:
    """The exit of each token, of ``scores[t][n - 1]`` (equations 9, 10 and 14 to 17)."""
    count = len(scores[0])
    if kind == "sequence":
        total = [sum(token[n] for token in scores) for n in range(count)]
        return [first_best(total, penalty)] * len(scores)
    exits = []
    for t in range(len(scores)):
        total = [0.0] * count
        for other in range(len(scores)):
            near = math.exp(-((t - other) ** 2) / sigma) if sigma else float(t == other)
            for n in range(count):
                total[n] += near * scores[other][n]
        exits.append(first_best(total, penalty))
    return exits


def exit_probability(kind: str, unit: Any, n: int, memory: Tensor, at_blocks: list[Tensor]) -> Tensor:
    """q(n) of a token whose outputs of the blocks are ``at_blocks`` (equations 8, 11, 12 and 13)."""
    if kind != "geometric":
        x = sum(memory) / len(memory) if kind == "sequence" else at_blocks[0]
        scores = unit.weight @ x + unit.bias
        return scores[n - 1].exp() / scores.exp().sum()
    q = torch.ones((), dtype=memory.dtype)
    for block, state in enumerate(at_blocks[:-1], start=1):
        chi = 1 / (1 + (-(unit.weight[0] @ state) - unit.bias[0]).exp())
        if block == n:
            return q * chi
        q = q * (1 - chi)
    return q


def loss(
    model: Any,
    sources: list[Tensor],
    previous: list[Tensor],
    words: list[list[int]],
    *,
    weighting: str,
    label_smoothing: float,
    halting: str,
    oracle_kind: str,
    alpha: float,
    penalty: float,
    sigma: float,
    scale: float | None = None,
    sampled: list[list[list[int]]] | None = None,
    distillation: float = 0.0,
) -> Loss:
    """Equation 7 for a batch.

    Args:
        sources: the source (S,) of each sentence, without padding.
        previous: the previous words (T,) of each sentence.
        words: the words to predict.
        sampled: in mixed training (equation 5), M times the exit of each token of each sentence; else all exits
            count on each token (equation 4), by ``weighting``.
        distillation: part of the target that is the last exit's distribution.
    """
    zero = torch.zeros((), dtype=torch.float64)
    count = len(model.decoder.layers)
    gamma = gammas(scale, count)
    omega = [WEIGHTS[weighting](n) for n in range(1, count + 1)]
    result = Loss(zero, zero, zero, nll=[0.0] * count, sampled_nll=[0.0] * count, sampled_tokens=[0] * count)
    for b, source in enumerate(sources):
        memory = encoded(model, source)
        for exits in [] if sampled is None else [sequences[b] for sequences in sampled]:
            assert sampled is not None
            copied = states(model, memory, previous[b], exits, scale)
            for t, (n, word) in enumerate(zip(exits, words[b], strict=True)):
                lprobs = scaled(log_probabilities(model, n, copied[n - 1][t]), gamma[n - 1])
                result.exits = result.exits + word_loss(lprobs, word, label_smoothing) / len(sampled)
                result.sampled_nll[n - 1] -= lprobs[word].item()
                result.sampled_tokens[n - 1] += 1
        outputs = states(model, memory, previous[b], scale=scale)
        scores = []
        for t, word in enumerate(words[b]):
            scores.append([0.0] * count)
            last = log_probabilities(model, count, outputs[count - 1][t])
            for n in range(1, count + 1):
                lprobs = scaled(log_probabilities(model, n, outputs[n - 1][t]), gamma[n - 1])
                likelihood = lprobs[word].item()
                right = all(likelihood >= other for other in lprobs.tolist())
                scores[t][n - 1] = likelihood if oracle_kind == "likelihood" else float(right)
                result.nll[n - 1] -= likelihood
                if sampled is None:
                    weight = omega[n - 1] / sum(omega)
                    result.exits = result.exits + weight * word_loss(
                        lprobs, word, label_smoothing, distillation, last if n < count else None
                    )
        if halting != "none":
            result.oracle.append(oracle(halting, scores, penalty, sigma))
            for t, n in enumerate(result.oracle[-1]):
                at_blocks = [output[t] for output in outputs]
                q = exit_probability(halting, getattr(model.decoder.halting, halting), n, memory, at_blocks)
                result.halting = result.halting - q.log()
    result.total = result.exits + alpha * result.halting
    return result
