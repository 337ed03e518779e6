"""Checks of the model's options."""

from typing import Any

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
