"""Registration of the native operators with PyTorch, and instruction sets."""

import os
import random
import subprocess
import sys

import pytest
import torch

from attn2d import ops
from attn2d.backend import Backend, select
from tests.support.grid_operators import DTYPES, TOLERANCE, assert_close, conv_inputs, leaf, padding_of, seed

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.slow
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
    norm = (scale.detach(), bias.detach(), 1e-5)
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
        "packed_norm_row": [(first, *norm, None, 1), (first, *norm, padding, 3)],
        "residual_conv_row": [
            (first, row[:2], [], None, plain_weight, 1, 0.7),
            (first, row[:2], [row], origins, plain_weight, 1, 0.7),
        ],
    }
    for name, arguments in calls.items():
        for tensors in arguments:
            # The operators that compute gradients have none themselves, and nothing to trace; decoding needs none.
            untraced = name.endswith(("grad", "row"))
            checks = ("test_schema", "test_faketensor") if untraced else OPCHECKS
            torch.library.opcheck(getattr(library, name).default, tensors, test_utils=checks)


def test_native_refuses_shapes_that_do_not_fit(native):
    x, library = torch.randn(2, 4, 5, 16), torch.ops.attn2d
    flags = torch.zeros(2, 5, dtype=torch.bool)
    for call in (
        lambda: ops.max_over_source(x, flags[:, :4], backend=Backend.NATIVE),
        lambda: ops.max_over_source(x, flags.int(), backend=Backend.NATIVE),
        lambda: ops.gated_max(x[..., :15], flags, backend=Backend.NATIVE),
        lambda: ops.max_over_source(x[:, :, :0], flags[:, :0], backend=Backend.NATIVE),
        lambda: ops.layer_norm_masked(x, torch.ones(15), torch.ones(15), backend=Backend.NATIVE),
        lambda: ops.layer_norm_masked(x, torch.ones(16), torch.ones(16), padding=flags[:, :4], backend=Backend.NATIVE),
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
    assert ops.dropout_residual(x, h, p=0.1, backend=backend).dtype == torch.float32
    assert ops.causal_depthwise_conv(h, torch.randn(16, 1, 2, 3), top=1, backend=backend).dtype == torch.float32
    assert ops.layer_norm_masked(h, torch.ones(16), torch.ones(16), backend=backend).dtype == torch.float32


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
        x, weight = (leaf(v) for v in conv_inputs(case, torch.float64))
        y = ops.causal_depthwise_conv(x, weight, dilation=dilation, top=top, backend=select(chosen))
        y.square().sum().backward()
        results.append((y, x.grad, weight.grad))
    for one, two in zip(*results, strict=True):
        assert_close(one, two, 1e-12, str(case))


EVERY_OPERATOR = """
import sys, torch
from attn2d import ops
from attn2d.backend import Backend

assert "fairseq" not in sys.modules
native = dict(backend=Backend.NATIVE)
torch.manual_seed(1)
results = {}
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    # Uniform, since PyTorch's own normal numbers depend on the level.
    x, weight = ((4 * torch.rand(shape) - 2).to(dtype) for shape in ((3, 6, 9, 54), (54, 1, 3, 5)))
    padding = torch.tensor([[False] * 9, [False] * 6 + [True] * 3, [True] * 9])
    x.requires_grad_(), weight.requires_grad_()
    normed = ops.layer_norm_masked(x, weight[:, 0, 0, 0], weight[:, 0, 1, 1], padding=padding, **native)
    branch = ops.causal_depthwise_conv(normed, weight, top=2, **native)
    joined = ops.dropout_residual(x, branch, p=0.4, scale=0.7, **native)
    values, indices = ops.gated_max(ops.dropout(joined, p=0.1, **native), padding, **native)
    others, places = ops.max_over_source(joined, padding, **native)
    (values.square().sum() + others.square().sum()).backward()
    with torch.no_grad():
        norm = torch.nn.LayerNorm(54, dtype=dtype)
        first = x[:, :1]
        row = ops.norm_row(first, norm.weight, norm.bias, eps=norm.eps, margin=2, padding=padding, **native)
        step = ops.residual_conv_row(
            first, row, above=[], origins=None, weight=weight, dilation=1, scale=0.7, **native
        )
        last, *_ = ops.layer_norm_parts(step, norm.weight, norm.bias, eps=norm.eps, **native)
    results[dtype] = (normed, joined, values, others, x.grad, weight.grad, step, last, row)
torch.save({k: [v.detach() for v in vs] for k, vs in results.items()}, sys.argv[1])
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
        command = [sys.executable, "-c", EVERY_OPERATOR, str(file)]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr
        results[level] = torch.load(file, weights_only=True)
    for level in ("avx2", "default"):
        for dtype in DTYPES:
            for ours, theirs in zip(results[""][dtype], results[level][dtype], strict=True):
                # Roundings add up over the chain of operators.
                assert_close(theirs, ours.double(), 10 * TOLERANCE[dtype], f"{level} {dtype}")
