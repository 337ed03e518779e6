"""Cut a trained model to its first N blocks: a plain fairseq ``transformer``, which needs no plugin.

    python -m depth_adaptive.cut CHECKPOINT N OUTPUT

The norm and the output projection of exit N become those of the decoder. The other exits, the halting module and the
state of the optimizer are removed.
"""

import argparse
import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from torch import Tensor

from depth_adaptive.config import DepthOptions, options_of
from depth_adaptive.model import OURS
from fairseq_compat import checkpoints, errors
from thoth_core.errors import UserError


def cut(weights: dict[str, Tensor], args: argparse.Namespace, n: int) -> tuple[dict[str, Tensor], argparse.Namespace]:
    """The weights and options of the plain Transformer that ends at exit ``n``. The arguments are not changed.

    Raises:
        UserError: ``n`` is not from 1 to the decoder's blocks.
    """
    kept: dict[str, Tensor] = {}
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("decoder.layers."))
    if not 1 <= n <= layers:
        raise UserError(f"N must be from 1 to {layers}, the decoder's blocks, given {n}")
    for name, value in weights.items():
        upper = name.startswith("decoder.layers.") and int(name.split(".")[2]) >= n
        if not upper and not name.startswith(OURS):
            kept[name] = value
    args = copy.copy(args)
    for source, target in (
        (f"decoder.exit_norms.{n - 1}.", "decoder.layer_norm."),
        (f"decoder.exit_projections.{n - 1}.", "decoder.output_projection."),
    ):
        for name, value in weights.items():
            if name.startswith(source):
                kept[target + name.removeprefix(source)] = value
    if options_of(args).exit_projections == "separate":
        # The projection is not tied to the embedding. Encoder and decoder keep an embedding each, with equal values.
        args.share_all_embeddings = args.share_decoder_input_output_embed = False
    for field in fields(DepthOptions):
        vars(args).pop(field.name, None)
    args._name = args.arch = "transformer"
    args.decoder_layers, args.decoder_layers_to_keep, args.user_dir = n, None, None
    return kept, args


def cut_checkpoint(path: Path, n: int, output: Path, *, force: bool = False) -> None:
    """Cut the checkpoint ``path`` and save it as ``output``.

    Raises:
        UserError: the checkpoint does not exist or has another model, ``n`` is out of range, ``output`` has no folder,
            or it exists and ``force`` is not set.
    """
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist: make it, or give another OUTPUT")
    if output.exists() and not force:
        raise UserError(f"{output} exists: give another name, or --force to replace it")
    state = checkpoints.load(path)
    cfg: Any = state.get("cfg")
    options = cfg.get("model") if isinstance(cfg, dict) else None
    # Checkpoints of fairseq itself have a namespace here.
    args = argparse.Namespace(**options) if isinstance(options, dict) else copy.copy(options)
    name = getattr(args, "_name", None) or getattr(args, "arch", None) or "unknown"
    if not isinstance(args, argparse.Namespace) or not str(name).startswith("depth_adaptive_transformer"):
        raise UserError(f"{path} must contain a depth_adaptive_transformer, given {name}")
    ARCH_CONFIG_REGISTRY[name](args)  # sets what the checkpoint leaves to the architecture, which is not fairseq's
    state["model"], args = cut(state["model"], args, n)
    cfg["model"] = vars(args)  # torch's safe loading refuses an argparse.Namespace
    state.pop("last_optimizer_state", None)
    cfg["common"]["user_dir"] = None
    cfg["criterion"] = {"_name": "cross_entropy", "sentence_avg": False}
    checkpoints.save(state, output)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m depth_adaptive.cut", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a depth_adaptive_transformer")
    parser.add_argument("n", type=int, metavar="N", help="number of blocks to keep, from 1")
    parser.add_argument("output", type=Path, help="checkpoint of the plain transformer, to be written")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    arguments = parser.parse_args()
    cut_checkpoint(arguments.checkpoint, arguments.n, arguments.output, force=arguments.force)


if __name__ == "__main__":
    errors.main(main)
