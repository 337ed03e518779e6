"""depth_adaptive_cross_entropy: every training is the paper's loss as a loop, takes a step, and decodes."""

import itertools
import math
from typing import Any

import pytest
import torch
from fairseq.logging import metrics

from depth_adaptive.config import DepthOptions, build_policy
from depth_adaptive.criterion import DepthAdaptiveCriterion
from depth_adaptive.halting import HALTINGS
from depth_adaptive.losses import WEIGHTINGS
from depth_adaptive.oracles import ORACLES
from tests.support import depth_reference as reference
from tests.support.depth_models import (
    GOLD,
    LAYERS,
    TARGET,
    beam,
    built,
    run,
    sentences,
    task,
    variants,
)
from thoth_core.errors import UserError

SOURCE = sentences(5, 9, 3, left=True)  # as fairseq pads it
TRAININGS = [*WEIGHTINGS, "mixed"]
# Halting, oracle, sigma. A sentence has no neighbours.
LEARNT = [("none", "correctness", 0.0)] + [
    (halting, oracle, sigma)
    for halting, oracle, sigma in itertools.product(HALTINGS[1:], ORACLES, (0.0, 1.5))
    if halting != "sequence" or sigma == 0
]
POLICIES = {
    "full": {},
    "fixed": dict(exit_layer=2),
    "random": dict(exit_distribution="2,1,0,1"),
    "confidence": dict(exit_threshold="0.1,0.2,0.3"),
    "halting": dict(exit_threshold=0.4),
}


def criterion(**options: Any) -> DepthAdaptiveCriterion:
    defaults = dict(
        label_smoothing=0.1, exit_weighting="uniform", exit_distillation=0.0, halting_weight=0.5,
        halting_oracle="correctness", halting_penalty=0.1, halting_smoothing=0.0, sentence_avg=False,
    )  # fmt: skip
    return DepthAdaptiveCriterion(task(), **(defaults | options))


def sample() -> dict[str, Any]:
    inputs = {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(1).sum(1), "prev_output_tokens": TARGET}
    return {"net_input": inputs, "target": GOLD, "ntokens": int((GOLD != 1).sum())}


def by_loops(
    model: Any, training: str, learnt: tuple[str, str, float], scale: float | None = None, distillation: float = 0.0
) -> reference.Loss:
    """The reference's loss of :func:`sample`, of the exits that the model draws next in mixed training."""
    sampled = None
    if training == "mixed":
        _, extra = model(**sample()["net_input"], features_only=True)
        sampled = [
            [row[gold != 1].tolist() for row, gold in zip(exits, GOLD, strict=True)] for exits, _ in extra["mixed"]
        ]
    halting, oracle, sigma = learnt
    return reference.loss(
        model,
        [row[row != 1] for row in SOURCE],
        [row[row != 1] for row in TARGET],
        [row[row != 1].tolist() for row in GOLD],
        weighting="uniform" if training == "mixed" else training,
        label_smoothing=0.1,
        halting=halting,
        oracle_kind=oracle,
        alpha=0.5,
        penalty=0.1,
        sigma=sigma,
        scale=scale,
        sampled=sampled,
        distillation=distillation,
    )


def judge(training: str, learnt: tuple[str, str, float]) -> DepthAdaptiveCriterion:
    weighting = "uniform" if training == "mixed" else training
    return criterion(exit_weighting=weighting, halting_oracle=learnt[1], halting_smoothing=learnt[2])


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of all parameters. fairseq's checkpointed blocks do not support torch.autograd.grad."""
    model.zero_grad()
    loss.backward()
    actual = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad()
    return actual


