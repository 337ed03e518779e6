"""Pervasive Attention's decoder: all of the network over the grid.

Axes: B batch (times beam in decoding), T target positions, S source positions, C channels, V vocabulary.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn2d.aggregators import AGGREGATORS
from attn2d.backend import Backend
from attn2d.config import PervasiveConfig
from attn2d.convnet import ConvNet, GridBatchNorm, RowCache
from attn2d.embedder import Embedder
from attn2d.grid import Grid
from attn2d.linear import Linear, packed_weights
from thoth_core.errors import OptionError


class PervasiveDecoder(FairseqIncrementalDecoder):
    """Grid, convolutional network, aggregator and output projection.

    Decoding is incremental: a step computes one row of the grid; every layer keeps the last ⌊k/2⌋·dilation rows of
    its convolution's input.
    """

    def __init__(
        self,
        dictionary: Any,
        embedder: Embedder,
        grid: Grid,
        convnet: ConvNet,
        cfg: PervasiveConfig,
        *,
        backend: Backend = Backend.AUTO,
    ):
        super().__init__(dictionary)
        self.embedder = embedder
        self.backend = backend
        self.grid = grid
        self.convnet = convnet
        self.aggregator = AGGREGATORS[cfg.aggregator](convnet.out_channels, backend=backend)
        dim = embedder.tokens.embedding_dim
        self.project = Linear(convnet.out_channels, dim, backend=backend)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.dropout = cfg.prediction_dropout
        self.output = Linear(dim, len(dictionary), bias=False, backend=backend)
        if cfg.tie_embeddings == "none":
            nn.init.normal_(self.output.weight, std=dim**-0.5)
        else:
            self.output.weight = embedder.tokens.weight

    def make_generation_fast_(self, retain_dropout: bool = False, **_: Any) -> None:
        """Prepare for decoding with these options of fairseq.

        Raises:
            OptionError: ``--retain-dropout``, which is not implemented.
        """
        if retain_dropout:
            raise OptionError("--retain-dropout is not supported by Pervasive Attention: remove it")

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Previous tokens (B, T) → logits (B, T, V) and ``{"attn": [(B, T, S)] or None}``.

        With ``incremental_state`` only the last position is computed: (B, 1, V). Alignments are given in evaluation
        of whole sentences; their columns are those of ``src_tokens``, their rows sum to one.
        """
        assert encoder_out is not None
        try:
            self.backend.is_native_for(self.output.weight)
        except TypeError as error:
            raise OptionError(f"--grid-backend native: {error}") from None
        source = encoder_out["encoder_out"][0]  # (B, S, ·)
        padding = encoder_out["encoder_padding_mask"][0]  # (B, S)
        cache = None if incremental_state is None else self.row_cache(incremental_state)

        columns = padding if bool(padding.any()) else None
        cells = columns  # (B, S), or (B, T, S) where rows are padded too
        if cache is None:
            # Padding before a sentence (--left-pad-target) is masked. After it, the usual side, it can reach the
            # sentence's rows through the statistics of batch normalisation only.
            rows = prev_output_tokens.eq(self.dictionary.pad())  # (B, T)
            statistics = self.training and isinstance(self.convnet.norm, GridBatchNorm)
            if bool((rows if statistics else rows[:, 0]).any()):
                cells = padding.unsqueeze(1) | rows.unsqueeze(2)

        with nullcontext() if cache is None else packed_weights(cache.weights):
            x = self.grid(source, self.embedder(prev_output_tokens, last_only=cache is not None))  # (B, T, S, C)
            x = self.convnet(x, cells, cache)
            x, alignments = self.collapse(x, cells, columns, alignments=not self.training and cache is None)
            x = F.dropout(x, self.dropout, self.training)  # (B, T, C)
            return self.output(self.project(x)), {"attn": None if alignments is None else [alignments]}

    def collapse(
        self, x: Tensor, cells: Tensor | None, columns: Tensor | None, alignments: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Normalise and aggregate: (B, T, S, C) → (B, T, C), and, if ``alignments``, (B, T, S).

        Under gradient checkpointing a few rows at a time: the gate's output is the widest grid of all.
        """

        def run(x: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return self.aggregator(self.convnet.finish(x, cells), columns, alignments)

        piecemeal = self.convnet.checkpointing and self.training and not isinstance(self.convnet.norm, GridBatchNorm)
        if not piecemeal:
            return run(x, cells)
        parts = []
        for start in range(0, x.size(1), 8):
            end = start + 8
            masks = cells if cells is None or cells.dim() == 2 else cells[:, start:end]
            parts.append(checkpoint(run, x[:, start:end], masks, use_reentrant=False, preserve_rng_state=False)[0])
        return torch.cat(parts, dim=1), None

    def row_cache(self, incremental_state: dict[str, dict[str, Tensor | None]]) -> RowCache:
        """The cache of this search; it is empty at the first step."""
        state: Any = self.get_incremental_state(incremental_state, "rows")
        if state is None:
            state = {"cache": RowCache(len(self.convnet.layers), self.convnet.rows_above)}
            self.set_incremental_state(incremental_state, "rows", state)
        return state["cache"]

    def reorder_incremental_state(
        self, incremental_state: dict[str, dict[str, Tensor | None]], new_order: Tensor
    ) -> None:
        """Follow the beam: (B, ...) → (len(new_order), ...), shrinking when sentences have finished."""
        self.row_cache(incremental_state).reorder(new_order)

    def max_positions(self) -> int:
        """Longest target, in tokens."""
        return self.embedder.max_positions
