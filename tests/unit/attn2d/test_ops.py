"""The grid operators against float64 PyTorch, on both backends; see ``attn2d/ops.py``."""

import importlib.util
import logging
import math
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from attn2d import ops

# Largest error relative to the largest value, against the same computation in float64 on the same inputs.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 8e-3,  # one rounding of the result: 2^-8, and gradients of a rounded gradient
}
TWIN_TOLERANCE = {**TOLERANCE, torch.bfloat16: 4e-2}  # PyTorch rounds intermediate results as well
DTYPES = tuple(TOLERANCE)


@pytest.fixture(params=["native", "torch"])
def backend(request):
    """Run a test on either backend; the native one fails with the remedy where it is not built."""
    ops.use(request.param)
    yield request.param
    ops.use("auto")


@pytest.fixture
def native():
    ops.use("native")
    yield
    ops.use("auto")


@pytest.fixture
def threads():
    """Sets the number of threads, and puts back what was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tolerance(backend, dtype):
    return (TOLERANCE if backend == "native" else TWIN_TOLERANCE)[dtype]


def assert_close(actual, expected, tolerance, what=""):
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    error = (actual.detach().double() - expected.detach().double()).abs().max().item()
    scale = max(expected.detach().abs().max().item(), 1e-3)
    assert error <= tolerance * scale, f"{what}: error {error:.2e} at scale {scale:.2e}"


def leaf(x):
    return x.detach().clone().requires_grad_()


# ---- depthwise convolution ---------------------------------------------------------------------------------

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


def conv_inputs(case, dtype):
    batch, rows, columns, channels, height, width, _, _ = case
    generator = torch.Generator().manual_seed(sum(case))
    x = torch.randn(batch, rows, columns, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, 1, height, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype)


def masked_conv(x, weight, dilation, top):
    """The definition in float64: a full kernel with its lower half zero, "same" padding, rows cropped."""
    channels, _, height, width = weight.shape
    full = F.pad(weight.double(), (0, 0, 0, height - 1))  # 2h - 1 rows, those below the current one zero
    image = F.pad(x.double().permute(0, 3, 1, 2), (0, 0, top, 0))
    padding = ((height - 1) * dilation, (width // 2) * dilation)
    y = F.conv2d(image, full, padding=padding, dilation=dilation, groups=channels)
    return y[:, :, (height - 1) * dilation :].permute(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_is_the_masked_convolution(backend, case, dtype):
    *_, dilation, top = case
    x, weight = (leaf(v) for v in conv_inputs(case, dtype))
    wide_x, wide_weight = leaf(x.double()), leaf(weight.double())
    y = ops.causal_depthwise_conv(x, weight, dilation=dilation, top=top)
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
    for given in (strided_x, every_other):
        given, w = leaf(given), leaf(strided_weight)
        plain, plain_w = leaf(given.contiguous()), leaf(weight)
        # An expanded gradient, as sum() sends it, has no strides at all.
        ops.causal_depthwise_conv(given, w, top=1).sum().backward()
        ops.causal_depthwise_conv(plain, plain_w, top=1).sum().backward()
        assert_close(given.grad, plain.grad, 1e-6)
        assert_close(w.grad, plain_w.grad, 1e-6)


def test_convolution_gradcheck(backend):
    for case in ((2, 3, 4, 3, 2, 3, 1, 1), (1, 5, 3, 2, 2, 5, 2, 0)):
        x, weight = (leaf(v) for v in conv_inputs(case, torch.float64))
        dilation, top = case[-2:]
        assert torch.autograd.gradcheck(
            lambda x, w, d=dilation, t=top: ops.causal_depthwise_conv(x, w, dilation=d, top=t), (x, weight)
        )


def test_convolution_of_rows_one_by_one_is_the_convolution(backend):
    x, weight = conv_inputs((2, 6, 5, 18, 3, 5, 1, 2), torch.float64)
    whole = ops.causal_depthwise_conv(x, weight, top=2)
    padded = F.pad(x, (0, 0, 0, 0, 2, 0))
    rows = [ops.causal_depthwise_conv(padded[:, t : t + 3], weight) for t in range(6)]
    assert_close(torch.cat(rows, dim=1), whole, 1e-14)


def test_convolution_does_not_look_down(backend):
    x, weight = conv_inputs((1, 6, 5, 18, 3, 5, 1, 2), torch.float32)
    below = x.clone()
    below[:, 4:] = float("nan")
    before, after = (ops.causal_depthwise_conv(v, weight, top=2) for v in (x, below))
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
        ops.causal_depthwise_conv(torch.randn(shape), torch.randn(weight_shape), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_has_the_same_bits_on_any_number_of_threads(native, threads, dtype):
    x, weight = conv_inputs((5, 7, 9, 150, 3, 5, 1, 2), dtype)
    results = []
    for count in (1, 2, 3):
        threads(count)
        a, w = leaf(x), leaf(weight)
        y = ops.causal_depthwise_conv(a, w, top=2)
        y.backward(x)
        results.append((y, a.grad, w.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# ---- dropout -----------------------------------------------------------------------------------------------


def seed(value):
    return torch.tensor(value, dtype=torch.int64)


def philox(counter, key):
    """Philox-4x32-10 as in Salmon et al., SC 2011, table and figure 4; on Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask = 2**32 - 1
    for _ in range(10):
        high, low = divmod(0xD2511F53 * c0, 2**32)
        other_high, other_low = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = other_high ^ c1 ^ k0, other_low, high ^ c3 ^ k1, low
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def random_bits(value, element):
    """The 16 random bits of an element, as csrc/kernels_body.h defines them."""
    block, place = divmod(element, 128)
    half, lane = divmod(place, 16)
    counter = 16 * block + lane
    key = value % 2**64
    word = philox((counter % 2**32, counter >> 32, 0, 0), (key % 2**32, key >> 32))[half // 2]
    return word >> 16 if half % 2 else word & 0xFFFF


def test_philox_gives_the_published_words():
    # Random123's kat_vectors, "philox4x32 10".
    ones = 2**32 - 1
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    )


