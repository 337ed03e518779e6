"""``memory_transformer`` and ``memory_transformer_lm``: fairseq's Transformers with memories in some layers.

fairseq builds the model, then the chosen layers become those of :mod:`memory_layers.layers`; everything else is
fairseq's.
"""

import logging
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from torch import nn

import fairseq_compat
from memory_layers import trainer_patches
from memory_layers.backends import described
from memory_layers.config import (
    ARCHITECTURES,
    LM_ARCHITECTURES,
    EncoderMemoryOptions,
    MemoryTransformerLMConfig,
    check,
    memory_layers_of,
    options_of,
    whole_numbers,
)
from memory_layers.layers import MemoryDecoderLayer, MemoryEncoderLayer
from memory_layers.product_key import FlatKeyMemory, Memory, ProductKeyMemory
from memory_layers.table import ValueTable
from memory_layers.usage import SlotUsage
from memory_layers.usage_recording import recorded

logger = logging.getLogger(__name__)


class HasMemories(nn.Module):
    """The base of both models: memories in the layers of ``encoder`` and ``decoder``."""

    memories: dict[str, Memory]  # by the name of their layer, where they are registered
    memory_joined: bool

    def put_memories(self, options: EncoderMemoryOptions, layers: dict[str, list[int]], *, offload: bool) -> None:
        """Give these layers a memory each.

        Args:
            layers: their numbers, from 1, in ``encoder`` and in ``decoder``.
            offload: --offload-activations.
        """
        self.memories = {}
        self.memory_joined = options.memory_join
        table = None
        for part, layer_numbers in layers.items():
            for number in layer_numbers:
                name = f"{part}.layers.{number - 1}"
                layer: Any = self.get_submodule(name)
                memory = build_memory(options, layer.embed_dim, table)
                table = memory.table if options.memory_share_table else None
                kind = MemoryEncoderLayer if part == "encoder" else MemoryDecoderLayer
                self.get_submodule(f"{part}.layers")[number - 1] = kind.replacing(  # type: ignore[operator]
                    layer, memory, joined=options.memory_join, name=_short(name), offload=offload
                )
                self.memories[name] = memory
        sharded = [f"{name}.memory.table.weight" for name in self.memories] if options.memory_sharded else []
        self._ddp_params_and_buffers_to_ignore = sharded  # PyTorch's wrapper would make all shards equal
        for name, memory in self.memories.items():
            logger.info("%s has a memory of %s", name, memory.table.extra_repr())
        logger.info("memory operators: %s", described(str(options.memory_backend)))

    def recorded_usage(self) -> AbstractContextManager[dict[str, SlotUsage]]:
        """Record the slots that this thread reads in evaluation mode in a ``with`` block, by layer ("e2", "d4")."""
        return recorded({_short(name): memory for name, memory in self.memories.items()})

    def upgrade_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Complete a plain Transformer's state dict, in place, with the fresh memories of this model."""
        super().upgrade_state_dict(state_dict)  # type: ignore[misc]
        if any(".memory." in key for key in state_dict):  # memories in other layers: loading refuses them
            return
        for name, memory in self.memories.items():
            if not self.memory_joined:
                for key in [key for key in state_dict if key.startswith((f"{name}.fc", f"{name}.ffn_layernorm."))]:
                    del state_dict[key]
            state = {**dict(memory.named_parameters()), **dict(memory.named_buffers())}
            state_dict.update({f"{name}.memory.{key}": value.detach().clone() for key, value in state.items()})
        logger.info("the checkpoint is a plain Transformer's: the memories start fresh")


def _short(layer: str) -> str:
    """The name of a layer in metrics and pictures, such as "d4" for "decoder.layers.3"."""
    part, _, index = layer.split(".")
    return f"{part[0]}{int(index) + 1}"


