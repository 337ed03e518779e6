"""Options of the memories in ``memory_transformer`` and ``memory_transformer_lm``, and the checks of their values.

Every field becomes a command-line flag (``memory_heads`` → ``--memory-heads``) and a Hydra key
(``model.memory_heads``). Real annotations are needed here: fairseq evaluates them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer_lm import TransformerLanguageModelConfig

from memory_layers import ops
from memory_layers.capacity import check_room
from memory_layers.exchange import processes
from memory_layers.product_key import QUERY_NORMS
from memory_layers.table import ValueTable
from thoth_core.errors import UserError

OPTIMIZER = "product_key_adam"  # the name of the optimizer that trains value tables


@dataclass
class MemoryOptions(FairseqDataclass):
    """The defaults are the paper's, section 4.2."""

    memory_decoder_layers: Optional[str] = field(
        default=None,
        metadata={
            "help": "decoder layers with a memory, counted from 1, such as 2,4 (default: the middle one, if no encoder "
            "layers are named either)"
        },
    )
    memory_join: bool = field(
        default=False, metadata={"help": "add the memory to the layer's feed-forward instead of replacing it"}
    )
    memory_keys: int = field(
        default=512,
        metadata={"help": "number of sub-keys for each half of a query; the memory has the square of it as slots"},
    )
    memory_heads: int = field(default=4, metadata={"help": "number of heads"})
    memory_topk: int = field(default=32, metadata={"help": "number of slots that each head reads for a token"})
    memory_key_dim: int = field(
        default=256, metadata={"help": "dimension of a head's query, which is twice that of a sub-key"}
    )
    memory_value_dim: Optional[int] = field(
        default=None, metadata={"help": "dimension of the values (default: that of the layer)"}
    )
    memory_query_hidden: Optional[str] = field(
        default=None,
        metadata={"help": "widths of the query network's hidden layers, such as 1024,512 (default: no hidden layers)"},
    )
    memory_query_norm: ChoiceEnum(QUERY_NORMS) = field(  # type: ignore[valid-type]
        default="batch", metadata={"help": "normalisation of the queries; the statistics of batch exclude padding"}
    )
    memory_input_dropout: float = field(default=0.0, metadata={"help": "dropout on the memory's input"})
    memory_query_dropout: float = field(default=0.0, metadata={"help": "dropout on the queries"})
    memory_value_dropout: float = field(
        default=0.0, metadata={"help": "dropout on the sum of the values that are read"}
    )
    memory_shared_keys: bool = field(default=False, metadata={"help": "share one set of sub-keys among all heads"})
    memory_qk_norm: bool = field(
        default=False, metadata={"help": "normalise queries and sub-keys, with a learned scale for each head"}
    )
    memory_gated: bool = field(
        default=False,
        metadata={"help": "multiply the sum of the values by silu of a projection of the input, then project"},
    )
    memory_flat: bool = field(
        default=False,
        metadata={"help": "use one key for every slot and compare all with every query (the paper's baseline)"},
    )
    memory_share_table: bool = field(default=False, metadata={"help": "share one table of values among all memories"})
    memory_sharded: bool = field(
        default=False, metadata={"help": "split the dimensions of the values among the processes"}
    )
    memory_backend: ChoiceEnum(ops.BACKENDS) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "implementation of the memories; cpu, cuda: compiled kernels for that device (an error if they are "
            "not built); torch: PyTorch's own operators; auto: the kernels where they are built and take the tensors"
        },
    )


@dataclass
class EncoderMemoryOptions(MemoryOptions):
    """For models with an encoder."""

    memory_encoder_layers: Optional[str] = field(
        default=None, metadata={"help": "encoder layers with a memory, counted from 1, such as 2,4"}
    )


@dataclass
class MemoryTransformerLMConfig(MemoryOptions, TransformerLanguageModelConfig):
    """``memory_transformer_lm``: fairseq's ``transformer_lm`` with memories."""


# Changes of each named architecture to the defaults of fairseq's `transformer` and of the options above.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "memory_transformer_iwslt_de_en": dict(
        encoder_embed_dim=512,
        encoder_ffn_embed_dim=1024,
        encoder_attention_heads=4,
        decoder_embed_dim=512,
        decoder_ffn_embed_dim=1024,
        decoder_attention_heads=4,
    ),
    # Trains on a CPU.
    "memory_transformer_small": dict(
        encoder_embed_dim=256,
        encoder_ffn_embed_dim=512,
        encoder_layers=3,
        encoder_attention_heads=4,
        decoder_embed_dim=256,
        decoder_ffn_embed_dim=512,
        decoder_layers=3,
        decoder_attention_heads=4,
        memory_keys=128,
        memory_key_dim=128,
    ),
}
# The same for `transformer_lm`.
LM_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "memory_transformer_lm_small": dict(
        decoder_embed_dim=256,
        decoder_ffn_embed_dim=512,
        decoder_layers=4,
        decoder_attention_heads=4,
        memory_keys=128,
        memory_key_dim=128,
    ),
}


def options_of(args: Any) -> EncoderMemoryOptions:
    """The memories' options among all of a model's; those that are absent have their defaults."""
    names = [option.name for option in fields(EncoderMemoryOptions) if option.name != "_name"]
    values = {name: getattr(args, name, None) for name in names}
    return EncoderMemoryOptions(**{name: value for name, value in values.items() if value is not None})


