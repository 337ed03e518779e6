"""BLEU against the mean exit of several evaluations: `recipes/exits.sh EVALUATION...`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.metrics import exit_table
from recipes.reporting.labels import labels
from recipes.storage import disk
from thoth_core.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of recipes/exits.sh."""
    parser = Parser(
        prog="recipes/exits.sh",
        allow_abbrev=False,
        description="Compare evaluations of models with exits: mean exit, operations of the decoder, BLEU and time in "
        "a table, and a plot of BLEU against the mean exit. Models without exits are drawn at their depth.",
    )
    parser.add_argument(
        "evaluations", metavar="EVALUATION", nargs="+", type=Path, help="the folder of an evaluation, or a run"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for exits.md and exits.png (default: the folder that the first evaluation lies in)",
    )
    return parser


def plot_exits(arguments: argparse.Namespace) -> int:
    """Write the table and the plot, and print the table."""
    from recipes.reporting.plots.exits import plot_exit_curve

    systems = [exit_table.open_system(path) for path in arguments.evaluations]
    exit_table.check_comparable(systems)
    lines = exit_table.lines(systems, labels(systems))
    output: Path = arguments.output or systems[0].folder.resolve().parent
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}; give another folder with --output") from None
    with disk.disk_errors(output), tempfile.TemporaryDirectory(dir=output, prefix=".exits.") as building:
        picture = Path(building, "exits.png")
        points = [(line.series, line.mean_exit, line.bleu) for line in lines]
        plot_exit_curve(points, picture, systems[0].test_set, dashed=exit_table.WITHOUT_EXITS)
        os.replace(picture, output / "exits.png")
    text = exit_table.table(lines, systems[0].scores)
    disk.write_atomically(output / "exits.md", text)
    print(text)
    print(f"Written to {output / 'exits.md'} and {output / 'exits.png'}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; `words` are its arguments instead of the process's."""
    arguments = parser().parse_args(sys.argv[1:] if words is None else words)
    with messages.quiet_libraries():
        return plot_exits(arguments)


if __name__ == "__main__":
    errors.main(main)
