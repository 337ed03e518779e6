"""The formula of appendix B against the operations that torch counts in incremental decoding."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from depth_adaptive import flops, halting
from tests.support.depth_models import built, sentences

DIMS = dict(decoder_embed_dim=32, encoder_embed_dim=24, decoder_ffn_embed_dim=64, decoder_layers=4)
SIZES = flops.Sizes(dim=32, ffn=64, encoder_dim=24, vocabulary=40, exits=4)


def decoded(model: Any, source: Tensor, target: Tensor) -> tuple[int, Tensor]:
    """Operations counted by torch, and the exits (B, T), of decoding the tokens one by one."""
    exits = []
    with torch.no_grad():
        encoded = model.encoder(source, source.ne(1).sum(1))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            state: dict[str, Any] = {}
            for t in range(1, target.size(1) + 1):
                _, extra = model.decoder(target[:, :t], encoded, incremental_state=state)
                exits.append(extra["exits"])
    return counter.get_total_flops(), torch.cat(exits, 1)


def policy(model: Any, decision: str) -> halting.Policy:
    if decision == "none":
        return halting.RandomPolicy(exits=4)
    if decision == "confidence":
        return halting.ConfidencePolicy(exits=4, thresholds=[0.12])
    return halting.HaltingPolicy(exits=4, halting=model.decoder.halting, thresholds=[0.5])


def test_a_multiplication_and_an_addition_count_separately() -> None:
    with FlopCounterMode(display=False) as counter:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert counter.get_total_flops() == 2 * 3 * 5 * 7


@pytest.mark.parametrize("options", [{}, dict(exit_projections="separate", decoder_normalize_before=True)], ids=str)
@pytest.mark.parametrize("decision", flops.DECISIONS)
def test_formula_and_counter(decision: str, options: dict[str, Any]) -> None:
    kind = decision if decision in halting.HALTINGS else "none"
    model = built(**DIMS, **options, halting=kind, exit_copies="eager")
    model.decoder.policy = policy(model, decision)
    seen: set[int] = set()
    for seed, length in enumerate((3, 9, 14)):
        source, target = sentences(length, seed=seed), sentences(12, seed=seed + 9)
        counted, exits = decoded(model, source, target)
        seen |= set(exits.flatten().tolist())
        actual = flops.of_exits(exits, torch.tensor([length]), SIZES, decision=decision)
        assert actual.tokens == 12
        assert actual.total == pytest.approx(counted, rel=0.01)
        if decision != "sequence":  # whose unit is computed again at every step
            assert actual.total == counted
    if decision == "none":
        assert seen == {1, 2, 3, 4}


def test_full_depth_of_a_batch() -> None:
    model = built(**DIMS)
    model.decoder.policy = halting.FixedPolicy(exits=4, exit=4)
    counted, _ = decoded(model, sentences(7, 7, 7), sentences(5, 5, 5))
    lengths = torch.tensor([7, 7, 7])
    assert flops.full_depth(torch.tensor([5, 5, 5]), lengths, SIZES).total == counted


def test_deferred_copies_need_no_more() -> None:
    model = built(**DIMS)
    model.decoder.policy = halting.RandomPolicy(exits=4, weights=[3, 1, 1, 0])
    counted, exits = decoded(model, sentences(7), sentences(12))
    assert counted < flops.of_exits(exits, torch.tensor([7]), SIZES, decision="none").total


def test_a_batch_is_the_sum_of_its_sentences() -> None:
    exits = torch.tensor([[1, 4, 2], [3, 0, 0], [0, 0, 0]])
    lengths = torch.tensor([5, 8, 2])
    for decision in flops.DECISIONS:
        whole = flops.of_exits(exits, lengths, SIZES, decision=decision)
        parts = [flops.of_exits(exits[b : b + 1], lengths[b : b + 1], SIZES, decision=decision) for b in range(3)]
        assert (whole.total, whole.tokens) == (sum(part.total for part in parts), 4)
        assert whole.mean == whole.total / 4
        assert parts[2] == flops.Flops(0, 0)
        assert parts[2].mean == 0


@pytest.mark.parametrize(
    ("exits", "lengths", "decision", "message"),
    [
        ([[1]], [3], "guess", "one of none, sequence, token, geometric, confidence, given guess"),
        ([[5]], [3], "none", "exits must be from 1 to 4, or 0 after the end, given 5 to 5"),
        ([[0, 1]], [3], "none", "must stand at its beginning"),
        ([[1]], [3, 4], "none", r"given \(1, 1\) and \(2,\)"),
    ],
)
def test_wrong_inputs(exits: list[list[int]], lengths: list[int], decision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flops.of_exits(torch.tensor(exits), torch.tensor(lengths), SIZES, decision=decision)
