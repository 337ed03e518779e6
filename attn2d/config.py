"""Options of the Pervasive Attention model and its named architectures.

Every field becomes a command-line flag (``convnet_layers`` → ``--convnet-layers``) and a Hydra key
(``model.convnet_layers``). Real annotations are needed here: fairseq evaluates them.
"""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from attn2d.aggregators import AGGREGATORS
from attn2d.backend import BACKENDS
from attn2d.convnet import CONVNETS, NORMS

POSITIONS = ("none", "sinusoidal", "learned")
TIES = ("none", "decoder", "all")


@dataclass
class PervasiveConfig(FairseqDataclass):
    """The defaults are the authors' later ResNet for IWSLT'14 De-En (34.7 tokenised BLEU)."""

    encoder_embed_dim: int = field(default=256, metadata={"help": "source embedding dimension"})
    decoder_embed_dim: int = field(default=256, metadata={"help": "target embedding dimension"})
    encoder_embed_path: Optional[str] = field(
        default=None,
        metadata={"help": "pre-trained source embeddings (text: a header line, then 'token v1 v2 ...')"},
    )
    decoder_embed_path: Optional[str] = field(
        default=None,
        metadata={"help": "pre-trained target embeddings (text: a header line, then 'token v1 v2 ...')"},
    )
    tie_embeddings: ChoiceEnum(TIES) = field(  # type: ignore[valid-type]
        default="decoder",
        metadata={
            "help": "one matrix for the target embedding and the output projection (decoder), also for the source "
            "embedding (all; needs a joined dictionary), or separate matrices (none)"
        },
    )
    positions: ChoiceEnum(POSITIONS) = field(  # type: ignore[valid-type]
        default="sinusoidal", metadata={"help": "position embeddings added to source and target embeddings"}
    )
    embedding_dropout: float = field(default=0.2, metadata={"help": "dropout on the embeddings"})
    convnet: ChoiceEnum(tuple(CONVNETS)) = field(  # type: ignore[valid-type]
        default="resnet", metadata={"help": "network over the grid"}
    )
    convnet_channels: int = field(
        default=256,
        metadata={
            "help": "channels of the grid; when it differs from the two embedding dimensions' sum, a 1x1 "
            "convolution reduces the grid to it; 0: no reduction"
        },
    )
    convnet_layers: int = field(default=14, metadata={"help": "layers of the network"})
    convnet_kernel_size: int = field(default=11, metadata={"help": "width of the kernels, odd; rows above only"})
    convnet_dilation: int = field(default=1, metadata={"help": "dilation of the kernels"})
    convnet_norm: ChoiceEnum(tuple(NORMS)) = field(  # type: ignore[valid-type]
        default="layer",
        metadata={
            "help": "layer: each grid cell by itself, independent of the batch; batch: batch normalisation over the "
            "cells of real tokens, as in the 2018 paper; none"
        },
    )
    convnet_dropout: float = field(default=0.2, metadata={"help": "dropout after each convolution and feed-forward"})
    convnet_groups: int = field(
        default=0,
        metadata={"help": "groups of the masked convolutions; 0: depth-wise (resnet), one group (densenet)"},
    )
    convnet_checkpointing: bool = field(
        default=False, metadata={"help": "recompute each layer in the backward pass instead of storing it"}
    )
    resnet_ffn_dim: int = field(default=1024, metadata={"help": "resnet: inner dimension of the feed-forward"})
    densenet_growth: int = field(default=32, metadata={"help": "densenet: channels each layer adds"})
    densenet_bottleneck: int = field(
        default=4, metadata={"help": "densenet: the 1x1 convolution gives this many times the growth"}
    )
    aggregator: ChoiceEnum(tuple(AGGREGATORS)) = field(  # type: ignore[valid-type]
        default="gated-max", metadata={"help": "how the source axis of the grid is collapsed"}
    )
    prediction_dropout: float = field(default=0.2, metadata={"help": "dropout before the output projection"})
    grid_backend: ChoiceEnum(BACKENDS) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "native: the compiled CPU kernels (an error when they are not built); torch: PyTorch's own "
            "operators; auto: native where it is built and the tensors are on the CPU"
        },
    )
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


# What each named architecture changes in the defaults above.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # The 2018 paper's network: 24 layers, growth 32, k = 5, max aggregation.
    "pervasive_densenet": dict(
        encoder_embed_dim=128,
        decoder_embed_dim=128,
        positions="none",
        convnet="densenet",
        convnet_channels=128,
        convnet_layers=24,
        convnet_kernel_size=5,
        convnet_norm="batch",
        aggregator="max",
    ),
    # Trains on a CPU.
    "pervasive_small": dict(
        encoder_embed_dim=384,
        decoder_embed_dim=384,
        convnet_channels=128,
        convnet_layers=6,
        convnet_kernel_size=7,
        resnet_ffn_dim=256,
        convnet_dropout=0.1,
    ),
}
