"""memory_layers.ops: gradients, opcheck, torch.compile, and the choice of the implementation.

test_reference.py tests what the operators compute, test_kernels.py the kernels.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.library import opcheck

from memory_layers import backends, library, ops, reference
from memory_layers.row_updates import AdamState, AdamStep, RowGradients
from tests.support.memory_brute_force import KINDS, best, hard_rows, same_bits
from tests.support.paths import ROOT


@pytest.fixture(params=["auto", "torch"])
def backend(request):
    """The operators (with kernels where they are built), and the plain definitions."""
    return request.param


def generator(seed):
    return torch.Generator().manual_seed(seed)


def lookup_inputs(*, tokens=6, heads=3, n=7, key_dim=10, dim=5, dtype=torch.float64, grad=True, seed=1):
    """Queries (T, H, D), sub-keys (H, 2, N, D/2) and values (N·N, V)."""
    draw = generator(seed)
    shapes = (tokens, heads, key_dim), (heads, 2, n, key_dim // 2), (n * n, dim)
    return [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes]


def bag_inputs(*, tokens=6, bag=5, n_slots=11, dim=3, dtype=torch.float64, grad=True, seed=2):
    """Values (n_slots, V), slots (T, bag) and weights (T, bag)."""
    draw = generator(seed)
    values = torch.randn(n_slots, dim, generator=draw, dtype=torch.float64).to(dtype).requires_grad_(grad)
    slots = torch.randint(0, n_slots, (tokens, bag), generator=draw)
    weights = torch.randn(tokens, bag, generator=draw, dtype=torch.float64)
    return values, slots, weights.to(reference.accumulation(values)).requires_grad_(grad)


class Dense(torch.autograd.Function):
    """The identity, with a dense gradient, for gradcheck."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.to_dense()


# ---- values and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_selection_is_brute_force(backend, kind):
    draw = generator(KINDS.index(kind))
    for n, k in ((1, 1), (3, 2), (8, 8), (13, 5), (33, 32)):
        rows = hard_rows(kind, (9, 2, 2, n), draw)
        scores, slots = ops.product_key_select(rows, k, backend=backend)
        expected_scores, expected_slots = best(rows, k)
        assert torch.equal(slots, expected_slots)
        assert same_bits(scores, expected_scores)


