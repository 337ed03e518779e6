"""Floating-point operations of the decoder per token (appendix B of the paper), for greedy decoding or one hypothesis.

A multiplication and an addition count separately. The matrix products are counted: projections, scores and sums of
attention, feed-forward, halting unit, output layer. Layer norms, softmax, activations, biases, residual sums and
embeddings are not. Axes: B sentences, T target; D and E are the decoder's and encoder's dimensions.

These are the operations that a sentence alone needs. In a batch, attention to the source also runs over padding, and
with few rows :mod:`depth_adaptive.search` computes those that have left too; these operations are not counted. Keys and
values of copied states count in every upper block, as `--exit-copies eager` computes them; `deferred` needs as many or
fewer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DECISIONS = ("none", "sequence", "token", "geometric", "confidence")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the decoder.

    Attributes:
        dim: dimension D of the decoder.
        ffn: dimension of the feed-forward layers.
        encoder_dim: dimension E of the encoder.
        vocabulary: size of the target vocabulary.
        exits: number of blocks.
        output_dim: dimension to which the input of the output layer is projected, if it is not D.
    """

    dim: int
    ffn: int
    encoder_dim: int
    vocabulary: int
    exits: int
    output_dim: int | None = None

    @property
    def output(self) -> int:
        """Operations of the output layer for one token."""
        if self.output_dim in (None, self.dim):
            return 2 * self.vocabulary * self.dim
        return 2 * self.output_dim * (self.dim + self.vocabulary)


@dataclass(frozen=True)
class Flops:
    """The operations of all tokens, and the number of tokens."""

    total: int
    tokens: int

    @property
    def mean(self) -> float:
        """Operations per token; 0 if there are no tokens."""
        return self.total / self.tokens if self.tokens else 0.0


def of_exits(exits: Tensor, source_lengths: Tensor, sizes: Sizes, *, decision: str) -> Flops:
    """The operations for tokens that left at ``exits``.

    Args:
        exits: (B, T) int64, from 1; 0 after the end of a sentence.
        source_lengths: (B,) int64.
        decision: how exits are decided, one of ``DECISIONS``; "none" for fixed and random exits and full depth.

    Raises:
        ValueError: an unknown decision, exits out of range or after the end, or shapes that do not fit.
    """
    if decision not in DECISIONS:
        raise ValueError(f"the decision must be one of {', '.join(DECISIONS)}, given {decision}")
    if exits.dim() != 2 or source_lengths.shape != exits.shape[:1]:
        raise ValueError(
            f"exits (B, T) and lengths (B,) are needed, given {tuple(exits.shape)} and {tuple(source_lengths.shape)}"
        )
    if exits.numel() and not 0 <= int(exits.min()) <= int(exits.max()) <= sizes.exits:
        raise ValueError(
            f"exits must be from 1 to {sizes.exits}, or 0 after the end, given {int(exits.min())} to {int(exits.max())}"
        )
    real = exits > 0
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError("a sentence's exits must stand at its beginning, given some after a 0")
    d, exits = sizes.dim, exits.long()
    # A token attends to t positions, itself included.
    t = torch.arange(1, exits.size(1) + 1, device=exits.device).expand_as(exits)
    source = source_lengths.long()[:, None]
    computed = 12 * d**2 + 4 * sizes.ffn * d + 4 * t * d + 4 * source * d  # per block, FC of the appendix
    total = (exits * computed)[real].sum()
    # Keys and values of the source, in each block that a sentence reaches.
    deepest = exits.amax(1) if exits.size(1) else exits.new_zeros(exits.size(0))
    total += (deepest * 4 * source[:, 0] * d * sizes.encoder_dim).sum()
    total += ((sizes.exits - exits) * 4 * d**2)[real].sum()  # copied states, FS of the appendix
    decided = exits.clamp(max=sizes.exits - 1)[real]  # blocks with a decision: after the last there is none
    tokens = int(real.sum())
    outputs = tokens
    if decision == "sequence":
        total += 2 * sizes.exits * sizes.encoder_dim * int(real.any(1).sum())
    elif decision == "token":
        total += 2 * sizes.exits * d * tokens
    elif decision == "geometric":
        total += 2 * d * decided.sum()
    elif decision == "confidence":  # the output layer at each block up to the exit
        outputs = int(exits[real].sum())
    return Flops(int(total) + sizes.output * outputs, tokens)


def full_depth(lengths: Tensor, source_lengths: Tensor, sizes: Sizes) -> Flops:
    """The operations for targets of ``lengths`` (B,) if all tokens go through all blocks."""
    longest = int(lengths.max()) if lengths.numel() else 0
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return of_exits(real.long() * sizes.exits, source_lengths, sizes, decision="none")