@pytest.mark.parametrize("value", [0, -5, 2**62 + 12345])
@pytest.mark.parametrize("size", [1, 127, 128, 1000])
def test_native_mask_is_philox(native, size, value):
    bits = torch.tensor([random_bits(value, e) for e in range(size)])
    for p in (0.1, 0.5, 0.9):
        for dtype in DTYPES:
            mask = ops.dropout(torch.ones(size, dtype=dtype), p=p, seed=seed(value)) != 0
            assert torch.equal(mask, bits >= round(p * 65536))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_statistics(backend, p):
    size = 1 << 20
    y = ops.dropout(torch.ones(size, dtype=torch.float64), p=p, seed=seed(11))
    kept = (y != 0).double()
    deviation = math.sqrt(p * (1 - p) / size)
    assert abs(kept.mean() - (1 - p)) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)
    assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), 1e-4)
    # Neighbours in memory, in a vector, in a block and in a mask of another seed are independent.
    centred = kept - kept.mean()
    others = [centred.roll(shift) for shift in (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 1024)]
    # PyTorch's CPU generator, which the twin seeds, knows the low 32 bits of a seed only.
    for value in (12, -11, 2**31 + 11, *([11 + 2**32] if backend == "native" else [])):
        others.append((ops.dropout(torch.ones(size), p=p, seed=seed(value)) != 0).double() - kept.mean())
    for other in others:
        assert abs((centred * other).mean() / (p * (1 - p))) < 5 / math.sqrt(size)
    # Every place of a block keeps at the same rate.
    rates = kept.view(-1, 128).mean(dim=0)
    assert (rates - (1 - p)).abs().max() < 5.5 * deviation * math.sqrt(128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 3, 4, 32), (1,), (0, 4)], ids=str)
def test_dropout_residual_and_its_gradient(backend, shape, dtype):
    p, scale = 0.3, 0.7
    generator = torch.Generator().manual_seed(3)
    x, h, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    x, h = leaf(x), leaf(h)
    mask = (ops.dropout(torch.ones_like(h), p=p, seed=seed(9)) != 0).double()
    y = ops.dropout_residual(x, h, p=p, scale=scale, seed=seed(9))
    assert y.dtype == dtype
    y.backward(grad)
    keep = 1 - round(p * 65536) / 65536
    limit = tolerance(backend, dtype)
    assert_close(y, (x.double() + mask * h.double() / keep) * scale, limit)
    assert_close(x.grad, grad.double() * scale, limit)
    assert_close(h.grad, grad.double() * scale * mask / keep, limit)
    h = leaf(h)
    ops.dropout(h, p=p, seed=seed(9)).backward(grad)
    assert_close(h.grad, grad.double() * mask / keep, limit)


