"""Write one HTML page about evaluations of the same test set: `recipes/report.sh RUN...`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fairseq_compat import errors
from recipes.cli.arguments import Parser, whole_number
from recipes.console import messages
from recipes.metrics import comparison, significance, systems
from recipes.metrics.systems import System
from recipes.reporting import artifacts, page
from recipes.reporting.labels import labels
from recipes.storage import disk
from thoth_core.errors import UserError

SENTENCES = 1_000


def parser() -> argparse.ArgumentParser:
    """The options of recipes/report.sh."""
    options = Parser(
        prog="recipes/report.sh",
        allow_abbrev=False,
        description="Write an HTML page, which needs no network, about translations of the same test set: scores and "
        "paired tests, training curves, BLEU by length, speed and cost, exits, alignments, slots of memories, and the "
        "translations side by side. Nothing is decoded again.",
    )
    options.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run (RUNS/CORPUS/MODEL; its folder evaluation is read) or folder of an evaluation; the first is the "
        "baseline",
    )
    options.add_argument(
        "--sentences",
        type=whole_number(0),
        default=SENTENCES,
        metavar="N",
        help=f"number of sentences to show, of those on which systems differ most; 0 for all (default: {SENTENCES:,})",
    )
    options.add_argument(
        "--samples",
        type=whole_number(100, 1_000_000),
        default=significance.SAMPLES["bs"],
        metavar="N",
        help=f"number of resamples of the paired bootstrap test (default: {significance.SAMPLES['bs']:,})",
    )
    options.add_argument(
        "--seed",
        type=whole_number(1, 2**32 - 1),
        default=significance.SEED,
        metavar="N",
        help=f"seed of the resampling (default: {significance.SEED})",
    )
    options.add_argument(
        "--output", metavar="FILE", type=Path, help="file to write (default: report.html in the first run)"
    )
    return options


def check_output(output: Path) -> None:
    """Refuse an --output that cannot be written."""
    if output.is_dir():
        raise UserError(f"--output {output}: a folder; give the name of a file")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it, or name another file")
    if not disk.writable(output.parent):
        raise UserError(f"{output.parent}: not writable; name another file with --output")


def most_different(opened: Sequence[System]) -> list[int]:
    """Indices of all sentences, by how much chrF2 differs between systems, the largest difference first.

    Of one system alone the lowest chrF2 comes first.
    """

    def key(index: int) -> tuple[float, int]:
        scores = [system.sentences[index].chrf for system in opened]
        return (min(scores) - max(scores) if len(scores) > 1 else scores[0]), index

    return sorted(range(len(opened[0].sentences)), key=key)


def report(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Write the page; the exit status."""
    opened = [systems.open_system(path) for path in arguments.runs]
    systems.check_comparable(opened)
    output: Path = arguments.output or opened[0].folder.resolve().parent / "report.html"
    check_output(output)
    labelled = zip(opened, labels(opened), strict=True)
    data = [artifacts.read(system, number, label) for number, (system, label) in enumerate(labelled)]
    for system in opened:
        print(f"Scoring {system.name}", flush=True)
        systems.check_scores(system)
        systems.check_sentence_scores(system)
    compared = comparison.compare(
        opened,
        test="bs",
        samples=arguments.samples,
        seed=arguments.seed,
        command=shlex.join(command),
        report=lambda line: print(line, flush=True),
    )
    order = most_different(opened)[: arguments.sentences or None]
    print("Writing the page", flush=True)
    with tqdm(total=len(order), unit=" sentences", smoothing=0.1) as bar:
        text = page.render(data, compared, order, command=shlex.join(command), progress=bar.update)
    disk.write_atomically(output, text)
    print(f"Written to {output}, {len(text.encode()) / 1e6:.1f} MB")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    words = sys.argv[1:] if words is None else words
    arguments = parser().parse_args(words)
    with disk.disk_errors(Path()), messages.quiet_libraries():
        return report(arguments, ["recipes/report.sh", *words])


if __name__ == "__main__":
    errors.main(main)
