"""The grid of source and target embeddings that the convolutional network reads.

Axes: B batch, T target positions, S source positions, C channels. Padding masks are True at padding.
"""

import torch
from torch import Tensor, nn


class Grid(nn.Module):
    """x[b,t,s] = [source embedding s ; embedding of previous output t], reduced to ``channels`` (paper, section 3.1).

    The reduction is a 1x1 convolution of the concatenation. It is linear, so W[e_s ; e_t] = W_s e_s + W_t e_t is
    computed on S + T vectors instead of S·T.

    Args:
        source_dim: dimension of the source embeddings.
        target_dim: dimension of the target embeddings.
        channels: C; 0 for no reduction, C = source_dim + target_dim.
    """

    def __init__(self, *, source_dim: int, target_dim: int, channels: int = 0):
        super().__init__()
        self.channels = channels or source_dim + target_dim
        self.reduce_source: nn.Linear | None = None
        self.reduce_target: nn.Linear | None = None
        if self.channels != source_dim + target_dim:
            self.reduce_source = nn.Linear(source_dim, self.channels)
            self.reduce_target = nn.Linear(target_dim, self.channels, bias=False)
            for half in (self.reduce_source, self.reduce_target):
                # as one Xavier-initialised matrix of fan-in source_dim + target_dim
                bound = (6.0 / (source_dim + target_dim + self.channels)) ** 0.5
                nn.init.uniform_(half.weight, -bound, bound)
            nn.init.zeros_(self.reduce_source.bias)

    def project_source(self, source: Tensor) -> Tensor:
        """(B, S, source_dim) → (B, S, C or source_dim): the source's share, computed once per sentence."""
        return source if self.reduce_source is None else self.reduce_source(source)

    def forward(self, projected_source: Tensor, target: Tensor) -> Tensor:
        """Projected source (B, S, ·) and target embeddings (B, T, target_dim) → grid (B, T, S, C)."""
        columns = projected_source.unsqueeze(1)  # (B, 1, S, ·)
        if self.reduce_target is not None:
            return columns + self.reduce_target(target).unsqueeze(2)
        rows = target.unsqueeze(2)  # (B, T, 1, ·)
        batch, steps, width = target.size(0), target.size(1), projected_source.size(1)
        return torch.cat((columns.expand(-1, steps, -1, -1), rows.expand(batch, -1, width, -1)), dim=-1)
