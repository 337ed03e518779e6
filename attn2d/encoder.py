"""Pervasive Attention's encoder: it only embeds the source.

Axes: B batch (times beam in decoding), S source positions.
"""

from typing import Any

from fairseq.models import FairseqEncoder
from torch import Tensor

from attn2d.embedder import Embedder
from attn2d.grid import Grid


class PervasiveEncoder(FairseqEncoder):
    """Embeds the source: all that Pervasive Attention knows of it before the target begins."""

    def __init__(self, dictionary: Any, embedder: Embedder, grid: Grid):
        super().__init__(dictionary)
        self.embedder = embedder
        self.grid = grid

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, list[Tensor]]:
        """Token ids (B, S) → ``encoder_out`` [(B, S, ·)] and ``encoder_padding_mask`` [(B, S)], True at padding."""
        return {
            "encoder_out": [self.grid.project_source(self.embedder(src_tokens))],
            "encoder_padding_mask": [src_tokens.eq(self.dictionary.pad())],
        }

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        """Select sentences: repeated for the beam, dropped when finished."""
        return {key: [tensor.index_select(0, new_order) for tensor in value] for key, value in encoder_out.items()}

    def max_positions(self) -> int:
        """Longest source, in tokens."""
        return self.embedder.max_positions
