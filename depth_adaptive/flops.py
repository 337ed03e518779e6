"""Floating-point operations of the decoder per token (appendix B of the paper), of greedy decoding or one hypothesis.

A multiplication and an addition count separately. Counted are the matrix products: projections, scores and sums of
attention, feed-forward, halting unit, output layer. Layer norms, softmax, activations, biases, residual sums and
embeddings are not. Axes: B sentences, T target; D and E are the decoder's and encoder's dimensions.

These are the operations that a sentence alone needs. In a batch, :mod:`depth_adaptive.search` computes scores and
sums of attention to the source for rows that have left too, and over padding: these are extra. Copied states' keys and
values count in every upper block, as `--exit-copies eager` computes them; `deferred` computes as many or fewer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DECISIONS = ("none", "sequence", "token", "geometric", "confidence")


@dataclass(frozen=True)
class Sizes:
    """The decoder's: dimension D, feed-forward, encoder's dimension E, vocabulary and number of blocks.

    ``output_dim``: of the output layer's input, if it is projected to another dimension than D.
    """

    dim: int
    ffn: int
    encoder_dim: int
    vocabulary: int
    exits: int
    output_dim: int | None = None

    @property
    def output(self) -> int:
        """Operations of one output layer."""
        if self.output_dim in (None, self.dim):
            return 2 * self.vocabulary * self.dim
        return 2 * self.output_dim * (self.dim + self.vocabulary)


@dataclass(frozen=True)
class Flops:
    """Operations of all tokens, and their number."""

    total: int
    tokens: int

    @property
    def mean(self) -> float:
        """Per token; 0 without tokens."""
        return self.total / self.tokens if self.tokens else 0.0


def of_exits(exits: Tensor, source_lengths: Tensor, sizes: Sizes, *, decision: str) -> Flops:
    """Operations of tokens that left at ``exits``.

    Args:
        exits: (B, T) int64, from 1; 0 after a sentence's end.
        source_lengths: (B,) int64.
        decision: how exits are decided, one of ``DECISIONS``; fixed, random and full exits cost nothing.

    Raises:
        ValueError: another decision, exits out of range or after a sentence's end, or lengths of other sentences.
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
    t = torch.arange(1, exits.size(1) + 1, device=exits.device).expand_as(
        exits
    )  # a token attends to t, itself included
    source = source_lengths.long()[:, None]
    gone_through = 12 * d**2 + 4 * sizes.ffn * d + 4 * t * d + 4 * source * d  # FC
    total = (exits * gone_through)[real].sum()
    # The source's keys and values, in each block that a sentence reaches: FC of the first call.
    deepest = exits.amax(1) if exits.size(1) else exits.new_zeros(exits.size(0))
    total += (deepest * 4 * source[:, 0] * d * sizes.encoder_dim).sum()
    total += ((sizes.exits - exits) * 4 * d**2)[real].sum()  # FS
    asked = exits.clamp(max=sizes.exits - 1)[real]  # the last block is not asked
    tokens = int(real.sum())
    outputs = tokens
    if decision == "sequence":
        total += 2 * sizes.exits * sizes.encoder_dim * int(real.any(1).sum())
    elif decision == "token":
        total += 2 * sizes.exits * d * tokens
    elif decision == "geometric":
        total += 2 * d * asked.sum()
    elif decision == "confidence":  # the output layer of each exit asked, and of the last where none stops
        outputs = int(exits[real].sum())
    return Flops(int(total) + sizes.output * outputs, tokens)


def full_depth(lengths: Tensor, source_lengths: Tensor, sizes: Sizes) -> Flops:
    """Operations of targets of ``lengths`` (B,), all tokens going through all blocks."""
    longest = int(lengths.max()) if lengths.numel() else 0
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return of_exits(real.long() * sizes.exits, source_lengths, sizes, decision="none")
