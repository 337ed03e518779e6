"""Choose a beam and a length penalty on the validation set: `recipes/tune.sh CORPUS MODEL`."""

import argparse
import sys
from collections.abc import Sequence

from fairseq_compat import errors
from recipes.cli.arguments import Parser, add_ensemble_option, add_model_options, number, request_of, whole_number
from recipes.console import messages
from recipes.evaluation import beam_tuning, selection
from recipes.storage import disk
from thoth_core import allocator
from thoth_core.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of recipes/tune.sh."""
    parser = Parser(
        prog="recipes/tune.sh",
        allow_abbrev=False,
        description="Choose the beam and the length penalty of the highest BLEU on the validation set, and on no "
        "other, into RUNS/CORPUS/MODEL/tuning.json. Each beam is decoded once: the length penalty only ranks its "
        "hypotheses. The last line is the command that evaluates the model with both.",
    )
    add_model_options(parser, split=beam_tuning.SPLIT)
    add_ensemble_option(parser)
    beams, lenpens = (" ".join(f"{value:g}" for value in values) for values in (beam_tuning.BEAMS, beam_tuning.LENPENS))
    parser.add_argument(
        "--beams",
        nargs="+",
        type=whole_number(1, 1000),
        default=beam_tuning.BEAMS,
        metavar="N",
        help=f"beam sizes to try (default: {beams})",
    )
    parser.add_argument(
        "--lenpens",
        nargs="+",
        type=number(-100, 100),
        default=beam_tuning.LENPENS,
        metavar="X",
        help=f"length penalties to try (default: {lenpens})",
    )
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for options that tuning excludes."""
    for name, several in (("beam", "beams"), ("lenpen", "lenpens")):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is chosen here; leave it out, or give --{several} to try")
    if arguments.split != beam_tuning.SPLIT:
        raise UserError(f"--split {arguments.split}: a search is tuned on {beam_tuning.SPLIT} only; leave --split out")


def tune(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Check the request, then tune and print the grid."""
    check(arguments)
    selected = selection.select(request_of(arguments))
    output = beam_tuning.path_of(selected)
    if not disk.writable(selected.model.run.folder):
        raise UserError(f"{selected.model.run.folder}: not writable; copy the run, and name its folder with --runs")

    with messages.missing_modules_explained():
        from recipes.evaluation import beam_grid  # imports torch, which takes seconds

    tuning = beam_grid.tune(selected, beams=arguments.beams, lenpens=arguments.lenpens, command=command)
    tuning.write(output)
    chosen = beam_tuning.best(tuning.rows)
    print()
    print(beam_tuning.table(tuning.rows, chosen))
    print(f"Chosen: beam {tuning.beam}, length penalty {tuning.lenpen:g}. BLEU {tuning.bleu_signature}")
    if note := beam_tuning.edge_note(tuning.rows, chosen):
        print(note)
    print(f"Written to {output}")
    print(tuning.evaluate)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    words = sys.argv[1:] if words is None else words
    arguments = parser().parse_args(words)
    allocator.keep_freed_memory()
    with disk.disk_errors(arguments.runs), messages.quiet_libraries():
        return tune(arguments, ["recipes/tune.sh", *words])


if __name__ == "__main__":
    errors.main(main)
