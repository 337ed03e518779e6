"""The masked depth-wise convolution against float64 PyTorch, on both backends."""

import pytest
import torch
import torch.nn.functional as F

from attn2d import ops
from attn2d.backend import Backend
from tests.support.grid_operators import DTYPES, assert_close, conv_inputs, leaf, masked_conv, tolerance

CONVOLUTIONS = [
    # B, R, S, C, h, k, dilation, top
    (2, 5, 7, 32, 3, 5, 1, 2),
    (2, 6, 22, 130, 3, 5, 1, 2),  # two groups of channels and a rest
    (3, 4, 1, 16, 2, 3, 1, 1),  # S = 1
    (2, 1, 9, 7, 3, 5, 1, 2),  # T = 1, C below a vector
    (1, 6, 3, 70, 6, 11, 1, 0),  # one row as in incremental decoding, k > S
    (2, 9, 13, 33, 3, 5, 2, 4),  # dilation
    (2, 9, 5, 24, 3, 5, 2, 0),
    (1, 4, 6, 17, 1, 1, 1, 0),
    (1, 3, 40, 20, 13, 25, 1, 12),  # many taps, more rows of zeros than of x
    (40, 2, 3, 5, 2, 3, 1, 1),  # several sentences in a chunk of the weight gradient
    (2, 5, 4, 8, 2, 5, 3, 1),  # fewer rows of zeros than the kernel's reach
    (0, 5, 4, 8, 2, 3, 1, 1),  # empty batch
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_is_the_masked_convolution(backend, case, dtype):
    *_, dilation, top = case
    x, weight = (leaf(v) for v in conv_inputs(case, dtype))
    wide_x, wide_weight = leaf(x.double()), leaf(weight.double())
    y = ops.causal_depthwise_conv(x, weight, dilation=dilation, top=top, backend=backend)
    assert y.dtype == dtype
    if case[0] == 0:
        assert y.shape == (0, case[1] + top - (case[4] - 1) * dilation, *case[2:4])
        y.sum().backward()
        assert weight.grad.abs().max() == 0
        assert x.grad.shape == x.shape
        return
    expected = masked_conv(wide_x, wide_weight, dilation, top)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(grad)
    expected.backward(grad.double())
    limit = tolerance(backend, dtype)
    assert_close(y, expected, limit, "output")
    assert_close(x.grad, wide_x.grad, limit, "input gradient")
    assert_close(weight.grad, wide_weight.grad, limit, "weight gradient")


def test_convolution_of_strided_tensors(backend):
    x, weight = conv_inputs((2, 6, 5, 16, 2, 3, 1, 1), torch.float32)
    strided_x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    strided_weight = weight.expand(2, *weight.shape).transpose(0, 1).contiguous()[:, 0]
    every_other = torch.stack((x, x), dim=3).flatten(3)[..., :16].transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided_x.is_contiguous()
    assert not every_other.is_contiguous()
    for x in (strided_x, every_other):
        x, w = leaf(x), leaf(strided_weight)
        plain, plain_w = leaf(x.contiguous()), leaf(weight)
        # An expanded gradient, as sum() sends it, has no strides at all.
        ops.causal_depthwise_conv(x, w, top=1, backend=backend).sum().backward()
        ops.causal_depthwise_conv(plain, plain_w, top=1, backend=backend).sum().backward()
        assert_close(x.grad, plain.grad, 1e-6)
        assert_close(w.grad, plain_w.grad, 1e-6)


def test_convolution_gradcheck(backend):
    for case in ((2, 3, 4, 3, 2, 3, 1, 1), (1, 5, 3, 2, 2, 5, 2, 0)):
        x, weight = (leaf(v) for v in conv_inputs(case, torch.float64))
        dilation, top = case[-2:]
        assert torch.autograd.gradcheck(
            lambda x, w, d=dilation, t=top: ops.causal_depthwise_conv(x, w, dilation=d, top=t, backend=backend),
            (x, weight),
        )


def test_convolution_of_rows_one_by_one_is_the_convolution(backend):
    x, weight = conv_inputs((2, 6, 5, 18, 3, 5, 1, 2), torch.float64)
    whole = ops.causal_depthwise_conv(x, weight, top=2, backend=backend)
    padded = F.pad(x, (0, 0, 0, 0, 2, 0))
    rows = [ops.causal_depthwise_conv(padded[:, t : t + 3], weight, backend=backend) for t in range(6)]
    assert_close(torch.cat(rows, dim=1), whole, 1e-14)


def test_convolution_does_not_look_down(backend):
    x, weight = conv_inputs((1, 6, 5, 18, 3, 5, 1, 2), torch.float32)
    below = x.clone()
    below[:, 4:] = float("nan")
    before, after = (ops.causal_depthwise_conv(v, weight, top=2, backend=backend) for v in (x, below))
    assert torch.equal(before[:, :4], after[:, :4])


@pytest.mark.parametrize(
    ("shape", "weight_shape", "options"),
    [
        ((2, 3, 4, 8), (8, 1, 2, 4), {}),  # even k
        ((2, 3, 4, 8), (7, 1, 2, 3), {}),  # other channels
        ((2, 3, 4, 8), (8, 1, 9, 3), {}),  # too few rows
        ((3, 4, 8), (8, 1, 2, 3), {}),
    ],
)
def test_convolution_refuses(backend, shape, weight_shape, options):
    with pytest.raises(RuntimeError):
        ops.causal_depthwise_conv(torch.randn(shape), torch.randn(weight_shape), **options, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_has_the_same_bits_on_any_number_of_threads(native, threads, dtype):
    x, weight = conv_inputs((5, 7, 9, 150, 3, 5, 1, 2), dtype)
    results = []
    for count in (1, 2, 3):
        threads(count)
        a, w = leaf(x), leaf(weight)
        y = ops.causal_depthwise_conv(a, w, top=2, backend=Backend.NATIVE)
        y.backward(x)
        results.append((y, a.grad, w.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
