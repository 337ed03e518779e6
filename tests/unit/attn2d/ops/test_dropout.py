"""Dropout: its native mask is Philox, its statistics, gradients and seeds, on both backends."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from attn2d import ops
from attn2d.backend import Backend
from tests.support.grid_operators import DTYPES, assert_close, leaf, seed, tolerance


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
            mask = ops.dropout(torch.ones(size, dtype=dtype), p=p, seed=seed(value), backend=Backend.NATIVE) != 0
            assert torch.equal(mask, bits >= round(p * 65536))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_statistics(backend, p):
    size = 1 << 20
    y = ops.dropout(torch.ones(size, dtype=torch.float64), p=p, seed=seed(11), backend=backend)
    kept = (y != 0).double()
    deviation = math.sqrt(p * (1 - p) / size)
    assert abs(kept.mean() - (1 - p)) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)
    assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), 1e-4)
    # Neighbours in memory, in a vector, in a block and in a mask of another seed are independent.
    centred = kept - kept.mean()
    others = [centred.roll(shift) for shift in (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 1024)]
    # PyTorch's CPU generator, which the twin seeds, knows the low 32 bits of a seed only.
    for value in (12, -11, 2**31 + 11, *([11 + 2**32] if backend is Backend.NATIVE else [])):
        others.append(
            (ops.dropout(torch.ones(size), p=p, seed=seed(value), backend=backend) != 0).double() - kept.mean()
        )
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
    mask = (ops.dropout(torch.ones_like(h), p=p, seed=seed(9), backend=backend) != 0).double()
    y = ops.dropout_residual(x, h, p=p, scale=scale, seed=seed(9), backend=backend)
    assert y.dtype == dtype
    y.backward(grad)
    keep = 1 - round(p * 65536) / 65536
    limit = tolerance(backend, dtype)
    assert_close(y, (x.double() + mask * h.double() / keep) * scale, limit)
    assert_close(x.grad, grad.double() * scale, limit)
    assert_close(h.grad, grad.double() * scale * mask / keep, limit)
    h = leaf(h)
    ops.dropout(h, p=p, seed=seed(9), backend=backend).backward(grad)
    assert_close(h.grad, grad.double() * mask / keep, limit)


def test_dropout_gradcheck(backend):
    x, h = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda h: ops.dropout(h, p=0.4, seed=seed(2), backend=backend), (h,))
    assert torch.autograd.gradcheck(
        lambda x, h: ops.dropout_residual(x, h, p=0.4, scale=0.7, seed=seed(2), backend=backend), (x, h)
    )


def test_dropout_of_strided_tensors(backend):
    x, h = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    expected = ops.dropout_residual(x, h, p=0.5, scale=2.0, seed=seed(1), backend=backend)
    turned_x = x.transpose(1, 2).contiguous().transpose(1, 2)
    turned_h = h.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    turned = ops.dropout_residual(turned_x, turned_h, p=0.5, scale=2.0, seed=seed(1), backend=backend)
    assert torch.equal(turned, expected)
    base = leaf(h)
    ops.dropout(base, p=0.5, seed=seed(1), backend=backend).sum().backward()
    assert torch.equal(base.grad, ops.dropout(torch.ones_like(h), p=0.5, seed=seed(1), backend=backend))


def test_dropout_at_the_ends(backend):
    h = torch.randn(5, 6)
    assert torch.equal(ops.dropout(h, p=0.0, backend=backend), h)
    assert torch.equal(ops.dropout(h, p=1.0, backend=backend), torch.zeros_like(h))
    assert torch.equal(ops.dropout_residual(h, h, p=1.0, scale=2.0, backend=backend), 2 * h)
    before = torch.get_rng_state()
    assert_close(ops.dropout_residual(h, h, p=0.0, scale=0.5, backend=backend), h, 1e-7)
    assert torch.equal(torch.get_rng_state(), before), "p = 0 must not draw"
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="dropout probability"):
            ops.dropout(h, p=p, backend=backend)
    with pytest.raises(RuntimeError, match="one shape"):
        ops.dropout_residual(h, h[:1], p=0.1, backend=backend)


def test_what_is_dropped_is_zero_even_if_infinite(backend):
    h = torch.full((1000,), float("inf"))
    y = ops.dropout(h, p=0.5, seed=seed(4), backend=backend)
    assert not y.isnan().any()
    assert 300 < y.isinf().sum() < 700


def test_dropout_follows_the_default_generator(backend):
    h = torch.ones(4096)
    torch.manual_seed(5)
    first, second = ops.dropout(h, p=0.5, backend=backend), ops.dropout(h, p=0.5, backend=backend)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(ops.dropout(h, p=0.5, backend=backend), first)
    torch.set_rng_state(state)
    assert torch.equal(ops.dropout(h, p=0.5, backend=backend), first)
    assert torch.equal(ops.dropout(h, p=0.5, backend=backend), second)


def test_dropout_is_the_same_when_a_layer_is_recomputed(backend):
    x, weight = torch.randn(2, 3, 4, 16), torch.randn(16, 1, 2, 3)

    def layer(x, w):
        h = ops.causal_depthwise_conv(x, w, top=1, backend=backend)
        return ops.dropout_residual(x, ops.dropout(h, p=0.3, backend=backend), p=0.3, scale=0.7, backend=backend)

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
        y = ops.dropout_residual(a, b, p=0.3, scale=0.7, seed=seed(1), backend=Backend.NATIVE)
        y.backward(x)
        results.append((y, a.grad, b.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
