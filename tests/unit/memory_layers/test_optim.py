"""Row gradients and their optimizer, against dense tables under torch.autograd and torch.optim."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq.optim import FP16Optimizer, build_optimizer
from omegaconf import OmegaConf
from torch import Tensor, nn

from memory_layers import ProductKeyMemory, RowAdam, ValueTable, capacity, optim, trainer_patches
from memory_layers.optim import ProductKeyAdam, ProductKeyAdamConfig
from memory_layers.row_updates import RowGradients
from memory_layers.table import tables_of
from thoth_core.errors import UserError


def table_and_twin(n_slots: int = 11, dim: int = 5, *, seed: int = 0) -> tuple[ValueTable, nn.Embedding]:
    """A float64 table, and an embedding of the same values whose gradient PyTorch makes."""
    torch.manual_seed(seed)
    table = ValueTable(n_slots, dim, dtype=torch.float64)
    twin = nn.Embedding(n_slots, dim, sparse=True, dtype=torch.float64)
    twin.weight.data.copy_(table.weight)
    return table, twin


def bag_of(twin: nn.Embedding, slots: Tensor, weights: Tensor) -> Tensor:
    return (twin(slots) * weights.unsqueeze(-1)).sum(dim=1)


def draw(tokens: int, bag: int, n_slots: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Slots with repetitions and weights that ask for a gradient."""
    return torch.randint(n_slots, (tokens, bag)), torch.rand(tokens, bag, dtype=dtype).requires_grad_()


def dense(rows: RowGradients, n_slots: int) -> Tensor:
    """The gradient of the table that a triple stands for, (n_slots, V)."""
    gradient = rows.grad.new_zeros(n_slots, rows.grad.size(1))
    for grad, slots, weights in zip(*rows, strict=True):
        for slot, weight in zip(slots, weights, strict=True):
            gradient[slot] += weight * grad
    return gradient


def test_values_are_drawn_with_the_papers_variance() -> None:
    torch.manual_seed(1)
    weight = ValueTable(3000, 64).weight
    assert weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert abs(weight.mean().item()) < 0.002


@pytest.mark.parametrize(("tokens", "bag"), [(7, 3), (1, 1), (0, 4)])
def test_the_triple_is_the_gradient(tokens: int, bag: int) -> None:
    """Accumulated over two backward passes with bags of different widths, as by two layers or --update-freq."""
    table, twin = table_and_twin()
    for width in (bag, bag + 2):
        slots, weights = draw(tokens, width, 11)
        others = weights.detach().clone().requires_grad_()
        table.bag(slots, weights).square().sum().backward()
        bag_of(twin, slots, others).square().sum().backward()
        torch.testing.assert_close(weights.grad, others.grad)
    assert table.weight.grad is None
    rows = table.take_pending()
    assert rows.slots.shape == rows.weights.shape == (2 * tokens, bag + 2 if tokens else 1)
    torch.testing.assert_close(dense(rows, 11), twin.weight.grad.to_dense())
    assert len(table.take_pending().grad) == 0


def test_lookup_collects_as_bag_does() -> None:
    table, _ = table_and_twin(16, 5)
    queries, sub_keys = torch.randn(6, 2, 4, dtype=torch.float64), torch.randn(2, 2, 4, 2, dtype=torch.float64)
    output, weights, slots = table.lookup(queries, sub_keys, 3)
    assert output.grad_fn is not None  # although nothing but the table is trained
    output.sum().backward()
    looked_up = table.take_pending()
    again = table.bag(slots.flatten(1), weights.flatten(1))
    torch.testing.assert_close(again, output)
    again.sum().backward()
    for one, other in zip(looked_up, table.take_pending(), strict=True):
        assert torch.equal(one, other)


