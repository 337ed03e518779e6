"""Layer norm with padding against float64 PyTorch, on both backends."""

import pytest
import torch
import torch.nn.functional as F

from attn2d import ops
from attn2d.backend import Backend
from tests.support.grid_operators import DTYPES, assert_close, leaf, padding_of, tolerance

NORMED = [(3, 4, 5, 7), (4, 3, 22, 70), (2, 1, 1, 256), (0, 3, 4, 8), (3, 40, 3, 16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", NORMED, ids=str)
def test_layer_norm_masked(backend, shape, dtype):
    generator = torch.Generator().manual_seed(7)
    x = leaf((torch.randn(shape, generator=generator) * 3 + 1).to(dtype))
    weight, bias = (leaf(torch.randn(shape[-1], generator=generator).to(dtype)) for _ in range(2))
    padding = padding_of(shape[0], shape[2])
    cells = padding[:, None].expand(shape[:3])
    wide = [leaf(v.double()) for v in (x, weight, bias)]
    expected = F.layer_norm(wide[0], shape[-1:], *wide[1:], 1e-4) * ~cells.unsqueeze(-1)
    grad = torch.randn(shape, generator=generator).to(dtype)
    expected.backward(grad.double())
    limit = 2 * tolerance(backend, dtype)  # a normalised value is a quotient of two rounded ones
    for mask in (padding, cells):
        for v in (x, weight, bias):
            v.grad = None
        y = ops.layer_norm_masked(x, weight, bias, eps=1e-4, padding=mask, backend=backend)
        assert y.dtype == dtype
        y.backward(grad)
        assert_close(y, expected, limit, "output")
        assert (y[cells] == 0).all()
        for actual, reference, name in zip((x, weight, bias), wide, ("x", "weight", "bias"), strict=True):
            assert_close(actual.grad, reference.grad, limit, f"gradient of {name}")
        assert (x.grad[cells] == 0).all()
    whole = ops.layer_norm_masked(x, weight, bias, eps=1e-4, backend=backend)
    assert_close(whole, F.layer_norm(wide[0], shape[-1:], *wide[1:], 1e-4), limit)


def test_layer_norm_masked_ignores_what_padding_holds(backend):
    x = torch.randn(2, 3, 4, 8)
    padding = padding_of(2, 4)
    x[padding[:, None].expand(2, 3, 4)] = float("nan")
    x, weight, bias = leaf(x), leaf(torch.ones(8)), leaf(torch.zeros(8))
    y = ops.layer_norm_masked(x, weight, bias, padding=padding, backend=backend)
    assert not y.isnan().any()
    if backend is Backend.NATIVE:  # the twin's gradient is PyTorch's, where 0 · NaN is NaN
        y.square().sum().backward()
        assert not any(v.grad.isnan().any() for v in (x, weight, bias))


def test_layer_norm_gradcheck(backend):
    shapes = ((2, 2, 3, 5), (5,), (5,))
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    assert torch.autograd.gradcheck(
        lambda x, w, b: ops.layer_norm_masked(x, w, b, padding=padding, backend=backend), (x, weight, bias)
    )


def test_layer_norm_and_maximum_have_the_same_bits_on_any_number_of_threads(native, threads):
    x, weight, results = torch.randn(7, 9, 11, 36), torch.randn(36), []
    padding = padding_of(7, 11)
    for count in (1, 2, 3):
        threads(count)
        a, w, b = leaf(x), leaf(weight), leaf(weight)
        y = ops.layer_norm_masked(a, w, b, padding=padding, backend=Backend.NATIVE)
        values, indices = ops.gated_max(y, padding, backend=Backend.NATIVE)
        values.sum().backward()
        results.append((y, values, indices, a.grad, w.grad, b.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
