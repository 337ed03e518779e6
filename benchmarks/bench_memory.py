"""Lookup, forward and training step of a product-key memory against plain PyTorch, on the CPU.

    python benchmarks/bench_memory.py [--rounds 9] [--growth 256 512 1024 2048] [--plot FILE]

Plain PyTorch is the published formulation: top-k of both halves, all k·k sums, top-k of these; embedding_bag; a dense
gradient of the whole table with fused Adam, or a sparse one with SparseAdam. All formulations train the queries, the
sub-keys and the query projection in the same way. A forward pass takes hidden states (T, V), so it includes the query
projection. The floor is the time of the query and score products plus that of reading as many bytes as the selected
rows have, at the rate of a sum over the table. All ratios are medians of pairs timed in turn within this run.

The training step must not grow faster with n than the score products do: the last table shows both, for one value
dimension that lets the largest table fit into memory.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Timing, finish, machine, peak_tensor_mb, ratio, time_in_turn
from memory_layers import ops
from memory_layers.row_adam import RowAdam
from memory_layers.table import ValueTable

BACKEND = "cpu"  # an error if the kernels are not built


@dataclass
class Size:
    """T tokens, H heads, N sub-keys per half (N·N slots), K selected slots per head, D key and V value dimension."""

    tokens: int = 1024
    heads: int = 4
    n: int = 512
    k: int = 32
    key_dim: int = 256
    dim: int = 512


class Memory(nn.Module):
    """The part that all formulations share: hidden states (T, V) → queries (T, H, D); sub-keys (H, 2, N, D/2)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.size = size
        self.query = nn.Linear(size.dim, size.heads * size.key_dim, bias=False)
        half = size.key_dim // 2
        self.sub_keys = nn.Parameter(torch.empty(size.heads, 2, size.n, half).uniform_(-(half**-0.5), half**-0.5))

    def queries(self, x: Tensor) -> Tensor:
        return self.query(x).view(len(x), self.size.heads, self.size.key_dim)