# n and dimensions that are no multiples of 8, bags of one slot.
SIZES = [dict(), dict(tokens=1, heads=1, n=3, key_dim=2, dim=1), dict(tokens=4, heads=2, n=13, key_dim=6, dim=9)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_gradcheck_of_the_lookup(backend, size, k):
    queries, sub_keys, values = lookup_inputs(**size)

    def scores(queries, sub_keys):
        return ops.product_key_topk(queries, sub_keys, k, backend=backend)[0]

    def output_and_weights(queries, sub_keys, values):
        return ops.product_key_memory(queries, sub_keys, Dense.apply(values), k, backend=backend)[:2]

    # The selected slots must not change under gradcheck's steps of 1e-6: they do not for these seeds.
    assert gradcheck(scores, (queries, sub_keys))
    assert gradcheck(output_and_weights, (queries, sub_keys, values))


@pytest.mark.parametrize("size", [dict(), dict(tokens=3, bag=1, dim=1), dict(tokens=9, bag=7, dim=17)], ids=str)
def test_gradcheck_of_the_bag(backend, size):
    values, slots, weights = bag_inputs(**size)
    assert gradcheck(lambda v, w: ops.weighted_bag(Dense.apply(v), slots, w, backend=backend), (values, weights))


def test_gradcheck_of_the_selection():
    rows = torch.randn(4, 2, 2, 6, generator=generator(3), dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda r: ops.product_key_select(r, 4)[0], (rows,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_number_formats(backend, dtype):
    """Values and gradients against the definitions in float64 on the same inputs (and the same slots)."""
    queries, sub_keys, values = lookup_inputs(dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in (queries, sub_keys, values)]
    output, weights, slots = ops.product_key_memory(queries, sub_keys, values, 3, backend=backend)
    expected, expected_weights, expected_slots = reference.product_key_memory(*wide, 3)
    assert torch.equal(slots, expected_slots)
    assert (output.dtype, weights.dtype) == (dtype, torch.float32)
    grad = torch.randn(output.shape, generator=generator(4)).to(dtype)
    gradients = torch.autograd.grad((output, weights.square().sum()), (queries, sub_keys, values), (grad, None))
    wide_gradients = torch.autograd.grad((expected, expected_weights.square().sum()), wide, (grad.double(), None))
    limit = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]  # one rounding of the result
    for one, two in zip((output, weights, *gradients), (expected, expected_weights, *wide_gradients), strict=True):
        one, two = one.to_dense(), two.to_dense()
        assert one.dtype in (dtype, torch.float32)
        assert (one.double() - two).abs().max() <= limit * two.abs().max()


def test_autocast_does_not_round_what_is_inside(backend):
    inputs = lookup_inputs(dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            scores, slots = ops.product_key_topk(*inputs[:2], 3, backend=backend)
            output, weights, _ = ops.product_key_memory(*inputs, 3, backend=backend)
            bag = ops.weighted_bag(inputs[2].detach().bfloat16(), slots.flatten(1), weights.flatten(1), backend=backend)
        gradients = torch.autograd.grad((output.sum(), bag.sum(), weights.square().sum()), inputs)
        results.append((scores, slots, output, weights, bag, *(g.to_dense() for g in gradients)))
    for one, two in zip(*results, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_the_operators_gradient_of_values_is_sparse_and_coalesced():
    values, slots, weights = bag_inputs()
    (grad,) = torch.autograd.grad(ops.weighted_bag(values, slots, weights).sum(), values)
    assert grad.layout == torch.sparse_coo
    assert grad.is_coalesced()
    rows = grad.indices()[0]
    assert rows.tolist() == sorted(set(slots.flatten().tolist()))
    torch.sparse_coo_tensor(grad.indices(), grad.values(), grad.shape, check_invariants=True)


def test_the_fused_lookup_is_the_composition(backend):
    inputs = lookup_inputs()
    output, weights, slots = ops.product_key_memory(*inputs, 3, backend=backend)
    scores, same_slots = ops.product_key_topk(*inputs[:2], 3, backend=backend)
    same_weights = scores.softmax(-1)
    same_output = ops.weighted_bag(inputs[2], slots.flatten(1), same_weights.flatten(1), backend=backend)
    assert torch.equal(slots, same_slots)
    torch.testing.assert_close(weights, same_weights)
    torch.testing.assert_close(output, same_output)
    for outputs in ((output, same_output), (weights[..., 0], same_weights[..., 0])):
        one, two = (torch.autograd.grad(o.sin().sum(), inputs[:2], retain_graph=True) for o in outputs)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b)


def test_only_what_requires_a_gradient_gets_one(backend):
    queries, sub_keys, values = lookup_inputs()
    output, weights, slots = ops.product_key_memory(queries.detach(), sub_keys.detach(), values, 2, backend=backend)
    assert not slots.requires_grad
    output.sum().backward()
    assert values.grad is not None
    output, weights, _ = ops.product_key_memory(queries, sub_keys.detach(), values.detach(), 2, backend=backend)
    weights.square().sum().backward()  # no gradient comes in through the output
    assert queries.grad is not None
    assert sub_keys.grad is None
    scores, slots = ops.product_key_topk(queries.detach(), sub_keys.detach(), 2, backend=backend)
    assert not scores.requires_grad


def test_strided_inputs(backend):
    queries, sub_keys, values = lookup_inputs(grad=False)
    plain = ops.product_key_memory(queries, sub_keys, values, 3, backend=backend)
    strided = (
        queries.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        sub_keys.transpose(0, 3).contiguous().transpose(0, 3),
        values.t().contiguous().t(),
    )
    assert not any(x.is_contiguous() for x in strided)
    for one, two in zip(plain, ops.product_key_memory(*strided, 3, backend=backend), strict=True):
        torch.testing.assert_close(one, two)
    # One set of keys for all heads, as an expanded view; an expanded gradient.
    shared = sub_keys[:1].clone().requires_grad_()
    own = sub_keys[:1].repeat(3, 1, 1, 1).requires_grad_()
    ops.product_key_memory(queries, shared.expand(3, -1, -1, -1), values, 3, backend=backend)[0].sum().backward()
    ops.product_key_memory(queries, own, values, 3, backend=backend)[0].sum().backward()
    torch.testing.assert_close(shared.grad, own.grad.sum(0, keepdim=True))
    values, slots, weights = bag_inputs(grad=False)
    turned = (values.t().contiguous().t(), slots.t().contiguous().t(), weights.t().contiguous().t())
    torch.testing.assert_close(
        ops.weighted_bag(*turned, backend=backend), ops.weighted_bag(values, slots, weights, backend=backend)
    )


def test_empty_batches(backend):
    queries, sub_keys, values = lookup_inputs(tokens=0)
    output, weights, slots = ops.product_key_memory(queries, sub_keys, values, 3, backend=backend)
    assert (output.shape, weights.shape, slots.shape) == ((0, 5), (0, 3, 3), (0, 3, 3))
    (output.sum() + weights.sum()).backward()
    assert queries.grad.shape == queries.shape
    assert sub_keys.grad.abs().max() == 0
    assert values.grad.to_dense().abs().max() == 0


def test_backward_has_the_same_bits_each_time(backend):
    inputs = lookup_inputs(tokens=200, dtype=torch.float32)
    results = []
    for _ in range(2):
        output, weights, _ = ops.product_key_memory(*inputs, 5, backend=backend)
        results.append(torch.autograd.grad(output.sin().sum() + weights.sin().sum(), inputs))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one.to_dense(), two.to_dense())


def test_rows_adam_updates_a_parameter(backend):
    """Against the definition; the parameter may require a gradient."""
    values, slots, weights = bag_inputs(dtype=torch.float32)
    weights = weights.detach()
    parameter = torch.nn.Parameter(values.detach().clone())
    grad = torch.randn(6, 3, generator=generator(5))
    gradient, step = RowGradients(grad, slots, weights), AdamStep(0.5, 0.01, 0.9, 0.98, 1e-8, 0.1, 3)
    states = [torch.rand(11, 3, generator=generator(6)) for _ in range(2)]
    expected = [values.detach().clone(), *(s.clone() for s in states)]
    versions = [x._version for x in (parameter, *states)]
    ops.rows_adam_(parameter, AdamState(*states), gradient, step, backend=backend)
    assert all(x._version > before for x, before in zip((parameter, *states), versions, strict=True))
    reference.rows_adam_(expected[0], AdamState(*expected[1:]), gradient, step)
    for one, two in zip((parameter.detach(), *states), expected, strict=True):
        torch.testing.assert_close(one, two)
    norm = ops.rows_squared_norm(gradient, 11, backend=backend)
    torch.testing.assert_close(norm, reference.rows_squared_norm(gradient, 11))


# ---- PyTorch's own checks ----------------------------------------------------------------------------------


def operator_calls():
    """(operator, arguments), with gradients where the operator has them."""
    native = torch.ops.memory_layers
    queries, sub_keys, values = lookup_inputs(dtype=torch.float32)
    frozen = values.detach()
    scores, slots = reference.product_key_topk(queries.detach(), sub_keys.detach(), 3)
    table, bag, weights = bag_inputs(dtype=torch.float32)
    fixed = weights.detach()
    grad = torch.randn(6, 3, generator=generator(7))
    half_scores = torch.randn(4, 2, 2, 6, generator=generator(8), requires_grad=True)
    state = [torch.rand(11, 3, generator=generator(9)) for _ in range(4)]
    adam = (grad, bag, fixed, 1.0, 0.01, 0.9, 0.98, 1e-8, 0.1, 3)
    return [
        (native.product_key_select, (half_scores, 4)),
        (native.product_key_select_backward, (scores, slots, 7)),
        (native.product_key_topk, (queries, sub_keys, 3)),
        (native.product_key_topk_backward, (scores, slots, queries.detach(), sub_keys.detach())),
        (native.weighted_bag, (table.detach(), bag, weights)),
        (native.weighted_bag_weights_backward, (grad, table.detach(), bag)),
        (native.weighted_bag_values_backward, (grad, bag, fixed, 11)),
        (native.product_key_memory, (queries, sub_keys, frozen, 3)),
        (native.rows_squared_norm, (grad, bag, fixed, 11)),
        (native.rows_adam_, (*state[:3], None, *adam)),
        (native.rows_adam_, (state[0].bfloat16(), *state[1:], *adam)),
    ]


def test_every_operator_is_checked():
    names = {str(call[0]).rpartition(".")[2] for call in operator_calls()}
    assert names == {schema.partition("(")[0] for schema in ops.SCHEMAS}


@pytest.mark.parametrize("index", range(11))
def test_opcheck(index):
    operator, arguments = operator_calls()[index]
    opcheck(operator.default, arguments)


def test_opcheck_of_sparse_gradients():
    """All of opcheck but tracing the backward: PyTorch traces no sparse gradient."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(torch.ops.memory_layers.weighted_bag.default, bag_inputs(dtype=torch.float32), test_utils=tests)
    opcheck(
        torch.ops.memory_layers.product_key_memory.default, (*lookup_inputs(dtype=torch.float32), 3), test_utils=tests
    )


def test_compiled_functions_compute_the_same():
    queries, sub_keys, values = lookup_inputs(dtype=torch.float32)
    values = values.detach()

    def lookup(queries, sub_keys):
        scores, slots = ops.product_key_topk(2 * queries, sub_keys, 3)
        bag = ops.weighted_bag(values, slots.flatten(1), scores.softmax(-1).flatten(1))
        return bag + ops.product_key_memory(queries, sub_keys, values, 3)[0]

    compiled = torch.compile(lookup, backend="aot_eager", fullgraph=True)
    results = []
    for run in (lookup, compiled):
        output = run(queries, sub_keys)
        results.append((output, *torch.autograd.grad(output.sin().sum(), (queries, sub_keys))))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


# ---- the choice of the implementation ----------------------------------------------------------------------


def test_wrong_backends_are_named():
    with pytest.raises(ValueError, match="must be one of auto, cpu, cuda, torch, given 'gpu'"):
        ops.check_available("gpu")
    assert set(ops.backends()) == set(ops.BACKENDS)
    assert backends.described("auto").startswith("auto (kernels: ")
    assert backends.described("torch") == "torch"


def test_requested_kernels_do_not_fall_back():
    values, slots, weights = bag_inputs(dtype=torch.float16, grad=False)
    with pytest.raises(TypeError, match=r"the cpu kernels take .* given torch\.float16 on cpu.*'auto' or 'torch'"):
        ops.weighted_bag(values, slots, weights, backend="cpu")
    with pytest.raises(TypeError, match="on meta"):
        ops.weighted_bag(values.float().to("meta"), slots.to("meta"), weights.to("meta"), backend="cpu")


def test_float64_beside_another_format_is_not_rounded():
    """What the kernels would accumulate in the format of the values goes to the definitions."""
    values, slots, weights = bag_inputs(dtype=torch.float32, grad=False)
    weights = weights.double() + 1e-12
    wide = values.double()
    grad = torch.randn(6, 3, generator=generator(10), dtype=torch.float64)
    result = ops.weighted_bag_weights_backward(grad, values, slots)
    torch.testing.assert_close(result, ops.weighted_bag_weights_backward(grad, wide, slots), rtol=1e-12, atol=1e-14)
    output = ops.weighted_bag(values, slots, weights)
    assert torch.equal(output, ops.weighted_bag(wide, slots, weights).float())
    queries, sub_keys, table = lookup_inputs(grad=False)
    result = ops.product_key_memory(queries, sub_keys, table.float(), 3)[0]
    assert torch.equal(result, ops.product_key_memory(queries, sub_keys, table.float().double(), 3)[0].float())
    with pytest.raises(TypeError, match=r"torch\.float64 with no other.*given torch\.float32 on cpu, torch\.float64"):
        ops.weighted_bag(values, slots, weights, backend="cpu")


def test_more_keys_than_the_kernels_take():
    """Slots above 31 bits: auto takes the definitions; requested kernels are an error."""
    half_scores = torch.arange(46341.0).repeat(1, 1, 2, 1)
    scores, slots = ops.product_key_select(half_scores, 1)
    assert (scores.item(), slots.item()) == (2 * 46340, 46341**2 - 1)
    with pytest.raises(TypeError, match=r"n up to 46340, given torch\.float32 on cpu, k = 1 and n = 46341"):
        ops.product_key_select(half_scores, 1, backend="cpu")


@pytest.mark.parametrize(("k", "n", "kernel"), [(128, 4096, True), (129, 4096, False), (128, 4097, False)])
def test_limits_of_the_cuda_kernels(monkeypatch, k, n, kernel):
    """Beyond them `auto` takes the definitions; without a GPU the tensors are fake."""
    monkeypatch.setattr(ops, "has_kernel", lambda name, device: True)
    with FakeTensorMode():
        queries, sub_keys = torch.empty(3, 2, 8, device="cuda"), torch.empty(2, 2, n, 4, device="cuda")
        assert ops._runs_plainly("product_key_topk", "auto", queries, sub_keys, k=k, n=n) != kernel


def test_limits_are_those_of_the_sources():
    folder = Path(ops.__file__).parent / "csrc"
    tasks = (folder / "cuda" / "tasks.h").read_text(encoding="utf-8")
    for name, limit in (("kMaxK", ops.KERNELS["cuda"].k), ("kMaxN", ops.KERNELS["cuda"].n)):
        assert f"constexpr int {name} = {limit};" in tasks
    assert f"n <= {ops.KERNELS['cpu'].n}, op" in (folder / "ops.cpp").read_text(encoding="utf-8")


def test_missing_kernels_are_named(monkeypatch):
    monkeypatch.setattr(backends, "backends", lambda: {"auto": True, "cpu": True, "cuda": False, "torch": True})
    with pytest.raises(RuntimeError, match=r"MEMORY_LAYERS_BUILD=cuda|no CUDA device"):
        ops.check_available("cuda")


ALONE = """
import torch
from memory_layers import ops

assert ops.backends() == {"auto": True, "cpu": False, "cuda": False, "torch": True}
for name in ("cpu", "cuda"):
    try:
        ops.check_available(name)
    except RuntimeError as error:
        assert f"MEMORY_LAYERS_BUILD={name} pip install" in str(error), error
    else:
        raise AssertionError(name)
queries, sub_keys, values = torch.randn(5, 2, 8), torch.randn(2, 2, 6, 4), torch.randn(36, 3)
queries.requires_grad_(), values.requires_grad_()
results = []
for name in ("auto", "torch"):
    output, weights, slots = ops.product_key_memory(queries, sub_keys, values, 3, backend=name)
    gradients = torch.autograd.grad(output.square().sum(), (queries, values))
    results.append((output, weights, slots, *(g.to_dense() for g in gradients)))
for one, two in zip(*results):
    torch.testing.assert_close(one, two)
"""


@pytest.mark.slow
def test_without_a_compiler(tmp_path):
    """The package in a folder without the extension."""
    shutil.copytree(Path(ops.__file__).parent, tmp_path / "memory_layers", ignore=shutil.ignore_patterns("_C*", "csrc"))
    command = [sys.executable, "-c", ALONE]
    environment = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_an_extension_of_another_pytorch_is_refused_by_name(tmp_path):
    (tmp_path / "_C.so").write_bytes(b"not a library")
    copy = shutil.copy(library.__file__, tmp_path / "library.py")
    spec = importlib.util.spec_from_file_location("library_beside_a_broken_extension", copy)
    with pytest.raises(ImportError, match="does not fit PyTorch"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
