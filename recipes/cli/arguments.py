"""Argument parsing that the commands share."""

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from recipes.evaluation.request import DEFAULT_AVERAGE, Request
from thoth_core.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (?:-\w/)?(\S+): must ", r"\1 must ", message)  # from the types below
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`, both included. None sets no upper bound."""
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, but is {text}")
        return value

    return parse


def number(low: float, high: float, *, open_ends: bool = False) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`, both included, or both excluded with `open_ends`.

    An infinite bound sets no bound; the number itself must be finite.
    """
    if math.isinf(high):
        bounds = f"above {low:g}" if open_ends else f"of at least {low:g}"
    else:
        bounds = f"above {low:g} and below {high:g}" if open_ends else f"from {low:g} to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not (low < value < high if open_ends else low <= value <= high):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, but is {text}")
        return value

    return parse


def add_model_options(parser: argparse.ArgumentParser, *, split: str) -> None:
    """Add the options of a `Request`; `split` is the default of --split."""
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus prepared by recipes/prepare.sh")
    parser.add_argument("model", metavar="MODEL", help="a name in recipes/models or a path to a .yaml file")
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default=Path("data"), help="folder of prepared corpora (default: data)"
    )
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, default=Path("runs"), help="folder of trained models (default: runs)"
    )
    parser.add_argument(
        "--split", default=split, help=f"test, valid, train or another test set of the corpus (default: {split})"
    )
    parser.add_argument(
        "--beam", type=whole_number(1, 1000), metavar="N", help="beam size (default: the model file's, else 5)"
    )
    parser.add_argument(
        "--lenpen", type=number(-100, 100), metavar="X", help="length penalty (default: the model file's, else 1)"
    )
    parser.add_argument(
        "--max-tokens",
        type=whole_number(1, 10**9),
        metavar="N",
        help="maximum source tokens per batch; does not affect the scores",
    )
    parser.add_argument("--checkpoint", choices=("best", "last", "average"), help="checkpoint (default: best)")
    parser.add_argument(
        "--average",
        type=whole_number(1, 1000),
        metavar="N",
        help=f"average the checkpoints of the last N epochs (default: up to {DEFAULT_AVERAGE})",
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change an option of the model, such as exit_policy=confidence; may be repeated",
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")


def add_ensemble_option(parser: argparse.ArgumentParser) -> None:
    """Add --ensemble to the options of a `Request`."""
    parser.add_argument(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="other models of the same corpus: draw each next token from the average of the probabilities of all",
    )


def request_of(arguments: argparse.Namespace) -> Request:
    """The request that the options of `add_model_options` make; a UserError if they exclude each other."""
    if arguments.average is not None and arguments.checkpoint not in (None, "average"):
        raise UserError(f"--average and --checkpoint {arguments.checkpoint} exclude each other; give one of them")
    return Request(
        corpus=arguments.corpus,
        model=arguments.model,
        data=arguments.data,
        runs=arguments.runs,
        split=arguments.split,
        checkpoint=arguments.checkpoint or ("best" if arguments.average is None else "average"),
        average=arguments.average,
        beam=arguments.beam,
        lenpen=arguments.lenpen,
        max_tokens=arguments.max_tokens,
        overrides=tuple(arguments.override),
        ensemble=tuple(getattr(arguments, "ensemble", ())),
        cpu=arguments.cpu,
    )