def memory_layers_of(options: EncoderMemoryOptions, encoder_layers: int, decoder_layers: int) -> dict[str, list[int]]:
    """The layers of ``encoder`` and ``decoder`` with a memory, counted from 1.

    Raises:
        UserError: a layer that does not exist, or is named twice.
    """
    if options.memory_encoder_layers is None and options.memory_decoder_layers is None:
        if decoder_layers < 1:
            raise UserError(f"--decoder-layers must be at least 1 for a memory in the middle, given {decoder_layers}")
        return {"encoder": [], "decoder": [decoder_layers // 2 + 1]}
    layers = {
        "encoder": _layers("--memory-encoder-layers", options.memory_encoder_layers, encoder_layers),
        "decoder": _layers("--memory-decoder-layers", options.memory_decoder_layers, decoder_layers),
    }
    if not any(layers.values()):
        raise UserError("--memory-decoder-layers names no layer: name one, or take --arch transformer")
    return layers


def _layers(flag: str, text: str | None, depth: int) -> list[int]:
    layers = whole_numbers(flag, text)
    if len(set(layers)) < len(layers) or not all(1 <= layer <= depth for layer in layers):
        kind = flag.split("-")[3]
        raise UserError(f"{flag} must be different numbers from 1 to {depth} (the {kind}'s layers), given {text!r}")
    return layers


def whole_numbers(flag: str, text: Any) -> list[int]:
    """The whole numbers of a comma-separated list, or of a list as Hydra reads it; [] for None or an empty text.

    Raises:
        UserError: anything else.
    """
    try:
        parts = list(text) if isinstance(text, Sequence) and not isinstance(text, str) else str(text).split(",")
        return [int(part) for part in parts] if text not in (None, "") else []
    except ValueError:
        raise UserError(f"{flag} must be whole numbers separated by commas, given {text!r}") from None


def check_backend(table: ValueTable) -> None:
    """Raise UserError if --memory-backend names kernels that do not take a table's values."""
    try:
        ops.check_takes(table.backend, table.weight)
    except TypeError as error:
        overrides = "{'memory_backend': 'auto'}"
        raise UserError(
            f'--memory-backend {table.backend}: {error} (for a checkpoint: --model-overrides "{overrides}")'
        ) from error


def check(options: EncoderMemoryOptions, *, dims: list[int], eval_bleu: bool = False) -> None:
    """Check, before anything is allocated, that the memories can be built.

    Args:
        dims: the dimension of the layer of each memory.
        eval_bleu: whether validation translates.

    Raises:
        UserError: an option out of range, or memories too large; the message names the option and the rule.
    """

    def must(holds: bool, option: str, rule: str) -> None:
        if not holds:
            raise UserError(f"--{option.replace('_', '-')} must be {rule}, given {getattr(options, option)!r}")

    for option in ("memory_keys", "memory_heads", "memory_topk", "memory_key_dim", "memory_value_dim"):
        value = getattr(options, option)
        must(value is None or value >= 1, option, "at least 1")
    most = options.memory_keys**2 if options.memory_flat else options.memory_keys
    limit = "the square of --memory-keys" if options.memory_flat else "--memory-keys"
    must(options.memory_topk <= most, "memory_topk", f"at most {limit} ({most})")
    must(options.memory_flat or options.memory_key_dim % 2 == 0, "memory_key_dim", "even: a query is split in halves")
    hidden = whole_numbers("--memory-query-hidden", options.memory_query_hidden)
    must(all(width >= 1 for width in hidden), "memory_query_hidden", "widths of at least 1")
    for option in ("memory_input_dropout", "memory_query_dropout", "memory_value_dropout"):
        must(0 <= getattr(options, option) < 1, option, "at least 0 and less than 1")
    widths = [options.memory_value_dim or dim for dim in dims]
    if options.memory_share_table:
        must(
            len(set(widths)) == 1,
            "memory_value_dim",
            f"given where memories of layers of dimensions {', '.join(map(str, sorted(set(dims))))} share a table",
        )
        widths = widths[:1]
    shards = processes() if options.memory_sharded else 1
    if any(width % shards for width in widths):
        raise UserError(
            f"--memory-sharded needs a dimension of the values that is a multiple of the {shards} processes, given "
            f"{', '.join(map(str, sorted(set(widths))))}; set --memory-value-dim"
        )
    if shards > 1 and eval_bleu:
        raise UserError(
            "--eval-bleu does not work with --memory-sharded: the processes decode for different times; "
            "leave one of them out"
        )
    kernels = ops.KERNELS.get(str(options.memory_backend))
    if kernels is not None and not options.memory_flat:
        for option, most in (("memory_keys", kernels.n), ("memory_topk", kernels.k)):
            rule = f"at most {most} with --memory-backend {options.memory_backend}"
            must(getattr(options, option) <= most, option, rule)
    try:
        ops.check_available(str(options.memory_backend))
    except RuntimeError as error:
        raise UserError(f"--memory-backend {options.memory_backend}: {error}") from error
    slots = options.memory_keys**2
    values = sum(slots * width // shards for width in widths)
    if options.memory_flat:
        values += (
            len(dims) * slots * options.memory_key_dim * (1 if options.memory_shared_keys else options.memory_heads)
        )
    check_room(4 * values, torch.device("cpu"), f"the memories of {slots:,} slots")
