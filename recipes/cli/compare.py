"""Compare systems by sacreBLEU's paired tests: `python -m recipes.compare RUN RUN...` (recipes/compare.sh)."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.metrics import systems as comparing
from recipes.storage import disk, folders, provenance
from thoth_core.errors import UserError

SAMPLES = {"bs": 1_000, "ar": 10_000}  # sacreBLEU's
SEED = 12345  # sacreBLEU's
WRITTEN = re.compile(r"comparison\.(json|md)")


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/compare.sh",
        allow_abbrev=False,
        description="Compare translations of the same test set: BLEU, chrF2 and TER with 95%% intervals, sacreBLEU's "
        "paired test of each system against the first, BLEU by the length of the source and by talk. Nothing is "
        "decoded. The table goes to standard output, and with all figures into a folder.",
    )
    found.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run (RUNS/CORPUS/MODEL, of which the folder evaluation is taken) or the folder of an evaluation; the "
        "first one is the baseline",
    )
    found.add_argument(
        "--paired-ar",
        action="store_true",
        help="test by approximate randomisation instead of paired bootstrap resampling",
    )
    found.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="resamples, or trials of --paired-ar (default: {bs:,}; {ar:,})".format(**SAMPLES),
    )
    found.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"of the draws (default: {SEED})")
    found.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="where to write comparison.md and comparison.json (default: a folder comparison beside the first)",
    )
    return found


def check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for a call that cannot be meant."""
    if len(arguments.runs) < 2:
        raise UserError("RUN: one system alone; a comparison needs two or more (recipes/score.sh scores one)")
    if arguments.samples is not None and not 100 <= arguments.samples <= 1_000_000:
        raise UserError(f"--samples must be from 100 to 1000000, but is {arguments.samples}")
    if not 1 <= arguments.seed < 2**32:  # sacreBLEU takes 0 for no seed
        raise UserError(f"--seed must be from 1 to {2**32 - 1}, but is {arguments.seed}")


def meaning(test: str, samples: int) -> str:
    """What the columns are, for people."""
    kind = "paired bootstrap resampling" if test == "bs" else "paired approximate randomisation"
    count = f"{samples:,} {'resamples' if test == 'bs' else 'trials'}"
    return (
        f"p: {kind} ({count}) against system 1, of no difference; not corrected for the number of systems. "
        f"95% interval: around the mean of {samples if test == 'bs' else SAMPLES['bs']:,} resamples of the sentences."
    )


def compare(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    check(arguments)
    systems = [comparing.open_system(given) for given in arguments.runs]
    comparing.check_comparable(systems)
    output: Path = arguments.output or systems[0].folder.resolve().parent / "comparison"
    folders.make_ready(output, WRITTEN)  # an evaluation may lie in any folder of the user's
    for system in systems:
        print(f"Scoring {system.name}", flush=True)
        comparing.check_scores(system)
    test = "ar" if arguments.paired_ar else "bs"
    samples = arguments.samples or SAMPLES[test]
    tests = comparing.paired(
        systems, test=test, samples=samples, seed=arguments.seed, said=lambda line: print(line, flush=True)
    )
    language = systems[0].scores["source_language"]
    comparison: dict[str, Any] = {
        "corpus": systems[0].scores["corpus"],
        "split": systems[0].scores["split"],
        "sentences": len(systems[0].sentences),
        "test": test,
        "samples": samples,
        "seed": arguments.seed,
        "meaning": meaning(test, samples),
        "systems": [
            {
                "name": s.name,
                **{name: s.scores[name] for name in comparing.NEEDED},
                "overrides": s.scores.get("overrides", {}),
            }
            for s in systems
        ],
        "tests": tests,
        "length_unit": "words" if comparing.spaced(language) else "characters",
        "by_length": comparing.by_length(systems),
        "by_talk": comparing.by_talk(systems),
        "command": shlex.join(command),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }
    text = comparing.table(comparison, systems)
    with folders.replaced(output) as building:
        (building / "comparison.md").write_text(text, encoding="utf-8")
        disk.write_json(building / "comparison.json", comparison)
    print()
    print(text)
    print(f"Written to {output}")
    return 0


def main() -> int:
    given = sys.argv[1:]
    arguments = parser().parse_args(given)
    with disk.disk_errors(Path()), messages.quiet_libraries():
        return compare(arguments, ["recipes/compare.sh", *given])


if __name__ == "__main__":
    errors.main(main)
