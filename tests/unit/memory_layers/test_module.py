"""memory_layers.product_key: the modules against plain formulas, and their invariants; slot usage."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from memory_layers.product_key import FlatKeyMemory, Memory, ProductKeyMemory, TokenBatchNorm
from memory_layers.table import ValueTable
from memory_layers.usage import SlotUsage
from thoth_core.errors import UserError

INPUT, HEADS, KEYS, K, KEY_DIM = 12, 2, 5, 3, 6
KINDS = {
    "product": lambda **options: ProductKeyMemory(
        **{**dict(input_dim=INPUT, heads=HEADS, n_keys=KEYS, k=K, key_dim=KEY_DIM), **options}
    ),
    "flat": lambda **options: FlatKeyMemory(
        **{**dict(input_dim=INPUT, heads=HEADS, n_slots=KEYS * KEYS, k=K, key_dim=KEY_DIM), **options}
    ),
}
OPTIONS = [
    dict(),
    dict(query_norm="layer", query_hidden_dims=(7, 9)),
    dict(query_norm="none", shared_keys=True),
    dict(qk_norm=True, shared_keys=True, query_norm="none"),
    dict(qk_norm=True),
    dict(gated=True),
    dict(output_dim=8),
    dict(gated=True, output_dim=8, value_dim=10),
    dict(value_dim=10),
]


@pytest.fixture(params=KINDS)
def make(request):
    """Constructs a product-key or a flat-key memory, in float64 and always the same."""

    def construct(**options) -> Memory:
        torch.manual_seed(1)
        return KINDS[request.param](**options).double()

    return construct


def tokens(*shape, seed=2):
    return torch.randn(*shape, INPUT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_keys(memory):
    """(H, n_slots, D), as they are scored."""
    if isinstance(memory, FlatKeyMemory):
        keys = memory.keys
        parts = [keys]
    else:
        parts = [memory.sub_keys[:, 0], memory.sub_keys[:, 1]]
    if memory.qk_scale is not None:
        parts = [part / part.norm(dim=-1, keepdim=True) for part in parts]
    if len(parts) == 2:
        first, second = parts
        keys = [torch.cat((a, b)) for h in range(len(first)) for a in first[h] for b in second[h]]
        parts = [torch.stack(keys).view(len(first), -1, memory.key_dim)]
    return parts[0].expand(memory.heads, -1, -1)


def formula(memory, x):
    """The evaluation-mode output for x (T, C), token by token and head by head over all slots."""
    halves = 1 if isinstance(memory, FlatKeyMemory) else 2
    queries = memory.query(x)
    outputs = []
    for t in range(len(x)):
        read = torch.zeros(memory.value_dim, dtype=x.dtype)
        for h in range(memory.heads):
            query = queries[t].view(memory.heads, -1)[h].view(halves, -1)
            if memory.qk_scale is not None:
                query = query / query.norm(dim=-1, keepdim=True) * memory.qk_scale[h]
            scores, slots = (full_keys(memory)[h] @ query.flatten()).sort(descending=True)
            read = read + scores[: memory.k].softmax(0) @ memory.table.weight[slots[: memory.k]]
        if memory.gate is not None:
            gate = memory.gate.weight @ x[t]
            read = read * gate * torch.sigmoid(gate)
        outputs.append(read if memory.project is None else memory.project.weight @ read)
    return torch.stack(outputs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_output_is_the_papers_formula(make, options):
    memory = make(**options)
    if isinstance(memory.query[-1], torch.nn.BatchNorm1d):
        memory(tokens(4, 3))  # running statistics that are not 0 and 1
    memory.eval()
    x = tokens(3, 2)
    y = memory(x)
    assert y.shape == (3, 2, options.get("output_dim", INPUT))
    torch.testing.assert_close(y.flatten(0, 1), formula(memory, x.flatten(0, 1)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_learns_and_the_table_has_no_gradient(make, options):
    memory = make(**options).train()
    memory(tokens(9)).square().sum().backward()
    for name, parameter in memory.named_parameters():
        if name == "table.weight":
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().max() > 0, name
    (triple,) = memory.table.pending
    assert triple.slots.shape == triple.weights.shape == (9, HEADS * K)
    assert triple.grad.shape == (9, memory.value_dim)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_padding_changes_nothing(make, norm):
    """Outputs, statistics and gradients are those of the real tokens alone, wherever the padding lies."""
    x = tokens(4, 5)
    mask = torch.tensor([[0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    x[mask] = float("nan")
    results = []
    for padded in (True, False):
        memory = make(query_norm=norm).train()
        y = memory(x, mask) if padded else memory(x[~mask])
        real = y[~mask] if padded else y
        real.sin().sum().backward()
        if padded:
            assert torch.equal(y[mask], torch.zeros_like(y[mask]))
        (triple,) = memory.table.pending
        gradients = [p.grad for p in memory.parameters() if p.grad is not None]
        results.append((real, *gradients, *memory.buffers(), *triple))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_batch_norm_is_over_the_tokens(make):
    memory = make().train()
    x = tokens(40)
    queries = memory.query(x)
    torch.testing.assert_close(queries.mean(0), torch.zeros_like(queries[0]))
    plain = memory.query[0](x)
    expected = (plain - plain.mean(0)) / (plain.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(queries, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_statistics_stay_float32_in_half_precision(dtype):
    """Against float64 over 300 batches, saved, loaded, copied and moved on the way."""
    draw = torch.Generator().manual_seed(1)
    norm = TokenBatchNorm(8).to(dtype)
    mean, variance = torch.zeros(8).double(), torch.ones(8).double()
    for batch in range(300):
        x = (3 * torch.randn(20, 8, generator=draw) + 1).to(dtype)
        y = norm(x)
        assert y.dtype == dtype
        assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
        mean += 0.1 * (x.double().mean(0) - mean)
        variance += 0.1 * (x.double().var(0) - variance)
        if batch % 100 == 50:
            loaded = TokenBatchNorm(8).to(dtype)
            loaded.load_state_dict(norm.state_dict())
            for again in (loaded, copy.deepcopy(norm), copy.deepcopy(norm).to(dtype), copy.deepcopy(norm).cpu()):
                for name, value in norm.state_dict().items():
                    assert torch.equal(again.state_dict()[name], value)
                    assert again.state_dict()[name].dtype == value.dtype
            norm = loaded
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=0)
    expected = (x.double() - x.double().mean(0)) / (x.double().var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(y, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
    expected = (x.double() - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(norm.eval()(x), expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert norm.double().running_var.dtype == torch.float64
    assert norm.bfloat16().float().running_var.dtype == torch.float32


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_tokens_for_batch_norm(make, count):
    """They are normalised by the running statistics, which stay as they are."""
    memory = make().train()
    memory(tokens(5))
    before = memory.query[-1].running_mean.clone()
    y = memory(tokens(1, count))
    y.sum().backward()
    assert y.shape == (1, count, INPUT)
    assert torch.equal(memory.query[-1].running_mean, before)
    torch.testing.assert_close(y, memory.eval()(tokens(1, count)))
    mask = torch.ones(2, 3).bool()
    assert torch.equal(memory.train()(tokens(2, 3), mask), torch.zeros(2, 3, INPUT).double())


def test_a_token_does_not_depend_on_its_batch(make):
    memory = make().eval()
    x = tokens(6, 4)
    whole = memory(x)
    for i, j in itertools.product(range(6), range(4)):
        torch.testing.assert_close(memory(x[i, j]), whole[i, j])


def test_dropouts(make):
    x = tokens(400)
    for place in ("input", "query", "value"):
        memory = make(**{f"{place}_dropout": 0.5}).train()
        torch.manual_seed(3)
        y = memory(x)
        torch.manual_seed(3)
        # Each place draws one mask, of its own shape.
        shape = dict(input=(400, INPUT), query=(400, HEADS * KEY_DIM), value=(400, INPUT))[place]
        mask = F.dropout(torch.ones(shape, dtype=torch.float64), 0.5)
        plain = make().train()
        if place == "query":
            hook = plain.query.register_forward_hook(lambda module, args, queries, m=mask: queries * m)
            expected = plain(x)
            hook.remove()
        else:
            expected = plain(x * mask) if place == "input" else plain(x) * mask
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(memory.eval()(x), plain.eval()(x))


def test_shared_keys_are_one_set_for_all_heads(make):
    shared, own = make(shared_keys=True), make()
    name = "keys" if isinstance(shared, FlatKeyMemory) else "sub_keys"
    assert len(getattr(shared, name)) == 1
    assert len(getattr(own, name)) == HEADS
    getattr(own, name).data[:] = getattr(shared, name).data
    own.query.load_state_dict(shared.query.state_dict())
    own.table.load_state_dict(shared.table.state_dict())
    x = tokens(7)
    torch.testing.assert_close(shared.eval()(x), own.eval()(x))


def test_qk_norm_ignores_the_size_of_queries_and_keys():
    torch.manual_seed(4)
    memory = KINDS["product"](qk_norm=True, query_norm="none").double().eval()
    assert memory.qk_scale.tolist() == pytest.approx([math.sqrt(KEY_DIM / 2)] * HEADS)
    x = tokens(7)
    before = memory(x)
    memory.sub_keys.data *= 3
    memory.query[0].weight.data *= 5
    torch.testing.assert_close(memory(x), before)


def test_initial_values():
    torch.manual_seed(5)
    memory = ProductKeyMemory(input_dim=64, n_keys=100, key_dim=32, heads=3)
    bound = 16**-0.5
    assert memory.sub_keys.shape == (3, 2, 100, 16)
    assert 0.99 * bound < memory.sub_keys.abs().max() <= bound
    assert abs(memory.sub_keys.mean()) < 0.02 * bound
    assert memory.table.weight.std().item() == pytest.approx(64**-0.5, rel=0.01)
    assert memory.query[0].bias is None, "batch norm follows"
    flat = FlatKeyMemory(input_dim=64, n_slots=300, key_dim=32, heads=3)
    assert 0.99 * 32**-0.5 < flat.keys.abs().max() <= 32**-0.5


def test_layers_share_a_table():
    table = ValueTable(KEYS * KEYS, 8)
    layers = torch.nn.ModuleList(
        [KINDS["product"](table=table, gated=True), KINDS["flat"](table=table), KINDS["product"](table=table)]
    ).train()
    assert all(layer.value_dim == 8 for layer in layers)
    assert sum(p.numel() for p in layers.parameters() if p is table.weight) == table.weight.numel()
    assert sum(p is table.weight for p in layers.parameters()) == 1
    x = tokens(6).float()
    sum(layer(x).sin().sum() for layer in layers).backward()
    assert len(table.pending) == 3
    other = KINDS["product"]()
    assert other.table is not table
    assert not other.table.pending


def test_state_dict_round_trip(make):
    memory = make(gated=True, qk_norm=True).train()
    memory(tokens(9))
    torch.manual_seed(9)
    other = make(gated=True, qk_norm=True)
    for parameter in other.parameters():
        parameter.data.normal_()
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.eval()(tokens(4)), memory.eval()(tokens(4)))


def test_half_precision(make):
    memory = make(gated=True).bfloat16().eval()
    assert memory(tokens(3, 2).bfloat16()).dtype == torch.bfloat16
    mixed = make(query_norm="layer").float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixed(tokens(3, 2).float(), torch.tensor([[0, 1], [0, 0], [0, 0]]).bool())
    y.float().sum().backward()
    assert mixed.query[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("product", dict(key_dim=7), "key_dim must be even.*given 7"),
        ("product", dict(k=6), "k must lie between 1 and n_keys = 5, given 6"),
        ("flat", dict(k=26), "k must lie between 1 and n_slots = 25, given 26"),
        ("flat", dict(k=0), "given 0"),
        ("product", dict(heads=0), "heads must be at least 1, given 0"),
        ("product", dict(key_dim=0), "key_dim must be at least 1, given 0"),
        ("product", dict(output_dim=0), "output_dim must be at least 1"),
        ("product", dict(query_hidden_dims=(4, 0)), "query_hidden_dims must be at least 1, given 0"),
        ("product", dict(query_norm="group"), "query_norm must be one of batch, layer, none, given 'group'"),
        ("product", dict(query_dropout=1.0), r"query_dropout must lie in \[0, 1\), given 1\.0"),
        ("product", dict(value_dropout=-0.1), "value_dropout must lie"),
        ("product", dict(table=ValueTable(24, 3)), "must have 25 slots of dimension 3, given 24 of 3"),
        ("flat", dict(table=ValueTable(25, 3), value_dim=4), "must have 25 slots of dimension 4, given 25 of 3"),
    ],
)
def test_wrong_options(kind, options, message, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("allocated before checking"))
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**options)


def test_wrong_inputs(make):
    memory = make()
    with pytest.raises(ValueError, match=r"last dimension must be 12, given \(3, 11\)"):
        memory(tokens(3)[:, 1:])
    with pytest.raises(ValueError, match=r"bool of shape \(3, 2\), given torch\.bool \(2, 3\)"):
        memory(tokens(3, 2), torch.zeros(2, 3).bool())
    with pytest.raises(ValueError, match=r"given torch\.float32 \(3, 2\)"):
        memory(tokens(3, 2), torch.zeros(3, 2))


# ---- slot usage --------------------------------------------------------------------------------------------


def test_usage_is_recorded_in_evaluation_only(make):
    memory = make().train()
    usage = memory.new_usage()
    x = tokens(4, 3)
    memory(x, usage=usage)
    assert usage.weights.sum() == 0
    memory.eval()
    mask = torch.zeros(4, 3).bool()
    mask[0, 1] = True
    memory(x, mask, usage=usage)
    assert usage.weights.shape == (HEADS, KEYS * KEYS)
    torch.testing.assert_close(usage.weights.sum(1), torch.full((HEADS,), 11.0).double())
    _, weights, slots = memory._read(memory.query(x[~mask]).view(11, HEADS, KEY_DIM))
    expected = torch.zeros(HEADS, KEYS * KEYS).double()
    for t, h, s in itertools.product(range(11), range(HEADS), range(K)):
        expected[h, slots[t, h, s]] += weights[t, h, s]
    torch.testing.assert_close(usage.weights, expected)


def test_share_and_divergence():
    usage = SlotUsage(n_slots=8, heads=2)
    assert usage.share() == 0
    with pytest.raises(RuntimeError, match="no lookup was recorded"):
        usage.kl()
    usage.add(torch.tensor([[[1, 2], [2, 3]]]), torch.full((1, 2, 2), torch.nan))
    with pytest.raises(UserError, match="the weights of the slots are not finite: the training diverged"):
        usage.kl()
    usage.reset()
    usage.add(torch.tensor([[[1, 2], [2, 3]]]), torch.tensor([[[0.25, 0.75], [1.0, 0.0]]]))
    assert usage.share() == 2 / 8  # slots 1 and 2; slot 3 has no weight
    z = [0.25 / 2, 1.75 / 2]
    assert usage.kl() == pytest.approx(math.log(8) + sum(p * math.log(p) for p in z))
    alone = [math.log(8) + sum(p * math.log(p) for p in share if p) for share in ([0.25, 0.75], [1.0])]
    assert usage.figures() == {
        "used": 0.25,
        "kl": round(usage.kl(), 4),
        "used_by_head": [0.25, 0.125],
        "kl_by_head": [round(kl, 4) for kl in alone],
    }
    usage.reset()
    usage.add(torch.arange(8).view(4, 1, 2).expand(4, 2, 2), torch.full((4, 2, 2), 0.5))
    assert usage.share() == 1
    assert usage.kl() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "cells", "side"), [(3, 8, 3), (8, 8, 8), (10, 4, 4), (9, 4, 3)])
def test_picture_of_the_plane_of_sub_keys(n, cells, side):
    usage = SlotUsage(n_slots=n * n, heads=2)
    usage.add(torch.tensor([[[n * n - 1, 0]], [[1, 0]]]).expand(2, 1, 2), torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]]))
    picture = usage.picture(cells=cells)
    assert picture.shape == (2, side, side)
    assert picture[0].sum() == pytest.approx(1)
    assert picture[1].abs().max() == 0, "this head read nothing"
    assert picture[0, -1, -1] == pytest.approx(0.25)
    assert picture[0, 0].sum() == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"n·n slots .* given 6"):
        SlotUsage(n_slots=6, heads=1).picture()
