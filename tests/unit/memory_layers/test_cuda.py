"""The CUDA operators on a GPU: against their definitions computed on the CPU, gradients, determinism, opcheck.

The kernels' details (sizes, ties, infinities, planted faults) are in test_simt.py, which needs no GPU.

Axes: T tokens, H heads, N sub-keys per half, K selected slots, D key dimension, V value dimension, bag = H·K.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memory_layers import ops, reference
from memory_layers.row_updates import AdamState, AdamStep, RowGradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ops.backends()["cuda"], reason="needs a CUDA device and the CUDA kernels"),
]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)


def wide(dtype: torch.dtype) -> torch.dtype:
    return reference.accumulation(torch.empty(0, dtype=dtype))


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    tolerance = TOLERANCE[dtype] * max(scale, 1.0)
    torch.testing.assert_close(result.cpu(), expected.to(result.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("make", (torch.Tensor.clone, torch.Tensor.round), ids=("distinct", "tied"))
@pytest.mark.parametrize(("n", "k"), ((1, 1), (7, 7), (33, 20), (512, 32), (4096, 128)))
def test_select(n: int, k: int, make: Callable[[Tensor], Tensor]) -> None:
    for dtype in (torch.float32, torch.float64):
        half_scores = make(torch.randn(5, 2, 2, n, dtype=dtype))
        half_scores[-1, :, 0, ::3] = -torch.inf
        for scores in (half_scores, half_scores.transpose(0, 1).contiguous().transpose(0, 1)):
            result = ops.product_key_select(scores.cuda(), k)
            for actual, expected in zip(result, reference.product_key_select(scores, k), strict=True):
                assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_and_its_gradients(dtype: torch.dtype) -> None:
    """Scores on a coarse grid are exact in every format, so both devices select the same slots."""
    queries = torch.randint(-4, 5, (40, 4, 32)).to(dtype)
    sub_keys = torch.randint(-4, 5, (4, 2, 48, 16)).to(dtype) / 64
    for dim in (64, 37):
        values = torch.randn(48 * 48, dim).to(dtype)
        grad = torch.randn(40, dim).to(dtype)
        results = []
        for device in ("cpu", "cuda"):
            inputs = [x.to(device).requires_grad_() for x in (queries, sub_keys, values)]
            run = reference.product_key_memory if device == "cpu" else ops.product_key_memory
            output, weights, slots = run(*inputs, 9)
            output.backward(grad.to(device))
            assert inputs[2].grad is not None
            results.append((output, weights, slots, inputs[0].grad, inputs[1].grad, inputs[2].grad.to_dense()))
        assert torch.equal(results[0][2], results[1][2].cpu())
        for expected, result in zip(*results, strict=True):
            close(result.detach(), expected.detach(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_adam(dtype: torch.dtype) -> None:
    master = torch.randn(300, 48, dtype=wide(dtype))
    for copy in (None, master):
        start = [master.to(dtype), torch.zeros_like(master), torch.zeros_like(master), copy]
        state = {device: [None if x is None else x.clone().to(device) for x in start] for device in ("cpu", "cuda")}
        for step in range(1, 4):
            triple = (
                torch.randn(50, 48).to(dtype),
                torch.randint(300, (50, 12)),
                torch.rand(50, 12, dtype=wide(dtype)),
            )
            for device, run in (("cpu", reference.rows_adam_), ("cuda", ops.rows_adam_)):
                values, *moments = state[device]
                gradient = RowGradients(*(x.to(device) for x in triple))
                run(values, AdamState(*moments), gradient, AdamStep(0.5, 1e-2, 0.9, 0.98, 1e-8, 0.01, step))
            norm = ops.rows_squared_norm(RowGradients(*(x.cuda() for x in triple)), 300)
            expected_norm = reference.rows_squared_norm(RowGradients(*triple), 300)
            torch.testing.assert_close(norm.cpu(), expected_norm, rtol=1e-5, atol=0)
        for expected, result in zip(state["cpu"], state["cuda"], strict=True):
            if expected is not None and result is not None:
                close(result, expected, result.dtype)


def test_same_bits_in_every_run() -> None:
    queries, sub_keys = torch.randn(200, 4, 64).cuda(), torch.randn(4, 2, 64, 32).cuda()
    values, grad = torch.randn(4096, 96).cuda(), torch.randn(200, 96).cuda()
    runs = []
    for _ in range(2):
        inputs = [x.clone().requires_grad_() for x in (queries, sub_keys, values)]
        output, weights, _ = ops.product_key_memory(*inputs, 16)
        output.backward(grad)
        assert inputs[2].grad is not None
        runs.append((output, weights, inputs[0].grad, inputs[1].grad, inputs[2].grad.to_dense()))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_current_stream_and_device() -> None:
    """Work follows what was queued before on the current stream, and runs where the tensors are."""
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    values, slots, weights = torch.randn(500, 64), torch.randint(500, (64, 8)), torch.rand(64, 8)
    on_device = [x.to(device) for x in (values, slots, weights)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        late = on_device[0].clone().zero_()
        torch.cuda._sleep(10_000_000)
        late.copy_(on_device[0])
        output = ops.weighted_bag(late, *on_device[1:])
    stream.synchronize()
    close(output, reference.weighted_bag(values, slots, weights), torch.float32)
    assert output.device == device


def test_empty_batch() -> None:
    output, weights, slots = ops.product_key_memory(
        torch.empty(0, 2, 8).cuda(), torch.randn(2, 2, 6, 4).cuda(), torch.randn(36, 5).cuda(), 3
    )
    assert output.shape == (0, 5)
    assert weights.shape == slots.shape == (0, 2, 3)


def test_limits_are_named() -> None:
    """And beyond them the definitions compute, unless the kernels were requested."""
    for n, k in ((200, 129), (4097, 1)):
        half_scores = torch.randn(1, 1, 2, n)
        with pytest.raises(RuntimeError, match="k up to 128 and n up to 4096"):
            torch.ops.memory_layers.product_key_select(half_scores.cuda(), k)
        results = ops.product_key_select(half_scores.cuda(), k)
        for result, expected in zip(results, reference.product_key_select(half_scores, k), strict=True):
            assert torch.equal(result.cpu(), expected)
        with pytest.raises(TypeError, match=f"k up to 128 and n up to 4096, given .*, k = {k} and n = {n}"):
            ops.product_key_select(half_scores.cuda(), k, backend="cuda")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_opcheck(dtype: torch.dtype) -> None:
    operators = torch.ops.memory_layers
    queries = torch.randn(6, 2, 8, dtype=dtype, device="cuda", requires_grad=True)
    sub_keys = torch.randn(2, 2, 6, 4, dtype=dtype, device="cuda", requires_grad=True)
    values = torch.randn(36, 10, dtype=dtype, device="cuda")
    slots, weights = torch.randint(36, (6, 6)).cuda(), torch.rand(6, 6, device="cuda", requires_grad=True)
    torch.library.opcheck(operators.product_key_topk.default, (queries, sub_keys, 3))
    torch.library.opcheck(operators.weighted_bag.default, (values, slots, weights))
    torch.library.opcheck(operators.product_key_memory.default, (queries, sub_keys, values, 3))
