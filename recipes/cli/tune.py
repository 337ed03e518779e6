"""Find a beam and a length penalty on the validation set: `python -m recipes.tune CORPUS MODEL` (recipes/tune.sh)."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_compat import errors
from recipes.cli import evaluate
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.evaluation import beam_tuning
from recipes.storage import commands, disk
from thoth_core import allocator
from thoth_core.errors import UserError

BEAMS = (1, 4, 5, 8)
LENPENS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0, 2.5, 3.0)  # each costs only a ranking


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/tune.sh",
        allow_abbrev=False,
        description="Find the beam and the length penalty of the highest BLEU on the validation set, and on no other, "
        "into RUNS/CORPUS/MODEL/tuning.json. Each beam is decoded once; the length penalty only ranks what was found. "
        "The last line is the call that evaluates the model with both.",
    )
    evaluate.model_options(found, split=beam_tuning.SPLIT)
    evaluate.ensemble_option(found)
    found.add_argument(
        "--beams", nargs="+", type=int, default=BEAMS, metavar="N", help=f"to try (default: {told(BEAMS)})"
    )
    found.add_argument(
        "--lenpens", nargs="+", type=float, default=LENPENS, metavar="X", help=f"to try (default: {told(LENPENS)})"
    )
    return found


def told(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for options out of range or at odds."""
    evaluate.check(arguments)
    for name, several in (("beam", "beams"), ("lenpen", "lenpens")):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is found here; leave it out, or give --{several} to try")
    if arguments.split != beam_tuning.SPLIT:
        raise UserError(f"--split {arguments.split}: a search is tuned on {beam_tuning.SPLIT} only; leave --split out")
    for beam in arguments.beams:
        if not 1 <= beam <= 1000:
            raise UserError(f"--beams must be from 1 to 1000, but one is {beam}")
    for lenpen in arguments.lenpens:
        if not -100 <= lenpen <= 100:
            raise UserError(f"--lenpens must be from -100 to 100, but one is {lenpen:g}")


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest BLEU; of equals the smallest beam, then the length penalty nearest to 1, fairseq's default."""
    return max(rows, key=lambda row: (row["bleu"], -row["beam"], -abs(row["lenpen"] - 1), row["lenpen"]))


def at_the_edge(rows: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> str | None:
    """That a length penalty beyond those tried might be better still; None if it is unlikely."""
    of_beam = {row["lenpen"]: row["bleu"] for row in rows if row["beam"] == chosen["beam"]}
    if len(set(of_beam.values())) > 1:
        for name, edge in (("lowest", min(of_beam)), ("highest", max(of_beam))):
            if chosen["lenpen"] == edge:
                return f"length penalty {edge:g} is the {name} tried: give --lenpens beyond it"
    return None


def table(rows: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> str:
    """BLEU, a row a beam and a column a length penalty, as aligned text."""
    lenpens = list(dict.fromkeys(row["lenpen"] for row in rows))
    lines = ["beam  length penalty " + "".join(f"{lenpen:>8g}" for lenpen in lenpens)]
    for beam in dict.fromkeys(row["beam"] for row in rows):
        cells = [f"{row['bleu']:.2f}{'*' if row is chosen else ' '}" for row in rows if row["beam"] == beam]
        lines.append(f"{beam:>4}{'':17}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join([*lines, "* chosen"])


def tune(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    check(arguments)
    chosen = evaluate.choose(arguments)
    output = beam_tuning.place(chosen, arguments)
    if not disk.writable(chosen.run.folder):
        raise UserError(f"{chosen.run.folder}: not writable; copy the run, and name its folder with --runs")

    from tqdm import tqdm

    from recipes.evaluation import model_loading
    from recipes.metrics import quality

    state = chosen.load()
    if model_loading.is_language_model(state):
        raise UserError(f"{chosen.model} is a language model, which translates nothing: there is no search to tune")
    chosen, ensemble = chosen.load_others()
    translator = chosen.place.translator(state)
    metric = {"bleu": quality.metrics_for(chosen.place.corpus.target, lowercase=translator.target.lowercase)["bleu"]}
    rows: list[dict[str, Any]] = []
    print(f"Translating {len(chosen.sources):,} sentences of {beam_tuning.SPLIT}, once a beam", flush=True)
    for beam in sorted(set(arguments.beams)):
        with tqdm(total=len(chosen.sources), unit=" sentences", smoothing=0.1, desc=f"beam {beam}") as bar:
            found = translator.candidates(chosen.sources, {**chosen.search, "beam": beam}, progress=bar)
        for lenpen in sorted(set(arguments.lenpens)):
            texts = translator.ranked(found, lenpen)
            quality.check_lines(texts, chosen.references)
            scored = quality.corpus_scores(metric, texts, chosen.references)["bleu"]
            rows.append({"beam": beam, "lenpen": lenpen, "bleu": scored.score})
    winner = best(rows)
    call = f"{commands.call('recipes/evaluate.sh', arguments)} --tuned"
    facts = chosen.facts(state, command)
    disk.write_json(
        output,
        {
            "beam": winner["beam"],
            "lenpen": winner["lenpen"],
            "bleu": winner["bleu"],
            "bleu_signature": scored.signature,
            "rows": rows,
            "search": chosen.search,
            "parameters_of_models": [facts["parameters_sha256"], *(other["parameters_sha256"] for other in ensemble)],
            "evaluate": call,
            **facts,
            **({"ensemble": ensemble} if ensemble else {}),
        },
    )
    print()
    print(table(rows, winner))
    print(f"Chosen: beam {winner['beam']}, length penalty {winner['lenpen']:g}. BLEU {scored.signature}")
    if note := at_the_edge(rows, winner):
        print(note)
    print(f"Written to {output}")
    print(call)
    return 0


def main() -> int:
    given = sys.argv[1:]
    arguments = parser().parse_args(given)
    allocator.keep_freed_memory()
    with disk.disk_errors(arguments.runs), messages.quiet_libraries():
        return tune(arguments, ["recipes/tune.sh", *given])


if __name__ == "__main__":
    errors.main(main)
