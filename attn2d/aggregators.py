"""Aggregators: collapse the source axis of the grid and give alignments of target rows with source positions.

Axes: B batch, T target rows, S source columns, C channels. ``padding`` (B, S) is True at padded columns, which
are ignored. Paper: section 3.3 (arXiv 1808.03867); its section 4.3 reads alignments off max-pooling.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2d import ops
from attn2d.backend import Backend
from attn2d.linear import Linear


class AverageAggregator(nn.Module):
    """The mean over the source; its alignments are uniform."""

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__()

    def weights(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → (B, T, S), 1/|source| at real columns."""
        if padding is None:
            return x.new_full(x.shape[:3], 1.0 / x.size(2))
        real = (~padding).to(x.dtype)
        return (real / real.sum(dim=1, keepdim=True)).unsqueeze(1).expand(x.shape[:3])

    def forward(self, x: Tensor, padding: Tensor | None, alignments: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, T, S, C) → (B, T, C) and, if ``alignments``, alignments (B, T, S) whose rows sum to one."""
        weights = self.weights(x, padding)
        # (B, T, 1, S) x (B, T, S, C)
        # contiguous: fairseq adds up an ensemble's alignments in place
        return torch.matmul(weights.unsqueeze(2), x).squeeze(2), weights.contiguous() if alignments else None


class AttentionAggregator(AverageAggregator):
    """Self-attention over the source: the weights are a softmax of a linear score of each cell."""

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__(channels, backend=backend)
        self.score = nn.Linear(channels, 1)
        nn.init.zeros_(self.score.bias)
        nn.init.normal_(self.score.weight, std=channels**-0.5)

    def weights(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, S, C) → (B, T, S), zero at padded columns."""
        scores = self.score(x).squeeze(-1)
        if padding is not None:
            # The lowest finite number, not -inf: safe in half precision and for a row without a real column.
            scores = scores.masked_fill(padding.unsqueeze(1), torch.finfo(scores.dtype).min)
        return F.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)


def winners(indices: Tensor, width: int) -> Tensor:
    """The share of channels whose maximum is at each column: indices (B, T, C) → (B, T, S), S = width."""
    shares = torch.zeros(*indices.shape[:2], width, device=indices.device)
    ones = torch.ones(indices.shape, device=indices.device)
    return shares.scatter_add_(2, indices.long(), ones) / indices.size(2)


class MaxAggregator(nn.Module):
    """The maximum over the source, channel by channel; alignments are the shares of channels won."""

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, padding: Tensor | None, alignments: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, T, S, C) → (B, T, C) and, if ``alignments``, alignments (B, T, S) whose rows sum to one."""
        values, indices = ops.max_over_source(x, padding, backend=self.backend)
        return values, winners(indices, x.size(2)) if alignments else None


class GatedMaxAggregator(nn.Module):
    """A gated linear unit on each cell, then the maximum as in :class:`MaxAggregator`."""

    def __init__(self, channels: int, *, backend: Backend = Backend.AUTO):
        super().__init__()
        self.backend = backend
        self.gate = Linear(channels, 2 * channels, backend=backend)
        nn.init.xavier_uniform_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, padding: Tensor | None, alignments: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, T, S, C) → (B, T, C) and, if ``alignments``, alignments (B, T, S) whose rows sum to one."""
        values, indices = ops.gated_max(self.gate(x), padding, backend=self.backend)
        return values, winners(indices, x.size(2)) if alignments else None


AGGREGATORS: dict[str, type[nn.Module]] = {
    "avg": AverageAggregator,
    "max": MaxAggregator,
    "attn": AttentionAggregator,
    "gated-max": GatedMaxAggregator,
}