def build_memory(options: EncoderMemoryOptions, dim: int, table: ValueTable | None) -> Memory:
    """One memory for a layer of dimension ``dim``, with its own table or a shared one."""
    n_slots, value_dim = options.memory_keys**2, options.memory_value_dim or dim
    if table is None:
        table = ValueTable(n_slots, value_dim, sharded=options.memory_sharded, backend=str(options.memory_backend))
    keys = dict(n_slots=n_slots) if options.memory_flat else dict(n_keys=options.memory_keys)
    return (FlatKeyMemory if options.memory_flat else ProductKeyMemory)(
        input_dim=dim,
        heads=options.memory_heads,
        k=options.memory_topk,
        key_dim=options.memory_key_dim,
        value_dim=value_dim,
        query_hidden_dims=whole_numbers("--memory-query-hidden", options.memory_query_hidden),
        query_norm=str(options.memory_query_norm),
        input_dropout=options.memory_input_dropout,
        query_dropout=options.memory_query_dropout,
        value_dropout=options.memory_value_dropout,
        shared_keys=options.memory_shared_keys,
        qk_norm=options.memory_qk_norm,
        gated=options.memory_gated,
        table=table,
        **keys,
    )


def _prepare_fairseq() -> None:
    """Fix fairseq, and make its Trainer support value tables."""
    fairseq_compat.install()
    trainer_patches.install()


def _depth(args: Any, part: str) -> int:
    kept = getattr(args, f"{part}_layers_to_keep", None)
    return len(kept.split(",")) if kept else getattr(args, f"{part}_layers")


def _eval_bleu(task: Any) -> bool:
    return bool(getattr(getattr(task, "cfg", None), "eval_bleu", False))


@register_model("memory_transformer")
class MemoryTransformerModel(HasMemories, TransformerModel):
    """fairseq's ``transformer`` with memories; see :mod:`memory_layers.config` for the options."""

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the Transformer's options, then the memories'; the architecture has the defaults."""
        fairseq_compat.install()
        super().add_args(parser)
        gen_parser_from_dataclass(parser, EncoderMemoryOptions(), delete_default=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "MemoryTransformerModel":
        """Build the model for a translation task.

        Raises:
            UserError: an option out of range, options that exclude each other, or memories too large.
        """
        _prepare_fairseq()
        if not isinstance(args, Namespace):
            args = Namespace(**args)  # a configuration, of which fairseq would read the absent options as None
        memory_architecture(args)
        options = options_of(args)
        layers = memory_layers_of(options, _depth(args, "encoder"), _depth(args, "decoder"))
        dims = [args.encoder_embed_dim] * len(layers["encoder"]) + [args.decoder_embed_dim] * len(layers["decoder"])
        check(options, dims=dims, eval_bleu=_eval_bleu(task))
        model = super().build_model(args, task)
        model.put_memories(options, layers, offload=bool(getattr(args, "offload_activations", False)))
        return model


@register_model("memory_transformer_lm", dataclass=MemoryTransformerLMConfig)
class MemoryTransformerLanguageModel(HasMemories, TransformerLanguageModel):
    """fairseq's ``transformer_lm`` with memories; see :mod:`memory_layers.config` for the options."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "MemoryTransformerLanguageModel":
        """Build the model for a language modelling task; errors as in :class:`MemoryTransformerModel`."""
        _prepare_fairseq()
        if isinstance(args, dict):
            args = Namespace(**args)
        options = options_of(args)
        layers = memory_layers_of(options, 0, _depth(args, "decoder"))
        check(options, dims=[args.decoder_embed_dim] * len(layers["decoder"]))
        model = super().build_model(args, task)
        model.put_memories(options, layers, offload=bool(getattr(args, "offload_activations", False)))
        return model


@register_model_architecture("memory_transformer", "memory_transformer")
def memory_architecture(args: Any) -> None:
    """The base Transformer, with the paper's memory in the middle of its decoder."""
    defaults = EncoderMemoryOptions()
    _set_defaults(args, {name: value for name, value in vars(defaults).items() if name != "_name"})
    base_architecture(args)


def _set_defaults(args: Any, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        setattr(args, name, getattr(args, name, value))


def _register(model: str, name: str, changes: dict[str, Any], base: Callable[[Any], None]) -> None:
    def architecture(args: Any) -> None:
        _set_defaults(args, changes)
        base(args)

    register_model_architecture(model, name)(architecture)


for _name, _changes in ARCHITECTURES.items():
    _register("memory_transformer", _name, _changes, memory_architecture)
for _name, _changes in LM_ARCHITECTURES.items():
    _register("memory_transformer_lm", _name, _changes, base_lm_architecture)
