"""The CPU kernels of memory_layers (csrc/) against brute force, float64 and their plain twins.

The operators' gradients, opcheck and torch.compile are in test_ops.py. These tests also run under the
sanitizers, see CONTRIBUTING.md.
"""

import os
import random
import subprocess
import sys

import pytest
import torch

from memory_layers import ops, reference
from memory_layers.row_updates import AdamState, AdamStep, RowGradients
from tests.support.memory_brute_force import KINDS, best, hard_rows, same_bits
from tests.support.paths import ROOT

kernels = torch.ops.memory_layers

# Largest error relative to the largest value, against the same computation in float64 on the same inputs.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 4e-3,  # one rounding of the result: 2^-8
}
DTYPES = tuple(TOLERANCE)


@pytest.fixture(autouse=True)
def cpu_kernels():
    """Fail with the remedy if they are not built."""
    ops.check_available("cpu")


@pytest.fixture
def threads():
    """Sets the number of threads, and puts back what was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def assert_close(actual, expected, tolerance, what=""):
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max().item()
    scale = max(expected.double().abs().max().item(), 1e-3)
    assert error <= tolerance * scale, f"{what}: error {error:.2e} at scale {scale:.2e}"


# ---- selection ---------------------------------------------------------------------------------------------


def assert_selects(half_scores, k):
    scores, slots = kernels.product_key_select(half_scores, k)
    expected_scores, expected_slots = best(half_scores, k)
    assert torch.equal(slots, expected_slots), (half_scores.shape, k)
    assert same_bits(scores, expected_scores), (half_scores.shape, k)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_selections_are_brute_force(threads, kind, dtype):
    """500 rows of each kind and number format, every fourth time on two threads."""
    draw, sizes = generator(KINDS.index(kind)), random.Random(kind)
    for call in range(25):
        threads(2 if call % 4 == 0 else 1)
        n = sizes.choice((1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 40, 47, 48, 64))
        k = sizes.choice((1, n, sizes.randint(1, n)))
        assert_selects(hard_rows(kind, (4, 5, 2, n), draw, dtype), k)


@pytest.mark.parametrize("n", (1, 2, 3, 4, 5, 17))
def test_every_k(n):
    for kind in ("normal", "ties"):
        half_scores = hard_rows(kind, (2, 3, 2, n), generator(n))
        for k in range(1, n + 1):
            assert_selects(half_scores, k)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "k"), [(512, 32), (500, 33), (257, 128), (300, 300), (129, 64), (1024, 1), (2048, 40), (130, 16)], ids=str
)
def test_large_selections(n, k):
    """Sizes at which the groups' maxima, the blocks of the sort and its merges come into play."""
    for kind in ("normal", "ties", "rounding", "one peak"):
        assert_selects(hard_rows(kind, (1, 2, 2, n), generator(n)), k)
    ordered = torch.arange(4 * n, dtype=torch.float32).view(1, 2, 2, n)
    for half_scores in (ordered, -ordered, ordered.sqrt(), torch.exp(-ordered / 20), torch.cos(ordered)):
        assert_selects(half_scores, k)


def test_selection_of_strided_rows():
    whole = hard_rows("normal", (2, 3, 2, 40), generator(1))
    for view in (
        whole.transpose(0, 1).contiguous().transpose(0, 1),
        whole.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3),
        whole.flip(3).transpose(2, 3).contiguous().transpose(2, 3).flip(3),
        whole.repeat(1, 1, 1, 2)[..., :40],
        whole[:, :, :1].expand(2, 3, 2, 40),
        whole[..., ::3],
    ):
        assert_selects(view, 9)


def test_selection_of_no_rows():
    for shape in ((0, 4, 2, 8), (4, 0, 2, 8)):
        scores, slots = kernels.product_key_select(torch.empty(shape), 3)
        assert scores.shape == slots.shape == (*shape[:2], 3)


