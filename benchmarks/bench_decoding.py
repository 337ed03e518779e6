"""Beam search with exits against full depth, on the CPU: what a mean exit buys in tokens a second.

    python benchmarks/bench_decoding.py [--dims 256 512] [--batches 1 32] [--beams 1 5] [--means 1.5 3]

A decoder of six blocks with random weights, exits drawn from a geometric distribution of the wanted mean, sentences of
24 tokens. In one run, in turn:

    host      full depth by fairseq's own decoder
    full      full depth by ours, exits forced to the last block
    adaptive  the drawn exits; rows that have left are compacted away
    waiting   the drawn exits, but the whole batch goes as deep as its deepest row
    first     every token leaves after the first block

The ratios are against the faster of host and full. What no exit can save (encoder, output layer, beam search itself) is
told from first and full: the time of no blocks at all, on the line through one block and six.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from benchmarks.common import finish, machine, ratio, time_in_turn
from depth_adaptive.halting import FixedPolicy, Policy, RandomPolicy
from depth_adaptive.model import DepthAdaptiveTransformerModel

EXITS, SOURCE, TARGET, VOCABULARY = 6, 22, 24, 6000


class WaitingPolicy(RandomPolicy):
    """The deepest of the drawn exits, for all rows."""

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        drawn = super().planned(sentence, first, tokens, positions)
        return torch.full_like(drawn, int(drawn.max()))


def distribution(mean: float) -> list[float]:
    """Weights of the exits, falling or rising by one factor, with that mean."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        factor = (low * high) ** 0.5
        weights = [factor**n for n in range(EXITS)]
        found = sum(n * weight for n, weight in enumerate(weights, start=1)) / sum(weights)
        low, high = (factor, high) if found < mean else (low, factor)
    return [weight / sum(weights) for weight in weights]


def build(dim: int, copies: str) -> DepthAdaptiveTransformerModel:
    """The model of a dimension, its weights from a fixed seed."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for index in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    sizes = dict(embed_dim=dim, ffn_embed_dim=4 * dim, attention_heads=dim // 64, layers=EXITS)
    options = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sizes.items()}
    args = argparse.Namespace(**options, share_all_embeddings=True, exit_copies=copies)
    ARCH_CONFIG_REGISTRY["depth_adaptive_transformer"](args)
    task: Any = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return DepthAdaptiveTransformerModel.build_model(args, task).eval()


def measure(dim: int, batch: int, beam: int, mean: float, copies: str, rounds: int) -> dict[str, float]:
    """One line of figures."""
    model = build(dim, copies)
    dictionary = model.decoder.dictionary
    source = torch.randint(4, VOCABULARY, (batch, SOURCE), generator=torch.Generator().manual_seed(2))
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.full((batch,), SOURCE)}}
    generator = SequenceGenerator([model], dictionary, beam_size=beam, max_len_a=0, max_len_b=TARGET, min_len=TARGET)
    weights = distribution(mean)
    policies: dict[str, Policy | None] = {
        "host": None,
        "full": FixedPolicy(exits=EXITS, exit=EXITS),
        "adaptive": RandomPolicy(exits=EXITS, weights=weights),
        "waiting": WaitingPolicy(exits=EXITS, weights=weights),
        "first": FixedPolicy(exits=EXITS, exit=1),
    }
    exits: list[Tensor] = []

    def translate(policy: Policy | None) -> None:
        model.decoder.policy = policy
        generator.generate([model], sample)

    forward = model.decoder.forward
    model.decoder.forward = lambda *a, **k: _noting(forward(*a, **k), exits)  # the search does not call the module
    translate(policies["adaptive"])
    model.decoder.forward = forward
    timings = time_in_turn(
        {name: (lambda p=policy: translate(p)) for name, policy in policies.items()}, rounds=rounds, warmup=1
    )
    fastest = min(("host", "full"), key=lambda name: timings[name].median)
    block = (timings["full"].median - timings["first"].median) / (EXITS - 1)
    return {
        "dim": dim,
        "batch": batch,
        "beam": beam,
        "mean_exit": round(torch.cat(exits).float().mean().item(), 2),
        "host_tokens_per_second": round(batch * TARGET / timings["host"].median),
        "full_tokens_per_second": round(batch * TARGET / timings["full"].median),
        "adaptive_tokens_per_second": round(batch * TARGET / timings["adaptive"].median),
        "speed_up": round(ratio(timings[fastest], timings["adaptive"]), 2),
        "against_waiting": round(ratio(timings["waiting"], timings["adaptive"]), 2),
        "not_to_be_saved": round((timings["first"].median - block) / timings["full"].median, 2),
        "spread": round(max(timings["adaptive"].seconds) / min(timings["adaptive"].seconds), 2),
    }


def _noting(output: Any, exits: list[Tensor]) -> Any:
    exits.append(output[1]["exits"].flatten())
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--means", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--copies", choices=("deferred", "eager"), default="deferred")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    options = parser.parse_args()
    print(machine())
    lines = []
    for dim in options.dims:
        for batch in options.batches:
            for beam in options.beams:
                for mean in options.means:
                    lines.append(measure(dim, batch, beam, mean, options.copies, options.rounds))
                    if len(lines) == 1:
                        print("  ".join(lines[0]))
                    print("  ".join(f"{value:>{len(name)}}" for name, value in lines[-1].items()), flush=True)
    finish({"copies": options.copies, "lines": lines})


if __name__ == "__main__":
    main()