def test_dropout_gradcheck(backend):
    x, h = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda h: ops.dropout(h, p=0.4, seed=seed(2)), (h,))
    assert torch.autograd.gradcheck(lambda x, h: ops.dropout_residual(x, h, p=0.4, scale=0.7, seed=seed(2)), (x, h))


def test_dropout_of_strided_tensors(backend):
    x, h = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    expected = ops.dropout_residual(x, h, p=0.5, scale=2.0, seed=seed(1))
    turned_x = x.transpose(1, 2).contiguous().transpose(1, 2)
    turned_h = h.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    turned = ops.dropout_residual(turned_x, turned_h, p=0.5, scale=2.0, seed=seed(1))
    assert torch.equal(turned, expected)
    base = leaf(h)
    ops.dropout(base, p=0.5, seed=seed(1)).sum().backward()
    assert torch.equal(base.grad, ops.dropout(torch.ones_like(h), p=0.5, seed=seed(1)))


def test_dropout_at_the_ends(backend):
    h = torch.randn(5, 6)
    assert torch.equal(ops.dropout(h, p=0.0), h)
    assert torch.equal(ops.dropout(h, p=1.0), torch.zeros_like(h))
    assert torch.equal(ops.dropout_residual(h, h, p=1.0, scale=2.0), 2 * h)
    before = torch.get_rng_state()
    assert_close(ops.dropout_residual(h, h, p=0.0, scale=0.5), h, 1e-7)
    assert torch.equal(torch.get_rng_state(), before), "p = 0 must not draw"
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="dropout probability"):
            ops.dropout(h, p=p)
    with pytest.raises(RuntimeError, match="one shape"):
        ops.dropout_residual(h, h[:1], p=0.1)


def test_what_is_dropped_is_zero_even_if_infinite(backend):
    h = torch.full((1000,), float("inf"))
    y = ops.dropout(h, p=0.5, seed=seed(4))
    assert not y.isnan().any()
    assert 300 < y.isinf().sum() < 700


