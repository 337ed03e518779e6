"""Checks of what a user may get wrong in the model's options, and loading of pre-trained embeddings."""

from typing import Any

import torch
from torch import Tensor

from thoth_core.errors import OptionError


def check(cfg: Any, *, joined: bool) -> None:
    """Raise OptionError, naming the option and the valid range, unless ``cfg`` (a PervasiveConfig) can be built.

    Args:
        joined: source and target dictionaries are the same.
    """

    def must(holds: bool, option: str, rule: str) -> None:
        if not holds:
            value = getattr(cfg, option)
            raise OptionError(f"--{option.replace('_', '-')} must be {rule}, given {value!r}")

    for option in ("encoder_embed_dim", "decoder_embed_dim", "convnet_layers", "convnet_kernel_size"):
        must(getattr(cfg, option) >= 1, option, "at least 1")
    for option in ("convnet_dilation", "resnet_ffn_dim", "densenet_growth", "densenet_bottleneck"):
        must(getattr(cfg, option) >= 1, option, "at least 1")
    must(cfg.convnet_kernel_size % 2 == 1, "convnet_kernel_size", "odd")
    for option in ("max_source_positions", "max_target_positions"):
        must(getattr(cfg, option) >= 1, option, "at least 1")
    longest = max(cfg.max_source_positions, cfg.max_target_positions)
    must(
        cfg.convnet_kernel_size // 2 * cfg.convnet_dilation <= longest,
        "convnet_dilation" if cfg.convnet_dilation > 1 else "convnet_kernel_size",
        f"so small that the kernel reaches no further than the longest sentence ({longest} tokens)",
    )
    must(cfg.convnet_channels >= 0, "convnet_channels", "at least 0 (0: no reduction)")
    for option in ("embedding_dropout", "convnet_dropout", "prediction_dropout"):
        must(0 <= getattr(cfg, option) < 1, option, "at least 0 and less than 1")
    must(cfg.convnet_groups >= 0, "convnet_groups", "at least 0 (0: the network's own default)")
    if cfg.convnet_groups:
        if cfg.convnet == "resnet":
            widths = [cfg.convnet_channels or cfg.encoder_embed_dim + cfg.decoder_embed_dim]
        else:
            widths = [cfg.densenet_growth, cfg.densenet_growth * cfg.densenet_bottleneck]
        must(
            all(width % cfg.convnet_groups == 0 for width in widths),
            "convnet_groups",
            f"a divisor of the convolution's channels ({', '.join(map(str, widths))})",
        )
    if cfg.positions == "sinusoidal":
        for option in ("encoder_embed_dim", "decoder_embed_dim"):
            must(getattr(cfg, option) % 2 == 0, option, "even for --positions sinusoidal")
    if cfg.tie_embeddings == "all":
        if not joined:
            raise OptionError(
                "--tie-embeddings all needs one dictionary for both languages: prepare the data with a joined "
                "dictionary, or use --tie-embeddings decoder"
            )
        must(
            cfg.encoder_embed_dim == cfg.decoder_embed_dim,
            "encoder_embed_dim",
            f"equal to --decoder-embed-dim ({cfg.decoder_embed_dim}) for --tie-embeddings all",
        )
        if cfg.encoder_embed_path and cfg.encoder_embed_path != cfg.decoder_embed_path:
            raise OptionError(
                "--tie-embeddings all has one matrix: give --encoder-embed-path and --decoder-embed-path "
                "the same file, or the latter alone"
            )


def load_embeddings(path: str, weight: Tensor, dictionary: Any) -> int:
    """Fill rows of ``weight`` (V, dim) from a text file of 'token v1 ... v_dim' lines; return how many were found.

    A first line 'count dim' (word2vec's, fairseq's) is optional. Tokens the dictionary lacks are passed over.

    Raises:
        OptionError: the file cannot be read, has a line of another dimension, or has no token of the dictionary.
    """
    dim = weight.size(1)
    found = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                token, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != dim:
                    raise OptionError(f"{path}:{number}: {len(values)} values, but the embedding dimension is {dim}")
                index = dictionary.index(token)
                if index == dictionary.pad() or (index == dictionary.unk() and token != dictionary[index]):
                    continue  # the vector of padding stays zero
                try:
                    vector = torch.tensor([float(value) for value in values])
                except ValueError as error:
                    raise OptionError(f"{path}:{number}: {error}; a line must be a token and {dim} numbers") from None
                if not vector.isfinite().all():
                    raise OptionError(f"{path}:{number}: the vector of {token!r} is not finite")
                weight[index] = vector
                found += 1
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read the embeddings {path}: {error}; a trained model needs none with --task pervasive_translation"
        ) from error
    if not found:
        raise OptionError(f"{path} holds no token of the dictionary: was it made with the same sub-word model?")
    return found
