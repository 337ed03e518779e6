"""The memory of incremental decoding: the grid rows that later steps still reach.

Axes: B hypotheses now, B' hypotheses at the step that wrote a row.
"""

import torch
from torch import Tensor

from attn2d.linear import PackedWeights


class RowCache:
    """What one search keeps: for every layer, the last rows that its convolution was computed from.

    Rows stay where they were written: reordering the hypotheses only changes ``origins``, which says where to find
    the past of each.
    """

    def __init__(self, layers: int, depth: int):
        self.depth = depth  # rows that a convolution reaches above its own
        self.rows: list[list[Tensor]] = [[] for _ in range(layers)]  # the oldest first; (B', ...) each
        self.origins: Tensor | None = None  # (rows, B): which hypothesis of each row every one now continues
        self.weights: PackedWeights = {}  # of the linear layers, for as long as the search lasts

    def reorder(self, order: Tensor) -> None:
        """Follow the beam, (B,) → (len(order),)."""
        if self.origins is not None:
            self.origins = self.origins.index_select(1, order)

    def add(self, layer: int, row: Tensor) -> None:
        """Keep a layer's new row (B, ...), drop what its convolution no longer reaches; the last layer ends a step."""
        rows = self.rows[layer]
        rows.append(row)
        del rows[: max(0, len(rows) - self.depth)]
        if layer == len(self.rows) - 1 and self.depth:
            here = torch.arange(row.size(0), device=row.device)[None]
            self.origins = here if self.origins is None else torch.cat((self.origins, here))[-self.depth :]
