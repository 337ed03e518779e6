"""memory_layers.reference, the definition of the memory's operators, against brute force and float64 loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layers import reference
from memory_layers.reference import bag, selection
from memory_layers.row_updates import AdamState, AdamStep, RowGradients
from tests.support.memory_brute_force import KINDS, best, hard_rows, same_bits

# Largest error relative to the largest value, against float64 loops on the same inputs.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 8e-3,  # one rounding of the result: 2^-8
    torch.float16: 1e-3,
}


def assert_close(actual, expected, dtype):
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= TOLERANCE[dtype] * max(expected.abs().max().item(), 1e-3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# ---- selection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_selection_is_brute_force(kind):
    """A thousand rows of each of ten kinds: 10,000 cases."""
    draw = generator(KINDS.index(kind))
    for _ in range(50):
        n = int(torch.randint(1, 41, (), generator=draw))
        k = int(torch.randint(1, n + 1, (), generator=draw))
        dtype = torch.float64 if torch.rand((), generator=draw) < 0.2 else torch.float32
        rows = hard_rows(kind, (5, 4, 2, n), draw, dtype)
        scores, slots = reference.product_key_select(rows, k)
        expected_scores, expected_slots = best(rows, k)
        assert torch.equal(slots, expected_slots), (n, k)
        assert same_bits(scores, expected_scores), (n, k)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_k_of_every_small_row(n):
    """All rows with entries among -1, 0 and 1 for n <= 2, many for n = 5."""
    rows = torch.tensor(list(itertools.islice(itertools.product((1.0, -1.0, 0.0), repeat=2 * n), 0, 4000, 1 + n // 3)))
    rows = rows.view(1, -1, 2, n)
    for k in range(1, n + 1):
        assert torch.equal(reference.product_key_select(rows, k)[1], best(rows, k)[1])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_selection_of_any_floats(data):
    n = data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, n))
    floats = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0**24, math.inf, -math.inf, math.nan])
    rows = torch.tensor(data.draw(st.lists(floats, min_size=2 * n, max_size=2 * n))).view(1, 1, 2, n)
    scores, slots = reference.product_key_select(rows, k)
    expected_scores, expected_slots = best(rows, k)
    assert torch.equal(slots, expected_slots)
    assert same_bits(scores, expected_scores)


def test_a_pair_beyond_the_pruned_ones_wins_a_rounded_tie():
    rows = torch.tensor([[1.0, 2.0], [1e9, 0.0]]).view(1, 1, 2, 2)
    assert reference.product_key_select(rows, 1)[1].item() == 0


def test_selection_at_the_benchmarks_size():
    rows = torch.randn(6, 4, 2, 512, generator=generator(1))
    scores, slots = reference.product_key_select(rows, 32)
    expected_scores, expected_slots = best(rows, 32)
    assert torch.equal(slots, expected_slots)
    assert torch.equal(scores, expected_scores)


def test_selection_of_strided_empty_and_half_precision_rows():
    rows = hard_rows("ties", (3, 2, 2, 7), generator(2))
    plain = reference.product_key_select(rows, 3)
    turned = rows.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    for given_rows in (turned, rows.to(torch.bfloat16), rows.repeat_interleave(2, dim=-1)[..., ::2]):
        for one, two in zip(plain, reference.product_key_select(given_rows, 3), strict=True):
            assert torch.equal(one, two)
    scores, slots = reference.product_key_select(rows[:0], 3)
    assert scores.shape == slots.shape == (0, 2, 3)
    assert slots.dtype == torch.int64


def test_order_has_the_order_of_the_floats():
    for dtype in (torch.float32, torch.float64):
        finfo = torch.finfo(dtype)
        ascending = [-math.inf, finfo.min, -1.0, -finfo.tiny, -finfo.tiny / 2, 0.0, finfo.tiny / 2, 1.0, finfo.max,
                     math.inf, math.nan]  # fmt: skip
        keys = reference.order(torch.tensor(ascending, dtype=dtype))
        assert (keys.diff() > 0).all()
        assert reference.order(torch.tensor(-0.0, dtype=dtype)) == reference.order(torch.tensor(0.0, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_topk_finds_the_best_product_keys(dtype):
    """With small integers all products are exact: the keys of all slots are written out and compared."""
    draw = generator(3)
    tokens, heads, n, half, k = 9, 3, 6, 5, 4
    queries = torch.randint(-3, 4, (tokens, heads, 2 * half), generator=draw).to(dtype)
    sub_keys = torch.randint(-3, 4, (heads, 2, n, half), generator=draw).to(dtype)
    scores, slots = reference.product_key_topk(queries, sub_keys, k)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for t, h in itertools.product(range(tokens), range(heads)):
        keys = [torch.cat((sub_keys[h, 0, i], sub_keys[h, 1, j])) for i in range(n) for j in range(n)]
        products = [int((key * queries[t, h]).sum()) for key in keys]
        ranked = sorted(range(n * n), key=lambda slot, p=products: (-p[slot], slot))[:k]
        assert slots[t, h].tolist() == ranked
        assert scores[t, h].tolist() == [products[slot] for slot in ranked]


def test_topk_of_flat_keys():
    draw = generator(4)
    queries = torch.randint(-2, 3, (7, 2, 3), generator=draw).float()
    keys = torch.randint(-2, 3, (2, 11, 3), generator=draw).float()
    scores, slots = reference.flat_key_topk(queries, keys, 4)
    for t, h in itertools.product(range(7), range(2)):
        products = (keys[h] @ queries[t, h]).tolist()
        ranked = sorted(range(11), key=lambda slot, p=products: (-p[slot], slot))[:4]
        assert slots[t, h].tolist() == ranked
        assert scores[t, h].tolist() == [products[slot] for slot in ranked]
    with pytest.raises(ValueError, match=r"number of slots 11, given 12"):
        reference.flat_key_topk(queries, keys, 12)
    with pytest.raises(ValueError, match=r"keys \(heads, n_slots, key_dim\)"):
        reference.flat_key_topk(queries, keys[:1], 4)


def test_a_row_longer_than_a_chunk(monkeypatch):
    rows = hard_rows("ties", (3, 4, 2, 6), generator(5))
    plain = reference.product_key_select(rows, 5)
    monkeypatch.setattr(selection, "_CELLS", 40)
    chunked = reference.product_key_select(rows, 5)
    assert all(torch.equal(one, two) for one, two in zip(plain, chunked, strict=True))


# ---- weighted sums and their gradients ---------------------------------------------------------------------


def bag_inputs(dtype, *, tokens=7, bag=5, n_slots=9, dim=3, seed=6):
    draw = generator(seed)
    values = torch.randn(n_slots, dim, generator=draw, dtype=torch.float64).to(dtype)
    slots = torch.randint(0, n_slots, (tokens, bag), generator=draw)
    weights = torch.rand(tokens, bag, generator=draw, dtype=torch.float64)
    grad = torch.randn(tokens, dim, generator=draw, dtype=torch.float64).to(dtype)
    return values, slots, weights.to(reference.accumulation(values)), grad


def loop_bag(values, slots, weights):
    result = torch.zeros(len(slots), values.size(1), dtype=torch.float64)
    for t, b in itertools.product(*map(range, slots.shape)):
        result[t] += weights[t, b].double() * values[slots[t, b]].double()
    return result


def loop_row_gradients(grad, slots, weights, n_slots):
    result = torch.zeros(n_slots, grad.size(1), dtype=torch.float64)
    for t, b in itertools.product(*map(range, slots.shape)):
        result[slots[t, b]] += weights[t, b].double() * grad[t].double()
    return result


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bag_and_its_gradients_are_the_loops(dtype):
    values, slots, weights, grad = bag_inputs(dtype)
    output = reference.weighted_bag(values, slots, weights)
    assert output.dtype == dtype
    assert_close(output, loop_bag(values, slots, weights), dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad_weights = reference.weighted_bag_weights_backward(grad, values, slots)
    assert grad_weights.dtype == wide
    expected = (values.double()[slots] * grad.double().unsqueeze(1)).sum(-1)
    assert_close(grad_weights, expected, wide)
    rows, gradients = reference.weighted_bag_values_backward(grad, slots, weights, 9)
    assert rows.tolist() == sorted(set(slots.flatten().tolist()))
    assert gradients.dtype == dtype
    assert_close(gradients, loop_row_gradients(grad, slots, weights, 9)[rows], dtype)
    norm = reference.rows_squared_norm(RowGradients(grad, slots, weights), 9)
    assert norm.dtype == torch.float64
    assert_close(norm, loop_row_gradients(grad, slots, weights, 9).square().sum(), wide)


def test_bag_has_pytorchs_gradients():
    values, slots, weights, grad = bag_inputs(torch.float64)
    values.requires_grad_()
    weights.requires_grad_()
    reference.weighted_bag(values, slots, weights).backward(grad)
    assert values.grad.layout == torch.sparse_coo
    assert_close(values.grad.to_dense(), loop_row_gradients(grad, slots, weights.detach(), 9), torch.float64)
    expected = reference.weighted_bag_weights_backward(grad, values.detach(), slots)
    assert_close(weights.grad, expected, torch.float64)


@pytest.mark.parametrize("pairs", [1, 3, 8, 1000])
def test_row_gradients_come_in_parts_of_whole_rows(monkeypatch, pairs):
    monkeypatch.setattr(bag, "_PAIRS", pairs)
    for seed, n_slots in ((7, 1), (8, 4), (9, 50)):
        _, slots, weights, grad = bag_inputs(torch.float64, tokens=11, n_slots=n_slots, seed=seed)
        rows, gradients = reference.weighted_bag_values_backward(grad, slots, weights, n_slots)
        assert rows.tolist() == sorted(set(slots.flatten().tolist()))
        assert_close(gradients, loop_row_gradients(grad, slots, weights, n_slots)[rows], torch.float64)
        grad_weights = reference.weighted_bag_weights_backward(grad, torch.ones(n_slots, 3).double(), slots)
        assert_close(grad_weights, grad.sum(-1, keepdim=True).expand(slots.shape), torch.float64)


@pytest.mark.parametrize(("tokens", "bag"), [(0, 5), (4, 0), (0, 0)])
def test_empty_bags(tokens, bag):
    values, slots, weights, grad = bag_inputs(torch.float32, tokens=tokens, bag=bag)
    values.requires_grad_()
    output = reference.weighted_bag(values, slots, weights)
    assert torch.equal(output, torch.zeros(tokens, 3))
    output.sum().backward()
    assert values.grad.to_dense().abs().sum() == 0
    rows, gradients = reference.weighted_bag_values_backward(grad, slots, weights, 9)
    assert rows.shape == (0,)
    assert gradients.shape == (0, 3)
    assert reference.weighted_bag_weights_backward(grad, values.detach(), slots).shape == (tokens, bag)
    assert reference.rows_squared_norm(RowGradients(grad, slots, weights), 9) == 0
    before = values.detach().clone()
    moments = torch.zeros(9, 3), torch.zeros(9, 3)
    step = AdamStep(1.0, 1e-3, 0.9, 0.98, 1e-8, 0.1, 1)
    reference.rows_adam_(before, AdamState(*moments), RowGradients(grad, slots, weights), step)
    assert torch.equal(before, values)


def test_select_backward_adds_up_slots_of_one_sub_key():
    draw = generator(10)
    grad = torch.randn(3, 2, 4, generator=draw, dtype=torch.float64)
    slots = torch.tensor([[[0, 1, 2, 5], [24, 4, 9, 14]]]).expand(3, 2, 4)
    result = reference.product_key_select_backward(grad, slots, 5)
    expected = torch.zeros(3, 2, 2, 5, dtype=torch.float64)
    for t, h, s in itertools.product(range(3), range(2), range(4)):
        i, j = divmod(int(slots[t, h, s]), 5)
        expected[t, h, 0, i] += grad[t, h, s]
        expected[t, h, 1, j] += grad[t, h, s]
    assert_close(result, expected, torch.float64)


def test_topk_backward_is_pytorchs():
    draw = generator(11)
    queries = torch.randn(6, 2, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    sub_keys = torch.randn(2, 2, 5, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    scores, slots = reference.product_key_topk(queries, sub_keys, 3)
    grad = torch.randn(scores.shape, generator=draw, dtype=torch.float64)
    expected = torch.autograd.grad(scores, (queries, sub_keys), grad)
    result = reference.product_key_topk_backward(grad, slots, queries.detach(), sub_keys.detach())
    for one, two in zip(result, expected, strict=True):
        assert_close(one, two, torch.float64)


def test_memory_is_softmax_and_sum_over_all_heads():
    draw = generator(12)
    queries = torch.randn(5, 3, 4, generator=draw, dtype=torch.float64)
    sub_keys = torch.randn(3, 2, 4, 2, generator=draw, dtype=torch.float64)
    values = torch.randn(16, 7, generator=draw, dtype=torch.float64)
    output, weights, slots = reference.product_key_memory(queries, sub_keys, values, 3)
    for t in range(5):
        total = torch.zeros(7, dtype=torch.float64)
        for h in range(3):
            keys = torch.stack([torch.cat((a, b)) for a in sub_keys[h, 0] for b in sub_keys[h, 1]])
            scores, places = (keys @ queries[t, h]).sort(descending=True)
            assert slots[t, h].tolist() == places[:3].tolist()
            assert_close(weights[t, h], scores[:3].softmax(0), torch.float64)
            total += scores[:3].softmax(0) @ values[places[:3]]
        assert_close(output[t], total, torch.float64)


# ---- Adam on the rows that were read -----------------------------------------------------------------------


def test_fifty_steps_are_sparse_adams():
    draw = generator(13)
    values = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    ours, m, v = values.clone(), torch.zeros_like(values), torch.zeros_like(values)
    theirs = values.clone().requires_grad_()
    optimizer = torch.optim.SparseAdam([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    for step in range(1, 51):
        slots = torch.randint(0, 30, (4, 3), generator=draw)
        weights = torch.rand(4, 3, generator=draw, dtype=torch.float64)
        grad = torch.randn(4, 5, generator=draw, dtype=torch.float64)
        optimizer.zero_grad()
        torch.nn.functional.embedding_bag(slots, theirs, per_sample_weights=weights, mode="sum", sparse=True).backward(
            grad
        )
        optimizer.step()
        numbers = AdamStep(2.0, 0.01, 0.9, 0.98, 1e-6, 0.0, step)
        reference.rows_adam_(ours, AdamState(m, v), RowGradients(0.5 * grad, slots, weights), numbers)
    assert_close(ours, theirs.detach(), torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adam_with_a_master_copy(dtype):
    """The master's steps are those of a float32 table, which the values follow; other rows keep their bits."""
    values, slots, weights, grad = bag_inputs(dtype, n_slots=40)
    master = values.float() + 1e-4
    plain = master.clone()
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[slots.flatten()] = False
    before = values.clone()
    states = [torch.zeros(40, 3) for _ in range(4)]
    for step in (1, 2):
        tail = RowGradients(grad, slots, weights), AdamStep(1.0, 0.01, 0.9, 0.999, 1e-8, 0.1, step)
        reference.rows_adam_(values, AdamState(*states[:2], master), *tail)
        reference.rows_adam_(plain, AdamState(*states[2:]), *tail)
    assert torch.equal(master, plain)
    assert torch.equal(values[untouched], before[untouched])
    assert torch.equal(values[~untouched], master.to(dtype)[~untouched])
    for state in states:
        assert state[untouched].abs().max() == 0
        assert state[~untouched].abs().min() > 0


