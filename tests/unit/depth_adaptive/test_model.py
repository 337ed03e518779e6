"""depth_adaptive_transformer: fairseq's Transformer at full depth; equal exits and tokens in every way of decoding."""

import copy
import logging
from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from fairseq.modules import FairseqDropout
from torch import Tensor

from depth_adaptive import halting
from depth_adaptive.model import DepthAdaptiveTransformerModel
from depth_adaptive.source import mean_state
from depth_adaptive.teacher_forcing import GivenExits
from tests.support.depth_models import (
    GOLD,
    LAYERS,
    POLICIES,
    SOURCE,
    TARGET,
    VARIANTS,
    arguments,
    beam,
    beam_with_exits,
    built,
    dictionary,
    encoded,
    plain_twin,
    policies,
    run,
    sentences,
    task,
    variants,
)
from thoth_core import onednn
from thoth_core.errors import UserError


@variants
def test_full_depth_is_fairseqs_transformer(options: dict[str, Any]) -> None:
    """Teacher-forced, by beam search, and in our decoding with a policy that always reaches the last exit."""
    model = built(**options)
    plain = plain_twin(model, **options)
    expected = run(plain)[0]
    torch.testing.assert_close(run(model)[0], expected, rtol=0, atol=1e-10)
    by_fairseq = beam(plain, SOURCE)
    assert [[t for t, _ in h] for h in beam(model, SOURCE)] == [[t for t, _ in h] for h in by_fairseq]
    for policy in (halting.FixedPolicy(exits=LAYERS, exit=LAYERS), halting.Policy(exits=LAYERS)):
        model.decoder.policy = policy
        torch.testing.assert_close(run(model)[0], expected, rtol=0, atol=1e-10)
        for ours, theirs in zip(beam(model, SOURCE), by_fairseq, strict=True):
            assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
            assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-10)


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("left", [False, True])
def test_products_of_the_encoder_change_nothing(options: dict[str, Any], dtype: torch.dtype, left: bool) -> None:
    source = sentences(5, 9, 3, left=left)
    model = built(**options)
    exact = encoded(plain_twin(model, **options), source)
    actual = encoded(model.to(dtype), source)
    assert all(layer.packed._copies for layer in model.encoder.layers) == onednn.AVAILABLE
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance)


def test_dropout_is_retained_by_fairseqs_names() -> None:
    """Each name that --retain-dropout-modules accepts, alone."""
    model = built(dropout=0.3, activation_dropout=0.3, attention_dropout=0.3).float()
    plain = plain_twin(model)

    def names(model: Any) -> set[str]:
        return {module.module_name for module in model.modules() if isinstance(module, FairseqDropout)}

    assert names(model) == names(plain)
    kept = encoded(model)
    assert torch.equal(encoded(model), kept)
    for name in ("TransformerEncoderLayerBase", "MultiheadAttention", "TransformerEncoder"):
        again = copy.deepcopy(model)
        again.make_generation_fast_(retain_dropout=True, retain_dropout_modules=[name])
        assert not torch.equal(encoded(again), encoded(again)), name


def by_loop(model: DepthAdaptiveTransformerModel, policy: halting.Policy) -> tuple[Tensor, Tensor]:
    """Logits and exits, one sentence and one position after the other, every block from the states' definition."""
    decoder = model.decoder
    logits = torch.zeros(*TARGET.shape, len(dictionary()), dtype=torch.double)
    exits = torch.zeros_like(TARGET)
    for b in range(TARGET.size(0)):
        source = SOURCE[b][SOURCE[b] != 1][None]
        encoder_out = model.encoder(source, torch.tensor([source.size(1)]))
        memory = encoder_out["encoder_out"][0]
        target = TARGET[b][TARGET[b] != 1]
        frozen: list[int] = []
        for t in range(len(target)):
            prefix = target[None, : t + 1]
            for exit in [*range(1, LAYERS), LAYERS]:
                states, _ = decoder.run_blocks(prefix, encoder_out, GivenExits(torch.tensor([[*frozen, LAYERS]])))
                first, state = states[0][0, t], states[exit - 1][0, t]
                planned = policy.planned(memory.mean(0), first[None], target[t][None], torch.tensor([t]))
                if exit == LAYERS:
                    break
                if planned is not None:
                    if planned.item() == exit:
                        break
                elif policy.stops(exit, state[None], lambda n=exit, s=state: decoder.exit_logits(n, s[None])).item():
                    break
            frozen.append(exit)
            exits[b, t] = exit
            logits[b, t] = decoder.exit_logits(exit, state)
    return logits, exits


