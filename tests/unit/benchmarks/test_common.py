"""Tests of what the benchmarks share."""

import torch

from benchmarks.common import peak_bytes


def test_peak_of_tensors() -> None:
    def work() -> None:
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        del second, third

    assert peak_bytes(work) == 16_000
