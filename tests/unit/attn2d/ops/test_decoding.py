"""Decoding row by row against the whole computation, on both backends."""

import pytest
import torch
import torch.nn.functional as F

from attn2d import ops
from attn2d.backend import Backend
from tests.support.grid_operators import DTYPES, assert_close, leaf, masked_conv, padding_of, tolerance

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


def parameters(norm):
    return norm.weight, norm.bias


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
        margin = (width // 2) * dilation
        row = ops.norm_row(x, *parameters(norm), eps=norm.eps, margin=margin, padding=padding, backend=backend)
        joined = ops.residual_conv_row(
            x, row, above=rows, origins=origins, weight=weight, dilation=dilation, scale=0.7, backend=backend
        )
        normed, *_ = ops.layer_norm_parts(joined, *parameters(next_norm), eps=next_norm.eps, backend=backend)
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
            row = ops.norm_row(x, *parameters(norm), eps=norm.eps, margin=1, backend=native)
            joined = ops.residual_conv_row(
                x, row, above=[], origins=None, weight=weight, dilation=1, scale=0.5, backend=native
            )
            results.append((row, joined, *ops.layer_norm_parts(joined, *parameters(norm), eps=norm.eps)))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_steps_refuse_rows_that_do_not_fit(native):
    x, weight, norm = torch.randn(2, 1, 5, 16), torch.randn(16, 1, 2, 3), layer_norm(16, torch.float32, 1)
    here = torch.arange(2)[None]

    def new_row(x=x, padding=None):
        return ops.norm_row(x, *parameters(norm), eps=norm.eps, margin=1, padding=padding, backend=native)

    def step(above, origins, x=x, row=None):
        row = new_row() if row is None else row
        return ops.residual_conv_row(
            x, row, above=above, origins=origins, weight=weight, dilation=1, scale=1.0, backend=native
        )

    with torch.no_grad():
        row = new_row()
        assert step([row], here).shape == x.shape
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
            with pytest.raises(error, match="residual_conv_row"):
                step(rows, origins)
        for wrong in (row[:, :, 1:], x, row.double(), row[:1]):
            with pytest.raises(RuntimeError, match="residual_conv_row"):
                step([row], here, row=wrong)
        for several in (lambda: new_row(torch.randn(2, 2, 5, 16)), lambda: step([], None, x=torch.randn(2, 2, 5, 16))):
            with pytest.raises(RuntimeError, match=r"one row .*at a time"):
                several()
        with pytest.raises(RuntimeError, match="padding mask"):
            new_row(padding=torch.zeros(2, 4, dtype=torch.bool))


def test_steps_refuse_to_be_differentiated(backend: Backend) -> None:
    x, weight, norm = torch.randn(2, 1, 5, 16), leaf(torch.randn(16, 1, 2, 3)), layer_norm(16, torch.float32, 1)
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.norm_row(x, *parameters(norm), eps=norm.eps, margin=1, backend=backend)
    with torch.no_grad():
        row = ops.norm_row(x, *parameters(norm), eps=norm.eps, margin=1, backend=backend)
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.residual_conv_row(x, row, above=[], origins=None, weight=weight, dilation=1, scale=1.0, backend=backend)
