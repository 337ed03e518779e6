"""Calibration: the promise holds over many resplits of data whose risk is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depth_adaptive import calibration

THRESHOLDS = [1 - k / 20 for k in range(21)]


def drawn(sentences: int, seed: int, exits: int = 4, length: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (N, T), confidences (N - 1, T) and sentences (T,): right as often as confident."""
    draw = torch.Generator().manual_seed(seed)
    confidences = torch.rand(exits - 1, sentences * length, generator=draw, dtype=torch.float64).cummax(0).values
    wrong = torch.rand(confidences.shape, generator=draw, dtype=torch.float64) > confidences
    predictions = torch.cat([wrong.long(), torch.zeros(1, sentences * length, dtype=torch.long)])
    return predictions, confidences, torch.arange(sentences).repeat_interleave(length)


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(0, 9), words=st.integers(1, 20), seed=st.integers(0, 1 << 30))
def test_slope_and_curvature_are_autograds(tokens: int, words: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, targets = 3 * torch.randn(tokens, words, dtype=torch.float64), torch.randint(0, words, (tokens,))
    beta = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(beta * logits, targets, reduction="sum")
    (slope,) = torch.autograd.grad(loss, beta, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, beta)
    actual = calibration.slope_and_curvature(logits, targets)
    torch.testing.assert_close(actual, (slope.detach(), curvature), rtol=1e-9, atol=1e-9)
    single = calibration.slope_and_curvature(logits.float(), targets)
    torch.testing.assert_close(single, actual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tolerated", "level"), [(0.1, 0.1), (0.2, 0.05), (0.15, 0.3)])
def test_the_promise_holds_over_resplits(tolerated: float, level: float) -> None:
    losses = calibration.disagreement(*drawn(4000, 0), THRESHOLDS)
    splits, exceeded, lowest = 300, 0, 0
    draw = torch.Generator().manual_seed(1)
    for _ in range(splits):
        order = torch.randperm(4000, generator=draw)
        chosen = calibration.lowest_valid_threshold(
            losses[:, order[:200]], THRESHOLDS, tolerated=tolerated, level=level
        )
        if chosen is not None:
            lowest += 1
            exceeded += bool(losses[THRESHOLDS.index(chosen), order[200:]].mean() > tolerated)
    assert lowest > splits // 2
    assert exceeded / splits <= level + 2 * math.sqrt(level * (1 - level) / splits)


@pytest.mark.parametrize(("tolerated", "level"), [(0.1, 0.1), (0.3, 0.05)])
def test_the_promise_holds_on_halves_of_one_sample(tolerated: float, level: float) -> None:
    losses = calibration.disagreement(*drawn(600, 6), THRESHOLDS)
    halves = calibration.halves(600, 300)
    assert halves.shape == (300, 300)
    assert all(half.unique().numel() == 300 for half in halves)
    actual = calibration.resplit(losses, THRESHOLDS, halves, tolerated=tolerated, level=level)
    assert actual.full_depth < 150
    assert actual.on_all / 300 <= actual.bound(level)
    assert actual.bound(level) == pytest.approx(level + 2 * math.sqrt(level * (1 - level) / 300))


def test_the_promise_is_not_empty_where_it_can_break() -> None:
    """Losses of 0 or 1, the risk just above the tolerated: some halves accept it, not more than promised."""
    losses = torch.zeros(1, 500, dtype=torch.float64)
    losses[0, :101] = 1
    actual = calibration.resplit(losses, [0.5], calibration.halves(500, 1000), tolerated=0.2, level=0.3)
    assert 0 < actual.on_all / 1000 <= actual.bound(0.3)
    assert actual.on_other_half == actual.on_all  # the half that was too good leaves a worse one
    assert actual.on_all + actual.full_depth == 1000


def test_resplits_are_a_plain_loop() -> None:
    losses = calibration.disagreement(*drawn(61, 7, length=2), THRESHOLDS)
    halves = calibration.halves(61, 40)
    actual = calibration.resplit(losses, THRESHOLDS, halves, tolerated=0.25, level=0.9)
    on_all = on_other = full = 0
    for half in halves.tolist():
        chosen = calibration.lowest_valid_threshold(losses[:, half], THRESHOLDS, tolerated=0.25, level=0.9)
        if chosen is None:
            full += 1
            continue
        row = losses[THRESHOLDS.index(chosen)].tolist()
        other = [loss for b, loss in enumerate(row) if b not in half]
        assert len(half) + len(other) == 61
        on_all += sum(row) / 61 > 0.25
        on_other += sum(other) / len(other) > 0.25
    assert actual == calibration.Resplits(40, on_all, on_other, full)
    assert actual.on_other_half


def test_a_risk_on_the_border_is_accepted_at_most_as_often_as_promised() -> None:
    draw = torch.Generator().manual_seed(2)
    losses = (torch.rand(2000, 1, 100, generator=draw) < 0.2001).double()
    accepted = sum(
        calibration.lowest_valid_threshold(loss, [0.5], tolerated=0.2, level=0.1) is not None for loss in losses
    )
    assert 0 < accepted / 2000 <= 0.1 + 2 * math.sqrt(0.09 / 2000)


def test_disagreement_is_that_of_a_plain_loop() -> None:
    predictions, confidences, sentences = drawn(5, 3)
    for k, row in enumerate(calibration.disagreement(predictions, confidences, sentences, THRESHOLDS)):
        for b in range(5):
            differ = []
            for t in (sentences == b).nonzero().flatten().tolist():
                n = next((n for n in range(3) if confidences[n, t] > THRESHOLDS[k]), 3)
                differ.append(bool(predictions[n, t] != predictions[3, t]))
            assert row[b].item() == pytest.approx(sum(differ) / len(differ))


def test_more_tolerance_level_or_data_never_raises_the_threshold() -> None:
    losses = calibration.disagreement(*drawn(300, 4), THRESHOLDS)

    def chosen(tolerated: float, level: float, copies: int = 1) -> float:
        actual = calibration.lowest_valid_threshold(
            losses.repeat(1, copies), THRESHOLDS, tolerated=tolerated, level=level
        )
        return 2.0 if actual is None else actual

    for values in (
        [chosen(tolerated, 0.1) for tolerated in (0.02, 0.1, 0.2, 0.4)],
        [chosen(0.1, level) for level in (0.001, 0.01, 0.1, 0.5)],
        [chosen(0.1, 0.1, copies) for copies in (1, 2, 8)],
    ):
        assert values == sorted(values, reverse=True)
    assert chosen(0.4, 0.1) < chosen(0.02, 0.1)


def test_the_first_failure_ends_it() -> None:
    losses = torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 200)
    assert calibration.lowest_valid_threshold(losses, [0.9, 0.8, 0.7], tolerated=0.1, level=0.1) == 0.9
    assert calibration.lowest_valid_threshold(losses[1:], [0.8, 0.7], tolerated=0.1, level=0.1) is None
    assert calibration.lowest_valid_threshold(losses[:, :1], [0.9, 0.8, 0.7], tolerated=0.1, level=0.1) is None


def test_p_values_are_below_the_plain_form() -> None:
    for risk in (0.0, 0.05, 0.19):
        assert calibration.p_value(risk, 50, 0.2) <= math.exp(-100 * (0.2 - risk) ** 2)
    assert calibration.p_value(0.2, 50, 0.2) == 1


def test_threshold_for_a_mean_exit() -> None:
    _, confidences, _ = drawn(200, 5)
    previous = -1.0
    for wanted in (1.0, 1.5, 2.0, 3.0, 4.0):
        threshold = calibration.threshold_for_mean_exit(confidences, wanted)
        mean = calibration.exits_at(confidences, threshold).double().mean().item()
        assert wanted - 0.01 <= mean <= wanted
        assert threshold >= previous
        previous = threshold
    assert calibration.threshold_for_mean_exit(confidences, 4) == 1


@pytest.mark.parametrize("wanted", [0.5, 4.5])
def test_a_mean_exit_out_of_range(wanted: float) -> None:
    with pytest.raises(ValueError, match=f"must be from 1 to 4, given {wanted}"):
        calibration.threshold_for_mean_exit(torch.rand(3, 5), wanted)


@pytest.mark.parametrize(
    ("losses", "thresholds", "tolerated", "level", "message"),
    [
        (torch.zeros(2, 3), [0.5, 0.9], 0.1, 0.1, "must go down"),
        (torch.zeros(1, 3), [0.9, 0.5], 0.1, 0.1, "must be \\(2, sentences\\)"),
        (torch.full((1, 3), 2.0), [0.5], 0.1, 0.1, "losses must be from 0 to 1"),
        (torch.zeros(1, 3), [0.5], 1.0, 0.1, "tolerated must be above 0 and below 1, given 1"),
        (torch.zeros(1, 3), [0.5], 0.1, 0.0, "level must be above 0 and below 1, given 0"),
    ],
)
def test_wrong_inputs(losses: Tensor, thresholds: list[float], tolerated: float, level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration.lowest_valid_threshold(losses, thresholds, tolerated=tolerated, level=level)


# --- a threshold for each block ---------------------------------------------------------------------------------------


def objective(scores: torch.Tensor, wrong: torch.Tensor, price: float, chosen: tuple[float, ...]) -> float:
    """By a plain loop: the sum over tokens of what is wrong and what its blocks cost."""
    total = 0.0
    for t in range(wrong.size(1)):
        exit = 0
        while exit < len(chosen) and not scores[exit, t] > chosen[exit]:
            exit += 1
        total += float(wrong[exit, t]) + price * (exit + 1)
    return total


@settings(max_examples=60, deadline=None)
@given(
    exits=st.integers(2, 4),
    tokens=st.integers(1, 30),
    price=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.1]),
    seed=st.integers(0, 1 << 30),
)
def test_no_single_threshold_can_be_better(exits: int, tokens: int, price: float, seed: int) -> None:
    """Neither one for all, nor another one for any block; with two exits that is the best there is."""
    steps = 4
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(exits - 1, tokens, generator=draw, dtype=torch.float64)
    scores[:, ::3] = (scores[:, ::3] * steps).round() / steps  # on the thresholds themselves
    wrong = torch.rand(exits, tokens, generator=draw) < torch.linspace(0.6, 0.0, exits)[:, None]
    chosen = tuple(k / steps for k in calibration.thresholds_at_price(scores, wrong, price, steps))
    assert len(chosen) == exits - 1
    best = objective(scores, wrong, price, chosen) - 1e-6
    for k in range(steps + 1):
        assert objective(scores, wrong, price, (k / steps,) * (exits - 1)) >= best
        for n in range(exits - 1):
            other = (*chosen[:n], k / steps, *chosen[n + 1 :])
            assert objective(scores, wrong, price, other) >= best