@variants
@pytest.mark.parametrize("name", POLICIES)
def test_teacher_forced_exits_are_those_of_the_definition(name: str, options: dict[str, Any]) -> None:
    model = built(**options)
    policy = model.decoder.policy = policies(model)[name]
    logits, extra = run(model)
    expected, exits = by_loop(model, policy)
    real = TARGET != 1
    assert torch.equal(extra["exits"][real], exits[real])
    if name not in ("fixed", "sequence"):
        assert len(exits[real].unique()) > 1
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-10)


@variants
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("copies", ["eager", "deferred"])
def test_step_by_step_is_teacher_forced(name: str, copies: str, options: dict[str, Any]) -> None:
    """With rows reordered, repeated and dropped after every step, as beam search does."""
    model = built(**options, exit_copies=copies)
    policy = model.decoder.policy = policies(model)[name]
    draw = torch.Generator().manual_seed(5)
    source = sentences(5, 9, 3, 9, seed=7)
    encoded = model.encoder(source, source.ne(1).sum(1))
    order = torch.arange(4).repeat_interleave(3)
    rows = order
    encoded = model.encoder.reorder_encoder_out(encoded, order)
    history = torch.full((12, 1), 2)
    state: dict[str, Any] = {}
    with torch.no_grad():
        for step in range(7):
            logits, extra = model.decoder(history, encoded, state)
            full, all_extra = run(model, source[rows], history)
            assert torch.equal(extra["exits"][:, 0], all_extra["exits"][:, -1])
            assert torch.equal(state["depth_adaptive"].exits, all_extra["exits"])
            torch.testing.assert_close(logits[:, 0], full[:, -1], rtol=0, atol=1e-10)
            kept = rows.unique()
            if step % 3 == 2:
                kept = kept[1:]  # a sentence is finished
            order = torch.cat(
                [(rows == s).nonzero().squeeze(1)[torch.randint(3, (3,), generator=draw)] for s in kept.tolist()]
            )
            rows, history = rows[order], history[order]
            encoded = model.encoder.reorder_encoder_out(encoded, order)
            model.decoder.reorder_incremental_state_scripting(state, order)
            new = torch.randint(4, 40, (len(rows), 1), generator=draw)
            history = torch.cat([history, new], 1)
    assert policy is model.decoder.policy


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("copies", "dtype"), [("eager", torch.double), ("deferred", torch.double), ("deferred", torch.float)], ids=str
)
def test_translations_and_exits_do_not_depend_on_the_batch(name: str, copies: str, dtype: torch.dtype) -> None:
    """In float32 too, where rounding differs with the number of rows: no score here is that close to a threshold."""
    model = built(exit_copies=copies)
    policy = model.decoder.policy = policies(model)[name]
    model.to(dtype)
    if isinstance(policy, halting.HaltingPolicy):
        policy.halting.to(dtype)
    lengths = [5, 9, 3, 7, 9, 2, 6, 1] * 4
    everything = sentences(*lengths, seed=11, left=True)
    alone = [beam_with_exits(model, everything[i : i + 1, -length:])[0] for i, length in enumerate(lengths[:8])]
    assert name in ("fixed", "sequence") or len({exit for _, exits in alone[1] for exit in exits}) > 1
    draw = torch.Generator().manual_seed(1)
    for size in (8, 32):
        order = torch.randperm(size, generator=draw)
        together = beam_with_exits(model, everything[order])
        for place, index in enumerate(order.tolist()):
            if index < 8:
                assert together[place] == alone[index]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float, torch.double], ids=str)
