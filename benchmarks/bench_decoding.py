"""Beam search with exits against full depth, on the CPU: tokens per second at a given mean exit.

    python benchmarks/bench_decoding.py [--dims 256 512] [--batches 1 32] [--beams 1 5] [--means 1.5 3]

The model has random weights and six blocks each in encoder and decoder; sentences have 22 tokens, translations 24. Each
hypothesis has its own exit at each position, drawn from a geometric distribution so that the mean is exactly the given
one; with --of-sentence, all hypotheses of a sentence have the same exit. One run times in turn:

    fairseq   full depth by fairseq's own decoder
    full      full depth by our decoder, with exits fixed to the last block
    adaptive  the drawn exits; upper blocks compute only the rows still alive
    eager     the same, with keys and values of copied states computed at once instead of when a row needs them
    waiting   the drawn exits, but the whole batch goes as deep as its deepest row
    first     every token leaves after the first block

The encoder is the same in all of them. The ratios of times are: `speedup`, fairseq / adaptive; `over_own_full`, full
/ adaptive; `vs_wait_for_slowest`, waiting / adaptive; `vs_eager`, eager / adaptive. Exits cannot save the time of the
encoder, the output layer and beam search itself. It is extrapolated from first and full, as the time of no blocks on
the line through one and six blocks: `unavoidable_share` is its share of full, and `most_over_own_full` is full /
adaptive if a token cost its own blocks and nothing else. `most_vs_wait` is waiting / adaptive if leaving out rows
cost nothing, that is, if each block took the time that it takes for the rows alive. The time per row is longer for
few rows, since the weights are read for any number of rows.
"""

import argparse
import bisect
import dataclasses
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
from depth_adaptive.halting import FixedPolicy, Policy
from depth_adaptive.model import DepthAdaptiveTransformerModel

EXITS, SOURCE, TARGET, VOCABULARY = 6, 22, 24, 6000


class DrawnPolicy(Policy):
    """Exits (positions, rows) that were drawn beforehand."""

    def __init__(self, drawn: Tensor) -> None:
        super().__init__(exits=EXITS)
        self.drawn = drawn

    def planned(self, sentence: Tensor, first: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.drawn[positions[0]]


def draw(mean: float, batch: int, beam: int, *, of_sentence: bool) -> Tensor:
    """Exits (positions, batch * beam), in equal parts from every stretch of the distribution, in random order."""
    columns = batch if of_sentence else batch * beam
    count = (TARGET + 1) * columns  # the end of the sentence included
    cumulated = torch.tensor(distribution(mean), dtype=torch.float64).cumsum(0)[:-1]
    exits = torch.bucketize((torch.arange(count, dtype=torch.float64) + 0.5) / count, cumulated) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    return exits[order].view(TARGET + 1, columns).repeat_interleave(beam if of_sentence else 1, 1)


def distribution(mean: float) -> list[float]:
    """Weights of the exits with that mean, each a constant factor times the one before."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        factor = (low * high) ** 0.5
        weights = [factor**n for n in range(EXITS)]
        its_mean = sum(n * weight for n, weight in enumerate(weights, start=1)) / sum(weights)
        low, high = (factor, high) if its_mean < mean else (low, factor)
    return [weight / sum(weights) for weight in weights]


def build(dim: int) -> DepthAdaptiveTransformerModel:
    """A model of dimension ``dim``, with weights from a fixed seed."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for index in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    sizes = dict(embed_dim=dim, ffn_embed_dim=4 * dim, attention_heads=dim // 64, layers=EXITS)
    options = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sizes.items()}
    args = argparse.Namespace(**options, share_all_embeddings=True)
    ARCH_CONFIG_REGISTRY["depth_adaptive_transformer"](args)
    task: Any = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return DepthAdaptiveTransformerModel.build_model(args, task).eval()


class Search:
    """Beam search over a batch of sentences, with translations of a fixed length."""

    def __init__(self, model: DepthAdaptiveTransformerModel, batch: int, beam: int) -> None:
        source = torch.randint(4, VOCABULARY, (batch, SOURCE), generator=torch.Generator().manual_seed(2))
        self.sample = {"net_input": {"src_tokens": source, "src_lengths": torch.full((batch,), SOURCE)}}
        dictionary = model.decoder.dictionary
        self.generator = SequenceGenerator([model], dictionary, beam_size=beam, max_len_b=TARGET, min_len=TARGET)
        self.model = model

    def __call__(self, policy: Policy | None) -> None:
        self.model.decoder.policy = policy
        self.generator.generate([self.model], self.sample)


