"""Translate a test set and score it: `recipes/evaluate.sh CORPUS MODEL`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser, add_ensemble_option, add_model_options, request_of, whole_number
from recipes.console import messages
from recipes.evaluation import beam_tuning, selection
from recipes.evaluation.selection import Selection
from recipes.storage import disk, folders
from thoth_core import allocator
from thoth_core.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of recipes/evaluate.sh."""
    parser = Parser(
        prog="recipes/evaluate.sh",
        allow_abbrev=False,
        description="Translate a test set with a trained MODEL and score it with sacreBLEU, into "
        "RUNS/CORPUS/MODEL/evaluation: hypotheses, references, scores.json, scores.txt, pictures. "
        "A language model is scored by its perplexity of the target side.",
    )
    add_model_options(parser, split="test")
    add_ensemble_option(parser)
    parser.add_argument(
        "--tuned", action="store_true", help="use the beam and the length penalty that recipes/tune.sh chose"
    )
    parser.add_argument(
        "--pictures",
        type=whole_number(0, 100),
        default=4,
        metavar="N",
        help="number of alignment pictures (default: 4)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="output folder (default: in the folder of the run)")
    return parser


def output_folder(selected: Selection, *, tuned: bool) -> Path:
    """The folder of an evaluation in its run; another request has another folder."""
    split = [] if selected.split == "test" else [selected.split]
    search = ["tuned"] if tuned else []
    name = selected.request.output_name("evaluation", *split, *selected.ensemble_name, *search)
    return selected.model.run.folder / name


def evaluate(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Check the request, then evaluate."""
    for name in ("beam", "lenpen") if arguments.tuned else ():
        if getattr(arguments, name) is not None:
            raise UserError(f"--tuned and --{name} exclude each other; give one of them")
    selected = selection.select(request_of(arguments))
    output = arguments.output or output_folder(selected, tuned=arguments.tuned)
    folders.make_ready(output, selection.EVALUATION_FILES)
    tuning = beam_tuning.read(selected) if arguments.tuned else None

    with messages.missing_modules_explained():
        from recipes.evaluation import evaluator  # imports torch, which takes seconds

    evaluator.evaluate(selected, output=output, pictures=arguments.pictures, tuning=tuning, command=command)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    words = sys.argv[1:] if words is None else words
    arguments = parser().parse_args(words)
    allocator.keep_freed_memory()
    with disk.disk_errors(arguments.runs), messages.quiet_libraries():
        return evaluate(arguments, ["recipes/evaluate.sh", *words])


if __name__ == "__main__":
    errors.main(main)
