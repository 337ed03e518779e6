"""Pervasive Attention as a fairseq model (arXiv 1808.03867).

Axes: B batch (times beam in decoding), T target positions, S source positions, V vocabulary.
"""

import dataclasses
import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
)
from fairseq.modules import PositionalEmbedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn2d import ops
from attn2d.aggregators import AGGREGATORS
from attn2d.config import ARCHITECTURES, PervasiveConfig
from attn2d.convnet import CONVNETS, ConvNet, GridBatchNorm, RowCache
from attn2d.grid import Grid
from attn2d.linear import Linear, packed_weights
from attn2d.options import check, load_embeddings
from thoth_core.errors import OptionError


class Embedder(nn.Module):
    """Token and position embeddings with dropout; token embeddings scaled by √dim so that both weigh alike."""

    def __init__(self, tokens: nn.Embedding, *, positions: str, max_positions: int, dropout: float):
        super().__init__()
        self.tokens = tokens
        self.scale = math.sqrt(tokens.embedding_dim)
        self.dropout = dropout
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
            places = self.positions(tokens)
            x = x + (places[:, -1:] if last_only else places).to(x)
        return ops.dropout(x, p=self.dropout if self.training else 0.0)


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


class PervasiveDecoder(FairseqIncrementalDecoder):
    """Grid, convolutional network, aggregator and output projection.

    Decoding is incremental: a step computes one row of the grid; every layer keeps the last ⌊k/2⌋·dilation rows of
    its convolution's input.
    """

    def __init__(self, dictionary: Any, embedder: Embedder, grid: Grid, convnet: ConvNet, cfg: PervasiveConfig):
        super().__init__(dictionary)
        self.embedder = embedder
        self.grid = grid
        self.convnet = convnet
        self.aggregator = AGGREGATORS[cfg.aggregator](convnet.out_channels)
        dim = embedder.tokens.embedding_dim
        self.project = Linear(convnet.out_channels, dim)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.dropout = cfg.prediction_dropout
        self.output = Linear(dim, len(dictionary), bias=False)
        if cfg.tie_embeddings == "none":
            nn.init.normal_(self.output.weight, std=dim**-0.5)
        else:
            self.output.weight = embedder.tokens.weight

    def make_generation_fast_(self, retain_dropout: bool = False, **_: Any) -> None:
        """fairseq tells how decoding will be done. Raises an OptionError for what is not there."""
        if retain_dropout:
            raise OptionError("--retain-dropout is not there for Pervasive Attention: leave it out")

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
            ops.check_backend(self.output.weight)
        except TypeError as error:
            raise OptionError(f"--grid-backend native: {error}") from None
        source = encoder_out["encoder_out"][0]  # (B, S, ·)
        padding = encoder_out["encoder_padding_mask"][0]  # (B, S)
        cache = None if incremental_state is None else self.row_cache(incremental_state)

        columns = padding if bool(padding.any()) else None
        cells = None if columns is None else columns[:, None, :, None]  # (B, 1, S, 1)
        if cache is None:
            # Padding before a sentence (--left-pad-target) is masked. After it, the usual side, it can reach the
            # sentence's rows through the statistics of batch normalisation only.
            rows = prev_output_tokens.eq(self.dictionary.pad())  # (B, T)
            statistics = self.training and isinstance(self.convnet.norm, GridBatchNorm)
            if bool((rows if statistics else rows[:, 0]).any()):
                cells = padding[:, None, :, None] | rows[:, :, None, None]

        with nullcontext() if cache is None else packed_weights(cache.weights):
            x = self.grid(source, self.embedder(prev_output_tokens, last_only=cache is not None))  # (B, T, S, C)
            x = self.convnet(x, cells, cache)
            x, alignments = self.collapse(x, cells, columns, alignments=not self.training and cache is None)
            x = F.dropout(x, self.dropout, self.training)  # (B, T, C)
            return self.output(self.project(x)), {"attn": None if alignments is None else [alignments]}

    def collapse(
        self, x: Tensor, cells: Tensor | None, columns: Tensor | None, alignments: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Normalise and aggregate: (B, T, S, C) → (B, T, C), and alignments (B, T, S) if asked.

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
            masks = cells if cells is None or cells.size(1) == 1 else cells[:, start:end]
            parts.append(checkpoint(run, x[:, start:end], masks, use_reentrant=False, preserve_rng_state=False)[0])
        return torch.cat(parts, dim=1), None

    def row_cache(self, incremental_state: dict[str, dict[str, Tensor | None]]) -> RowCache:
        """The cache of this search, empty at its first step."""
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


@register_model("pervasive", dataclass=PervasiveConfig)
class PervasiveModel(FairseqEncoderDecoderModel):
    """Pervasive Attention. See :mod:`attn2d.config` for the options and :mod:`attn2d.convnet` for the networks."""

    # SequenceGeneratorWithAlignment then takes alignments from a forward pass over the finished hypothesis.
    full_context_alignment = True

    @classmethod
    def build_model(cls, cfg: PervasiveConfig, task: Any) -> "PervasiveModel":
        """Build the model for a translation task.

        Raises:
            OptionError: an option out of range, or options that exclude each other.
        """
        check(cfg, joined=task.source_dictionary == task.target_dictionary)
        try:
            ops.use(cfg.grid_backend)
        except RuntimeError as error:
            raise OptionError(f"--grid-backend native: {error}") from None

        def embedding(dictionary: Any, dim: int, path: str | None) -> nn.Embedding:
            tokens = nn.Embedding(len(dictionary), dim, padding_idx=dictionary.pad())
            nn.init.normal_(tokens.weight, std=dim**-0.5)
            with torch.no_grad():
                tokens.weight[dictionary.pad()] = 0
                if path:
                    load_embeddings(path, tokens.weight, dictionary)
            return tokens

        target_tokens = embedding(task.target_dictionary, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        source_tokens = (
            target_tokens
            if cfg.tie_embeddings == "all"
            else embedding(task.source_dictionary, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        )
        source, target = (
            Embedder(tokens, positions=cfg.positions, max_positions=limit, dropout=cfg.embedding_dropout)
            for tokens, limit in (
                (source_tokens, cfg.max_source_positions),
                (target_tokens, cfg.max_target_positions),
            )
        )
        grid = Grid(source_dim=cfg.encoder_embed_dim, target_dim=cfg.decoder_embed_dim, channels=cfg.convnet_channels)
        network = {
            "resnet": dict(ffn_dim=cfg.resnet_ffn_dim),
            "densenet": dict(growth=cfg.densenet_growth, bottleneck=cfg.densenet_bottleneck),
        }[cfg.convnet]
        convnet = CONVNETS[cfg.convnet](
            grid.channels,
            layers=cfg.convnet_layers,
            kernel_size=cfg.convnet_kernel_size,
            dilation=cfg.convnet_dilation,
            groups=cfg.convnet_groups,
            dropout=cfg.convnet_dropout,
            norm=cfg.convnet_norm,
            checkpointing=cfg.convnet_checkpointing,
            **network,
        )
        encoder = PervasiveEncoder(task.source_dictionary, source, grid)
        return cls(encoder, PervasiveDecoder(task.target_dictionary, target, grid, convnet, cfg))


def register_architecture(name: str, changes: dict[str, Any]) -> None:
    """Make a named set of defaults known to ``--arch`` and to Hydra's ``model._name``.

    It is a model of its own to fairseq, for Hydra overlooks ``register_model_architecture``.
    """
    fields = [
        (option.name, option.type, dataclasses.field(default=changes[option.name], metadata=option.metadata))
        for option in dataclasses.fields(PervasiveConfig)
        if option.name in changes
    ]
    class_name = "".join(part.capitalize() for part in name.split("_"))
    config = dataclasses.make_dataclass(class_name + "Config", fields, bases=(PervasiveConfig,))
    register_model(name, dataclass=config)(type(class_name, (PervasiveModel,), {"__doc__": f"``--arch {name}``."}))


for architecture, changes in ARCHITECTURES.items():
    register_architecture(architecture, changes)