class Blocks:
    """Seconds that a block takes for a number of rows at one position, from searches of one and of all blocks."""

    def __init__(self, model: DepthAdaptiveTransformerModel, most_rows: int, rounds: int) -> None:
        self.rows, self.seconds = [0], [0.0]
        rows = [2**n for n in range((most_rows - 1).bit_length())] + [most_rows]
        for count in rows:
            search = Search(model, count, 1)
            policies = {n: FixedPolicy(exits=EXITS, exit=n) for n in (1, EXITS)}
            runs = {str(n): lambda search=search, policy=policy: search(policy) for n, policy in policies.items()}
            timings = time_in_turn(runs, rounds=rounds, warmup=1)
            self.rows.append(count)
            self.seconds.append((timings[str(EXITS)].median - timings["1"].median) / (EXITS - 1) / (TARGET + 1))

    def __call__(self, rows: int) -> float:
        """Seconds for ``rows``, interpolated between the two nearest counts that were measured."""
        upper = bisect.bisect_left(self.rows, rows)
        if self.rows[upper] == rows:
            return self.seconds[upper]
        share = (rows - self.rows[upper - 1]) / (self.rows[upper] - self.rows[upper - 1])
        return (1 - share) * self.seconds[upper - 1] + share * self.seconds[upper]

    def saved(self, exits: Tensor) -> float:
        """Seconds that leaving out rows would save if it cost nothing, for exits (positions, rows)."""
        saved = 0.0
        for position in exits:
            for n in range(1, int(position.max()) + 1):
                saved += self(position.numel()) - self(int((position >= n).sum()))
        return saved


def measure(
    model: DepthAdaptiveTransformerModel, batch: int, beam: int, drawn: Tensor, blocks: Blocks, rounds: int
) -> dict[str, float]:
    """Time one case. Returns one line of figures."""
    decoder = model.decoder
    search = Search(model, batch, beam)
    copies = {name: dataclasses.replace(decoder.exit_options, exit_copies=name) for name in ("deferred", "eager")}
    waiting = drawn.amax(1, keepdim=True).expand_as(drawn)
    runs: dict[str, tuple[Policy | None, str]] = {
        "fairseq": (None, "deferred"),
        "full": (FixedPolicy(exits=EXITS, exit=EXITS), "deferred"),
        "adaptive": (DrawnPolicy(drawn), "deferred"),
        "eager": (DrawnPolicy(drawn), "eager"),
        "waiting": (DrawnPolicy(waiting), "deferred"),
        "first": (FixedPolicy(exits=EXITS, exit=1), "deferred"),
    }

    def translate(policy: Policy | None, when: str) -> None:
        decoder.exit_options = copies[when]
        search(policy)

    timings = time_in_turn(
        {name: (lambda run=run: translate(*run)) for name, run in runs.items()}, rounds=rounds, warmup=1
    )
    block = (timings["full"].median - timings["first"].median) / (EXITS - 1)
    mean = drawn.double().mean().item()
    speed = {name: round(batch * (TARGET + 1) / timings[name].median) for name in ("fairseq", "full", "adaptive")}
    return {
        "d": decoder.embed_dim,
        "batch": batch,
        "beam": beam,
        "mean_exit": round(mean, 2),
        **{f"{name}_tokens_per_second": value for name, value in speed.items()},
        "speedup": round(ratio(timings["fairseq"], timings["adaptive"]), 2),
        "over_own_full": round(ratio(timings["full"], timings["adaptive"]), 2),
        "vs_wait_for_slowest": round(ratio(timings["waiting"], timings["adaptive"]), 2),
        "most_vs_wait": round(timings["waiting"].median / (timings["waiting"].median - blocks.saved(drawn)), 2),
        "vs_eager": round(ratio(timings["eager"], timings["adaptive"]), 2),
        "unavoidable_share": round((timings["first"].median - block) / timings["full"].median, 2),
        "most_over_own_full": round(timings["full"].median / (timings["first"].median + (mean - 1) * block), 2),
        "spread": round(max(timings["adaptive"].seconds) / min(timings["adaptive"].seconds), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--means", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--of-sentence", action="store_true", help="one exit for all hypotheses of a sentence")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    options = parser.parse_args()
    print(machine())
    lines = []
    for dim in options.dims:
        model = build(dim)
        blocks = Blocks(model, max(options.batches) * max(options.beams), options.rounds)
        for batch in options.batches:
            for beam in options.beams:
                for mean in options.means:
                    drawn = draw(mean, batch, beam, of_sentence=options.of_sentence)
                    lines.append(measure(model, batch, beam, drawn, blocks, options.rounds))
                    if len(lines) == 1:
                        print("  ".join(lines[0]))
                    print("  ".join(f"{value:>{len(name)}}" for name, value in lines[-1].items()), flush=True)
    finish({"of_sentence": options.of_sentence, "cases": lines})


if __name__ == "__main__":
    main()
