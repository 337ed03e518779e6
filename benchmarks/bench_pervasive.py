"""Training step, memory and decoding of Pervasive Attention against its plain formulation, on the CPU.

    python benchmarks/bench_pervasive.py [--sizes small iwslt] [--rounds 7]

The plain formulation is ``attn2d.reference``: NCHW, full kernels masked in every pass, PyTorch's dropout. A training
step is forward, cross-entropy, backward and Adam (with float32 master weights in bfloat16). The floor is the time of
the step's matrix products alone, measured on the same shapes. All ratios are ratios of medians; variants are timed in
turns within one run.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor, nn

from attn2d.config import PervasiveConfig
from attn2d.model import PervasiveModel
from attn2d.reference import PlainPervasive
from benchmarks.common import finish, machine, peak_tensor_mb, ratio, time_in_turn
from thoth_core import onednn


@dataclass
class Size:
    """A model and a batch without padding."""

    dim: int  # of each embedding
    channels: int
    layers: int
    kernel: int
    ffn: int
    vocabulary: int
    batch: int
    source: int = 22
    target: int = 24


SIZES = {
    "small": Size(dim=128, channels=256, layers=6, kernel=5, ffn=256, vocabulary=6000, batch=24),
    "iwslt": Size(dim=256, channels=256, layers=14, kernel=11, ffn=1024, vocabulary=10000, batch=6),
}


def build(size: Size, checkpointing: bool = False) -> PervasiveModel:
    """The model of a size, its weights from a fixed seed."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for index in range(size.vocabulary - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    config = PervasiveConfig(
        encoder_embed_dim=size.dim,
        decoder_embed_dim=size.dim,
        convnet_channels=size.channels,
        convnet_layers=size.layers,
        convnet_kernel_size=size.kernel,
        convnet_checkpointing=checkpointing,
        resnet_ffn_dim=size.ffn,
        max_source_positions=256,
        max_target_positions=256,
    )
    return PervasiveModel.build_model(config, task).train()


def batch(size: Size) -> tuple[Tensor, Tensor]:
    """Source (B, S) and target (B, T) token ids, no padding."""
    generator = torch.Generator().manual_seed(2)
    return tuple(
        torch.randint(4, size.vocabulary, (size.batch, length), generator=generator)
        for length in (size.source, size.target)
    )  # type: ignore[return-value]


def training_step(
    model: nn.Module, logits: Callable[[Tensor, Tensor], Tensor], size: Size, dtype: torch.dtype
) -> Callable[[], None]:
    """A function that does one update of ``model``."""
    source, target = batch(size)
    model.to(dtype)
    parameters = list(model.parameters())
    masters = [p.detach().float().clone() if dtype != torch.float32 else p for p in parameters]
    optimizer = torch.optim.Adam(masters, lr=1e-4, betas=(0.9, 0.98))

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        out = logits(source, target)
        F.cross_entropy(out.reshape(-1, out.size(-1)).float(), target.reshape(-1)).backward()
        if masters[0] is not parameters[0]:
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = parameter.grad.float()
        optimizer.step()
        if masters[0] is not parameters[0]:
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)

    return step