def test_dropout_follows_the_default_generator(backend):
    h = torch.ones(4096)
    torch.manual_seed(5)
    first, second = ops.dropout(h, p=0.5), ops.dropout(h, p=0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(ops.dropout(h, p=0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(ops.dropout(h, p=0.5), first)
    assert torch.equal(ops.dropout(h, p=0.5), second)


def test_dropout_is_the_same_when_a_layer_is_recomputed(backend):
    x, weight = torch.randn(2, 3, 4, 16), torch.randn(16, 1, 2, 3)

    def layer(x, w):
        h = ops.causal_depthwise_conv(x, w, top=1)
        return ops.dropout_residual(x, ops.dropout(h, p=0.3), p=0.3, scale=0.7)

    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(8)
        a, w = leaf(x), leaf(weight)
        y = checkpoint(layer, a, w, use_reentrant=False) if checkpointed else layer(a, w)
        y.square().sum().backward()
        gradients.append((y, a.grad, w.grad))
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_dropout_has_the_same_bits_on_any_number_of_threads(native, threads):
    x, h, results = torch.randn(50_001), torch.randn(50_001), []
    for count in (1, 2, 3):
        threads(count)
        a, b = leaf(x), leaf(h)
        y = ops.dropout_residual(a, b, p=0.3, scale=0.7, seed=seed(1))
        y.backward(x)
        results.append((y, a.grad, b.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# ---- maximum over the source -------------------------------------------------------------------------------

GRIDS = [(3, 4, 5, 7), (2, 3, 22, 70), (1, 1, 1, 1), (4, 2, 3, 128), (0, 3, 4, 8)]


def padding_of(batch, columns):
    """(B, S): the first sentence whole, then one padded on the right, one on the left, one throughout."""
    padding = torch.zeros(batch, columns, dtype=torch.bool)
    padding[1:2, columns - columns // 3 :] = True
    padding[2:3, : columns // 2] = True
    padding[3:4] = True
    return padding


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
    values, indices = (ops.gated_max if gated else ops.max_over_source)(x, padding)
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
    values, indices = ops.max_over_source(x, padding)
    assert (values == 3).all()
    assert (indices[0] == 1).all()
    assert (indices[1] == 2).all()
    assert torch.equal(ops.max_over_source(x)[0], values)


def test_maximum_of_infinities_and_nan(backend):
    x = torch.full((1, 1, 4, 20), float("-inf"))
    assert (ops.max_over_source(x)[0] == float("-inf")).all()
    x[:, :, 1:3] = float("nan")
    values, indices = ops.max_over_source(x)
    assert values.isnan().all()
    assert (indices == 1).all()


def test_gate_saturates_without_nan(backend):
    x = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4]).view(1, 7, 1, 1).repeat(1, 1, 1, 32)
    x[..., :16] = 2.0
    values, _ = ops.gated_max(leaf(x))
    assert_close(values, 2 * torch.sigmoid(x[:, :, 0, 16:].double()), 1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_maximum_gradcheck(backend, gated):
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[False, False, True], [True, True, True]])
    function = ops.gated_max if gated else ops.max_over_source
    assert torch.autograd.gradcheck(lambda x: function(x, padding)[0], (leaf(x),))


def test_maximum_of_strided_tensors(backend):
    x = torch.randn(2, 3, 5, 8)
    padding = torch.randn(5, 2).t() > 1
    turned = leaf(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    for function in (ops.max_over_source, ops.gated_max):
        for one, two in zip(function(turned, padding), function(x, padding.contiguous()), strict=True):
            assert torch.equal(one, two)
    ops.gated_max(turned, padding)[0].sum().backward()
    plain = leaf(x)
    ops.gated_max(plain, padding)[0].sum().backward()
    assert_close(turned.grad, plain.grad, 1e-6)


# ---- layer norm --------------------------------------------------------------------------------------------


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
        y = ops.layer_norm_masked(x, weight, bias, eps=1e-4, padding=mask)
        assert y.dtype == dtype
        y.backward(grad)
        assert_close(y, expected, limit, "output")
        assert (y[cells] == 0).all()
        for actual, reference, name in zip((x, weight, bias), wide, ("x", "weight", "bias"), strict=True):
            assert_close(actual.grad, reference.grad, limit, f"gradient of {name}")
        assert (x.grad[cells] == 0).all()
    whole = ops.layer_norm_masked(x, weight, bias, eps=1e-4)
    assert_close(whole, F.layer_norm(wide[0], shape[-1:], *wide[1:], 1e-4), limit)


def test_layer_norm_masked_ignores_what_padding_holds(backend):
    x = torch.randn(2, 3, 4, 8)
    padding = padding_of(2, 4)
    x[padding[:, None].expand(2, 3, 4)] = float("nan")
    x, weight, bias = leaf(x), leaf(torch.ones(8)), leaf(torch.zeros(8))
    y = ops.layer_norm_masked(x, weight, bias, padding=padding)
    assert not y.isnan().any()
    if backend == "native":  # the twin's gradient is PyTorch's, where 0 · NaN is NaN
        y.square().sum().backward()
        assert not any(v.grad.isnan().any() for v in (x, weight, bias))


def test_layer_norm_gradcheck(backend):
    shapes = ((2, 2, 3, 5), (5,), (5,))
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    assert torch.autograd.gradcheck(lambda x, w, b: ops.layer_norm_masked(x, w, b, padding=padding), (x, weight, bias))


def test_layer_norm_and_maximum_have_the_same_bits_on_any_number_of_threads(native, threads):
    x, weight, results = torch.randn(7, 9, 11, 36), torch.randn(36), []
    padding = padding_of(7, 11)
    for count in (1, 2, 3):
        threads(count)
        a, w, b = leaf(x), leaf(weight), leaf(weight)
        y = ops.layer_norm_masked(a, w, b, padding=padding)
        values, indices = ops.gated_max(y, padding)
        values.sum().backward()
        results.append((y, values, indices, a.grad, w.grad, b.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# ---- registration and choice -------------------------------------------------------------------------------


# ---- decoding ----------------------------------------------------------------------------------------------

STEPS = [
    # B, S, C, h, k, dilation
    (3, 7, 32, 3, 5, 1),
    (2, 4, 70, 6, 11, 1),  # k > S, two groups of channels and a rest
    (2, 9, 7, 3, 5, 2),  # dilation, C below a vector
    (2, 1, 16, 1, 1, 1),  # nothing above
    (0, 5, 16, 2, 3, 1),  # every sentence has finished
]


def layer_norm(channels, dtype, seed):
    norm = torch.nn.LayerNorm(channels, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(channels, generator=generator, dtype=torch.float64))
        norm.bias.copy_(0.3 * torch.randn(channels, generator=generator, dtype=torch.float64))
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", STEPS, ids=str)
@torch.no_grad()
def test_steps_are_the_rows_of_the_whole_convolution(backend, case, dtype):
    """Each step's rows of the past are found by origins alone; hypotheses are permuted, doubled and dropped."""
    batch, columns, channels, height, width, dilation = case
    generator = torch.Generator().manual_seed(sum(case))
    weight = torch.randn(channels, 1, height, width, generator=generator, dtype=torch.float64).to(dtype)
    norm, next_norm = layer_norm(channels, dtype, 1), layer_norm(channels, dtype, 2)
    padding = padding_of(batch, columns)
    depth = (height - 1) * dilation
    rows, origins = [], None
    history = torch.zeros(batch, 0, columns, channels, dtype=dtype)  # of every hypothesis, all its rows
    for _ in range(depth + 3):
        x = torch.randn(history.size(0), 1, columns, channels, generator=generator, dtype=torch.float64).to(dtype)
        history = torch.cat((history, x), dim=1)
        joined, normed, row = ops.residual_conv_step(
            x,
            rows,
            origins,
            weight=weight,
            dilation=dilation,
            scale=0.7,
            norm=norm,
            next_norm=next_norm,
            padding=padding,
        )
        grid = F.layer_norm(history.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
        grid = grid.masked_fill(padding[:, None, :, None], 0)
        whole = 0.7 * (history.double() + masked_conv(grid, weight, dilation, depth))[:, -1:]
        # Rounded to the dtype between the normalisation, the convolution and the sum.
        limit = (20 if dtype == torch.bfloat16 else 5) * tolerance(backend, dtype)
        assert_close(joined, whole, limit, "joined")
        expected = F.layer_norm(joined.double(), (channels,), next_norm.weight.double(), next_norm.bias.double())
        assert_close(normed, expected, limit, "normed")

        rows = [*rows, row][-depth:] if depth else []
        here = torch.arange(x.size(0))[None]
        origins = (here if origins is None else torch.cat((origins, here))[-depth:]) if depth else None
        count = x.size(0)
        order = torch.randint(max(count, 1), (max(count - 1, min(count, 1)),), generator=generator)
        history, padding = history[order], padding[order]
        origins = None if origins is None else origins[:, order]


def test_steps_have_the_same_bits_on_any_number_of_threads(native, threads):
    x, weight, norm = torch.randn(5, 1, 9, 40), torch.randn(40, 1, 2, 3), layer_norm(40, torch.float32, 1)
    results = []
    with torch.no_grad():
        for count in (1, 2):
            threads(count)
            row = ops.residual_conv_step(x, [], None, weight=weight, dilation=1, scale=0.5, norm=norm, next_norm=norm)
            results.append(row)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_steps_refuse_rows_that_do_not_fit(native):
    x, weight, norm = torch.randn(2, 1, 5, 16), torch.randn(16, 1, 2, 3), layer_norm(16, torch.float32, 1)
    here = torch.arange(2)[None]

    def step(rows, origins, x=x, padding=None):
        settings = dict(weight=weight, dilation=1, scale=1.0, norm=norm, next_norm=norm, padding=padding)
        return ops.residual_conv_step(x, rows, origins, **settings)

    with torch.no_grad():
        row = step([], None)[2]
        assert step([row], here)[0].shape == x.shape
        for rows, origins, error in (
            ([row], None, RuntimeError),
            ([row], here.expand(2, 2), RuntimeError),
            ([row], here.int(), RuntimeError),
            ([row], here + 1, IndexError),
            ([row], here - 1, IndexError),
            ([row[:, :, 1:]], here, RuntimeError),
            ([x], here, RuntimeError),
            ([row.double()], here, RuntimeError),
        ):
            with pytest.raises(error, match="residual_conv_step"):
                step(rows, origins)
        with pytest.raises(RuntimeError, match="one row at a time"):
            step([], None, x=torch.randn(2, 2, 5, 16))
        with pytest.raises(RuntimeError, match="padding mask"):
            step([], None, padding=torch.zeros(2, 4, dtype=torch.bool))


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def test_opcheck(native):
    def grid(*shape):
        return torch.randn(*shape, requires_grad=True)

    x, weight, padding = grid(2, 4, 5, 16), grid(16, 1, 2, 3), padding_of(2, 5)
    y, grad = grid(2, 4, 5, 16), torch.randn(2, 4, 5, 16)
    scale, bias = grid(16), grid(16)
    plain, plain_weight = x.detach(), weight.detach()
    library = torch.ops.attn2d
    indices = library.max_over_source(plain, padding, True)[1]
    _, mean, rstd = library.layer_norm_masked(plain, scale.detach(), bias.detach(), 1e-5, None)
    cells = padding[:, None].expand(2, 4, 5)
    row = torch.randn(3, 1, 7, 16)  # 16 channels, a margin of one column on either side
    first, origins = grad[:, :1], torch.tensor([[2, 0]])
    norms = (scale.detach(), bias.detach(), 1e-5) * 2
    calls = {
        "causal_depthwise_conv": [(x, weight, 1, 1), (x, weight, 2, 0)],
        "causal_depthwise_conv_input_grad": [(grad, plain_weight, 1, 1)],
        "causal_depthwise_conv_weight_grad": [(plain, grad, 2, 3, 1, 1)],
        "dropout": [(x, 0.3, seed(1))],
        "dropout_residual": [(x, y, 0.3, 0.7, seed(1))],
        "dropout_residual_grad": [(grad, 0.3, 0.7, seed(1))],
        "max_over_source": [(x, padding, False), (x, padding, True)],
        "max_over_source_grad": [(torch.randn(2, 4, 8), indices, plain, padding, True)],
        "layer_norm_masked": [(x, scale, bias, 1e-5, None), (x, scale, bias, 1e-5, cells)],
        "layer_norm_masked_grad": [(grad, plain, scale.detach(), mean, rstd, cells)],
        "residual_conv_step": [
            (first, [], None, plain_weight, 1, 0.7, *norms, None),
            (first, [row], origins, plain_weight, 1, 0.7, *norms, padding),
        ],
    }
    for name, arguments in calls.items():
        for given in arguments:
            # The operators that compute gradients have none themselves, and nothing to trace; decoding needs none.
            untraced = name.endswith(("grad", "step"))
            checks = ("test_schema", "test_faketensor") if untraced else OPCHECKS
            torch.library.opcheck(getattr(library, name).default, given, test_utils=checks)


def test_native_refuses_shapes_that_do_not_fit(native):
    x, library = torch.randn(2, 4, 5, 16), torch.ops.attn2d
    flags = torch.zeros(2, 5, dtype=torch.bool)
    for call in (
        lambda: ops.max_over_source(x, flags[:, :4]),
        lambda: ops.max_over_source(x, flags.int()),
        lambda: ops.gated_max(x[..., :15], flags),
        lambda: ops.max_over_source(x[:, :, :0], flags[:, :0]),
        lambda: ops.layer_norm_masked(x, torch.ones(15), torch.ones(15)),
        lambda: ops.layer_norm_masked(x, torch.ones(16), torch.ones(16), padding=flags[:, :4]),
        lambda: library.causal_depthwise_conv_weight_grad(x, x[:, :2], 2, 3, 1, 1),
        lambda: library.causal_depthwise_conv(x, torch.randn(16, 1, 2, 3).double(), 1, 1),
        lambda: library.dropout(x, 0.1, torch.tensor([1, 2])),
        lambda: library.dropout(x.half(), 0.1, seed(1)),
        lambda: library.dropout(x.half(), 1.5, seed(1)),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_mixed_dtypes_meet_in_the_wider_one(backend):
    x, h = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 4, 16).bfloat16()
    assert ops.dropout_residual(x, h, p=0.1).dtype == torch.float32
    assert ops.causal_depthwise_conv(h, torch.randn(16, 1, 2, 3), top=1).dtype == torch.float32
    assert ops.layer_norm_masked(h, torch.ones(16), torch.ones(16)).dtype == torch.float32


def test_choice_of_backend(caplog, monkeypatch):
    monkeypatch.setattr(ops, "_backend", "auto")
    monkeypatch.setattr(ops, "_chosen", [])
    with caplog.at_level(logging.INFO, logger="attn2d.ops"):
        ops.use("torch")
        ops.use("torch")
    assert [record.message for record in caplog.records] == ["grid operators: torch"]
    with pytest.raises(ValueError, match="auto, native, torch"):
        ops.use("cuda")
    assert ops.backends()["torch"]
    ops.use("native")
    with pytest.raises(TypeError, match="float16"):
        ops.dropout(torch.ones(3, dtype=torch.float16), p=0.1)
    ops.use("auto")
    assert ops.dropout(torch.ones(3, dtype=torch.float16), p=0.1).dtype == torch.float16


def test_native_without_the_extension_is_an_error(monkeypatch):
    monkeypatch.setattr(ops, "_built", False)
    assert not ops.backends()["native"]
    with pytest.raises(RuntimeError, match="pip install"):
        ops.use("native")
    ops.use("auto")
    assert ops.dropout(torch.ones(10), p=0.5).shape == (10,)


@pytest.mark.parametrize("trial", range(20))
def test_native_and_twin_agree_on_random_shapes(trial):
    generator = random.Random(trial)
    draw = generator.randint
    height, width, dilation = draw(1, 4), generator.choice((1, 3, 5, 7, 13)), draw(1, 3)
    top = draw(0, (height - 1) * dilation)
    rows = (height - 1) * dilation - top + draw(1, 9)
    case = (draw(1, 5), rows, draw(1, 30), draw(1, 140), height, width, dilation, top)
    results = []
    for chosen in ("native", "torch"):
        ops.use(chosen)
        try:
            x, weight = (leaf(v) for v in conv_inputs(case, torch.float64))
            y = ops.causal_depthwise_conv(x, weight, dilation=dilation, top=top)
            y.square().sum().backward()
            results.append((y, x.grad, weight.grad))
        finally:
            ops.use("auto")
    for one, two in zip(*results, strict=True):
        assert_close(one, two, 1e-12, str(case))


EVERY_OPERATOR = """
import importlib.util, sys, torch

spec = importlib.util.spec_from_file_location("ops", sys.argv[1])  # by path: the package would load fairseq
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
ops.use("native")
torch.manual_seed(1)
results = {}
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    # Uniform, since PyTorch's own normal numbers depend on the level.
    x, weight = ((4 * torch.rand(shape) - 2).to(dtype) for shape in ((3, 6, 9, 54), (54, 1, 3, 5)))
    padding = torch.tensor([[False] * 9, [False] * 6 + [True] * 3, [True] * 9])
    x.requires_grad_(), weight.requires_grad_()
    normed = ops.layer_norm_masked(x, weight[:, 0, 0, 0], weight[:, 0, 1, 1], padding=padding)
    joined = ops.dropout_residual(x, ops.causal_depthwise_conv(normed, weight, top=2), p=0.4, scale=0.7)
    values, indices = ops.gated_max(ops.dropout(joined, p=0.1), padding)
    others, places = ops.max_over_source(joined, padding)
    (values.square().sum() + others.square().sum()).backward()
    with torch.no_grad():
        norm = torch.nn.LayerNorm(54, dtype=dtype)
        step = ops.residual_conv_step(
            x[:, :1], [], None, weight=weight, dilation=1, scale=0.7, norm=norm, next_norm=norm, padding=padding
        )
    results[dtype] = (normed, joined, values, others, x.grad, weight.grad, *step)
torch.save({k: [v.detach() for v in vs] for k, vs in results.items()}, sys.argv[2])
"""


@pytest.mark.slow
def test_every_instruction_set_computes_the_same(tmp_path):
    """Older processors' kernels against this one's (elsewhere than on x86 there is one kind)."""
    results = {}
    for level in ("", "avx2", "default"):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": level, "OMP_NUM_THREADS": "1"}
        if not level:
            del environment["ATEN_CPU_CAPABILITY"]
        file = tmp_path / f"results{level}.pt"
        command = [sys.executable, "-c", EVERY_OPERATOR, ops.__file__, str(file)]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr
        results[level] = torch.load(file, weights_only=True)
    for level in ("avx2", "default"):
        for dtype in DTYPES:
            for ours, theirs in zip(results[""][dtype], results[level][dtype], strict=True):
                # Roundings add up over the chain of operators.
                assert_close(theirs, ours.double(), 10 * TOLERANCE[dtype], f"{level} {dtype}")


def test_an_extension_of_another_pytorch_is_refused_by_name(tmp_path):
    (tmp_path / "_C.so").write_bytes(b"not a library")
    copy = shutil.copy(ops.__file__, tmp_path / "ops.py")
    spec = importlib.util.spec_from_file_location("ops_beside_a_broken_library", copy)
    with pytest.raises(ImportError, match="does not fit PyTorch"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
