"""The maximum over the source against float64 PyTorch, on both backends."""

import pytest
import torch
import torch.nn.functional as F

from attn2d import ops
from attn2d.backend import Backend
from tests.support.grid_operators import DTYPES, assert_close, leaf, padding_of, tolerance

GRIDS = [(3, 4, 5, 7), (2, 3, 22, 70), (1, 1, 1, 1), (4, 2, 3, 128), (0, 3, 4, 8)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_maximum_over_the_source(backend, shape, dtype, gated):
    batch, rows, columns, channels = shape
    generator = torch.Generator().manual_seed(7)
    width = 2 * channels if gated else channels
    x = leaf(torch.randn(batch, rows, columns, width, generator=generator).to(dtype))
    wide = leaf(x.double())
    padding = padding_of(batch, columns)
    values, indices = (ops.gated_max if gated else ops.max_over_source)(x, padding, backend=backend)
    cells = F.glu(wide, dim=-1) if gated else wide
    real = (~padding).any(dim=1)
    assert values.dtype == dtype
    assert indices.dtype == torch.int64
    assert values.shape == indices.shape == (batch, rows, channels)
    limit = tolerance(backend, dtype)
    expected = cells.masked_fill(padding[:, None, :, None], float("-inf")).amax(dim=2)
    expected = expected.masked_fill(~real[:, None, None], 0)
    assert_close(values, expected, limit, "values")
    # What stands at the index is the maximum, and it is no padding.
    at_index = cells.gather(2, indices.unsqueeze(2)).squeeze(2)
    assert_close(at_index[real], expected[real], limit, "indices")
    assert not padding.gather(1, indices.flatten(1)).view(indices.shape)[real].any()
    assert (indices[~real] == 0).all()
    grad = torch.randn(values.shape, generator=generator).to(dtype)
    values.backward(grad)
    chosen = cells.gather(2, indices.unsqueeze(2)).squeeze(2).masked_fill(~real[:, None, None], 0)
    chosen.backward(grad.double())
    assert_close(x.grad, wide.grad, limit, "gradient")
    assert (x.grad.masked_select(padding[:, None, :, None].expand_as(x)) == 0).all()


def test_maximum_ties_go_to_the_lowest_index(backend):
    x = torch.tensor([1.0, 3.0, 3.0, 2.0]).view(1, 1, 4, 1).expand(2, 1, 4, 20)
    padding = torch.tensor([[False] * 4, [False, True, False, False]])
    values, indices = ops.max_over_source(x, padding, backend=backend)
    assert (values == 3).all()
    assert (indices[0] == 1).all()
    assert (indices[1] == 2).all()
    assert torch.equal(ops.max_over_source(x, backend=backend)[0], values)


def test_maximum_of_infinities_and_nan(backend):
    x = torch.full((1, 1, 4, 20), float("-inf"))
    assert (ops.max_over_source(x, backend=backend)[0] == float("-inf")).all()
    x[:, :, 1:3] = float("nan")
    values, indices = ops.max_over_source(x, backend=backend)
    assert values.isnan().all()
    assert (indices == 1).all()


def test_gate_saturates_without_nan(backend):
    x = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4]).view(1, 7, 1, 1).repeat(1, 1, 1, 32)
    x[..., :16] = 2.0
    values, _ = ops.gated_max(leaf(x), backend=backend)
    assert_close(values, 2 * torch.sigmoid(x[:, :, 0, 16:].double()), 1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_maximum_gradcheck(backend, gated):
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[False, False, True], [True, True, True]])
    function = ops.gated_max if gated else ops.max_over_source
    assert torch.autograd.gradcheck(lambda x: function(x, padding, backend=backend)[0], (leaf(x),))


def test_maximum_of_strided_tensors(backend):
    draw = torch.Generator().manual_seed(11)
    x = torch.randn(2, 3, 5, 8, generator=draw)
    padding = torch.randn(5, 2, generator=draw).t() > 1
    turned = leaf(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    for function in (ops.max_over_source, ops.gated_max):
        for one, two in zip(
            function(turned, padding, backend=backend), function(x, padding.contiguous(), backend=backend), strict=True
        ):
            # PyTorch's sigmoid rounds by the layout: with its operators the last bit of a gate may differ.
            assert torch.equal(one, two) if backend is Backend.NATIVE else (one - two).abs().max() <= 1e-6
    ops.gated_max(turned, padding, backend=backend)[0].sum().backward()
    plain = leaf(x)
    ops.gated_max(plain, padding, backend=backend)[0].sum().backward()
    assert_close(turned.grad, plain.grad, 1e-6)