def test_weight_decay_is_decoupled():
    values, m, v = torch.full((3, 2), 2.0), torch.zeros(3, 2), torch.zeros(3, 2)
    slots, weights = torch.tensor([[1]]), torch.ones(1, 1)
    gradient, step = RowGradients(torch.zeros(1, 2), slots, weights), AdamStep(1.0, 0.1, 0.9, 0.99, 1e-8, 0.5, 1)
    reference.rows_adam_(values, AdamState(m, v), gradient, step)
    assert values.tolist() == [[2.0, 2.0], [pytest.approx(1.9)] * 2, [2.0, 2.0]]


# ---- wrong arguments ---------------------------------------------------------------------------------------

QUERIES, SUB_KEYS = torch.zeros(3, 2, 8), torch.zeros(2, 2, 5, 4)


@pytest.mark.parametrize(
    ("queries", "sub_keys", "k", "message"),
    [
        (QUERIES[0], SUB_KEYS, 1, r"queries must be \(tokens, heads, key_dim\)"),
        (QUERIES[..., :7], SUB_KEYS, 1, r"key_dim must be even.*given 7"),
        (QUERIES[..., :6], SUB_KEYS, 1, r"of the queries' heads and key_dim, given queries \(3, 2, 6\)"),
        (QUERIES, SUB_KEYS[:1], 1, "of the queries' heads"),
        (QUERIES, SUB_KEYS[:, :1], 1, "of the queries' heads"),
        (QUERIES.long(), SUB_KEYS, 1, "floating point, given torch.int64"),
        (QUERIES, SUB_KEYS, 6, "k must lie between 1 and the number of sub-keys n = 5, given 6"),
        (QUERIES, SUB_KEYS, 0, "given 0"),
        (QUERIES, SUB_KEYS.to("meta"), 1, "one device, given cpu, meta"),
    ],
)
def test_topk_refuses(queries, sub_keys, k, message):
    with pytest.raises(ValueError, match=message):
        reference.product_key_topk(queries, sub_keys, k)
    with pytest.raises(ValueError, match=message):
        reference.product_key_memory(queries, sub_keys, torch.zeros(25, 3), k)


