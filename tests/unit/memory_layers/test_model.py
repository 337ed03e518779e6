"""fairseq's Transformers with memories, in this process: what fairseq can do still works; wrong options."""

import argparse
import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging import metrics
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from torch import Tensor, nn

from memory_layers import backends, capacity, config
from memory_layers.model import HasMemories, MemoryTransformerModel
from memory_layers.product_key import FlatKeyMemory
from thoth_core.errors import UserError

TINY = dict(
    encoder_embed_dim=16, encoder_ffn_embed_dim=24, encoder_layers=3, encoder_attention_heads=2,
    decoder_embed_dim=16, decoder_ffn_embed_dim=24, decoder_layers=3, decoder_attention_heads=2,
    memory_keys=6, memory_heads=2, memory_topk=3, memory_key_dim=8, dropout=0.0,
)  # fmt: skip
LOGITS = dict(rtol=1e-4, atol=1e-5)  # float32 logits of order 1


def dictionary(symbols: int = 12) -> Dictionary:
    words = Dictionary()
    for number in range(symbols):
        words.add_symbol(f"w{number}")
    return words


def task() -> SimpleNamespace:
    words = dictionary()
    return SimpleNamespace(source_dictionary=words, target_dictionary=words)


def arguments(arch: str, **options: object) -> argparse.Namespace:
    """What the command line makes of ``--arch arch`` and options."""
    args = argparse.Namespace(**(TINY | options))
    ARCH_CONFIG_REGISTRY[arch](args)
    return args


def translator(arch: str = "memory_transformer", **options: object) -> HasMemories:
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(arguments(arch, **options), task())


def language_model(arch: str = "memory_transformer_lm_small", **options: object) -> HasMemories:
    torch.manual_seed(1)
    defaults = vars(config.MemoryTransformerLMConfig()) | dict(tokens_per_sample=32, max_target_positions=32, tpu=False)
    args = arguments(arch, decoder_input_dim=16, decoder_output_dim=16, **options)
    for name, value in defaults.items():
        setattr(args, name, getattr(args, name, value))
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task())


def sentences(*lengths: int, seed: int = 0) -> Tensor:
    """Token ids (B, longest), padded on the right, ending in eos."""
    generator = torch.Generator().manual_seed(seed)
    words = dictionary()
    result = torch.full((len(lengths), max(lengths)), words.pad())
    for row, length in zip(result, lengths, strict=True):
        row[:length] = torch.randint(words.nspecial, len(words), (length,), generator=generator)
        row[length - 1] = words.eos()
    return result


