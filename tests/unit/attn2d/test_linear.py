"""Linear layers through oneDNN: weights in its own layout within a search, and never longer."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from attn2d.linear import Linear, packed_weights

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cells", [1, 6, 130])
@torch.no_grad()
def test_packed_weights_give_the_same_product(dtype: torch.dtype, cells: int) -> None:
    torch.manual_seed(1)
    linear, store = Linear(24, 70).to(dtype), {}
    for _ in range(2):  # the second time from the store
        for rows in (cells, max(1, cells // 2)):  # sentences finish: fewer cells than the layout was made for
            x = torch.randn(rows, 24).to(dtype)
            with packed_weights(store):
                y = linear(x, relu=True)
            expected = F.relu(F.linear(x.double(), linear.weight.double(), linear.bias.double()))
            assert (y.double() - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()
    assert list(store) == [linear]


def test_packed_weights_end_with_the_search() -> None:
    linear, x = Linear(8, 8), torch.randn(3, 8)
    with torch.no_grad():
        with packed_weights({}):
            before = linear(x)
        linear.weight.data.mul_(2)  # as fairseq does after an update in half precision: no version is counted
        linear.bias.data.mul_(2)
        torch.testing.assert_close(linear(x), 2 * before)
        with packed_weights({}):
            torch.testing.assert_close(linear(x), 2 * before)


def test_training_takes_no_packed_weights() -> None:
    linear, store = Linear(8, 8), {}
    with packed_weights(store):
        linear(torch.randn(3, 8)).sum().backward()
    assert not store
    assert linear.weight.grad is not None


def test_nested_stores_are_put_back() -> None:
    linear, outer, inner = Linear(4, 4), {}, {}
    with torch.no_grad(), packed_weights(outer):
        with packed_weights(inner):
            linear(torch.randn(2, 4))
        assert (len(outer), len(inner)) == (0, 1)
        linear(torch.randn(2, 4))
        assert len(outer) == 1


def test_no_second_derivative_is_better_than_a_wrong_one() -> None:
    linear, x = Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


ON_AN_OLDER_CPU = """
import torch
from attn2d import ops
from attn2d.linear import Linear, packed_weights
from thoth_core.onednn import DTYPES
from recipes.training.devices import cpu_computes_bf16

assert not cpu_computes_bf16() and torch.bfloat16 not in DTYPES
torch.manual_seed(1)
linear, x = Linear(8, 8).bfloat16(), torch.randn(5, 8).bfloat16()
linear(x).sum().backward()
with torch.no_grad(), packed_weights({}):
    expected = x.float() @ linear.weight.float().t() + linear.bias.float()
    assert (linear(x).float() - expected).abs().max() < 0.05
"""


@pytest.mark.slow
def test_bfloat16_on_a_cpu_without_avx512() -> None:
    """oneDNN has no bfloat16 products there: PyTorch's own must do."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    outcome = subprocess.run([sys.executable, "-c", ON_AN_OLDER_CPU], env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
