"""Token and position embeddings of source and target.

Axes: B batch (times beam in decoding), L positions.
"""

import math

from fairseq.modules import PositionalEmbedding
from torch import Tensor, nn

from attn2d import ops
from attn2d.backend import Backend


class Embedder(nn.Module):
    """Token and position embeddings with dropout; token embeddings scaled by √dim so that both weigh alike."""

    def __init__(
        self,
        tokens: nn.Embedding,
        *,
        positions: str,
        max_positions: int,
        dropout: float,
        backend: Backend = Backend.AUTO,
    ):
        super().__init__()
        self.tokens = tokens
        self.scale = math.sqrt(tokens.embedding_dim)
        self.dropout = dropout
        self.backend = backend
        self.max_positions = max_positions
        self.positions: nn.Module | None = None
        if positions != "none":
            self.positions = PositionalEmbedding(
                max_positions, tokens.embedding_dim, tokens.padding_idx, learned=positions == "learned"
            )

    def forward(self, tokens: Tensor, last_only: bool = False) -> Tensor:
        """Token ids (B, L) → (B, L, dim), or (B, 1, dim) for the last position alone.

        Positions count from the first real token, whichever side the padding is on.
        """
        x = self.scale * self.tokens(tokens[:, -1:] if last_only else tokens)
        if self.positions is not None:
            positions = self.positions(tokens)
            x = x + (positions[:, -1:] if last_only else positions).to(x)
        return ops.dropout(x, p=self.dropout if self.training else 0.0, backend=self.backend)