def assert_same_gradients(model: Any, loss: torch.Tensor, expected: torch.Tensor) -> None:
    named = dict(model.named_parameters())
    ours, theirs = (gradients(model, value) for value in (loss, expected))
    assert sum(gradient.abs().max() > 1e-6 for gradient in ours) > 0.9 * len(ours)
    for name, one, other in zip(named, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def model_of(training: str, halting: str, **options: Any) -> Any:
    how = dict(exit_training="mixed", exit_samples=2) if training == "mixed" else {}
    return built(**how, halting=halting, **options).train()


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("learnt", LEARNT, ids=lambda learnt: "-".join(map(str, learnt)))
def test_every_training(training: str, learnt: tuple[str, str, float]) -> None:
    """Its loss and gradients are the loop's, a step lowers it, and every policy decodes as it scores."""
    model = model_of(training, learnt[0], exit_projections="separate")
    judging = judge(training, learnt)
    torch.manual_seed(9)
    expected = by_loops(model, training, learnt)
    torch.manual_seed(9)
    loss, size, log = judging(model, sample())
    assert size == 17
    torch.testing.assert_close(loss, expected.total, rtol=1e-10, atol=0)
    torch.testing.assert_close(log["exits_loss"], expected.exits.detach(), rtol=1e-10, atol=0)
    if learnt[0] != "none":
        torch.testing.assert_close(log["halting_loss"], expected.halting.detach(), rtol=1e-10, atol=0)
        assert log["oracle_exit"] == sum(map(sum, expected.oracle))
    nll, tokens = expected.nll, [17] * LAYERS
    if training == "mixed" and learnt[0] == "none":
        nll, tokens = expected.sampled_nll, expected.sampled_tokens
        assert sum(tokens) == 2 * 17
    assert [float(log[f"nll_{n}"]) for n in range(1, LAYERS + 1)] == pytest.approx(nll)
    assert [log[f"tokens_{n}"] for n in range(1, LAYERS + 1)] == tokens
    assert all(0 <= log[f"correct_{n}"] <= tokens[n - 1] for n in range(1, LAYERS + 1))
    assert_same_gradients(model, loss, expected.total)

    torch.manual_seed(9)
    loss, _, _ = judging(model, sample())
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-5).step()
    torch.manual_seed(9)
    assert judging(model, sample())[0] < loss

    model.eval()
    for policy, options in POLICIES.items():
        if policy == "halting" and learnt[0] == "none":
            continue
        chosen = DepthOptions(exit_policy=policy, **options)
        model.decoder.policy = build_policy(chosen, exits=LAYERS, halting=model.decoder.halting)
        for source, hypotheses in zip(SOURCE, beam(model, SOURCE, 2), strict=True):
            words, score = hypotheses[0]
            previous = torch.tensor([[2, *words[:-1]]])
            lprobs = run(model, source[source != 1][None], previous)[0][0].log_softmax(-1)
            assert score == pytest.approx(lprobs[range(len(words)), words].mean().item(), abs=1e-5)