# ---- all operators against float64 -------------------------------------------------------------------------

CASES = [
    # T, H, N, K, D, V
    (5, 2, 9, 3, 10, 7),  # all below a vector
    (37, 3, 20, 9, 34, 77),  # odd sizes
    (3, 1, 64, 32, 32, 64),
    (150, 2, 33, 8, 6, 130),  # two blocks of tokens
    (1, 4, 16, 16, 128, 33),
    (6, 2, 5, 5, 2, 1),
    (0, 2, 5, 2, 4, 8),  # no token
    (4, 0, 5, 2, 4, 8),  # no head
    (4, 2, 5, 2, 0, 8),  # no key dimension
    (4, 2, 5, 2, 4, 0),  # no value dimension
]


def inputs(case, dtype):
    """Queries, sub-keys, values, the gradient of the output, and slots and weights of a bag."""
    tokens, heads, n, k, key_dim, dim = case
    draw = generator(sum(case))
    shapes = ((tokens, heads, key_dim), (heads, 2, n, key_dim // 2), (n * n, dim), (tokens, dim))
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]
    slots = torch.randint(0, n * n, (tokens, heads * k), generator=draw)
    weights = torch.randn(tokens, heads * k, generator=draw).to(reference.accumulation(tensors[0]))
    return *tensors, slots, weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lookup(case, dtype):
    queries, sub_keys, values, *_ = inputs(case, dtype)
    tokens, heads, n, k, *_ = case
    wide = reference.accumulation(queries)
    scores, slots = kernels.product_key_topk(queries, sub_keys, k)
    assert (scores.dtype, slots.dtype) == (wide, torch.int64)
    # Half scores of another rounding can put other slots in: the scores of the slots that were chosen must be right,
    # and the best.
    halves = reference.half_scores(queries.double(), sub_keys.double())
    sums = (halves[:, :, 0].unsqueeze(3) + halves[:, :, 1].unsqueeze(2)).reshape(tokens, heads, n * n)
    assert_close(scores, sums.gather(2, slots), TOLERANCE[wide], "scores of the slots")
    assert_close(scores, sums.topk(k, dim=2).values, TOLERANCE[wide], "best scores")
    output, weights, read = kernels.product_key_memory(queries, sub_keys, values, k)
    assert (output.dtype, weights.dtype) == (dtype, wide)
    assert torch.equal(read, slots)
    assert_close(weights, scores.double().softmax(dim=2), TOLERANCE[wide], "weights")
    expected = (weights.double().unsqueeze(3) * values.double()[slots]).sum(dim=(1, 2))
    assert_close(output, expected, TOLERANCE[dtype], "output")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_of_the_lookup(case, dtype):
    queries, sub_keys, *_ = inputs(case, dtype)
    tokens, heads, n, k, *_ = case
    slots = torch.randint(0, n * n, (tokens, heads, k), generator=generator(1))
    grad = torch.randn(tokens, heads, k, generator=generator(2), dtype=torch.float64)
    grad = grad.to(reference.accumulation(queries))
    wide_queries, wide_keys = queries.double().requires_grad_(), sub_keys.double().requires_grad_()
    halves = reference.half_scores(wide_queries, wide_keys)
    scores = halves[:, :, 0].gather(2, slots // n) + halves[:, :, 1].gather(2, slots % n)
    expected = torch.autograd.grad(scores, (wide_queries, wide_keys), grad.double())
    actual = kernels.product_key_topk_backward(grad, slots, queries, sub_keys)
    for one, other, what in zip(actual, expected, ("queries", "sub-keys"), strict=True):
        assert one.dtype == dtype
        assert_close(one, other, TOLERANCE[dtype], what)
    halves = kernels.product_key_select_backward(grad, slots, n)
    assert_close(halves, reference.product_key_select_backward(grad.double(), slots, n), TOLERANCE[grad.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bag_and_its_gradients(case, dtype):
    _, _, values, grad, slots, weights = inputs(case, dtype)
    rows = values.double()[slots]  # (T, bag, V)
    expected = (weights.double().unsqueeze(2) * rows).sum(dim=1)
    actual = kernels.weighted_bag(values, slots, weights)
    assert actual.dtype == dtype
    assert_close(actual, expected, TOLERANCE[dtype], "bag")
    actual = kernels.weighted_bag_weights_backward(grad, values, slots)
    assert actual.dtype == weights.dtype
    assert_close(actual, (rows * grad.double().unsqueeze(1)).sum(dim=2), TOLERANCE[weights.dtype], "weights")
    table = torch.zeros(values.shape, dtype=torch.float64)
    pairs = weights.double().unsqueeze(2) * grad.double().unsqueeze(1)
    table.index_add_(0, slots.flatten(), pairs.reshape(slots.numel(), values.size(1)))
    touched, gradients = kernels.weighted_bag_values_backward(grad, slots, weights, len(values))
    assert torch.equal(touched, slots.unique())
    assert gradients.dtype == dtype
    assert_close(gradients, table[touched], TOLERANCE[dtype], "values")
    norm = kernels.rows_squared_norm(grad, slots, weights, len(values))
    assert (norm.shape, norm.dtype) == ((), torch.float64)
    assert_close(norm, table.square().sum(), 1e-5, "norm")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("master", (False, True))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_adam_is_the_twin_and_leaves_other_rows_alone(case, master, dtype):
    *_, values, grad, slots, weights = inputs(case, dtype)
    wide = reference.accumulation(values)
    states = []
    gradient = RowGradients(grad, slots, weights)
    for plain in (False, True):
        state = [values.clone(), *(torch.full(values.shape, 0.25, dtype=wide) for _ in range(2))]
        state.append(values.to(wide, copy=True) if master else None)
        for number in (1, 2):
            step = AdamStep(0.5, 0.01, 0.9, 0.98, 1e-8, 0.1, number)
            if plain:
                reference.rows_adam_(state[0], AdamState(*state[1:]), gradient, step)
            else:
                kernels.rows_adam_(*state, *gradient, *step)
        states.append(state)
    untouched = torch.ones(len(values), dtype=torch.bool).index_fill_(0, slots.flatten(), False)
    for name, kernel, twin in zip(("values", "exp_avg", "exp_avg_sq", "master"), *states, strict=True):
        if twin is None:
            continue
        assert_close(kernel, twin, 2 * TOLERANCE[kernel.dtype], name)  # of bfloat16 a step may round otherwise
        initial = torch.full(values.shape, 0.25) if name.startswith("exp") else values
        assert torch.equal(kernel[untouched], initial[untouched].to(kernel.dtype)), name
    if master:
        assert torch.equal(states[0][0], states[0][3].to(dtype))


def test_strided_inputs():
    case = (12, 2, 9, 4, 12, 24)
    queries, sub_keys, values, grad, slots, weights = inputs(case, torch.float32)

    def turned(x):
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    shared = sub_keys[:1].expand(2, -1, -1, -1)  # one set of sub-keys for all heads
    for strided, plain in (
        (kernels.product_key_memory(turned(queries), turned(sub_keys), turned(values), 4),
         kernels.product_key_memory(queries, sub_keys, values, 4)),
        (kernels.product_key_topk(queries, shared, 4), kernels.product_key_topk(queries, shared.contiguous(), 4)),
        ([kernels.weighted_bag(turned(values), turned(slots), turned(weights))],
         [kernels.weighted_bag(values, slots, weights)]),
        ([kernels.weighted_bag_weights_backward(grad[:1].expand(12, -1), turned(values), turned(slots))],
         [kernels.weighted_bag_weights_backward(grad[:1].repeat(12, 1), values, slots)]),
        (kernels.weighted_bag_values_backward(turned(grad), turned(slots), turned(weights), 81),
         kernels.weighted_bag_values_backward(grad, slots, weights, 81)),
        (kernels.product_key_topk_backward(turned(weights).view(12, 2, 4), slots.view(12, 2, 4), queries, shared),
         kernels.product_key_topk_backward(weights.view(12, 2, 4), slots.view(12, 2, 4), queries, shared.contiguous())),
    ):  # fmt: skip
        for one, other in zip(strided, plain, strict=True):
            assert torch.equal(one, other)


def test_softmax_of_unusual_scores():
    """Infinite scores give what PyTorch's softmax gives, and far ones zeros."""
    queries = torch.tensor([1.0, 1e3, torch.inf, torch.nan, 0.0]).view(5, 1, 1).expand(5, 1, 2)
    sub_keys = torch.tensor([0.0, -1.0, 2.0]).view(1, 1, 3, 1).expand(1, 2, 3, 1)
    values = torch.ones(9, 4)
    _, weights, _ = kernels.product_key_memory(queries, sub_keys, values, 3)
    scores, _ = kernels.product_key_topk(queries, sub_keys, 3)
    torch.testing.assert_close(weights, scores.softmax(dim=2), equal_nan=True, rtol=1e-6, atol=1e-30)


# ---- errors ------------------------------------------------------------------------------------------------


def test_kernels_refuse_what_does_not_fit():
    queries, sub_keys, values, grad, slots, weights = inputs((4, 2, 5, 2, 4, 8), torch.float32)
    state = torch.zeros_like(values)
    numbers = (1.0, 0.1, 0.9, 0.999, 1e-8, 0.0, 1)
    for call in (
        lambda: kernels.product_key_select(torch.randn(3, 2, 5), 2),
        lambda: kernels.product_key_select(torch.randn(3, 2, 3, 5), 2),
        lambda: kernels.product_key_select(torch.randn(3, 2, 2, 5), 6),
        lambda: kernels.product_key_select(torch.randn(3, 2, 2, 5), 0),
        lambda: kernels.product_key_topk(queries[..., :3], sub_keys, 2),
        lambda: kernels.product_key_topk(queries, sub_keys[:1], 2),
        lambda: kernels.product_key_topk_backward(torch.randn(4, 2, 3), slots.view(4, 2, 2), queries, sub_keys),
        lambda: kernels.product_key_memory(queries, sub_keys, values[:-1], 2),
        lambda: kernels.product_key_memory(queries, sub_keys, values.half(), 2),
        lambda: kernels.weighted_bag(values, slots.int(), weights),
        lambda: kernels.weighted_bag(values, slots, weights[:, :-1]),
        lambda: kernels.weighted_bag_weights_backward(grad[:, :-1], values, slots),
        lambda: kernels.weighted_bag_values_backward(grad[:-1], slots, weights, 25),
        lambda: kernels.rows_adam_(values, state.double(), state, None, grad, slots, weights, *numbers),
        lambda: kernels.rows_adam_(values, state, state[:-1], None, grad, slots, weights, *numbers),
        lambda: kernels.rows_adam_(values.t(), state.t(), state.t(), None, grad[:, :4], slots, weights, *numbers),
        lambda: kernels.rows_adam_(values, state, state, None, grad, slots, weights, *numbers[:-1], 0),
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("wrong", (-1, 25, 2**40))
def test_slots_out_of_range(wrong):
    queries, sub_keys, values, grad, slots, weights = inputs((4, 2, 5, 2, 4, 8), torch.float32)
    slots[2, 1] = wrong
    state = torch.zeros_like(values)
    for call in (
        lambda: kernels.weighted_bag(values, slots, weights),
        lambda: kernels.weighted_bag_weights_backward(grad, values, slots),
        lambda: kernels.weighted_bag_values_backward(grad, slots, weights, 25),
        lambda: kernels.rows_squared_norm(grad, slots, weights, 25),
        lambda: kernels.rows_adam_(values, state, state, None, grad, slots, weights, 1, 1, 0, 0, 1, 0, 1),
        lambda: kernels.product_key_topk_backward(weights.view(4, 2, 2), slots.view(4, 2, 2), queries, sub_keys),
        lambda: kernels.product_key_select_backward(weights.view(4, 2, 2), slots.view(4, 2, 2), 5),
    ):
        with pytest.raises(IndexError, match=r"\[0, 25\), given " + str(wrong)):
            call()
    assert state.abs().max() == 0


# ---- the same bits -----------------------------------------------------------------------------------------


def every_operator(dtype):
    """What all operators compute, of sizes that several threads share, and of few tokens and one head."""
    results = []
    for case in (
        (300, 2, 40, 16, 24, 70),
        (70, 1, 64, 8, 32, 16),
        (9, 4, 24, 24, 64, 40),
        (7, 1, 64, 8, 64, 16),  # two matrix products, whose bits depend on PyTorch's threads
        (7, 1, 24, 24, 64, 16),
    ):
        queries, sub_keys, values, grad, *_ = inputs(case, dtype)
        n, k = case[2:4]
        output, weights, slots = kernels.product_key_memory(queries, sub_keys, values, k)
        bag, shares = slots.flatten(1), weights.flatten(1)
        grad_weights = kernels.weighted_bag_weights_backward(grad, values, bag)
        results += [output, weights, slots, grad_weights]
        results += kernels.product_key_topk_backward(grad_weights.view(slots.shape), slots, queries, sub_keys)
        results += kernels.weighted_bag_values_backward(grad, bag, shares, n * n)
        results.append(kernels.rows_squared_norm(grad, bag, shares, n * n))
        state = [values.clone(), *(torch.zeros(values.shape, dtype=weights.dtype) for _ in range(2)), None]
        kernels.rows_adam_(*state, grad, bag, shares, 1.0, 0.01, 0.9, 0.98, 1e-8, 0.01, 1)
        results += state[:3]
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(threads, dtype):
    threads(1)
    alone = every_operator(dtype)
    for count in (2, 3):
        threads(count)
        for one, other in zip(alone, every_operator(dtype), strict=True):
            assert torch.equal(one, other)


OF_A_LEVEL = """
import sys, torch
from tests.unit.memory_layers.test_kernels import DTYPES, every_operator
from tests.support.memory_brute_force import KINDS, hard_rows
selections = [
    torch.ops.memory_layers.product_key_select(hard_rows(kind, (5, 2, 2, n), torch.Generator().manual_seed(n)), 12)
    for kind in KINDS for n in (12, 40, 130)
]
torch.save((selections, {dtype: every_operator(dtype) for dtype in DTYPES}), sys.argv[1])
"""


@pytest.mark.slow
def test_every_instruction_set_computes_the_same(tmp_path):
    """Older processors' kernels against this one's (elsewhere than on x86 there is one kind)."""
    results = {}
    for level in ("", "avx2", "default"):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": level, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
        if not level:
            del environment["ATEN_CPU_CAPABILITY"]
        file = tmp_path / f"results{level}.pt"
        outcome = subprocess.run(
            [sys.executable, "-c", OF_A_LEVEL, str(file)], env=environment, capture_output=True, text=True, cwd=ROOT
        )
        assert outcome.returncode == 0, outcome.stderr
        results[level] = torch.load(file, weights_only=True)
    for level in ("avx2", "default"):
        for one, other in zip(results[""][0], results[level][0], strict=True):
            assert same_bits(one[0], other[0])
            assert torch.equal(one[1], other[1])
        for dtype in DTYPES:
            for one, other in zip(results[""][1][dtype], results[level][1][dtype], strict=True):
                # Roundings add up over the operators: of weights, of the gradients from them, and of an update.
                assert_close(one, other.double(), 20 * TOLERANCE[dtype], f"{level} {dtype}")