def test_a_sentences_mean_does_not_depend_on_the_padding(dtype: torch.dtype) -> None:
    """With 301 positions, which bfloat16 cannot count."""
    states = torch.randn(301, 2, 24, generator=torch.Generator().manual_seed(1), dtype=torch.double).to(dtype)
    alone = mean_state(states, None)
    assert alone.dtype == dtype
    longer = torch.cat([states, torch.full((19, 2, 24), 7.0).to(dtype)])
    padding = torch.arange(320).expand(2, -1) >= 301
    exact = states.double().mean(0)
    close = dict(rtol=0, atol=1e-10) if dtype == torch.double else dict(rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    for actual in (alone, mean_state(longer, padding)):
        torch.testing.assert_close(actual.double(), exact, **close)
    if dtype.itemsize == 2:
        assert torch.equal(mean_state(longer, padding), alone)
        assert torch.equal(alone, exact.to(dtype))


@variants
def test_the_checkpoint_of_a_plain_transformer_is_loaded(options: dict[str, Any]) -> None:
    model = built(**options, halting="geometric")
    torch.manual_seed(4)
    plain = TransformerModel.build_model(arguments(**options), task()).double().eval()
    state = copy.deepcopy(plain.state_dict())
    model.load_state_dict(state, strict=True)
    torch.testing.assert_close(run(model)[0], run(plain)[0])
    assert len(model.decoder.exit_projections) == (LAYERS - 1 if options.get("exit_projections") == "separate" else 0)
    for projection in [*model.decoder.exit_projections, model.decoder.output_projection]:
        assert torch.equal(projection.weight, plain.decoder.output_projection.weight)


@pytest.mark.parametrize("tied", ["share_decoder_input_output_embed", "share_all_embeddings"])
def test_classifiers_of_their_own_are_no_embeddings(tied: str) -> None:
    """Nor is that of the last exit: embeddings are shared as fairseq's options say, and learn from inputs alone."""
    options: dict[str, Any] = {tied: True, "encoder_embed_dim": 16, "exit_policy": "full"}
    model = built(**options, exit_projections="separate")
    decoder = model.decoder
    assert (model.encoder.embed_tokens is decoder.embed_tokens) == (tied == "share_all_embeddings")
    weights = [decoder.exit_projection(n).weight for n in range(1, LAYERS + 1)]
    assert len({weight.data_ptr() for weight in [*weights, decoder.embed_tokens.weight]}) == LAYERS + 1
    run(model)[0].sum().backward()
    rows = decoder.embed_tokens.weight.grad.abs().sum(1)
    assert (rows == 0).any()
    assert not (weights[-1].grad == 0).all(1).any()  # a classifier has a gradient for every word
    shared = built(**options)
    assert shared.decoder.output_projection.weight is shared.decoder.embed_tokens.weight


# Encoder and decoder are as wide, so that the shapes of a sequence halting's weights are those of a token halting's.
KINDS = [kind for kind in halting.HALTINGS if kind != "none"]
WIDE = dict(encoder_embed_dim=16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_haltings_weights_are_loaded(kind: str) -> None:
    saved = built(**WIDE, halting=kind).state_dict()
    model = built(**WIDE, halting=kind, exit_policy="halting")
    with torch.no_grad():
        for parameter in model.decoder.halting.parameters():
            parameter.zero_()
    model.load_state_dict(dict(saved))
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name])


