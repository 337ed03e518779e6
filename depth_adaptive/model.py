"""``depth_adaptive_transformer``: fairseq's Transformer with a decoder that may stop after any block."""

import copy
import logging
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Self

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from torch import Tensor, nn

from depth_adaptive.config import ARCHITECTURES, DepthOptions, check, options_of
from depth_adaptive.decoder import Decoder
from depth_adaptive.encoder import Encoder
from depth_adaptive.flops import Flops, Sizes, full_depth, of_exits
from fairseq_compat import install
from thoth_core.errors import UserError

logger = logging.getLogger(__name__)

HALTING = "decoder.halting."
OURS = ("decoder.exit_norms.", "decoder.exit_projections.", HALTING)


@register_model("depth_adaptive_transformer")
class DepthAdaptiveTransformerModel(TransformerModel):
    """The model of the paper. It takes the options of fairseq's Transformer and of :mod:`depth_adaptive.config`."""

    decoder: Decoder
    loaded = False  # whether a checkpoint has been loaded

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the Transformer's options, then those of the exits; the defaults are the architecture's."""
        install()
        super().add_args(parser)
        gen_parser_from_dataclass(parser, DepthOptions(), delete_default=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "DepthAdaptiveTransformerModel":
        """Build the model for a translation task.

        Raises:
            UserError: an option out of range, or options that exclude each other.
        """
        install()
        if not isinstance(args, Namespace):
            args = Namespace(**args)  # of another type, fairseq drops options that it does not know
        depth_adaptive_architecture(args)
        options = options_of(args)
        check(options, args, exits=args.decoder_layers)
        model = super().build_model(args, task)
        if options.halting_only:
            model.requires_grad_(False)
            model.decoder.halting.requires_grad_(True)
        return model

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Any, embed_tokens: nn.Embedding) -> Encoder:
        return Encoder(args, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: nn.Embedding) -> Decoder:
        return Decoder(args, tgt_dict, embed_tokens, no_encoder_attn=getattr(args, "no_cross_attention", False))

    def with_exits(self, options: DepthOptions) -> Self:
        """A twin of this model with the same modules, whose decoder chooses exits by ``options``.

        This model stays as it is: the two can translate at the same time.
        """
        twin, decoder = copy.copy(self), copy.copy(self.decoder)
        decoder.choose(options)
        twin._modules = {**self._modules, "decoder": decoder}
        return twin

    def operations(self, exits: Tensor, source_lengths: Tensor) -> tuple[Flops, Flops]:
        """The operations of decoding tokens that left at ``exits`` by the current policy, and those of full depth.

        Args:
            exits: (B, T) int64, from 1; 0 after the end of a sentence.
            source_lengths: (B,) int64.
        """
        decoder = self.decoder
        sizes = Sizes(
            dim=decoder.embed_dim,
            ffn=decoder.cfg.decoder.ffn_embed_dim,
            encoder_dim=decoder.cfg.encoder.embed_dim,
            vocabulary=len(decoder.dictionary),
            exits=decoder.num_layers,
            output_dim=decoder.output_embed_dim,
        )
        decision = "none" if decoder.policy is None else decoder.policy.decision
        taken = of_exits(exits, source_lengths, sizes, decision=decision)
        return taken, full_depth((exits > 0).sum(1), source_lengths, sizes)

    def set_num_updates(self, num_updates: int) -> None:
        """fairseq calls this before it loads a checkpoint, and before each update.

        Raises:
            UserError: --halting-only would train the halting module of a model with random weights.
        """
        super().set_num_updates(num_updates)
        if num_updates == 0 and not self.loaded and self.decoder.exit_options.halting_only:
            raise UserError(
                "--halting-only trains the halting module of a trained model, and none was loaded: give its checkpoint "
                "to --finetune-from-model"
            )

    def upgrade_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adapt the state dict of a plain Transformer, or of a model with another halting module, in place.

        Separate exits start as copies of the last one. The halting module starts from scratch.

        Raises:
            UserError: there are no weights for the halting module that the policy uses.
        """
        super().upgrade_state_dict(state_dict)
        self.loaded = True
        own = self.state_dict()
        self._upgrade_halting(state_dict, own)
        initialised = []
        for name, value in own.items():
            if name in state_dict or not name.startswith(OURS):
                continue
            state_dict[name] = value.clone()
            initialised.append(name)
            last = name.replace("exit_norms", "layer_norm").replace("exit_projections", "output_projection").split(".")
            if not name.startswith(HALTING):
                del last[2]  # the number of the exit
                state_dict[name].copy_(state_dict[".".join(last)])
        if initialised:
            logger.info("the checkpoint lacks %s: initialised from scratch", ", ".join(initialised))

    def _upgrade_halting(self, state_dict: dict[str, Any], own: dict[str, Any]) -> None:
        """Remove the weights of halting modules of other kinds."""
        halting = self.decoder.halting
        kind = "none" if halting is None else halting.kind
        others = [name for name in state_dict if name.startswith(HALTING) and name not in own]
        for name in others:
            del state_dict[name]
        if halting is None or all(name in state_dict for name in own if name.startswith(HALTING)):
            return
        if self.decoder.exit_options.exit_policy == "halting":
            raise UserError(
                f"--exit-policy halting needs a model that was trained with --halting {kind}, and the checkpoint was "
                "not: give another policy, or the --halting of the checkpoint"
            )
        if others:
            logger.warning(
                "the halting module of the checkpoint is not of --halting %s, which starts from scratch", kind
            )


@register_model_architecture("depth_adaptive_transformer", "depth_adaptive_transformer")
def depth_adaptive_architecture(args: Any) -> None:
    """The base Transformer with exits."""
    _set_defaults(args, {name: value for name, value in vars(DepthOptions()).items() if name != "_name"})
    base_architecture(args)


def _set_defaults(args: Any, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        setattr(args, name, getattr(args, name, value))


def _register(name: str, changes: dict[str, Any]) -> None:
    def architecture(args: Any, base: Callable[[Any], None] = depth_adaptive_architecture) -> None:
        _set_defaults(args, changes)
        base(args)

    register_model_architecture("depth_adaptive_transformer", name)(architecture)


for _name, _changes in ARCHITECTURES.items():
    _register(_name, _changes)