def test_a_price_above_any_error_stops_at_once_and_none_stops_where_it_does_no_harm() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.6, 0.3]])
    wrong = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert calibration.thresholds_at_price(scores, wrong, 1.1, 10) == [0, 10]
    assert calibration.thresholds_at_price(scores, wrong, 0.01, 10) == [8, 5]
    assert calibration.thresholds_at_price(scores, wrong, 0.0, 10) == [10, 10]


@pytest.mark.parametrize("wanted", [1.0, 1.4, 2.0, 3.0, 4.0])
def test_the_mean_exit_of_single_thresholds_is_at_most_the_wanted_one(wanted: float) -> None:
    """And as near to it as a price gets; at the same mean, fewer are wrong than with one threshold for all."""
    draw = torch.Generator().manual_seed(5)
    sure = torch.rand(3000, generator=draw)
    scores = (sure[None] + 0.15 * torch.randn(3, 3000, generator=draw)).clamp(0.001, 1)
    wrong = torch.rand(4, 3000, generator=draw) > sure[None] + torch.tensor([[0.0], [0.6], [0.7], [1.0]])
    chosen = calibration.thresholds_for_mean_exit(scores, wrong, wanted, 100)
    taken = calibration.exits_at(scores.double(), torch.tensor(chosen)[:, None] / 100)
    mean = taken.double().mean().item()
    assert mean <= wanted
    assert mean > wanted - 0.35 or wanted == 4  # full depth is never worth it here
    errors = wrong.gather(0, taken[None] - 1).sum()
    alone = calibration.threshold_for_mean_exit(scores, mean)
    others = wrong.gather(0, calibration.exits_at(scores.double(), alone)[None] - 1).sum()
    assert errors <= others
    if wanted == 1.4:
        assert errors < 0.95 * others


@pytest.mark.parametrize("wanted", [0.9, 4.1])
def test_impossible_mean_exits_of_single_thresholds(wanted: float) -> None:
    with pytest.raises(ValueError, match="from 1 to 4"):
        calibration.thresholds_for_mean_exit(torch.rand(3, 5), torch.zeros(4, 5), wanted, 10)
