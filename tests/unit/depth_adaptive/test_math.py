"""Oracles, halting, policies and losses of depth_adaptive against their definitions, written as loops."""

import itertools
import math

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from hypothesis import given
from hypothesis import strategies as st

from depth_adaptive import halting, losses, oracles
from tests.support import depth_reference as reference

N, B, T, D, V = 4, 3, 5, 6, 11


def scores(seed: int = 0, *, right: bool = False) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(N, B, T, generator=draw, dtype=torch.float64)
    return (values > 0).double() if right else -values.abs()


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


@pytest.mark.parametrize(("right", "penalty", "sigma"), itertools.product((False, True), (0, 0.1, 2), (0, 0.5, 4)))
def test_oracles(right: bool, penalty: float, sigma: float) -> None:
    log_likelihoods = scores(right=right)
    tokens = oracles.token_oracle(log_likelihoods, MASK, penalty=penalty, sigma=sigma)
    sentences = oracles.sequence_oracle(log_likelihoods, MASK, penalty=penalty)
    for b in range(B):
        by_token = log_likelihoods[:, b][:, MASK[b]].t().tolist()
        assert tokens[b][MASK[b]].tolist() == reference.oracle("token", by_token, penalty, sigma)
        assert sentences[b] == reference.oracle("sequence", by_token, penalty, 0)[0]


def test_geometric_distribution_is_a_product_over_blocks() -> None:
    torch.manual_seed(0)
    module = halting.GeometricHalting(dim=D, exits=N)
    states = [torch.randn(B, T, D) for _ in range(N)]
    actual = module.log_distribution(torch.zeros(B, D), states).exp()
    left = torch.ones(B, T)
    for n in range(N - 1):
        chi = torch.sigmoid(states[n] @ module.geometric.weight[0] + module.geometric.bias)
        torch.testing.assert_close(actual[n], chi * left)
        left = left * (1 - chi)
    torch.testing.assert_close(actual[N - 1], left)
    assert halting.GeometricHalting(dim=D, exits=1).log_distribution(states[0], states[:1]).abs().max() == 0


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_multinomial_distributions(kind: str) -> None:
    torch.manual_seed(0)
    module = halting.build_halting(kind, decoder_dim=D, encoder_dim=D, exits=N)
    sentence, states = torch.randn(B, D), [torch.randn(B, T, D) for _ in range(N)]
    x = sentence if kind == "sequence" else states[0]
    unit = getattr(module, kind)
    expected = (x @ unit.weight.t() + unit.bias).softmax(-1).movedim(-1, 0)
    torch.testing.assert_close(module.log_distribution(sentence, states).exp(), expected)
    assert torch.equal(module.planned(sentence, states[0]), expected.argmax(0) + 1)


def test_confidence_stops_where_the_largest_probability_exceeds_its_threshold() -> None:
    policy = halting.ConfidencePolicy(exits=3, thresholds=[0.5, 0.9])
    logits = torch.tensor([[0.6, 0.4], [0.95, 0.05], [0.5, 0.5]]).log() + 7
    assert policy.stops(1, logits, lambda: logits).tolist() == [True, True, False]
    assert policy.stops(2, logits, lambda: logits).tolist() == [False, True, False]


