"""Threads that use one model get the results of a single thread."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from depth_adaptive import halting
from tests.support.depth_models import POLICIES, beam, built, policies, run, sentences

pytestmark = pytest.mark.slow  # eight threads translate

THREADS = 8
BATCHES = [
    (sentences(5, 9, 3, 7, seed=seed, left=True), sentences(6, 4, 7, 3, seed=seed + 50)) for seed in range(2 * THREADS)
]


def decoded(model: Any, batch: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
    """The translations of a batch, with a generator of its own, and the logits of a pass over whole targets."""
    source, gold = batch
    previous = torch.cat([torch.full((gold.size(0), 1), 2), gold[:, :-1]], 1)
    with torch.no_grad():
        return beam(model, source), run(model, source, previous)[0]


@pytest.mark.parametrize(
    ("name", "copies"), [("confidence", "eager"), *((name, "deferred") for name in ["full", *POLICIES])]
)
def test_eight_threads_share_a_model(name: str, copies: str) -> None:
    model = built(exit_copies=copies)
    policy = policies(model).get(name)
    if isinstance(policy, halting.HaltingPolicy):
        policy.halting.float()
    model.decoder.policy = policy
    model.float()
    expected = [decoded(model, batch) for batch in BATCHES]
    model.train()
    model.eval()  # without packed weights, as at the start
    with ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(lambda batch: decoded(model, batch), BATCHES))
    for (hypotheses, logits), (expected_hypotheses, expected_logits) in zip(results, expected, strict=True):
        assert hypotheses == expected_hypotheses
        assert torch.equal(logits, expected_logits)
