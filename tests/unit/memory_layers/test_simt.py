"""The CUDA kernels without a GPU: the sources of memory_layers/csrc/cuda, on the emulated device of tests/support/simt.

The emulation checks every access (bounds, alignment, races between barriers, barriers that not all threads reach), so
each comparison here is also such a check; the last tests plant faults in a copy of the sources, which it must detect.

Axes: T tokens, H heads, N sub-keys per half, K selected slots, V columns of the table, bag slots per token.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memory_layers import reference
from memory_layers.row_updates import AdamState, AdamStep, RowGradients
from tests.support.memory_brute_force import KINDS, best, hard_rows, same_bits
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # the emulation is compiled first

KERNELS = ROOT / "memory_layers" / "csrc" / "cuda"
SIMT = ROOT / "tests" / "support" / "simt"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # numbered as in simt/kernels.cpp
SUM_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Fault(Exception):
    """What the emulated device reported."""


class DeviceTensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64))


class DevicePairs(ctypes.Structure):
    _fields_ = (
        *((name, DeviceTensor) for name in ("slots", "positions", "weights", "grad")),
        ("n_slots", ctypes.c_int64),
        ("bag", ctypes.c_int),
        ("dim", ctypes.c_int),
    )


class DeviceAdamStep(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("scale", "lr", "beta1", "beta2", "eps", "weight_decay")),
        ("step", ctypes.c_int64),
    )


def whole(x: Tensor | None) -> DeviceTensor:
    """All of a tensor's storage from its first element on: what the kernel may touch."""
    if x is None:
        return DeviceTensor(None, 0)
    return DeviceTensor(x.data_ptr(), x.untyped_storage().nbytes() // x.element_size() - x.storage_offset())


def compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.fail("the emulated device needs a C++ compiler: install one, or name it in CXX")


def build(library: Path, *, kernels: Path = KERNELS, flags: tuple[str, ...] = ("-O1",)) -> ctypes.CDLL:
    command = [compiler(), "-std=c++20", "-g0", "-fPIC", "-shared", "-ffp-contract=off", "-DMEMORY_LAYERS_SIMT"]
    command += [*flags, f"-I{SIMT}", f"-I{kernels}", str(SIMT / "kernels.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


class Device:
    """The emulated device: its functions take tensors and numbers, with a seed for the order of the threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def call(self, name: str, seed: int, dtype: torch.dtype, *arguments: Any) -> None:
        function = getattr(self.library, f"simt_{name}")
        function.restype = ctypes.c_char_p
        fault = function(ctypes.c_int64(seed), ctypes.c_int(DTYPES.index(dtype)), *arguments)
        if fault is not None:
            raise Fault(fault.decode())

    def select(self, half_scores: Tensor, k: int, *, softmax: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
        tokens, heads, _, n = half_scores.shape
        scores = half_scores.new_full((tokens, heads, k), 7.0)
        slots = torch.full((tokens, heads, k), -1)
        strides = [ctypes.c_int64(stride) for stride in half_scores.stride()[:3]]
        self.call(
            "select", seed, half_scores.dtype, whole(half_scores), *strides, whole(scores), whole(slots),
            ctypes.c_int64(tokens * heads), heads, n, k, ctypes.c_bool(softmax),
        )  # fmt: skip
        return scores, slots

    def select_backward(self, grad: Tensor, slots: Tensor, n: int) -> Tensor:
        result = grad.new_full((*grad.shape[:2], 2, n), 7.0)
        rows = ctypes.c_int64(grad.size(0) * grad.size(1))
        self.call("select_backward", 0, grad.dtype, whole(grad), whole(slots), whole(result), rows, n, grad.size(2))
        return result

    def bag(self, values: Tensor, slots: Tensor, weights: Tensor, *, seed: int = 0) -> Tensor:
        output = values.new_full((slots.size(0), values.size(1)), 7.0)
        sizes = ctypes.c_int64(slots.size(0)), ctypes.c_int64(values.size(0)), slots.size(1), values.size(1)
        self.call("bag", seed, values.dtype, whole(values), whole(slots), whole(weights), whole(output), *sizes)
        return output

    def bag_weights_backward(self, grad: Tensor, values: Tensor, slots: Tensor) -> Tensor:
        result = grad.new_full(slots.shape, 7.0)
        sizes = ctypes.c_int64(slots.size(0)), ctypes.c_int64(values.size(0)), slots.size(1), values.size(1)
        self.call(
            "bag_weights_backward", 0, values.dtype, whole(grad), whole(values), whole(slots), whole(result), *sizes
        )
        return result

    def rows(self, name: str, dtype: torch.dtype, factors: tuple[Tensor, Tensor, Tensor], n_slots: int, *rest: Any,
             seed: int = 0) -> None:  # fmt: skip
        grad, slots, weights = factors
        sorted_slots, positions = slots.flatten().sort(stable=True)
        positions = positions.int()
        pairs = DevicePairs(
            whole(sorted_slots), whole(positions), whole(weights), whole(grad), n_slots, slots.size(1), grad.size(1)
        )
        self.call(name, seed, dtype, pairs, *rest)

    def adam(self, dtype: torch.dtype, factors: tuple[Tensor, Tensor, Tensor], table: Sequence[Tensor | None],
             step: AdamStep) -> None:  # fmt: skip
        """Update ``table``: values, exp_avg, exp_avg_sq, master."""
        values = table[0]
        assert values is not None
        self.rows("adam", dtype, factors, len(values), *map(whole, table), DeviceAdamStep(*step))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return Device(build(tmp_path_factory.mktemp("simt") / "kernels.so"))


# ---- selection ---------------------------------------------------------------------------------------------


SIZES = ((1, 1), (2, 1), (2, 2), (5, 3), (31, 7), (32, 32), (33, 20), (67, 33), (130, 128))  # n, k


def few_nan(shape: tuple[int, ...], draw: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Fewer sums that are NaN than k, mostly, and -inf among the others."""
    rows = hard_rows("masked", shape, draw, dtype)
    rows[..., 0, :2] = -torch.inf
    rows[..., 1, -1:] = torch.inf
    rows[..., 0, 2:] = rows[..., 0, 2:].nan_to_num(neginf=-1)
    return rows


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("kind", (*KINDS, "few nan"))
def test_select_is_the_definition(device: Device, kind: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    for n, k in SIZES:
        shape = (2, 2, 3, n)  # as the product of queries and sub-keys gives them: (H, 2, T, N), permuted
        rows = few_nan((2, 3, 2, n), draw, dtype) if kind == "few nan" else hard_rows(kind, (2, 3, 2, n), draw, dtype)
        half_scores = rows.transpose(1, 2).reshape(shape).permute(2, 0, 1, 3)
        want_scores, want_slots = best(half_scores, k)
        for seed in (0, n):
            scores, slots = device.select(half_scores, k, seed=seed)
            assert torch.equal(slots, want_slots), (n, k)
            assert same_bits(scores, want_scores), (n, k)
        weights, slots = device.select(half_scores, k, softmax=True)
        assert torch.equal(slots, want_slots), (n, k)
        torch.testing.assert_close(weights, want_scores.softmax(-1), rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(
    ("n", "k", "dtype"), ((512, 32, torch.float32), (4096, 128, torch.float32), (4096, 128, torch.float64))
)
def test_select_at_full_size(device: Device, n: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half_scores = torch.randn(3 if n < 1000 else 1, 1, 2, n, dtype=dtype)
    scores, slots = device.select(half_scores, k)
    want_scores, want_slots = reference.product_key_select(half_scores, k)
    assert torch.equal(slots, want_slots)
    assert torch.equal(scores, want_scores)


def test_select_of_nothing(device: Device) -> None:
    scores, slots = device.select(torch.empty(0, 2, 2, 8), 3)
    assert scores.shape == slots.shape == (0, 2, 3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize(("n", "k"), ((1, 1), (5, 5), (33, 20), (200, 128)))
def test_select_backward_is_the_reference(device: Device, n: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _, slots = reference.product_key_select(torch.randn(3, 2, 2, n), k)
    grad = torch.randn(3, 2, k, dtype=dtype)
    want = reference.product_key_select_backward(grad, slots, n)
    torch.testing.assert_close(device.select_backward(grad, slots, n), want, rtol=1e-5, atol=1e-5)


# ---- weighted sums of rows ---------------------------------------------------------------------------------

BAGS = ((1, 1), (3, 5), (40, 8), (7, 64), (130, 96), (300, 24), (4, 520), (3, 1030), (0, 16))


def table(n_slots: int, dim: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """(n_slots, dim), beginning `offset` elements after a 16-byte boundary."""
    flat = torch.empty(offset + n_slots * dim, dtype=dtype)
    return flat[offset:].view(n_slots, dim).copy_(torch.randn(n_slots, dim))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bag_is_the_reference(device: Device, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = reference.accumulation(torch.empty(0, dtype=dtype))
    for bag, dim in BAGS:
        for offset in (0, 1):
            values = table(50, dim, dtype, offset)
            slots = torch.randint(50, (3, bag))
            weights = torch.rand(3, bag, dtype=wide)
            output = device.bag(values, slots, weights)
            want = reference.weighted_bag(values, slots, weights)
            scale = float(want.abs().max()) if bag else 1.0
            tolerance = SUM_TOLERANCE[dtype] * max(scale, 1.0)
            torch.testing.assert_close(output, want, rtol=0, atol=tolerance, msg=f"{bag} x {dim}, offset {offset}")
            assert torch.equal(output, device.bag(values, slots, weights, seed=3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bag_weights_backward_is_the_reference(device: Device, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = reference.accumulation(torch.empty(0, dtype=dtype))
    for bag, dim in BAGS:
        for offset in (0, 1):
            values = table(50, dim, dtype, offset)
            slots = torch.randint(50, (2, bag))
            grad = torch.randn(2, dim, dtype=wide)
            want = reference.weighted_bag_weights_backward(grad, values, slots)
            result = device.bag_weights_backward(grad, values, slots)
            torch.testing.assert_close(result, want.view_as(result), rtol=1e-5, atol=1e-5 * dim**0.5)


def test_slot_out_of_range(device: Device) -> None:
    values, weights = torch.randn(9, 8), torch.rand(1, 3)
    for slot in (-1, 9):
        with pytest.raises(Fault, match=r"device check failed: slot >= 0 && slot < task\.n_slots"):
            device.bag(values, torch.tensor([[0, slot, 1]]), weights)


# ---- the touched rows --------------------------------------------------------------------------------------

ROWS = ((1, 1, 4, 1), (5, 3, 20, 5), (9, 30, 12, 16), (4, 40, 3, 132), (3, 7, 500, 520), (40, 2, 1, 8))  # T bag n V


def factors(tokens: int, bag: int, n_slots: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    slots = torch.randint(n_slots, (tokens, bag))
    return torch.randn(tokens, dim, dtype=dtype), slots, torch.rand(tokens, bag, dtype=dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_squared_norm_is_the_reference(device: Device, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for tokens, bag, n_slots, dim in ROWS:
        triple = factors(tokens, bag, n_slots, dim, dtype)
        norms = torch.zeros(tokens * bag, dtype=torch.float64)
        device.rows("squared_norm", dtype, triple, n_slots, whole(norms))
        want = reference.rows_squared_norm(RowGradients(*triple), n_slots)
        torch.testing.assert_close(norms.sum(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_rows_are_the_reference(device: Device, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = reference.accumulation(torch.empty(0, dtype=dtype))
    for tokens, bag, n_slots, dim in ROWS:
        triple = factors(tokens, bag, n_slots, dim, wide)
        touched, want = reference.weighted_bag_values_backward(*triple, n_slots)
        ranks = torch.searchsorted(touched, triple[1].flatten().sort().values)
        rows = torch.full(want.shape, 7.0, dtype=dtype)
        device.rows("rows", dtype, triple, n_slots, whole(ranks), whole(rows))
        tolerance = SUM_TOLERANCE[dtype]
        torch.testing.assert_close(rows, want.to(dtype), rtol=tolerance, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("master", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_is_the_reference(device: Device, dtype: torch.dtype, master: bool) -> None:
    torch.manual_seed(0)
    wide = reference.accumulation(torch.empty(0, dtype=dtype))
    lr, beta1, beta2, eps, decay, scale, step = 0.05, 0.9, 0.98, 1e-8, 0.1, 0.5, 3
    for tokens, bag, n_slots, dim in ROWS:
        triple = factors(tokens, bag, n_slots, dim, wide)
        start = torch.randn(n_slots, dim, dtype=wide)
        tensors: list[Tensor | None] = [start.to(dtype), torch.randn_like(start), torch.rand_like(start)]
        tensors.append(start if master else None)
        before = [None if x is None else x.clone() for x in tensors]
        want = [None if x is None else x.clone() for x in tensors]
        numbers = AdamStep(scale, lr, beta1, beta2, eps, decay, step)
        reference.rows_adam_(want[0], AdamState(*want[1:]), RowGradients(*triple), numbers)
        device.adam(dtype, triple, tensors, numbers)
        untouched = torch.ones(n_slots, dtype=torch.bool).index_fill(0, triple[1].flatten(), False)
        for result, expected, old in zip(tensors, want, before, strict=True):
            if result is None:
                continue
            tolerance = SUM_TOLERANCE[result.dtype]
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=10 * tolerance)
            assert torch.equal(result[untouched], old[untouched])


def test_adam_with_a_beta_near_one(device: Device) -> None:
    """1 - beta is not computed in float32, where 1 - 0.9999 is wrong by 2e-4 of itself."""
    triple = factors(4, 2, 3, 8, torch.float32)
    tensors = [torch.zeros(3, 8) for _ in range(3)]
    want = [torch.zeros(3, 8, dtype=torch.float64) for _ in range(3)]
    lr, beta1, beta2, eps = 0.05, 0.999, 0.9999, 1e-8
    numbers = AdamStep(1.0, lr, beta1, beta2, eps, 0.0, 1)
    gradient = RowGradients(*(x.double() if x.is_floating_point() else x for x in triple))
    reference.rows_adam_(want[0], AdamState(*want[1:]), gradient, numbers)
    device.adam(torch.float32, triple, (*tensors, None), numbers)
    for result, expected in zip(tensors, want, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=0)


# ---- planted faults ----------------------------------------------------------------------------------------


def planted(folder: Path, file: str, before: str, after: str, *flags: str) -> Device:
    """The device with a copy of the kernels in which one passage is changed."""
    kernels = folder / "cuda"
    shutil.copytree(KERNELS, kernels)
    shutil.copy(KERNELS.parent / "adam.h", folder)
    text = (kernels / file).read_text()
    assert text.count(before) == 1, f"{file} must hold once: {before}"
    (kernels / file).write_text(text.replace(before, after))
    return Device(build(folder / "planted.so", kernels=kernels, flags=("-O0", *flags)))


SELECT_FAULTS = {
    "race": (
        "if (lane == 0) memory.half_keys[half * (k + 1) + k] = taken.next;\n  __syncwarp();",
        "if (lane == 0) memory.half_keys[half * (k + 1) + k] = taken.next;",
        "race in shared memory",
    ),
    "beyond a tensor": (
        "row * k + rank_of<Key<S>>(memory.taken_keys[e]",
        "row * k + 1 + rank_of<Key<S>>(memory.taken_keys[e]",
        "access out of bounds in global memory: element 5 of 5",
    ),
    "beyond an array": (
        "keys = arena.take<Key<S>>(n > pairs_count ? n : pairs_count);",
        "keys = arena.take<Key<S>>(n - 1);",
        "access out of bounds in shared memory",
    ),
    "divergence": (
        "const unsigned keepers = __ballot_sync(kAll, keep);",
        "const unsigned keepers = keep ? __ballot_sync(kAll, keep) : 0;",
        "lanes of a warp meet at|not all threads reach",
    ),
}


@pytest.mark.parametrize("fault", SELECT_FAULTS)
def test_planted_fault_in_select_is_found(tmp_path: Path, fault: str) -> None:
    before, after, message = SELECT_FAULTS[fault]
    device = planted(tmp_path, "select.h", before, after, "-DSIMT_SELECT_ONLY")
    half_scores = torch.randn(1, 1, 2, 40, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Fault, match=message):
        device.select(half_scores, 5)


def test_planted_race_between_blocks_is_found(tmp_path: Path) -> None:
    # Without this line every pair of a row updates it, from several warps and blocks.
    line = "  if (pair > 0 && task.slots[pair - 1] == slot) return;\n"
    device = planted(tmp_path, "rows.h", line, "")
    triple = factors(5, 4, 1, 8, torch.float32)
    table = [torch.rand(1, 8) for _ in range(3)]
    with pytest.raises(Fault, match="race in global memory"):
        device.adam(torch.float32, triple, (*table, None), AdamStep(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1))