@pytest.mark.parametrize(
    ("trained", "kind"), [(trained, kind) for trained in halting.HALTINGS for kind in KINDS if trained != kind]
)
def test_weights_of_another_halting_are_not_loaded(trained: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    saved = built(**WIDE, halting=trained).state_dict()
    saved = {name: value + 1 if "halting" in name else value for name, value in saved.items()}
    model = built(**WIDE, halting=kind)
    begun = [parameter.clone() for parameter in model.decoder.halting.parameters()]
    with caplog.at_level(logging.INFO, "depth_adaptive"):
        model.load_state_dict(dict(saved))
    assert all(torch.equal(now, then) for now, then in zip(model.decoder.halting.parameters(), begun, strict=True))
    assert f"the checkpoint lacks decoder.halting.{kind}.weight, decoder.halting.{kind}.bias" in caplog.text
    warned = f"the halting module of the checkpoint is not of --halting {kind}, which starts" in caplog.text
    assert warned == (trained != "none")
    model = built(**WIDE, halting=kind, exit_policy="halting")
    with pytest.raises(UserError, match=f"--exit-policy halting needs a model .*--halting {kind}, and .* was not"):
        model.load_state_dict(dict(saved))


def test_noise_of_quantisation_is_of_training_alone() -> None:
    """It is in hooks of layers that our steps pass by, which do nothing in decoding."""
    noise = dict(quant_noise_pq=0.5, quant_noise_pq_block_size=8)
    model = built(**noise)
    by_fairseq = beam(plain_twin(model, **noise), SOURCE)
    model.decoder.policy = halting.FixedPolicy(exits=LAYERS, exit=LAYERS)
    for ours, theirs in zip(beam(model, SOURCE), by_fairseq, strict=True):
        assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-10)


@pytest.mark.parametrize("name", ["fixed", "confidence"])
@pytest.mark.parametrize("option", [dict(retain_dropout=True, retain_dropout_modules=None), dict(need_attn="hard")])
def test_options_that_steps_do_not_support_are_refused(name: str, option: Any) -> None:
    model = built(dropout=0.1)
    model.decoder.policy = policies(model)[name]
    flag = "--print-alignment" if "need_attn" in option else "--retain-dropout"
    with pytest.raises(UserError, match=f"{flag} works with --exit-policy full only"):
        model.make_generation_fast_(**option)
    built(dropout=0.1).make_generation_fast_(**option)


@pytest.mark.parametrize("name", ["full", "fixed"])
def test_usual_options_of_decoding_are_taken(name: str) -> None:
    model = built(dropout=0.1)
    model.decoder.policy = policies(model).get(name)
    model.make_generation_fast_(need_attn=None)


@pytest.mark.parametrize("variant", ["post-norm", "pre-norm", "separate", "pre-norm, separate"])
@pytest.mark.parametrize("temperatures", ["1.3,0.8,1.1,0.9", 2.0])
def test_temperatures_divide_the_logits_of_their_exits(variant: str, temperatures: Any) -> None:
    plain, tempered = built(**VARIANTS[variant]), built(**VARIANTS[variant], exit_temperature=temperatures)
    divisors = torch.tensor(
        [1.3, 0.8, 1.1, 0.9] if isinstance(temperatures, str) else [temperatures] * 4, dtype=torch.double
    )
    assert torch.equal(run(plain)[0], run(tempered)[0])  # full depth
    policies = [halting.RandomPolicy(exits=LAYERS), *(halting.FixedPolicy(exits=LAYERS, exit=n) for n in (1, 2, 4))]
    words = GOLD[:1, :-1]
    for policy in policies:
        plain.decoder.policy = tempered.decoder.policy = policy
        (before, extra), (after, _) = run(plain), run(tempered)
        torch.testing.assert_close(after, before / divisors[extra["exits"] - 1, None], rtol=0, atol=1e-12)
        both = []
        for model in (plain, tempered):
            encoded, state = model.encoder(SOURCE[1:2], torch.tensor([9])), {}
            with torch.no_grad():
                steps = [model.decoder(words[:, :t], encoded, state) for t in range(1, words.size(1) + 1)]
            both.append([torch.cat(parts, 1) for parts in ([x for x, _ in steps], [e["exits"] for _, e in steps])])
        (before, exits), (after, _) = both
        torch.testing.assert_close(after, before / divisors[exits - 1, None], rtol=0, atol=1e-12)
    assert len(exits.unique()) == 1