@variants
@pytest.mark.parametrize("training", ["sqrt", "mixed"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_every_network(options: dict[str, Any], training: str, scale: float | None) -> None:
    """And the gradients are scaled as algorithm 1 (appendix A) has it, written out and left to autograd."""
    learnt = ("geometric", "likelihood", 0.5)
    model = model_of(training, "geometric", **options, exit_gradient_scale=scale)
    torch.manual_seed(9)
    expected = by_loops(model, training, learnt, scale)
    torch.manual_seed(9)
    loss, _, _ = judge(training, learnt)(model, sample())
    torch.testing.assert_close(loss, expected.total, rtol=1e-10, atol=0)
    assert_same_gradients(model, loss, expected.total)


@pytest.mark.parametrize("projections", ["shared", "separate"])
@pytest.mark.parametrize("weighting", ["uniform", "inverse"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_exits_learn_from_the_last(projections: str, weighting: str, scale: float | None) -> None:
    """The target of a lower exit is in part the last one's distribution, through which no gradient goes."""
    learnt = ("geometric", "likelihood", 0.5)
    model = model_of(weighting, "geometric", exit_projections=projections, exit_gradient_scale=scale)
    expected = by_loops(model, weighting, learnt, scale, distillation=0.4)
    judging = criterion(
        exit_weighting=weighting, exit_distillation=0.4, halting_oracle="likelihood", halting_smoothing=0.5
    )
    loss, _, _ = judging(model, sample())
    assert abs(loss - by_loops(model, weighting, learnt, scale).total) > 1e-3
    torch.testing.assert_close(loss, expected.total, rtol=1e-10, atol=0)
    assert_same_gradients(model, loss, expected.total)
    with torch.no_grad():
        torch.testing.assert_close(judging(model, sample())[0], expected.total.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("option", "value"), [("exit_distillation", 0.4), ("exit_weighting", "n")])
def test_what_is_of_aligned_training_needs_every_exit(option: str, value: Any) -> None:
    message = f"--{option.replace('_', '-')} {value} needs every exit on every token: leave it out"
    with pytest.raises(UserError, match=message):
        criterion(**{option: value})(model_of("mixed", "none"), sample())


def test_a_halting_alone_needs_its_loss() -> None:
    with pytest.raises(UserError, match="--halting-only with --halting-weight 0 trains nothing"):
        criterion(halting_weight=0.0)(model_of("uniform", "token", halting_only=True), sample())


def test_scaled_gradients_by_hand() -> None:
    """Block m's share of exit n's gradient is gamma_n / (gamma_{m+1} ... gamma_n), its own projection's gamma_n."""
    gammas = [0.5 * (LAYERS - n + 1) for n in range(1, LAYERS + 1)]
    scaled, plain = (built(exit_projections="separate", exit_gradient_scale=s).train() for s in (0.5, None))
    for n in range(1, LAYERS + 1):
        gradients = []
        for model in (scaled, plain):
            _, extra = model(**sample()["net_input"], features_only=True)
            states = extra["exit_states"][n - 1][GOLD != 1]
            losses, _, _ = criterion().cross_entropy(model.decoder, {n: states}, GOLD[GOLD != 1])
            blocks = [layer.fc1.weight for layer in model.decoder.layers[:n]]
            gradients.append(torch.autograd.grad(losses[0], [model.decoder.exit_projection(n).weight, *blocks]))
        factors = [gammas[n - 1]]
        for m in range(1, n + 1):
            factors.append(gammas[n - 1])
            for between in range(m + 1, n + 1):
                factors[-1] /= gammas[between - 1]
        for one, other, factor in zip(*gradients, factors, strict=True):
            torch.testing.assert_close(one, factor * other)


def test_in_evaluation_mixed_training_is_judged_as_aligned() -> None:
    learnt = ("token", "likelihood", 0.0)
    mixed, aligned = (model_of(training, "token").eval() for training in ("mixed", "uniform"))
    actual = [judge("uniform", learnt)(model, sample())[0] for model in (mixed, aligned)]
    assert actual[0] == actual[1]
    torch.testing.assert_close(actual[0], by_loops(aligned, "uniform", learnt).total, rtol=1e-10, atol=0)


def test_halting_alone() -> None:
    model = built(halting="geometric", halting_only=True).train()
    loss, _, _ = criterion()(model, sample())
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "decoder.halting.geometric.weight",
        "decoder.halting.geometric.bias",
    }


def test_halting_alone_needs_a_model_that_was_loaded() -> None:
    model = built(halting="token", halting_only=True)
    model.set_num_updates(5)  # as fairseq does before it loads a checkpoint
    with pytest.raises(UserError, match=r"--halting-only .* none was loaded: give its checkpoint to --finetune-from"):
        model.set_num_updates(0)
    model.load_state_dict(built().state_dict())
    model.set_num_updates(0)
    built(halting="token").set_num_updates(0)


def test_the_sample_size_is_that_of_sentence_avg() -> None:
    """As in fairseq's label_smoothed_cross_entropy, the loss is the same sum, divided by the number of sentences."""
    model = built(halting="token").train()
    by_token, by_sentence = (criterion(sentence_avg=by_sentences)(model, sample()) for by_sentences in (False, True))
    assert (by_token[1], by_sentence[1]) == (17, 3)
    assert by_token[0] == by_sentence[0]
    actual = []
    for _, _, log in (by_token, by_sentence):
        with metrics.aggregate(new_root=True) as meters:
            DepthAdaptiveCriterion.reduce_metrics([log])
        actual.append(meters.get_smoothed_values())
    assert actual[0].keys() == actual[1].keys()
    for name, value in actual[0].items():
        factor = 17 / 3 if name in ("loss", "exits_loss", "halting_loss") else 1
        assert float(actual[1][name]) == pytest.approx(factor * float(value), abs=4e-3), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_smoothing=1.0), "--label-smoothing must be at least 0 and below 1"),
        (dict(exit_distillation=1.0), "--exit-distillation must be at least 0 and below 1"),
        (dict(exit_distillation=-0.1), "--exit-distillation must be at least 0 and below 1"),
        (dict(halting_weight=-1.0), "--halting-weight must be at least 0"),
        (dict(halting_penalty=float("nan")), "--halting-penalty must be at least 0"),
        (dict(halting_smoothing=-0.1), "--halting-smoothing must be at least 0"),
    ],
)
def test_wrong_options_of_the_criterion(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        criterion(**options)


@pytest.mark.parametrize("halting", ["none", "sequence"])
def test_neighbours_need_a_halting_of_tokens(halting: str) -> None:
    with pytest.raises(UserError, match=f"--halting-smoothing 2 .* no effect with --halting {halting}: leave it out"):
        criterion(halting_smoothing=2.0)(model_of("uniform", halting), sample())


def test_logs_are_means_over_the_tokens_of_those_that_have_them() -> None:
    bit = math.log(2)
    logs = [
        {"ntokens": 4, "sample_size": 2, "loss": 8 * bit, "oracle_exit": 10}
        | {"nll_1": 12 * bit, "correct_1": 3, "tokens_1": 4, "nll_2": 4 * bit, "correct_2": 0, "tokens_2": 1},
        {"ntokens": 4, "sample_size": 2, "loss": 16 * bit}
        | {"nll_1": 0, "correct_1": 0, "tokens_1": 0, "nll_2": 2 * bit, "correct_2": 1, "tokens_2": 2},
    ]
    with metrics.aggregate(new_root=True) as meters:
        DepthAdaptiveCriterion.reduce_metrics(logs)
    actual = meters.get_smoothed_values()
    assert actual == {"loss": 6, "nll_loss": 2, "ppl": 4, "oracle_exit": 2.5} | {
        "nll_1": 3, "accuracy_1": 75, "nll_2": 2, "accuracy_2": 33.33
    }  # fmt: skip
    for nothing in ([], [{**logs[1], "nll_2": 0, "tokens_2": 0}]):  # no token was sampled for an exit
        with metrics.aggregate(new_root=True) as meters:
            DepthAdaptiveCriterion.reduce_metrics(nothing)
        assert meters.get_smoothed_values() == ({"loss": 8} if nothing else {})
