"""Choose when a model with exits may stop: `recipes/calibrate.sh CORPUS MODEL`."""

import argparse
import math
import sys
from collections.abc import Sequence

from fairseq_compat import errors
from recipes.cli.arguments import Parser, add_model_options, number, request_of, whole_number
from recipes.console import messages
from recipes.evaluation import selection
from recipes.evaluation.calibration_request import DEFAULT_LEVEL, DEFAULT_STEPS, CalibrationRequest
from recipes.storage import disk
from thoth_core import allocator
from thoth_core.errors import UserError

POLICIES = ("confidence", "halting")
# Options of the model that are chosen here, or rule the choice out.
CHOSEN = ("exit_policy", "exit_threshold", "exit_layer", "exit_distribution")


def parser() -> argparse.ArgumentParser:
    """The options of recipes/calibrate.sh."""
    parser = Parser(
        prog="recipes/calibrate.sh",
        allow_abbrev=False,
        description="Choose the threshold at which a trained MODEL with exits may stop, on the validation set, into "
        "RUNS/CORPUS/MODEL/calibration-*.json. The last line is the command that evaluates the model with it.",
    )
    add_model_options(parser, split="valid")
    goals = parser.add_mutually_exclusive_group(required=True)
    goals.add_argument(
        "--mean-exit", type=number(1, math.inf), metavar="X", help="choose the threshold of this mean exit"
    )
    goals.add_argument(
        "--bleu-loss",
        type=number(0, 100),
        metavar="X",
        help="choose the lowest threshold that loses at most this much BLEU",
    )
    goals.add_argument(
        "--disagreement",
        type=number(0, 1, open_ends=True),
        metavar="X",
        help="choose the lowest threshold at which at most this share of tokens differs from full depth, with a "
        "guarantee",
    )
    parser.add_argument(
        "--level",
        type=number(0, 1, open_ends=True),
        metavar="Y",
        help=f"for --disagreement: the probability at most that it is exceeded (default: {DEFAULT_LEVEL})",
    )
    parser.add_argument(
        "--resplits",
        type=whole_number(1, 100_000),
        metavar="N",
        help="for --disagreement: also choose on N random halves and count how often it is exceeded",
    )
    parser.add_argument(
        "--per-exit",
        action="store_true",
        help="choose a threshold for each block instead of one for all: those at which most words of the references "
        "are right; and a temperature for each, at which the references are most likely, unless --override "
        "exit_temperature gives one; not with --disagreement",
    )
    parser.add_argument(
        "--policy", choices=POLICIES, default=POLICIES[0], help="policy that the threshold is for (default: confidence)"
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1, 100_000),
        metavar="N",
        help="thresholds are multiples of 1/N; with --per-exit, mean exits are in N steps (default: {mean_exit:,} for "
        "--mean-exit, {bleu_loss} for --bleu-loss, {disagreement} for --disagreement)".format(**DEFAULT_STEPS),
    )
    return parser


def calibration_request(arguments: argparse.Namespace) -> CalibrationRequest:
    """The request that the options make; a UserError if they exclude each other."""
    for name in ("level", "resplits"):
        if getattr(arguments, name) is not None and arguments.disagreement is None:
            raise UserError(f"--{name} belongs to --disagreement; leave it out, or give that")
    if arguments.per_exit and arguments.disagreement is not None:
        raise UserError(
            "--per-exit: thresholds that are chosen on the sentences themselves guarantee nothing for others; "
            "leave it out, or give --mean-exit or --bleu-loss"
        )
    for override in arguments.override:
        if override.partition("=")[0] in CHOSEN:
            raise UserError(
                f"--override {override}: is chosen here; leave it out (--policy chooses confidence or halting)"
            )
    goal = next(name for name in DEFAULT_STEPS if getattr(arguments, name) is not None)
    return CalibrationRequest(
        goal=goal,
        value=getattr(arguments, goal),
        policy=arguments.policy,
        steps=arguments.steps or DEFAULT_STEPS[goal],
        level=arguments.level or DEFAULT_LEVEL,
        resplits=arguments.resplits,
        per_exit=arguments.per_exit,
    )


def calibrate(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Check the request, then calibrate."""
    request = calibration_request(arguments)
    selected = selection.select(request_of(arguments))
    if not disk.writable(selected.model.run.folder):
        raise UserError(f"{selected.model.run.folder}: not writable; copy the run, and name its folder with --runs")
    if request.goal == "disagreement":
        request.check_sentences(len(selected.sources), selected.split)

    with messages.missing_modules_explained():
        from recipes.evaluation import exit_calibration  # imports torch, which takes seconds

    exit_calibration.calibrate(selected, request, command=command)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    words = sys.argv[1:] if words is None else words
    arguments = parser().parse_args(words)
    allocator.keep_freed_memory()
    with disk.disk_errors(arguments.runs), messages.quiet_libraries():
        return calibrate(arguments, ["recipes/calibrate.sh", *words])


if __name__ == "__main__":
    errors.main(main)