def test_others_refuse():
    with pytest.raises(ValueError, match=r"shape \(tokens, heads, 2, n\)"):
        reference.product_key_select(torch.zeros(3, 2, 3, 5), 1)
    with pytest.raises(ValueError, match=r"for n = 5 sub-keys, given torch.float32 \(24, 3\)"):
        reference.product_key_memory(QUERIES, SUB_KEYS, torch.zeros(24, 3), 1)
    values, slots, weights, grad = bag_inputs(torch.float32)
    with pytest.raises(ValueError, match=r"one shape \(tokens, bag\), given \(7, 5\) and \(7, 4\)"):
        reference.weighted_bag(values, slots, weights[:, 1:])
    with pytest.raises(ValueError, match="slots must be int64"):
        reference.weighted_bag(values, slots.int(), weights)
    with pytest.raises(ValueError, match=r"shape \(n_slots, dim\)"):
        reference.weighted_bag(values[0], slots, weights)
    with pytest.raises((RuntimeError, IndexError)):
        reference.weighted_bag(values, slots + 9, weights)
    with pytest.raises(ValueError, match=r"grad must be \(tokens, dim\) of 7 tokens"):
        reference.rows_squared_norm(RowGradients(grad[:6], slots, weights), 9)
    gradient, step = RowGradients(grad, slots, weights), AdamStep(1.0, 0.1, 0.9, 0.99, 1e-8, 0.0, 1)
    zeros = torch.zeros(9, 3)
    with pytest.raises(ValueError, match=r"exp_avg_sq must be torch\.float32 of values' shape"):
        reference.rows_adam_(values, AdamState(zeros, zeros.double()), gradient, step)
    with pytest.raises(ValueError, match="step counts from 1, given 0"):
        reference.rows_adam_(values, AdamState(zeros, zeros), gradient, step._replace(step=0))
    with pytest.raises(ValueError, match="of grad's dim"):
        reference.rows_adam_(values[:, :2], AdamState(zeros[:, :2], zeros[:, :2]), gradient, step)