class Plain(Memory):
    """Plain PyTorch."""

    def __init__(self, size: Size, sparse: bool = False) -> None:
        super().__init__(size)
        self.values = nn.Parameter(torch.empty(size.n**2, size.dim).normal_(std=size.dim**-0.5))
        self.sparse = sparse

    def lookup(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        n, k = self.size.n, self.size.k
        halves = queries.chunk(2, dim=-1)
        scores = [torch.einsum("thd,hnd->thn", half, self.sub_keys[:, i]) for i, half in enumerate(halves)]
        (first, rows), (second, columns) = (half.topk(k, dim=-1) for half in scores)
        sums = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(2)
        slots = (rows.unsqueeze(-1) * n + columns.unsqueeze(-2)).flatten(2)
        best, places = sums.topk(k, dim=-1)
        return best, slots.gather(-1, places)

    def forward(self, x: Tensor) -> Tensor:
        scores, slots = self.lookup(self.queries(x))
        weights = scores.softmax(dim=-1)
        return F.embedding_bag(
            slots.flatten(1), self.values, per_sample_weights=weights.flatten(1), mode="sum", sparse=self.sparse
        )


class Ours(Memory):
    """The fused operators, and a table whose gradient stays factored."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.table = ValueTable(size.n**2, size.dim, backend=BACKEND)

    def lookup(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return ops.product_key_topk(queries, self.sub_keys, self.size.k, backend=BACKEND)

    def forward(self, x: Tensor) -> Tensor:
        return self.table.lookup(self.queries(x), self.sub_keys, self.size.k)[0]


def batch(size: Size) -> tuple[Tensor, Tensor]:
    """Hidden states (T, V), and the gradient of the output (T, V)."""
    draw = torch.Generator().manual_seed(2)
    return tuple(torch.randn(size.tokens, size.dim, generator=draw) for _ in range(2))  # type: ignore[return-value]


def training_step(model: Plain | Ours) -> Callable[[], None]:
    """A function that runs forward, backward and update."""
    x, grad = batch(model.size)
    x.requires_grad_()  # a layer below needs its gradient
    dense = [model.query.weight, model.sub_keys]
    optimizers: list[torch.optim.Optimizer | RowAdam] = [torch.optim.Adam(dense, lr=1e-4, fused=True)]
    if isinstance(model, Ours):
        optimizers.append(RowAdam([model.table], lr=1e-3))
    elif model.sparse:
        optimizers.append(torch.optim.SparseAdam([model.values], lr=1e-3))
    else:
        optimizers.append(torch.optim.Adam([model.values], lr=1e-3, fused=True))

    def step() -> None:
        for parameter in (x, *model.parameters()):
            parameter.grad = None
        model(x).backward(grad)
        for optimizer in optimizers:
            optimizer.step()

    return step


def score_products(size: Size) -> Callable[[], Tensor]:
    """The products of query halves and sub-keys, and nothing else: (2H, T, D/2) and (2H, D/2, N)."""
    half = size.key_dim // 2
    queries = torch.randn(2 * size.heads, size.tokens, half)
    keys = torch.randn(2 * size.heads, size.n, half).transpose(1, 2)
    return lambda: torch.bmm(queries, keys)


def forward_timings(size: Size, rounds: int) -> dict[str, Timing]:
    """Lookups and forward passes of both formulations, and the parts of the floor."""
    plain, ours = Plain(size), Ours(size)
    x, _ = batch(size)
    rows = min(size.tokens * size.heads * size.k, size.n**2)
    repeats = size.tokens * size.heads * size.k / rows
    with torch.no_grad():
        ours.table.weight.copy_(plain.values)  # the other parameters have the same seed
        queries = plain.queries(x)
        difference = (plain(x) - ours(x)).abs().max().item()
        if not difference < 1e-4:
            raise RuntimeError(f"both formulations must give the same result, but they differ by {difference}")
        timings = time_in_turn(
            {
                "plain lookup": lambda: plain.lookup(queries),
                "our lookup": lambda: ours.lookup(queries),
                "plain forward": lambda: plain(x),
                "our forward": lambda: ours(x),
                "query product": lambda: plain.query(x),
                "score products": score_products(size),
                "reading the rows": lambda: plain.values[:rows].sum(),
            },
            rounds=rounds,
        )
    reading = timings["reading the rows"]
    timings["reading the rows"] = Timing([repeats * seconds for seconds in reading.seconds])
    parts = [timings[part].seconds for part in ("query product", "score products", "reading the rows")]
    timings["floor"] = Timing([sum(round_) for round_ in zip(*parts, strict=True)])
    return timings


def growth(size: Size, ns: list[int], rounds: int) -> list[dict[str, float]]:
    """Microseconds per token of the lookup, the training step and the score products, for each n."""
    figures = []
    for n in ns:
        model = Ours(replace(size, n=n))
        with torch.no_grad():
            queries = model.queries(batch(model.size)[0])

        def lookup(model: Ours = model, queries: Tensor = queries) -> object:
            with torch.no_grad():
                return model.lookup(queries)

        timings = time_in_turn(
            {"lookup": lookup, "step": training_step(model), "gemm": score_products(model.size)}, rounds=rounds
        )
        per_token = {name: round(1e6 * timing.median / size.tokens, 2) for name, timing in timings.items()}
        figures.append({"n": n, **{f"{name}_us_per_token": value for name, value in per_token.items()}})
    return figures


def print_growth(figures: list[dict[str, float]], dim: int) -> None:
    """A table, and bars of the growth since the first line."""
    print(f"\ngrowth with n at value dimension {dim}, microseconds per token (and the factor to the first line)")
    print(f"  {'n':>5} {'slots':>10} {'lookup':>16} {'training step':>16} {'score products':>16}")
    names = ("lookup_us_per_token", "step_us_per_token", "gemm_us_per_token")
    for line in figures:
        cells = [f"{line[name]:8.1f} ({line[name] / figures[0][name]:4.1f})" for name in names]
        print(f"  {line['n']:5} {line['n'] ** 2:10,} " + " ".join(f"{cell:>16}" for cell in cells))
    most = max(line[name] / figures[0][name] for line in figures for name in names)
    for name, label in zip(names[1:], ("training step", "score products"), strict=True):
        for line in figures:
            times = line[name] / figures[0][name]
            print(f"  {label:>14} {line['n']:5} {'#' * max(1, round(50 * times / most))} {times:.1f}")


def plot_growth(figures: list[dict[str, float]], file: Path) -> None:
    """Plot the growth, with both axes logarithmic."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # otherwise it logs its search for fonts
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    for name, label in (("step", "training step"), ("lookup", "lookup"), ("gemm", "score products")):
        axes.plot(
            [line["n"] for line in figures], [line[f"{name}_us_per_token"] for line in figures], "o-", label=label
        )
    axes.set(xlabel="sub-keys per half (n)", ylabel="microseconds per token", xscale="log", yscale="log")
    axes.set_xticks([line["n"] for line in figures], [f"{line['n']:.0f}" for line in figures], minor=False)
    axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Size()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds after two of warm-up (default 9)")
    parser.add_argument("--growth", type=int, nargs="*", default=[256, 512, 1024, 2048], metavar="N")
    parser.add_argument(
        "--growth-dim", type=int, default=128, help="value dimension of the tables of --growth (default 128)"
    )
    parser.add_argument("--plot", type=Path, help="plot the growth into this file, such as growth.svg")
    options = parser.parse_args()
    size = Size(**{name: getattr(options, name) for name in vars(Size())})
    ops.check_available(BACKEND)
    print(machine())
    print(f"{size}\n")

    timings = forward_timings(size, options.rounds)
    for label, timing in timings.items():
        print(f"  {label:<34} {timing}")
    our_step = training_step(Ours(size))
    dense = time_in_turn({"plain": training_step(Plain(size)), "ours": our_step}, rounds=options.rounds)
    sparse = time_in_turn(
        {"plain": training_step(Plain(size, sparse=True)), "ours": our_step},
        rounds=max(3, options.rounds // 3),
        warmup=1,
    )
    print(f"  {'training step, dense + fused Adam':<34} {dense['plain']}")
    print(f"  {'training step, SparseAdam':<34} {sparse['plain']}")
    print(f"  {'training step, ours':<34} {dense['ours']}")
    figures = {
        "lookup_ratio": ratio(timings["plain lookup"], timings["our lookup"]),
        "forward_ratio": ratio(timings["plain forward"], timings["our forward"]),
        "forward_floor_ratio": ratio(timings["our forward"], timings["floor"]),
        "step_vs_dense_adam": ratio(dense["plain"], dense["ours"]),
        "step_vs_sparse_adam": ratio(sparse["plain"], sparse["ours"]),
        "extra_peak_mb": peak_tensor_mb(our_step),
    }
    del our_step, dense, sparse
    print()
    for key, value in figures.items():
        print(f"  {key:<24} {value:8.2f}")
    lines = []
    if options.growth:
        lines = growth(replace(size, dim=options.growth_dim), options.growth, options.rounds)
        print_growth(lines, options.growth_dim)
        if options.plot:
            plot_growth(lines, options.plot)
    finish({**{key: round(value, 3) for key, value in figures.items()}, "growth": lines})


if __name__ == "__main__":
    main()
