"""Compare systems by sacreBLEU's paired tests: `recipes/compare.sh RUN RUN...`."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser, whole_number
from recipes.console import messages
from recipes.metrics import comparison, significance, systems
from recipes.storage import disk, folders
from thoth_core.errors import UserError

# The files of a comparison.
FILES = re.compile(r"comparison\.(json|md)")


def parser() -> argparse.ArgumentParser:
    """The options of recipes/compare.sh."""
    parser = Parser(
        prog="recipes/compare.sh",
        allow_abbrev=False,
        description="Compare translations of the same test set: BLEU, chrF2 and TER with 95% intervals, sacreBLEU's "
        "paired test of each system against the first, BLEU by the length of the source and by document. Nothing is "
        "decoded. The table goes to standard output and, with all figures, into a folder.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run (RUNS/CORPUS/MODEL, whose folder evaluation is taken) or the folder of an evaluation; the first "
        "one is the baseline",
    )
    parser.add_argument(
        "--paired-ar",
        dest="test",
        action="store_const",
        const="ar",
        default="bs",
        help="test by approximate randomisation instead of paired bootstrap resampling",
    )
    parser.add_argument(
        "--samples",
        type=whole_number(100, 1_000_000),
        metavar="N",
        help="resamples, or trials of --paired-ar (default: {bs:,}; {ar:,})".format(**significance.SAMPLES),
    )
    parser.add_argument(
        "--seed",
        type=whole_number(1, 2**32 - 1),  # sacreBLEU takes 0 as no seed
        default=significance.SEED,
        metavar="N",
        help=f"seed of the resamples (default: {significance.SEED})",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for comparison.md and comparison.json (default: a folder comparison beside the first evaluation)",
    )
    return parser


def compare(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Write the comparison and print its table."""
    if len(arguments.runs) < 2:
        raise UserError("RUN: one system alone; a comparison needs two or more (recipes/score.sh scores one)")
    opened = [systems.open_system(run) for run in arguments.runs]
    systems.check_comparable(opened)
    output: Path = arguments.output or opened[0].folder.resolve().parent / "comparison"
    folders.make_ready(output, FILES)
    for system in opened:
        print(f"Scoring {system.name}", flush=True)
        systems.check_scores(system)
    compared = comparison.compare(
        opened,
        test=arguments.test,
        samples=arguments.samples or significance.SAMPLES[arguments.test],
        seed=arguments.seed,
        command=shlex.join(command),
        report=lambda line: print(line, flush=True),
    )
    text = comparison.table(compared, opened)
    with folders.replaced(output) as building:
        (building / comparison.TABLE_NAME).write_text(text, encoding="utf-8")
        compared.write(building / comparison.JSON_NAME)
    print()
    print(text)
    print(f"Written to {output}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    words = sys.argv[1:] if words is None else words
    arguments = parser().parse_args(words)
    with disk.disk_errors(Path()), messages.quiet_libraries():
        return compare(arguments, ["recipes/compare.sh", *words])


if __name__ == "__main__":
    errors.main(main)