def our_step(size: Size, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Callable[[], None]:
    """One update of the model."""
    model = build(size, checkpointing)
    return training_step(model, lambda source, target: model(source, None, target)[0], size, dtype)


def plain_step(size: Size, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """One update of the plain formulation."""
    plain = PlainPervasive(build(size)).train()
    return training_step(plain, plain, size, dtype)


def products(size: Size, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """All matrix products of one training step, forward, input gradient and weight gradient, and nothing else."""
    cells, tokens, c = size.batch * size.target * size.source, size.batch * size.target, size.channels
    shapes = [(cells, c, size.ffn), (cells, size.ffn, c)] * size.layers
    shapes += [(cells, c, 2 * c), (tokens, c, size.dim), (tokens, size.dim, size.vocabulary)]
    if c != 2 * size.dim:
        shapes += [(size.batch * size.source, size.dim, c), (tokens, size.dim, c)]
    operands = [
        (torch.randn(n, i).to(dtype), torch.randn(o, i).to(dtype), torch.randn(n, o).to(dtype)) for n, i, o in shapes
    ]

    def by_onednn(x: Tensor, weight: Tensor) -> Tensor:
        return onednn.product(x, weight, None)

    # For each product the faster of two ways: a floor must not be slower than what the model itself uses.
    ways: list[Callable[[], Tensor]] = []
    for x, weight, gradient in operands:
        for product in (
            {"mkl": partial(F.linear, x, weight), "onednn": partial(by_onednn, x, weight)},
            {"mkl": partial(torch.matmul, gradient, weight), "onednn": partial(by_onednn, gradient, weight.t())},
            {"mkl": partial(torch.matmul, gradient.t(), x), "onednn": partial(by_onednn, gradient.t(), x.t())},
        ):
            if not onednn.AVAILABLE or dtype not in onednn.DTYPES:
                del product["onednn"]
            seconds = {way: min(timing.seconds) for way, timing in time_in_turn(product, rounds=3, warmup=1).items()}
            ways.append(product[min(seconds, key=seconds.__getitem__)])

    def run() -> None:
        for way in ways:
            way()

    return run


def decoders(size: Size) -> dict[str, Callable[[], object]]:
    """Greedy steps over ``target`` positions, the hypotheses reordered at every step as by a beam."""
    model = build(size).eval()
    plain = PlainPervasive(model).eval()
    source, target = batch(size)
    order = torch.randperm(size.batch, generator=torch.Generator().manual_seed(3))

    @torch.no_grad()
    def incremental() -> None:
        encoded, state = model.encoder(source), {}
        for length in range(1, size.target + 1):
            model.decoder(target[:, :length], encoded, state)
            model.decoder.reorder_incremental_state(state, order)

    @torch.no_grad()
    def recompute() -> None:
        encoded = model.encoder(source)
        for length in range(1, size.target + 1):
            model.decoder(target[:, :length], encoded)[0][:, -1]

    @torch.no_grad()
    def plain_cached() -> None:
        cache: list[Tensor | None] = [None] * size.layers
        for length in range(1, size.target + 1):
            plain(source, target[:, :length], cache)
            cache[:] = [rows.index_select(0, order) for rows in cache]  # type: ignore[union-attr]

    return {"incremental": incremental, "recompute": recompute, "plain cached": plain_cached}


def peak_memory(step: Callable[[], None]) -> float:
    """MB that an update takes beyond the weights and Adam's moments."""
    step()  # the moments are allocated by the first
    return peak_tensor_mb(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds after two of warm-up (default 7)")
    options = parser.parse_args()
    print(machine())
    figures = {}
    for name in options.sizes:
        size = SIZES[name]
        half = torch.bfloat16
        steps = time_in_turn(
            {
                "plain": plain_step(size),
                "ours": our_step(size),
                "products": products(size),
                "plain bf16": plain_step(size, half),
                "ours bf16": our_step(size, half),
                "products bf16": products(size, half),
            },
            rounds=options.rounds,
        )
        decode = decoders(size)
        # Two separate comparisons: recomputing evicts the cache and would slow down a third variant.
        cached = time_in_turn({way: decode[way] for way in ("incremental", "plain cached")}, rounds=2 * options.rounds)
        recomputed = time_in_turn(
            {way: decode[way] for way in ("incremental", "recompute")}, rounds=max(3, options.rounds // 2), warmup=1
        )
        memory = {
            "plain": peak_memory(plain_step(size)),
            "ours": peak_memory(our_step(size)),
            "checkpointing": peak_memory(our_step(size, checkpointing=True)),
        }
        print(f"\n{name}: {size}")
        for label, timing in steps.items():
            print(f"  training step, {label:<14} {timing}")
        for label, timing in (*cached.items(), ("recompute", recomputed["recompute"])):
            print(f"  decoding, {label:<19} {timing}")
        for label, megabytes in memory.items():
            print(f"  peak memory of a step, {label:<13} {megabytes:7.0f} MB")
        figures[name] = {
            "train_ratio": ratio(steps["plain"], steps["ours"]),
            "train_ratio_bf16": ratio(steps["plain"], steps["ours bf16"]),
            "train_ratio_bf16_both": ratio(steps["plain bf16"], steps["ours bf16"]),
            "floor_ratio": ratio(steps["ours"], steps["products"]),
            "floor_ratio_bf16": ratio(steps["ours bf16"], steps["products bf16"]),
            "memory_ratio": memory["ours"] / memory["plain"],
            "memory_ratio_checkpointing": memory["checkpointing"] / memory["plain"],
            "decode_vs_recompute": ratio(recomputed["recompute"], recomputed["incremental"]),
            "decode_vs_cached_plain": ratio(cached["plain cached"], cached["incremental"]),
        }
        figures[name] = {key: round(value, 3) for key, value in figures[name].items()}
        for key, value in figures[name].items():
            print(f"  {key:<28} {value:.2f}")
    finish(figures)


if __name__ == "__main__":
    main()
