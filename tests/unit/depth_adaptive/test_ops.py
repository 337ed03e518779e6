"""depth_adaptive's operators against their twins and against sums written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from depth_adaptive import ops

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}  # outputs of order 1


def by_hand(queries: Tensor, memory: Tensor, places: Tensor, lists: Tensor | None, heads: int) -> Tensor:
    """Attention written out, a query and a head at a time, in float64."""
    a, d = queries.shape
    width = d // heads
    out = torch.zeros(a, d, dtype=torch.float64)
    for i in range(a):
        chosen = [place for place in places[i if lists is None else int(lists[i])].tolist() if place >= 0]
        for h in range(heads if chosen else 0):
            part = slice(h * width, (h + 1) * width)
            keys = memory[chosen, :d][:, part].double()
            values = memory[chosen, d:][:, part].double()
            weights = torch.softmax(keys @ queries[i, part].double() / width**0.5, 0)
            out[i, part] = weights @ values
    return out


@settings(max_examples=150, deadline=None)
@given(
    queries=st.integers(1, 9),
    heads=st.integers(1, 4),
    width=st.integers(1, 70),
    length=st.integers(1, 21),
    rows=st.integers(1, 30),
    shared=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1 << 30),
)
def test_attention_is_the_sum_written_out(
    queries: int, heads: int, width: int, length: int, rows: int, shared: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    d = heads * width
    q = torch.randn(queries, 3 * d, dtype=torch.float64).to(dtype)[:, d : 2 * d]  # strided, as a part of a product is
    memory = torch.randn(rows, 2 * d, dtype=torch.float64).to(dtype)
    lists = torch.randint(0, 5, (queries,)) if shared else None
    places = torch.randint(-1, rows, (5 if shared else queries, length))
    places[0] = -1  # nothing to attend to
    expected = by_hand(q, memory, places, lists, heads)
    for run in (ops.attend, ops.torch_attend):
        actual = run(q, memory, places, lists, heads)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_the_extension_is_built() -> None:
    assert ops.built


def test_threads_do_not_change_a_bit() -> None:
    torch.manual_seed(1)
    q, memory, places = torch.randn(70, 96), torch.randn(400, 192), torch.randint(0, 400, (70, 33))
    before = torch.get_num_threads()
    actual = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        actual.append(ops.attend(q, memory, places, None, 3))
    torch.set_num_threads(before)
    assert torch.equal(actual[0], actual[1])
    assert torch.equal(actual[0], actual[2])


def test_one_query_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(1)
    q, memory, places = torch.randn(9, 64), torch.randn(50, 128), torch.randint(-1, 50, (9, 7))
    together = ops.attend(q, memory, places, None, 4)
    for i in range(9):
        assert torch.equal(ops.attend(q[i : i + 1], memory, places[i : i + 1], None, 4)[0], together[i])


def test_large_scores_and_values_that_are_not_finite() -> None:
    q = torch.full((1, 4), 1e4)
    memory = torch.tensor([[1e4] * 4 + [1.0] * 4, [-1e4] * 4 + [3.0] * 4, [torch.nan] * 8])
    assert torch.equal(ops.attend(q, memory, torch.tensor([[0, 1]]), None, 2), torch.ones(1, 4))
    assert ops.attend(q, memory, torch.tensor([[0, 2]]), None, 2).isnan().all()
    assert torch.equal(ops.attend(q, memory, torch.tensor([[0, -1]]), None, 2), torch.ones(1, 4))


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, 8), torch.zeros(3, 16), torch.zeros(0, 5, dtype=torch.long)
    assert ops.attend(*empty, None, 2).shape == (0, 8)
    none = torch.zeros(2, 8), torch.zeros(3, 16), torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(ops.attend(*none, None, 2), torch.zeros(2, 8))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(memory=torch.zeros(3, 15)), RuntimeError, r"memory must be \(rows, 2D\)"),
        (dict(memory=torch.zeros(3, 16).double()), RuntimeError, "one dtype"),
        (dict(heads=3), RuntimeError, "heads must divide D, given 3 and 8"),
        (dict(heads=0), RuntimeError, "heads must divide D"),
        (dict(places=torch.zeros(2, 5)), RuntimeError, "places must be int64"),
        (dict(places=torch.zeros(3, 5, dtype=torch.long)), RuntimeError, "for each of 2 queries"),
        (dict(places=torch.full((2, 5), 3)), IndexError, "places must be below 3, given 3"),
        (dict(lists=torch.tensor([0, 2])), IndexError, "lists must be below 2 and at least 0, given 2"),
        (dict(lists=torch.tensor([0, -1])), IndexError, "given -1"),
        (dict(lists=torch.tensor([0])), RuntimeError, "for each of 2 queries"),
    ],
    ids=str,
)
def test_wrong_inputs(changes: dict, error: type[Exception], message: str) -> None:
    arguments = dict(queries=torch.zeros(2, 8), memory=torch.zeros(3, 16), places=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(error, match=message):
        ops.attend(**(arguments | dict(lists=None, heads=2) | changes))


def test_gradients_and_other_formats_take_the_twin() -> None:
    torch.manual_seed(1)
    q = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0, 2, -1], [3, 1, 1]])
    assert torch.autograd.gradcheck(lambda q, m: ops.attend(q, m, places, None, 2), (q, memory))
    half = ops.attend(q.detach().half(), memory.detach().half(), places, None, 2)
    torch.testing.assert_close(half.double(), ops.attend(q, memory, places, None, 2).detach(), rtol=0, atol=2e-3)


# ---- cross-entropy ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 9),
    words=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    ties=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1 << 30),
)
def test_cross_entropy_is_the_one_of_autograd(
    rows: int, words: int, smoothing: float, size: float, ties: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = (torch.randn(rows, words, dtype=torch.float64) * size).to(dtype)
    if ties:
        logits = logits.round()
    targets = torch.randint(0, words, (rows,))
    exact = logits.double().requires_grad_()
    lprobs = torch.stack([row - row.exp().sum().log() for row in exact]) if rows else exact
    chosen, total = lprobs[range(rows), targets], lprobs.sum(1)
    (-(1 - smoothing) * chosen - smoothing / words * total).sum().backward()
    right = [row.index(max(row)) == target for row, target in zip(logits.tolist(), targets.tolist(), strict=True)]
    for run in (ops.cross_entropy_, ops.torch_cross_entropy_):
        arguments = logits.clone()
        actual = run(arguments, targets, kept=1 - smoothing, spread=smoothing / words, gradient=True)
        tolerance = 1e-10 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(actual[0].double(), chosen.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(actual[1].double(), total.detach(), rtol=tolerance, atol=tolerance * words)
        assert actual[2].tolist() == right
        torch.testing.assert_close(arguments.double(), exact.grad, rtol=0, atol=TOLERANCE[dtype] / 4)


@pytest.mark.parametrize("words", [6000, 50_001])
def test_cross_entropy_of_many_words(words: int) -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(3, words), torch.randint(0, words, (3,))
    lprobs = logits.double().log_softmax(1)
    likelihood, total, _ = ops.cross_entropy_(logits, targets, kept=0.9, spread=0.0, gradient=False)
    torch.testing.assert_close(likelihood.double(), lprobs[range(3), targets], rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double(), lprobs.sum(1), rtol=1e-6, atol=0)


def test_cross_entropy_takes_large_and_impossible_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, -torch.inf], [-torch.inf, 3.0, 3.0], [0.0, torch.nan, 0.0]])
    likelihood, _, right = ops.cross_entropy_(logits, torch.tensor([1, 2, 0]), kept=1.0, spread=0.0, gradient=True)
    torch.testing.assert_close(likelihood[:2], torch.tensor([-2e4, -(2**0.0) * 0.6931472]))
    assert likelihood[2].isnan()
    assert right[:2].tolist() == [False, False]  # the second of two equal ones
    torch.testing.assert_close(logits[:2], torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.5, -0.5]]))


def test_threads_do_not_change_a_bit_of_the_cross_entropy() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(37, 3001), torch.randint(0, 3001, (37,))
    before = torch.get_num_threads()
    actual = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        arguments = logits.clone()
        actual.append([*ops.cross_entropy_(arguments, targets, kept=0.9, spread=1e-4, gradient=True), arguments])
    torch.set_num_threads(before)
    for one, two, five in zip(*actual, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.long), RuntimeError, r"contiguous \(rows, V\)"),
        (torch.zeros(4, 2).t(), torch.zeros(2, dtype=torch.long), RuntimeError, "contiguous"),
        (torch.zeros(2, 4), torch.zeros(2), RuntimeError, "targets must be int64"),
        (torch.zeros(2, 4), torch.zeros(3, dtype=torch.long), RuntimeError, "targets must be int64"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), IndexError, "targets must be below 4 and at least 0, given 4"),
        (torch.zeros(2, 4), torch.tensor([0, -1]), IndexError, "given -1"),
    ],
    ids=str,
)
def test_wrong_inputs_of_the_cross_entropy(
    logits: Tensor, targets: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.cross_entropy_(logits, targets, kept=1.0, spread=0.0, gradient=True)


# ---- the largest probability ---------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 9),
    words=st.integers(1, 70),
    size=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1 << 30),
)
def test_the_largest_probability(rows: int, words: int, size: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    logits = (torch.randn(2, rows, words, dtype=torch.float64) * size).to(dtype)
    expected = torch.zeros(2, rows, dtype=torch.float64)
    for i, part in enumerate(logits.tolist()):
        for j, row in enumerate(part):
            expected[i, j] = 1 / sum(math.exp(x - max(row)) for x in row)
    for run in (ops.top_probability, ops.torch_top_probability):
        actual = run(logits)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=0)


def test_the_largest_probability_of_many_words_is_the_same_on_any_number_of_threads() -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 50_001)
    before = torch.get_num_threads()
    actual = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        actual.append(ops.top_probability(logits))
    torch.set_num_threads(before)
    assert torch.equal(actual[0], actual[1])
    assert torch.equal(actual[0], actual[2])
    torch.testing.assert_close(actual[0].double(), logits.double().softmax(-1).amax(-1), rtol=2e-6, atol=0)
    for row, alone in zip(actual[0], logits, strict=True):
        assert torch.equal(ops.top_probability(alone), row)
        assert torch.equal(ops.top_probability(alone[None].t().contiguous().t())[0], row)


def test_the_largest_probability_of_impossible_words_and_of_none() -> None:
    for run in (ops.top_probability, ops.torch_top_probability):
        arguments = torch.tensor([[-torch.inf, 3.0, 3.0], [0.0, torch.nan, 0.0], [-torch.inf] * 3])
        actual = run(arguments)
        assert actual[0] == 0.5
        assert actual[1:].isnan().all()
        with pytest.raises((RuntimeError, IndexError)):
            run(torch.zeros(2, 0))


def test_the_largest_probability_has_a_gradient() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.top_probability, (logits,))


def test_operations_are_counted() -> None:
    arguments = torch.zeros(5, 8), torch.zeros(3, 16), torch.zeros(5, 7, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        ops.attend(*arguments, None, 2)
    assert counter.get_total_flops() == 2 * 5 * 7 * 8 * 2