def test_torch_compile_collects_the_same() -> None:
    torch.manual_seed(0)
    memory = ProductKeyMemory(input_dim=6, n_keys=4, key_dim=4, k=2, heads=2, query_norm="none")
    x = torch.randn(5, 6)
    for run in (memory, torch.compile(memory, backend="aot_eager")):
        run(x).square().sum().backward()
    one, two = memory.table.pending
    for eager, compiled in zip(one, two, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_nothing_is_collected_in_evaluation() -> None:
    table, _ = table_and_twin()
    slots, weights = draw(4, 2, 11)
    with torch.no_grad():
        table.bag(slots, weights)
    table.eval()
    table.bag(slots, weights).sum().backward()  # weights still get theirs
    assert weights.grad is not None
    assert not table.pending


def test_equals_sparse_adam_over_fifty_steps() -> None:
    table, twin = table_and_twin(40, 7)
    ours = RowAdam([table], lr=0.01, betas=(0.8, 0.99), eps=1e-6)
    theirs = torch.optim.SparseAdam([twin.weight], lr=0.01, betas=(0.8, 0.99), eps=1e-6)
    for step in range(50):
        slots, weights = draw(5, 3, 40)
        target = torch.randn(5, 7, dtype=torch.float64)
        (table.bag(slots, weights) - target).square().sum().backward()
        theirs.zero_grad()
        (bag_of(twin, slots, weights.detach()) - target).square().sum().backward()
        untouched = torch.ones(40, dtype=torch.bool).index_fill_(0, slots.flatten(), False)
        before = [value[untouched].clone() for value in (table.weight, ours.exp_avg[0], ours.exp_avg_sq[0])]
        ours.step()
        theirs.step()
        torch.testing.assert_close(table.weight.detach(), twin.weight.detach(), rtol=1e-6, atol=1e-6)
        for value, old in zip((table.weight, ours.exp_avg[0], ours.exp_avg_sq[0]), before, strict=True):
            assert torch.equal(value[untouched], old), step
        assert table.weight.grad is None


def test_scale_and_norm_are_those_of_the_dense_gradient() -> None:
    table, twin = table_and_twin()
    slots, weights = draw(6, 4, 11)
    table.bag(slots, weights).exp().sum().backward()
    bag_of(twin, slots, weights.detach()).exp().sum().backward()
    gradient = twin.weight.grad.to_dense()
    rows = RowAdam([table], lr=0.1, betas=(0.0, 0.0), eps=0.0, weight_decay=0.5)
    assert rows.squared_norm().item() == pytest.approx(gradient.square().sum().item())
    before = table.weight.detach().clone()
    rows.step(scale=-3.0)
    touched = gradient.abs().sum(dim=1) > 0
    # Without memory, Adam's step is the sign of the gradient; the decay comes first.
    expected = before * (1 - 0.1 * 0.5) + 0.1 * gradient.sign()
    torch.testing.assert_close(table.weight[touched].detach(), expected[touched])
    assert torch.equal(table.weight[~touched], before[~touched])


def test_a_shared_table_is_updated_once() -> None:
    table, _ = table_and_twin(16, 8)
    memories = nn.ModuleList(
        ProductKeyMemory(input_dim=8, n_keys=4, key_dim=4, k=2, heads=heads, table=table).double() for heads in (1, 3)
    )
    assert len(tables_of(memories)) == 1
    x = torch.randn(5, 8, dtype=torch.float64)
    sum(memory(x) for memory in memories).sum().backward()
    rows = RowAdam(tables_of(memories))
    assert len(table.pending) == 2
    rows.step()
    assert rows.steps == 1
    assert not table.pending


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_copy(dtype: torch.dtype) -> None:
    """Updates too small for the half-precision values add up."""
    torch.manual_seed(0)
    table = ValueTable(6, 4, dtype=dtype)
    table.weight.data.fill_(1.0)
    with_copy = RowAdam([table], lr=1e-4)
    twin = copy.deepcopy(table)
    without = RowAdam([twin], lr=1e-4, master=False)
    slots = torch.tensor([[0, 1]])
    for _ in range(100):
        for each in (table, twin):
            each.bag(slots, torch.ones(1, 2)).sum().backward()
        with_copy.step()
        without.step()
    assert with_copy.master[0].dtype == with_copy.exp_avg[0].dtype == torch.float32
    torch.testing.assert_close(with_copy.master[0][:2], torch.full((2, 4), 0.99), atol=1e-5, rtol=0)
    assert torch.equal(table.weight, with_copy.master[0].to(dtype))
    assert (twin.weight == 1).all()


def test_state_restores_to_the_bit() -> None:
    def steps(table: ValueTable, rows: RowAdam, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            slots, weights = draw(5, 3, 11, dtype=torch.float32)
            table.bag(slots, weights).square().sum().backward()
            rows.step()

    torch.manual_seed(0)
    table = ValueTable(11, 5, dtype=torch.bfloat16)
    rows = RowAdam([table])
    steps(table, rows, range(3))
    saved = copy.deepcopy((table.state_dict(), rows.state_dict()))
    steps(table, rows, range(3, 6))
    other = ValueTable(11, 5, dtype=torch.bfloat16)
    other.load_state_dict(saved[0])
    restored = RowAdam([other])
    restored.load_state_dict(saved[1])
    steps(other, restored, range(3, 6))
    assert restored.steps == rows.steps == 6
    for one, two in ((table.weight, other.weight), (rows.master[0], restored.master[0])):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match=r"must be that of tables of \[\(4, 5\)\].*given \[\(11, 5\)\]"):
        RowAdam([ValueTable(4, 5)]).load_state_dict(saved[1])


@pytest.mark.parametrize("option", [dict(lr=-1.0), dict(eps=-1.0), dict(weight_decay=float("nan"))])
def test_wrong_options_are_named(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be at least 0"):
        RowAdam([], **option)
    with pytest.raises(ValueError, match="betas must be"):
        RowAdam([], betas=(0.9, 1.0))


# ---- under fairseq ------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A linear layer and a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 6)
        self.memory = ProductKeyMemory(input_dim=6, n_keys=4, key_dim=4, k=2, heads=2, query_norm="none")

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.dense(x))


def fairseq_optimizer(model: nn.Module, **options: object) -> ProductKeyAdam:
    cfg = OmegaConf.structured(ProductKeyAdamConfig)
    changes = dict(
        adam_betas="(0.9, 0.98)", lr=[0.01], tpu=False, memory_efficient_fp16=False, memory_efficient_bf16=False
    )
    cfg = OmegaConf.merge(cfg, changes | options, {"_name": optim.NAME})
    optimizer = build_optimizer(cfg, list(model.parameters()))
    optimizer.attach(model)
    return optimizer


def backward(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(9, 6)).square().sum().backward()


def test_fairseq_never_sees_the_table() -> None:
    model = Model()
    optimizer = fairseq_optimizer(model)
    assert isinstance(optimizer, ProductKeyAdam)
    assert all(parameter is not model.memory.table.weight for parameter in optimizer.params)
    assert sum(1 for _ in optimizer.params) == sum(parameter.requires_grad for parameter in model.parameters())


def test_clipping_takes_both_kinds_into_one_norm() -> None:
    """The reference is the same model with a dense table, clipped by PyTorch."""
    torch.manual_seed(5)
    model = Model()
    optimizer = fairseq_optimizer(model)
    backward(model, 1)
    optimizer.all_reduce_grads(model)
    rows = dense(optimizer.rows._rows()[0], 16)
    others = [parameter for parameter in model.parameters() if parameter.grad is not None]
    expected = torch.cat([rows.flatten(), *(parameter.grad.flatten() for parameter in others)]).norm() * 0.25
    before = others[0].grad.clone()
    optimizer.multiply_grads(0.25)
    assert optimizer.clip_grad_norm(0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert optimizer.clip_grad_norm(0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    assert optimizer.clip_grad_norm(0).item() == pytest.approx(0.1, rel=1e-4)
    factor = 0.25 * 0.1 / expected.item()
    torch.testing.assert_close(others[0].grad, before * factor, rtol=1e-4, atol=0)
    assert optimizer._scale == pytest.approx(factor, rel=1e-4)


def test_an_update_forgets_what_it_used() -> None:
    model = Model()
    optimizer = fairseq_optimizer(model)
    values = model.memory.table.weight
    for forget in (False, True):
        optimizer.zero_grad()
        backward(model, 1)
        if forget:
            optimizer.zero_grad()
        before = values.clone()
        optimizer.all_reduce_grads(model)
        optimizer.step()
        assert torch.equal(values, before) == forget
        assert not model.memory.table.pending


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_a_batch_that_is_ignored_moves_no_row(factor: float) -> None:
    """fairseq multiplies its loss by zero. Moments and weight decay would move its rows; what is not finite must."""
    model = Model()
    optimizer = fairseq_optimizer(model, memory_weight_decay=0.1)
    values = model.memory.table.weight
    for scale in (1.0, factor):
        optimizer.zero_grad()
        before = values.clone()
        torch.manual_seed(1)
        (model(torch.randn(9, 6)).square().sum() * scale).backward()
        optimizer.all_reduce_grads(model)
        optimizer.step()
        assert torch.equal(values, before) == (scale == 0)
    assert values.isfinite().all() == (factor == 0)


def test_a_batch_that_is_ignored_adds_nothing_to_others() -> None:
    table, _ = table_and_twin()
    slots, weights = draw(4, 2, 11)
    table.bag(slots, weights).sum().backward()
    (table.bag(slots.flip(0), weights).sum() * 0).backward()
    rows = table.take_pending()
    assert torch.equal(rows.slots, slots)


def test_the_memorys_learning_rate_is_its_own() -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = fairseq_optimizer(model, memory_lr=0.5)
    optimizer.set_lr(0.0)  # as a scheduler does
    before = copy.deepcopy(model.state_dict())
    backward(model, 1)
    optimizer.all_reduce_grads(model)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"memory.table.weight"}
    moved = (model.memory.table.weight - before["memory.table.weight"]).abs().amax(dim=1)
    assert moved[moved > 0].max().item() == pytest.approx(0.5, rel=1e-3)  # Adam's first step is the rate itself


def test_loss_scale_and_overflow() -> None:
    """Under FP16Optimizer (not flattened, as on the CPU): the scale is taken out again, an overflow leaves nothing."""
    torch.manual_seed(0)
    plain, scaled = Model(), Model()
    scaled.load_state_dict(plain.state_dict())
    one = fairseq_optimizer(plain)
    cfg = OmegaConf.create(
        {
            "common": dict(
                fp16_init_scale=128, fp16_scale_window=None, fp16_scale_tolerance=0.0, threshold_loss_scale=None,
                min_loss_scale=1e-4, model_parallel_size=1, bf16=False,
            ),
            "optimization": {"update_freq": [1]},
            "distributed_training": {"distributed_world_size": 1},
            "optimizer": {"_name": optim.NAME},
        }
    )  # fmt: skip
    parameters = [parameter for parameter in scaled.parameters() if parameter.requires_grad]
    copies = FP16Optimizer.build_fp32_params(cfg.optimizer, parameters, flatten=False)
    two = FP16Optimizer(cfg, parameters, fairseq_optimizer(nn.ParameterList(copies)), copies)
    inner = trainer_patches.inner_optimizer(two)
    inner.attach(scaled)
    x = torch.randn(9, 6)
    for optimizer, model in ((one, plain), (two, scaled)):
        optimizer.zero_grad()
        optimizer.backward(model(x).square().sum())
        optimizer.all_reduce_grads(model)
        optimizer.multiply_grads(0.5)
        optimizer.clip_grad_norm(0.3)
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, scaled.state_dict()[name], msg=lambda text: f"{name}: {text}")  # noqa: B023

    two.zero_grad()
    two.backward(scaled(x).square().sum() * 1e38)
    two.all_reduce_grads(scaled)
    with pytest.raises(OverflowError):
        two.clip_grad_norm(0.3)
    before = scaled.memory.table.weight.clone()
    inner.rows.zero_grad()  # the trainer's, see trainer_patches
    two.zero_grad()
    two.all_reduce_grads(scaled)
    inner.rows.step()
    assert torch.equal(scaled.memory.table.weight, before)


def test_too_large_for_memory_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    monkeypatch.setattr(capacity, "available", lambda device: 8 * 16 * 6 - 1)
    with pytest.raises(UserError, match=r"optimizer's state of ValueTable\(16 slots x 6\) would take"):
        fairseq_optimizer(model)
    monkeypatch.setattr(capacity, "available", lambda device: 8 * 16 * 6)
    fairseq_optimizer(model)
    with pytest.raises(UserError, match=r"of ValueTable\(16 slots x 6\), ValueTable\(16 slots x 6\) would take"):
        fairseq_optimizer(nn.ModuleList([model, Model()]))  # of which each alone would fit


def test_what_is_available_is_known_here() -> None:
    assert capacity.available(torch.device("cpu")) > 1 << 20
    assert capacity.available(torch.device("meta")) is None
    capacity.check_room(1 << 20, torch.device("cpu"), "a megabyte")
    with pytest.raises(UserError, match="a million terabytes would take 1,000,000,000"):
        capacity.check_room(10**18, torch.device("cpu"), "a million terabytes")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_processes_that_drop_layers_cannot_share_a_table(part: str) -> None:
    """They would wait for each other in different layers."""
    model = SimpleNamespace(**{f"{part}_layerdrop": 0.2})
    cfg = SimpleNamespace(optimizer=SimpleNamespace(_name=optim.NAME), model=model, distributed_training=None)
    with pytest.raises(UserError, match=f"--{part}-layerdrop does not work with --memory-sharded"):
        trainer_patches.check(cfg, sharded=True)