def logits(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    return model(source, source.ne(1).sum(dim=1), target)[0]


VARIANTS = {
    "one in the middle": {},
    "encoder and decoder, joined": dict(memory_encoder_layers="1,3", memory_decoder_layers="2", memory_join=True),
    "one table": dict(memory_encoder_layers="2", memory_decoder_layers="1,3", memory_share_table=True),
    "flat, gated": dict(memory_flat=True, memory_gated=True, memory_value_dim=10, memory_query_norm="layer"),
    "pre-norm": dict(decoder_normalize_before=True, memory_qk_norm=True, share_decoder_input_output_embed=True),
    "cross self attention": dict(cross_self_attention=True, no_cross_attention=True),
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def test_where_the_memories_are() -> None:
    model = translator(**VARIANTS["one table"])
    assert list(model.memories) == ["encoder.layers.1", "decoder.layers.0", "decoder.layers.2"]
    assert len({id(memory.table) for memory in model.memories.values()}) == 1
    assert isinstance(model.encoder.layers[1].fc1, nn.Identity)
    assert isinstance(model.encoder.layers[0].fc1, nn.Linear)
    assert list(translator().memories) == ["decoder.layers.1"]
    assert list(translator(decoder_layers=6).memories) == ["decoder.layers.3"]
    assert list(translator(memory_encoder_layers="3").memories) == ["encoder.layers.2"]
    assert isinstance(translator(memory_flat=True).memories["decoder.layers.1"], FlatKeyMemory)
    assert list(language_model(decoder_layers=4).memories) == ["decoder.layers.2"]


@pytest.mark.parametrize("arch", [*config.ARCHITECTURES, "memory_transformer"])
def test_architectures_of_the_translator(arch: str) -> None:
    args = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[arch](args)
    for name, value in config.ARCHITECTURES.get(arch, {}).items():
        assert getattr(args, name) == value
    assert args.memory_heads == 4
    assert args.dropout == 0.1


@variants
def test_a_sentence_does_not_depend_on_its_batch(options: dict[str, object]) -> None:
    model = translator(**options).eval()
    source, target = sentences(7, 3, 5), sentences(4, 6, 2, seed=1)
    together = logits(model, source, target)
    for row in range(3):
        alone = source[row : row + 1, : int(source[row].ne(1).sum())]
        prefix = target[row : row + 1, : int(target[row].ne(1).sum())]
        torch.testing.assert_close(logits(model, alone, prefix)[0], together[row, : prefix.size(1)], **LOGITS)


@variants
def test_padding_changes_no_update(options: dict[str, object]) -> None:
    """In training, too: neither statistics nor rows see it."""
    results = []
    for extra in (0, 4):
        model = translator(**options)
        source, target = (nn.functional.pad(x, (0, extra), value=1) for x in (sentences(7, 3), sentences(4, 6, seed=1)))
        real = target.ne(1)
        logits(model, source, target)[real].square().sum().backward()
        rows = [memory.table.take_pending() for memory in model.memories.values() if memory.table.pending]
        results.append((model.memories, rows))
    (one, first), (two, second) = results
    for a, b in zip(first, second, strict=True):
        assert a.slots.size(0) == b.slots.size(0)
        assert a.slots.size(0) % 10 == 0  # either side has 10 real tokens
        torch.testing.assert_close(a.grad.sum(dim=0), b.grad.sum(dim=0), **LOGITS)
    for a, b in zip(one.values(), two.values(), strict=True):
        for (name, x), y in zip(a.named_buffers(), b.buffers(), strict=True):
            torch.testing.assert_close(x, y, **LOGITS, msg=name)


@variants
def test_incremental_decoding_equals_the_full_computation(options: dict[str, object]) -> None:
    model = translator(**options).eval()
    source, target = sentences(7).expand(2, -1), sentences(6, 6, seed=1)  # two hypotheses of one sentence
    whole = logits(model, source, target)
    encoded = model.encoder(source, src_lengths=source.ne(1).sum(dim=1))
    state: dict[str, dict[str, Tensor | None]] = {}
    for step in range(6):
        if step == 3:  # the beam: they swap places
            order = torch.tensor([1, 0])
            model.decoder.reorder_incremental_state_scripting(state, order)
            encoded = model.encoder.reorder_encoder_out(encoded, order)
            target, whole = target[order], whole[order]
        part = model.decoder(target[:, : step + 1], encoder_out=encoded, incremental_state=state)[0]
        torch.testing.assert_close(part[:, 0], whole[:, step], **LOGITS)


def test_the_language_model_is_causal() -> None:
    model = language_model().eval()
    tokens = sentences(8, 8)
    changed = tokens.clone()
    changed[:, 5:] = tokens[:, 5:].flip(0)
    one, two = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(one[:, :5], two[:, :5], **LOGITS)
    assert not torch.allclose(one[:, 5:], two[:, 5:])


def test_joined_adds_to_the_feed_forward() -> None:
    """With a memory that reads zeros, a joined layer is fairseq's own."""
    plain = TransformerModel.build_model(arguments("memory_transformer"), task()).eval()
    model = translator(memory_join=True).eval()
    model.load_state_dict(plain.state_dict())
    (memory,) = model.memories.values()
    source, target = sentences(7, 3), sentences(4, 6, seed=1)
    assert not torch.allclose(logits(model, source, target), logits(plain, source, target), **LOGITS)
    memory.table.weight.zero_()
    torch.testing.assert_close(logits(model, source, target), logits(plain, source, target), **LOGITS)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", ["translator", "language model"])
def test_a_plain_transformers_checkpoint_loads(kind: str, joined: bool, caplog: pytest.LogCaptureFixture) -> None:
    if kind == "translator":
        plain = TransformerModel.build_model(arguments("memory_transformer"), task())
        model = translator(memory_join=joined)
    else:
        model = language_model(memory_join=joined)
        args = argparse.Namespace(**vars(config.MemoryTransformerLMConfig()) | vars(arguments("transformer_lm_gpt")))
        args.decoder_layers, args.decoder_ffn_embed_dim = 3, 24
        args.max_target_positions, args.decoder_normalize_before, args.decoder_input_dim = 32, True, 16
        args.decoder_output_dim, args.activation_fn = 16, "relu"
        plain = TransformerLanguageModel.build_model(args, task())
    fresh = {key: value.clone() for key, value in model.state_dict().items() if ".memory." in key}
    assert fresh
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    weights = plain.state_dict()
    with caplog.at_level("INFO"):
        model.load_state_dict(weights)
    assert "the memories start fresh" in caplog.text
    state = model.state_dict()
    replaced = [] if joined else [f"{name}.fc" for name in model.memories]
    for key, value in plain.state_dict().items():
        if not key.startswith(tuple(replaced)):
            assert torch.equal(state[key], value), key
    assert all(torch.equal(state[key], value) for key, value in fresh.items())
    assert set(state) <= {*plain.state_dict(), *fresh}
    # Its own checkpoints load as they are, and must be complete.
    caplog.clear()
    model.load_state_dict(copy.copy(state))
    assert not caplog.records
    broken = {key: value for key, value in state.items() if not key.endswith("table.weight")}
    with pytest.raises(RuntimeError, match=r"Missing key.*memory\.table\.weight"):
        model.load_state_dict(broken)


def test_a_memory_in_another_layer_is_no_plain_transformer(caplog: pytest.LogCaptureFixture) -> None:
    """What was trained is not replaced by a fresh one without a word."""
    model = translator(memory_decoder_layers="2")
    with caplog.at_level("INFO"), pytest.raises(RuntimeError, match=r"decoder\.layers\.2\.memory\.table\.weight"):
        model.load_state_dict(translator(memory_decoder_layers="3").state_dict())
    assert "the memories start fresh" not in caplog.text


def test_layers_may_be_a_list() -> None:
    """As Hydra reads model.memory_decoder_layers=[1,3]."""
    assert set(translator(memory_decoder_layers=[1, 3]).memories) == {"decoder.layers.0", "decoder.layers.2"}


@pytest.mark.parametrize(
    ("kept", "drops"),
    [({}, False), (dict(retain_dropout=True), True),
     (dict(retain_dropout=True, retain_dropout_modules=["ProductKeyMemory"]), True),
     (dict(retain_dropout=True, retain_dropout_modules=["TransformerDecoder"]), False)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["input", "query", "value"])
def test_dropout_is_retained(kept: dict[str, Any], drops: bool, kind: str) -> None:
    model = translator(**{f"memory_{kind}_dropout": 0.5}, dropout=0.0).eval()
    source, target = sentences(7, 3), sentences(4, 6, seed=1)
    model.make_generation_fast_(**kept)
    assert torch.equal(logits(model, source, target), logits(model, source, target)) == (not drops)


def test_a_deep_copy_reads_its_own_memory() -> None:
    """As --store-ema makes one."""
    model = translator().eval()
    twin = copy.deepcopy(model)
    source, target = sentences(7, 3), sentences(4, 6, seed=1)
    before = logits(model, source, target)
    twin.decoder.layers[1].memory.table.weight.zero_()
    assert torch.equal(logits(model, source, target), before)
    assert not torch.allclose(logits(twin, source, target), before)


def test_checkpointed_layers_take_one_step_of_batch_norm() -> None:
    """--checkpoint-activations computes the layer twice, and the running statistics as those of one pass."""
    results = []
    for options in ({}, dict(checkpoint_activations=True)):
        model = translator(**options)
        logits(model, sentences(7, 3), sentences(4, 6, seed=1)).square().mean().backward()
        (memory,) = model.memories.values()
        results.append({name: value for name, value in memory.named_buffers() if "running" in name})
    assert len(results[0]) == 2
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


@pytest.mark.parametrize("option", ["checkpoint_activations", "offload_activations"])
def test_checkpointed_layers_give_the_same_gradients(option: str) -> None:
    """--checkpoint-activations computes the layer twice; the row gradients come once, whatever batch came between."""
    results = []
    for options in ({}, {option: True}):
        model = translator(memory_query_norm="layer", **options)
        assert ("precheckpoint_forward" in vars(model.decoder.layers[1])) == bool(options)
        losses = [
            logits(model, sentences(*lengths), sentences(*lengths, seed=1)).square().mean()
            for lengths in ((7, 3), (4, 5, 2))
        ]
        sum(losses).backward()
        (memory,) = model.memories.values()
        results.append((sorted(memory.table.pending, key=lambda rows: len(rows.grad)), memory.sub_keys.grad))
    (rows, grad), (again, grad_again) = results
    assert len(rows) == len(again) == 2
    for one, two in zip(rows, again, strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(grad, grad_again)


def test_slot_usage_is_logged_at_validation() -> None:
    model = translator(memory_encoder_layers="1", memory_decoder_layers="1,2")
    source, target = sentences(7, 3), sentences(4, 6, seed=1)
    keys = {f"memory_{what}_{where}" for what in ("used", "kl") for where in ("e1", "d1", "d2")}
    with metrics.aggregate("train") as outer:
        logits(model, source, target)
        model.eval()
        logits(model, source, target)
        assert not keys & set(outer)
        for _ in range(2):  # each validation for itself
            with metrics.aggregate(new_root=True) as validation, metrics.aggregate("valid"), torch.no_grad():
                for batch in ((source, target), (source.flip(0), target)):
                    logits(model, *batch)
                    # Decoding, as for --eval-bleu, does not count.
                    encoded = model.encoder(source, src_lengths=None)
                    model.decoder(target[:, :1], encoder_out=encoded, incremental_state={})
            values = validation.get_smoothed_values()
            assert keys <= set(values)
            with model.recorded_usage() as usage:
                for batch in ((source, target), (source.flip(0), target)):
                    logits(model, *batch)
                    model.encoder(source, src_lengths=None)
            for where in ("e1", "d1", "d2"):
                assert values[f"memory_used_{where}"] == pytest.approx(usage[where].share(), abs=1e-5)
                assert values[f"memory_kl_{where}"] == pytest.approx(usage[where].kl(), abs=1e-4)
    assert metrics.state_dict()  # what a checkpoint stores of the metrics, usage not among it
    assert "memory_used" not in str(metrics.state_dict())


# ---- wrong options ------------------------------------------------------------------------------------------

WRONG = [
    (dict(memory_key_dim=7), "--memory-key-dim must be even: a query is split in halves, given 7"),
    (dict(memory_topk=7), r"--memory-topk must be at most --memory-keys \(6\), given 7"),
    (dict(memory_topk=0), "--memory-topk must be at least 1, given 0"),
    (dict(memory_keys=0), "--memory-keys must be at least 1, given 0"),
    (dict(memory_heads=-1), "--memory-heads must be at least 1, given -1"),
    (dict(memory_value_dim=0), "--memory-value-dim must be at least 1, given 0"),
    (
        dict(memory_flat=True, memory_topk=37),
        r"--memory-topk must be at most the square of --memory-keys \(36\), given",
    ),
    (dict(memory_keys=46341, memory_backend="cpu"), "--memory-keys must be at most 46340 with --memory-backend cpu"),
    (dict(memory_keys=4097, memory_backend="cuda"), "--memory-keys must be at most 4096 with --memory-backend cuda"),
    (dict(memory_keys=200, memory_topk=129, memory_backend="cuda"), "--memory-topk must be at most 128 with"),
    (dict(decoder_layers=0), "--decoder-layers must be at least 1 for a memory in the middle, given 0"),
    (dict(memory_decoder_layers="4"), r"--memory-decoder-layers must be .* from 1 to 3 \(the decoder's.*given '4'"),
    (dict(memory_encoder_layers="0"), r"--memory-encoder-layers must be .* from 1 to 3 \(the encoder's.*given '0'"),
    (dict(memory_decoder_layers="2,2"), "--memory-decoder-layers must be different numbers"),
    (dict(memory_decoder_layers="two"), "--memory-decoder-layers must be whole numbers separated by commas"),
    (dict(memory_decoder_layers=""), "--memory-decoder-layers names no layer: name one, or take --arch transformer"),
    (dict(memory_query_hidden="8,x"), "--memory-query-hidden must be whole numbers"),
    (dict(memory_query_hidden="8,0"), "--memory-query-hidden must be widths of at least 1"),
    (dict(memory_input_dropout=1.0), "--memory-input-dropout must be at least 0 and less than 1"),
    (dict(memory_query_dropout=-0.1), "--memory-query-dropout must be"),
    (dict(memory_value_dropout=2.0), "--memory-value-dropout must be"),
    (dict(memory_keys=4_000_000), r"the memories of 16,000,000,000,000 slots would take 1,024,000\.00 GB"),
    (dict(memory_keys=40_000, memory_flat=True, memory_topk=2), "the memories of 1,600,000,000 slots would take"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[f"{o}" for o, _ in WRONG])
def test_wrong_options_are_named_before_anything_is_built(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: object) -> None:
        raise AssertionError("the model is being built")

    monkeypatch.setattr(TransformerModel, "build_model", build)
    with pytest.raises(UserError, match=message):
        MemoryTransformerModel.build_model(arguments("memory_transformer", **options), task())


def test_a_table_for_layers_of_different_sizes_needs_a_dimension() -> None:
    sizes = dict(encoder_embed_dim=32, memory_encoder_layers="1", memory_decoder_layers="1", memory_share_table=True)
    with pytest.raises(UserError, match=r"--memory-value-dim must be given where .* dimensions 16, 32 share a table"):
        translator(**sizes)
    assert translator(**sizes, memory_value_dim=8).memories["encoder.layers.0"].output_dim == 32


def test_kernels_that_do_not_take_the_values_end_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^--memory-backend cpu: the cpu kernels take .*given torch\.float16 on cpu"):
        logits(translator(memory_backend="cpu").half(), sentences(7), sentences(4))


def test_a_missing_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "backends", lambda: {"auto": True, "cpu": False, "cuda": False, "torch": True})
    with pytest.raises(UserError, match=r"--memory-backend cuda: memory_layers has no cuda kernels here: install"):
        translator(memory_backend="cuda")


def test_what_just_fits_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * 36 * 16
    monkeypatch.setattr(capacity, "available", lambda device: size)
    translator()
    monkeypatch.setattr(capacity, "available", lambda device: size - 1)
    with pytest.raises(UserError, match=re.escape("the memories of 36 slots would take 0.00 GB")):
        translator()
