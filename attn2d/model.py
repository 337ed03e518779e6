"""Pervasive Attention as a fairseq model (arXiv 1808.03867): building and registration."""

import dataclasses
from typing import Any

import torch
from fairseq.models import FairseqEncoderDecoderModel, register_model
from torch import nn

import fairseq_compat
from attn2d.backend import Backend, select
from attn2d.config import ARCHITECTURES, PervasiveConfig
from attn2d.convnet import CONVNETS, ConvNet
from attn2d.decoder import PervasiveDecoder
from attn2d.embedder import Embedder
from attn2d.encoder import PervasiveEncoder
from attn2d.grid import Grid
from attn2d.options import check
from attn2d.pretrained_embeddings import load_embeddings
from thoth_core.errors import OptionError


def token_embedding(dictionary: Any, dim: int, path: str | None) -> nn.Embedding:
    """Random embeddings (V, dim) of a dictionary, those in the file at ``path`` replaced by it; padding is zero."""
    tokens = nn.Embedding(len(dictionary), dim, padding_idx=dictionary.pad())
    nn.init.normal_(tokens.weight, std=dim**-0.5)
    with torch.no_grad():
        tokens.weight[dictionary.pad()] = 0
        if path:
            load_embeddings(path, tokens.weight, dictionary)
    return tokens


def build_convnet(cfg: PervasiveConfig, channels: int, backend: Backend) -> ConvNet:
    """The network that ``cfg`` describes, over a grid of ``channels``."""
    of_network: dict[str, dict[str, Any]] = {
        "resnet": dict(ffn_dim=cfg.resnet_ffn_dim),
        "densenet": dict(growth=cfg.densenet_growth, bottleneck=cfg.densenet_bottleneck),
    }
    return CONVNETS[cfg.convnet](
        channels,
        layers=cfg.convnet_layers,
        kernel_size=cfg.convnet_kernel_size,
        dilation=cfg.convnet_dilation,
        groups=cfg.convnet_groups,
        dropout=cfg.convnet_dropout,
        norm=cfg.convnet_norm,
        checkpointing=cfg.convnet_checkpointing,
        backend=backend,
        **of_network[cfg.convnet],
    )


@register_model("pervasive", dataclass=PervasiveConfig)
class PervasiveModel(FairseqEncoderDecoderModel):
    """Pervasive Attention. See :mod:`attn2d.config` for the options and :mod:`attn2d.convnet` for the networks."""

    # SequenceGeneratorWithAlignment then takes alignments from a forward pass over the finished hypothesis.
    full_context_alignment = True

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the model's options to a parser; fairseq is patched from here on."""
        fairseq_compat.install()
        super().add_args(parser)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a trained model and its task for translating in Python; arguments as fairseq's."""
        fairseq_compat.install()
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def build_model(cls, cfg: PervasiveConfig, task: Any) -> "PervasiveModel":
        """Build the model for a translation task.

        Raises:
            OptionError: an option out of range, or options that exclude each other.
        """
        fairseq_compat.install()
        check(cfg, joined=task.source_dictionary == task.target_dictionary)
        try:
            backend = select(cfg.grid_backend)
        except RuntimeError as error:
            raise OptionError(f"--grid-backend native: {error}") from None

        target_tokens = token_embedding(task.target_dictionary, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        source_tokens = (
            target_tokens
            if cfg.tie_embeddings == "all"
            else token_embedding(task.source_dictionary, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        )
        source, target = (
            Embedder(
                tokens,
                positions=cfg.positions,
                max_positions=limit,
                dropout=cfg.embedding_dropout,
                backend=backend,
            )
            for tokens, limit in (
                (source_tokens, cfg.max_source_positions),
                (target_tokens, cfg.max_target_positions),
            )
        )
        grid = Grid(source_dim=cfg.encoder_embed_dim, target_dim=cfg.decoder_embed_dim, channels=cfg.convnet_channels)
        convnet = build_convnet(cfg, grid.channels, backend)
        encoder = PervasiveEncoder(task.source_dictionary, source, grid)
        return cls(encoder, PervasiveDecoder(task.target_dictionary, target, grid, convnet, cfg, backend=backend))


def register_architecture(name: str, changes: dict[str, Any]) -> None:
    """Make a named set of defaults known to ``--arch`` and to Hydra's ``model._name``.

    fairseq sees a separate model, because Hydra ignores ``register_model_architecture``.
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