@given(weights=st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(sum), seed=st.integers(0, 2**31))
def test_random_exits_have_their_distribution_and_do_not_depend_on_the_batch(weights: list[int], seed: int) -> None:
    policy = halting.RandomPolicy(exits=len(weights), weights=weights, seed=seed)
    tokens = torch.arange(2000) % 500
    positions = torch.arange(2000) // 40
    actual = policy.planned(tokens, tokens, tokens, positions)
    for n, weight in enumerate(weights, start=1):
        share = weight / sum(weights)
        assert abs((actual == n).double().mean().item() - share) <= 5 * math.sqrt(share * (1 - share) / 2000)
    order = torch.randperm(2000)
    assert torch.equal(policy.planned(order, order, tokens[order], positions[order]), actual[order])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: halting.FixedPolicy(exits=3, exit=4), "from 1 to 3, given 4"),
        (lambda: halting.FixedPolicy(exits=3, exit=0), "from 1 to 3, given 0"),
        (lambda: halting.ConfidencePolicy(exits=3, thresholds=[1.5]), "from 0 to 1, given 1.5"),
        (lambda: halting.ConfidencePolicy(exits=3, thresholds=[float("nan")]), "from 0 to 1, given nan"),
        (lambda: halting.ConfidencePolicy(exits=4, thresholds=[0.1, 0.2]), "1 or 3 thresholds"),
        (lambda: halting.RandomPolicy(exits=3, weights=[1, 1]), "3 weights"),
        (lambda: halting.RandomPolicy(exits=2, weights=[0, 0]), "one of them above"),
    ],
)
def test_wrong_policies(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def smoothed_targets(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(M, V), smoothed as in fairseq: the mass is spread over all other words."""
    spread = torch.full((targets.size(0), V), smoothing / (V - 1), dtype=torch.float64)
    return spread.scatter(1, targets[:, None], 1 - smoothing)


@pytest.mark.parametrize("chunk", [1, 3 * V, 2**24])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy_is_that_of_fairseq(chunk: int, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    features = torch.randn(7, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(V, (7,))
    lprobs = (features @ weight.t()).log_softmax(-1)
    expected, _ = label_smoothed_nll_loss(lprobs, targets[:, None], smoothing)
    (actual,), (likelihood,), (correct,) = losses.linear_cross_entropy(
        [features], [weight], targets, smoothing=smoothing
    )
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(likelihood, lprobs[range(7), targets].detach())
    assert torch.equal(correct, lprobs.argmax(1) == targets)
    ours = torch.autograd.grad(3 * actual, (features, weight))
    theirs = torch.autograd.grad(3 * expected, (features, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    torch.autograd.gradcheck(
        lambda f, w: losses.linear_cross_entropy([f], [w], targets, smoothing=smoothing)[0], (features, weight)
    )


@pytest.mark.parametrize("chunk", [1, 5 * V, 2**24])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("distillation", [0.0, 0.4])
@pytest.mark.parametrize("shared", [True, False])
def test_linear_cross_entropy_of_several_exits(
    chunk: int, smoothing: float, distillation: float, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the mixture of targets, written out."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    features = [torch.randn(7, D, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = [torch.randn(V, D, dtype=torch.float64, requires_grad=True) for _ in range(1 if shared else 3)]
    used = weights * 3 if shared else weights
    targets = torch.randint(V, (7,))
    lprobs = [(f @ w.t()).log_softmax(-1) for f, w in zip(features, used, strict=True)]
    words = smoothed_targets(targets, smoothing)
    mixed = (1 - distillation) * words + distillation * lprobs[-1].detach().exp()
    expected = torch.stack([-(t * lp).sum() for t, lp in zip((mixed, mixed, words), lprobs, strict=True)])
    actual, likelihoods, correct = losses.linear_cross_entropy(
        features, used, targets, smoothing=smoothing, distillation=distillation
    )
    torch.testing.assert_close(actual, expected)
    for n in range(3):
        torch.testing.assert_close(likelihoods[n], lprobs[n][range(7), targets].detach())
        assert torch.equal(correct[n], lprobs[n].argmax(1) == targets)
    of = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    ours = torch.autograd.grad(of @ actual, [*features, *weights])
    theirs = torch.autograd.grad(of @ expected, [*features, *weights])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_no_gradient_is_formed_where_none_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    features, weight = torch.ones(2, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    words = torch.tensor([1, 4])
    expected, _, _ = losses.linear_cross_entropy([features], [weight], words)
    calls = []

    def noting(*inputs: object, gradient: bool, **weights: float) -> object:
        calls.append(gradient)
        return cross_entropy_(*inputs, gradient=gradient, **weights)

    cross_entropy_ = losses.cross_entropy_
    monkeypatch.setattr(losses, "cross_entropy_", noting)
    with torch.no_grad():
        actual, _, _ = losses.linear_cross_entropy([features], [weight], words)
    assert actual == expected
    losses.linear_cross_entropy([features], [weight], words)
    assert calls == [False, True]


def test_linear_cross_entropy_of_nothing() -> None:
    features, weight = torch.zeros(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    loss, likelihood, _ = losses.linear_cross_entropy([features], [weight], torch.zeros(0, dtype=torch.long))
    loss.sum().backward()
    assert loss == torch.zeros(1)
    assert likelihood.shape == (1, 0)
    assert weight.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("uniform", [1, 1, 1, 1]),
        ("n", [1, 2, 3, 4]),
        ("sqrt", [1, 2**0.5, 3**0.5, 2]),
        ("inverse-sqrt", [1, 2**-0.5, 3**-0.5, 0.5]),
        ("inverse", [1, 1 / 2, 1 / 3, 1 / 4]),
    ],
)
def test_weights_of_the_exits(kind: str, weights: list[float]) -> None:
    assert losses.exit_weights(kind, 4) == pytest.approx([weight / sum(weights) for weight in weights])


def test_scaled_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    y = losses.scale_gradient(x, 0.25)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((3,), 0.25))
    assert losses.gradient_scales(None, 3) is None
    assert losses.gradient_scales(0.5, 3) == [1.5, 1.0, 0.5]
