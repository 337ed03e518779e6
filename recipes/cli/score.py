"""Score evaluations again from their sentences: `recipes/score.sh EVALUATION...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.metrics import quality, rescoring, results, systems
from recipes.storage import disk
from thoth_core.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of recipes/score.sh."""
    parser = Parser(
        prog="recipes/score.sh",
        allow_abbrev=False,
        description="Score evaluations again from their sentences.jsonl, without decoding, and check that the scores "
        "are those in scores.json. The exit status is 1 if one differs.",
    )
    parser.add_argument(
        "evaluations", metavar="EVALUATION", nargs="+", type=Path, help="the folder of an evaluation, or a run"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="write the new scores into scores.json, scores.txt and sentences.jsonl",
    )
    return parser


def score(arguments: argparse.Namespace) -> int:
    """Score each evaluation and print its scores.

    Raises:
        UserError: the scores of one differ and are not to be updated.
    """
    problems = []
    for path in arguments.evaluations:
        system = systems.open_system(path)
        print(f"Scoring {system.folder}: {len(system.sentences):,} sentences", flush=True)
        scores, sentence_scores = system.rescored(), system.rescored_sentences()
        for name, now in scores.items():
            print(f"{quality.heading(name):<22} {now.score:6.2f}   {now.signature}")
        differences = rescoring.differences(system, scores, sentence_scores)
        if not differences:
            print(f"{results.NAME} holds")
        elif arguments.update:
            for line in differences:
                print(f"updated: {line}")
            rescoring.update(system, scores, sentence_scores)
        else:
            again = f"recipes/score.sh --update {system.folder} writes the new scores"
            problems.append(f"{system.folder}: {differences[0]}; {again}")
            print(f"does not hold: {differences[0]}")
    if problems:
        more = f" ({len(problems) - 1} more do not hold)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    arguments = parser().parse_args(sys.argv[1:] if words is None else words)
    with disk.disk_errors(Path()), messages.quiet_libraries():
        return score(arguments)


if __name__ == "__main__":
    errors.main(main)
