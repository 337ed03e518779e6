"""``memory_transformer`` and ``memory_transformer_lm``: fairseq's own Transformers, some layers of which read a memory.

The model is built by fairseq, then the feed-forward of the chosen layers is replaced by a memory or joined with one;
everything else is the host's. Axes: T time, B batch, C channels; the host's layers compute on (T, B, C).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.logging import metrics
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from torch import Tensor, nn

from memory_layers.config import (
    ARCHITECTURES,
    LM_ARCHITECTURES,
    EncoderMemoryOptions,
    MemoryTransformerLMConfig,
    check,
    check_backend,
    memory_layers_of,
    numbers,
    options_of,
)
from memory_layers.exchange import processes
from memory_layers.product_key import FlatKeyMemory, Memory, ProductKeyMemory
from memory_layers.table import ValueTable
from memory_layers.usage import SlotUsage
from thoth_core.errors import UserError

logger = logging.getLogger(__name__)


class MemoryReader:
    """Lets one of the host's layers read a memory in the place of its feed-forward, or beside it.

    It is attached by hooks, whichever of the host's classes the layer is of. They are methods of this object, so a
    deep copy of the model (--store-ema) reads the copied memory. What a hook notes is used within the same call of
    the layer, also when --checkpoint-activations computes it again.
    """

    def __init__(self, memory: Memory, *, joined: bool, name: str) -> None:
        self.memory = memory
        self.joined = joined
        self.name = name  # in metrics
        self.padding: Tensor | None = None  # (B, T), True at padding
        self.generating = False
        self.x: Tensor | None = None  # (T, B, C), the feed-forward's input

    def attach(self, layer: Any) -> None:
        """Put the memory into ``layer``, as ``layer.memory``."""
        layer.memory = self.memory
        if not self.joined:
            layer.fc1 = nn.Identity()
            layer.activation_fn = nn.Identity()
            layer.activation_dropout_module = nn.Identity()
            layer.ffn_layernorm = None
            layer.fc2 = nn.Identity()
        layer.self_attn.register_forward_pre_hook(self.note_attention, with_kwargs=True)
        layer.fc1.register_forward_pre_hook(self.note_input)
        layer.fc2.register_forward_hook(self.read)

    def note_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """The layer's self-attention is told what is padding, and whether the sentence is being generated."""
        self.padding = kwargs.get("key_padding_mask")
        self.generating = kwargs.get("incremental_state") is not None

    def note_input(self, module: nn.Module, args: tuple[Tensor]) -> None:
        """The input of the feed-forward."""
        (self.x,) = args

    def read(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The output of the feed-forward becomes the memory's, or their sum: (T, B, C).

        Raises:
            UserError: decoding step by step with a table that is sharded over processes, or values that the kernels
                which were asked for do not take.
        """
        check_backend(self.memory.table.weight)
        x, self.x = self.x, None
        assert x is not None
        if self.generating and self.memory.table.sharded:
            raise UserError("a sharded table cannot be decoded with on several processes: decode in a single one")
        # Attention's keys may begin with the encoder's (--cross-self-attention).
        padding = None if self.padding is None else self.padding[:, -x.size(0) :].t().to(torch.bool)
        record = self._record() if self.memory.usage is None else None
        if record is not None:
            self.memory.usage = record
        try:
            read = self.memory(x, padding)
        finally:
            if record is not None:
                self.memory.usage = None
        return output + read if self.joined else read

    def _record(self) -> SlotUsage | None:
        """Where this validation's slot usage is summed up, and logged at its end; None if this is no validation.

        fairseq opens a new root of its metrics for every validation: the record lives and dies with that.
        """
        active = metrics.get_active_aggregators()
        if self.memory.training or self.generating or not active or active[0] is metrics.get_meters("default"):
            return None
        records = vars(active[0]).setdefault("memory_usage", {})
        if self.name not in records:
            usage = records[self.name] = self.memory.new_usage()
            metrics.log_derived(f"memory_used_{self.name}", lambda _: round(_of_all_processes(usage).share(), 5))
            metrics.log_derived(f"memory_kl_{self.name}", lambda _: round(_of_all_processes(usage).kl(), 4))
        return records[self.name] if self.memory.counts else None


def _of_all_processes(usage: SlotUsage) -> SlotUsage:
    """The sum over processes; all of them ask for their metrics at the end of a validation."""
    if processes() == 1:
        return usage
    total = SlotUsage(n_slots=usage.weights.size(1), heads=usage.weights.size(0), device=usage.weights.device)
    total.weights.copy_(usage.weights)
    dist.all_reduce(total.weights)
    return total


class HasMemories(nn.Module):
    """What both models have in common: memories in the layers of ``encoder`` and ``decoder``."""

    memories: dict[str, Memory]  # by the name of their layer; they are registered there

    def put_memories(self, options: EncoderMemoryOptions, layers: dict[str, list[int]]) -> None:
        """Put the memories into the layers, which are counted from 1."""
        self.memories = {}
        self.memory_joined = options.memory_join
        table = None
        for part, numbers_of_part in layers.items():
            for number in numbers_of_part:
                name = f"{part}.layers.{number - 1}"
                layer: Any = self.get_submodule(name)
                memory = build_memory(options, layer.embed_dim, table)
                table = memory.table if options.memory_share_table else None
                MemoryReader(memory, joined=options.memory_join, name=_short(name)).attach(layer)
                self.memories[name] = memory
        sharded = [f"{name}.memory.table.weight" for name in self.memories] if options.memory_sharded else []
        self._ddp_params_and_buffers_to_ignore = sharded  # PyTorch's wrapper would make them all alike
        for name, memory in self.memories.items():
            logger.info("%s has a memory of %s", name, memory.table.extra_repr())

    @contextmanager
    def recorded_usage(self) -> Iterator[dict[str, SlotUsage]]:
        """Record the slots that are read in evaluation mode within a ``with`` block, by layer ("e2", "d4")."""
        records = {_short(name): memory.new_usage() for name, memory in self.memories.items()}
        for memory, record in zip(self.memories.values(), records.values(), strict=True):
            memory.usage = record
        try:
            yield records
        finally:
            for memory in self.memories.values():
                memory.usage = None

    def upgrade_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make a plain Transformer's state dict fit, in place: the memories in it are this model's, fresh ones."""
        super().upgrade_state_dict(state_dict)  # type: ignore[misc]
        if any(".memory." in key for key in state_dict):  # in other layers than this model's: loading tells
            return
        for name, memory in self.memories.items():
            if not self.memory_joined:
                for key in [key for key in state_dict if key.startswith((f"{name}.fc", f"{name}.ffn_layernorm."))]:
                    del state_dict[key]
            state = {**dict(memory.named_parameters()), **dict(memory.named_buffers())}
            state_dict.update({f"{name}.memory.{key}": value.detach().clone() for key, value in state.items()})
        logger.info("the checkpoint is a plain Transformer's: the memories start fresh")


def _short(layer: str) -> str:
    """ "d4" for "decoder.layers.3": layers are counted from 1 in options, metrics and pictures."""
    part, _, index = layer.split(".")
    return f"{part[0]}{int(index) + 1}"


def build_memory(options: EncoderMemoryOptions, dim: int, table: ValueTable | None) -> Memory:
    """One memory for a layer of dimension ``dim``, with its own table or a shared one."""
    n_slots, value_dim = options.memory_keys**2, options.memory_value_dim or dim
    if table is None:
        table = ValueTable(n_slots, value_dim, sharded=options.memory_sharded)
    keys = dict(n_slots=n_slots) if options.memory_flat else dict(n_keys=options.memory_keys)
    return (FlatKeyMemory if options.memory_flat else ProductKeyMemory)(
        input_dim=dim,
        heads=options.memory_heads,
        k=options.memory_topk,
        key_dim=options.memory_key_dim,
        value_dim=value_dim,
        query_hidden_dims=numbers("--memory-query-hidden", options.memory_query_hidden),
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
        """The Transformer's options, then the memories'; defaults are the architecture's."""
        super().add_args(parser)
        gen_parser_from_dataclass(parser, EncoderMemoryOptions(), delete_default=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "MemoryTransformerModel":
        """Build the model for a translation task.

        Raises:
            UserError: an option out of range, options that exclude each other, or memories too large.
        """
        memory_architecture(args)
        options = options_of(args)
        layers = memory_layers_of(options, _depth(args, "encoder"), _depth(args, "decoder"))
        dims = [args.encoder_embed_dim] * len(layers["encoder"]) + [args.decoder_embed_dim] * len(layers["decoder"])
        check(options, dims=dims, eval_bleu=_eval_bleu(task))
        model = super().build_model(args, task)
        model.put_memories(options, layers)
        return model


@register_model("memory_transformer_lm", dataclass=MemoryTransformerLMConfig)
class MemoryTransformerLanguageModel(HasMemories, TransformerLanguageModel):
    """fairseq's ``transformer_lm`` with memories; see :mod:`memory_layers.config` for the options."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "MemoryTransformerLanguageModel":
        """Build the model for a language modelling task; errors as in :class:`MemoryTransformerModel`."""
        options = options_of(args)
        layers = memory_layers_of(options, 0, _depth(args, "decoder"))
        check(options, dims=[args.decoder_embed_dim] * len(layers["decoder"]))
        model = super().build_model(args, task)
        model.put_memories(options, layers)
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