def test_confidence_is_that_of_the_tempered_exit() -> None:
    state = torch.randn(5, 16, dtype=torch.double)
    plain, tempered = built(), built(exit_temperature="0.5,2,1,1", exit_policy="confidence", exit_threshold="0.3")
    assert isinstance(tempered.decoder.policy, halting.ConfidencePolicy)
    for n, divisor in ((1, 0.5), (2, 2.0)):
        expected = (plain.decoder.exit_logits(n, state) / divisor).softmax(-1).amax(-1)
        actual = tempered.decoder.policy.score(n, state, lambda n=n: tempered.decoder.exit_logits(n, state))
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


WRONG = {
    "exit too deep": (dict(exit_policy="fixed", exit_layer=5), "--exit-layer must be from 1 to 4.*given 5"),
    "exit of zero": (dict(exit_layer=0), "--exit-layer must be from 1 to 4"),
    "fixed where": (dict(exit_policy="fixed"), "--exit-policy fixed needs --exit-layer: from 1 to 4"),
    "threshold": (dict(exit_policy="confidence", exit_threshold="1.2"), "--exit-threshold.*from 0 to 1, given 1.2"),
    "thresholds": (dict(exit_policy="confidence", exit_threshold="0.1,0.2"), "--exit-threshold: 1 or 3 thresholds"),
    "no number": (dict(exit_policy="confidence", exit_threshold="high"), "--exit-threshold must be numbers"),
    "temperature": (dict(exit_temperature="0"), "--exit-temperature must be above 0, given 0"),
    "no temperature": (dict(exit_temperature="1,nan,1,1"), "--exit-temperature must be above 0, given nan"),
    "endless temperature": (dict(exit_temperature="inf"), "--exit-temperature must be above 0, given inf"),
    "temperatures": (dict(exit_temperature="1,2"), "--exit-temperature must be one number, or 4.*given 2"),
    "warm": (dict(exit_temperature="warm"), "--exit-temperature must be numbers"),
    "no halting": (dict(exit_policy="halting"), "trained with --halting.*full, fixed, random, confidence"),
    "nothing to train": (dict(halting_only=True), "--halting-only needs --halting: one of sequence, token, geometric"),
    "distribution": (dict(exit_policy="random", exit_distribution="1,2"), "--exit-distribution: 4 weights"),
    "samples": (dict(exit_samples=0), "--exit-samples must be at least 1"),
    "scale": (dict(exit_gradient_scale=0.0), "--exit-gradient-scale must be above 0"),
    "layerdrop": (dict(decoder_layerdrop=0.1), "--decoder-layerdrop does not work with exits"),
    "adaptive softmax": (dict(adaptive_softmax_cutoff="8,16"), "--adaptive-softmax-cutoff does not work with exits"),
    "other blocks": (dict(base_layers=1), "--base-layers does not work with exits"),
    "quantised": (dict(quant_noise_scalar=0.1), "--quant-noise-scalar does not work with exits"),
    "kept layers": (dict(decoder_layers_to_keep="0,1"), "--decoder-layers-to-keep does not work with exits"),
    "no threshold": (
        dict(halting="token", exit_policy="halting", exit_threshold="0.5"),
        "--exit-threshold has no effect on --exit-policy halting with --halting token: leave it out",
    ),
    "unused": (dict(find_unused_parameters=True), "--find-unused-parameters does not work with exits"),
    "cross self": (dict(cross_self_attention=True, exit_policy="random"), "--cross-self-attention works with"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_named(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        built(**options)


def test_training_drops_the_copies_of_weights() -> None:
    """Updates in half precision write through ``.data``, which PyTorch does not record."""
    model = built().float()
    model.decoder.policy = halting.FixedPolicy(exits=LAYERS, exit=2)
    users = [model.decoder, *model.encoder.layers]
    beam(model, SOURCE)
    model.eval()  # as fairseq does before every batch of a validation: nothing has changed
    assert all(module.packed._copies for module in users)
    model.train()
    assert not any(module.packed._copies for module in users)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    model.eval()
    fresh = built().float()
    fresh.load_state_dict(model.state_dict())
    fresh.decoder.policy = model.decoder.policy
    assert beam(model, SOURCE) == beam(fresh, SOURCE)
