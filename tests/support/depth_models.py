"""Small depth-adaptive models, sentences for them and ways to translate, which the tests share."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from depth_adaptive import halting
from depth_adaptive.model import DepthAdaptiveTransformerModel
from depth_adaptive.teacher_forcing import go_on

LAYERS = 4
TINY = dict(
    encoder_layers=2,
    decoder_layers=LAYERS,
    encoder_embed_dim=24,
    decoder_embed_dim=16,
    encoder_ffn_embed_dim=32,
    decoder_ffn_embed_dim=32,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    dropout=0.0,
    max_source_positions=64,
    max_target_positions=64,
)
EMBEDDED = dict(encoder_embed_dim=16, share_all_embeddings=True)
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": dict(decoder_normalize_before=True, encoder_normalize_before=True),
    "separate": dict(exit_projections="separate"),
    "pre-norm, separate": dict(decoder_normalize_before=True, exit_projections="separate", decoder_output_dim=12),
    "shared embeddings": dict(EMBEDDED, layernorm_embedding=True, decoder_learned_pos=True),
    "scaled": dict(scale_attn=True, scale_heads=True, scale_fc=True, scale_resids=True, no_scale_embedding=True),
    "gelu": dict(activation_fn="gelu"),
    "checkpointed": dict(checkpoint_activations=True),
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def dictionary() -> Dictionary:
    words = Dictionary()
    for number in range(36):
        words.add_symbol(f"w{number}")
    return words


def task() -> Any:
    words = dictionary()
    return argparse.Namespace(source_dictionary=words, target_dictionary=words, cfg=argparse.Namespace())


def arguments(**options: Any) -> argparse.Namespace:
    args = argparse.Namespace(**(TINY | options))
    ARCH_CONFIG_REGISTRY["depth_adaptive_transformer"](args)
    return args


def built(**options: Any) -> DepthAdaptiveTransformerModel:
    torch.manual_seed(1)
    model = ARCH_MODEL_REGISTRY["depth_adaptive_transformer"].build_model(arguments(**options), task()).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # else exits of their own would begin alike
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sentences(*lengths: int, seed: int = 0, left: bool = False) -> Tensor:
    """Token ids (B, longest), padded, ending in eos."""
    draw = torch.Generator().manual_seed(seed)
    words = dictionary()
    result = torch.full((len(lengths), max(lengths)), words.pad())
    for row, length in zip(result, lengths, strict=True):
        place = slice(len(row) - length, None) if left else slice(length)
        row[place] = torch.randint(words.nspecial, len(words), (length,), generator=draw)
        row[place][-1] = words.eos()
    return result


SOURCE = sentences(5, 9, 3)
GOLD = sentences(7, 4, 6, seed=1)
TARGET = torch.cat([torch.full((3, 1), 2), GOLD[:, :-1]], 1).masked_fill(GOLD == 1, 1)  # the previous words


def run(model: Any, source: Tensor = SOURCE, target: Tensor = TARGET) -> Any:
    return model(source, source.ne(1).sum(1), target)


def plain_twin(model: DepthAdaptiveTransformerModel, **options: Any) -> TransformerModel:
    torch.manual_seed(2)
    plain = TransformerModel.build_model(arguments(**options), task()).double().eval()
    state = {name: value for name, value in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(state)
    return plain


def beam(model: Any, source: Tensor, size: int = 5) -> list[list[tuple[list[int], float]]]:
    generator = SequenceGenerator([model], dictionary(), beam_size=size, max_len_a=0, max_len_b=12)
    decoded = generator.generate([model], {"net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}})
    return [[(h["tokens"].tolist(), float(h["score"])) for h in hypotheses] for hypotheses in decoded]


@contextmanager
def noted_exits(decoder: Any) -> Iterator[dict[tuple[int, ...], list[int]]]:
    """The exits that a search has taken, by the sentence's number in the batch and the words before: filled while it
    goes on."""
    taken: dict[tuple[int, ...], list[int]] = {}
    forward = decoder.forward

    def noting(tokens: Tensor, encoder_out: Any, incremental_state: Any, **options: Any) -> Any:
        result = forward(tokens, encoder_out=encoder_out, incremental_state=incremental_state, **options)
        rows = zip(encoder_out["rows"][0].tolist(), tokens.tolist(), strict=True)
        for (sentence, words), exits in zip(rows, incremental_state["depth_adaptive"].exits.tolist(), strict=True):
            taken[sentence, *words] = exits
        return result

    decoder.forward = noting
    try:
        yield taken
    finally:
        del decoder.forward


def beam_with_exits(model: Any, source: Tensor) -> list[list[tuple[list[int], list[int]]]]:
    """The words of each hypothesis and the exit of each word."""
    with noted_exits(model.decoder) as exits:
        decoded = beam(model, source)
    return [[(words, exits[s, 2, *words[:-1]]) for words, _ in hypotheses] for s, hypotheses in enumerate(decoded)]


def encoded(model: Any, source: Tensor = SOURCE) -> Tensor:
    """The encoder's output at real positions."""
    with torch.no_grad():
        output = model.encoder(source, source.ne(1).sum(1))["encoder_out"][0]
    return output.transpose(0, 1)[source.ne(1)]


def policies(model: DepthAdaptiveTransformerModel) -> dict[str, halting.Policy]:
    """One policy of each kind, whose exits are at several blocks."""
    decoder = model.decoder
    torch.manual_seed(3)

    def learnt(kind: str, **more: Any) -> halting.Policy:
        module = halting.build_halting(kind, decoder_dim=16, encoder_dim=decoder.cfg.encoder.embed_dim, exits=LAYERS)
        assert module is not None
        with torch.no_grad():
            getattr(module, kind).weight.normal_(0, 8)
            getattr(module, kind).bias.zero_()
        return halting.HaltingPolicy(exits=LAYERS, halting=module.double(), **more)

    states, _ = decoder.run_blocks(TARGET, model.encoder(SOURCE, SOURCE.ne(1).sum(1)), go_on)
    certainty = [decoder.exit_logits(n, states[n - 1]).softmax(-1).amax(-1) for n in range(1, LAYERS)]
    # Between two values, and not at one, where rounding would decide.
    thresholds = [values[TARGET != 1].sort().values[8:10].mean().item() for values in certainty]
    return {
        "fixed": halting.FixedPolicy(exits=LAYERS, exit=2),
        "random": halting.RandomPolicy(exits=LAYERS, weights=[2, 1, 1, 1]),
        "confidence": halting.ConfidencePolicy(exits=LAYERS, thresholds=thresholds),
        "sequence": learnt("sequence"),
        "token": learnt("token"),
        "geometric": learnt("geometric", thresholds=[0.6, 0.5, 0.3]),
    }


POLICIES = ["fixed", "random", "confidence", "sequence", "token", "geometric"]
