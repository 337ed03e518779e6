"""BLEU against the mean exit, of several evaluations: `python -m recipes.exits EVALUATION...` (recipes/exits.sh)."""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.metrics import systems as comparing
from recipes.metrics.systems import System
from recipes.reporting import artifacts
from recipes.reporting.labels import labels as short_labels
from recipes.storage import disk
from thoth_core.errors import UserError

COLUMNS = (
    ("evaluation", "label"),
    ("exits", "exits"),
    ("mean exit", "mean"),
    ("tokens by exit", "tokens"),
    ("MFLOP a token", "mflops"),
    ("BLEU", "bleu"),
    ("seconds", "seconds"),
    ("sub-words a second", "speed"),
)

WITHOUT_EXITS = "models of this depth"


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/exits.sh",
        allow_abbrev=False,
        description="Set evaluations of models with exits side by side: mean exit, operations of the decoder, BLEU and "
        "time in a table, and a picture of BLEU against the mean exit. Models without exits are drawn at their depth.",
    )
    found.add_argument(
        "evaluations", metavar="EVALUATION", nargs="+", type=Path, help="the folder of an evaluation, or a run"
    )
    found.add_argument(
        "--output", metavar="DIR", type=Path, help="where to write exits.md and exits.png (default: beside the first)"
    )
    return found


def read(given: Path) -> System:
    """The evaluation in `given`, with the figures that the table shows; else a UserError."""
    system = comparing.open_system(given)
    artifacts.check_figures(system)
    if not artifacts.is_number(system.scores.get("blocks")):
        raise UserError(f"{system.folder / 'scores.json'}: has no blocks, the decoder's depth; {artifacts.AGAIN}")
    return system


def conditions(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluations must have in common, beside sentences and scoring, for their times to stand in one table."""
    return {**scores["search"], "device": scores["device"], "threads": scores["threads"]}


def check_comparable(systems: Sequence[System]) -> None:
    """Raise a UserError if evaluations differ in what scores and times depend on."""
    comparing.check_comparable(systems)
    first = systems[0]
    for system in systems[1:]:
        mine, its = conditions(system.scores), conditions(first.scores)
        for name in mine | its:
            if mine.get(name) != its.get(name):
                raise UserError(
                    f"{system.folder}: {name} is {mine.get(name)}, that of {first.folder} is {its.get(name)}; "
                    "times and scores of evaluations that differ in it cannot be compared"
                )


def series(systems: Sequence[System], labels: Sequence[str]) -> list[str]:
    """The line of the picture that each evaluation is a point of: a policy of one model, or models without exits."""
    keys = []
    for scores in (system.scores for system in systems):
        model = tuple(scores.get(name) for name in ("model", "checkpoint", "updates", "training_command"))
        keys.append((exits["policy"], model) if (exits := scores.get("exits")) else (WITHOUT_EXITS, ()))
    names = {}
    for policy, model in keys:
        mine = [Path(label).parts for label, key in zip(labels, keys, strict=True) if key == (policy, model)]
        common = "/".join(part for part in mine[0] if all(part in parts for parts in mine))
        alone = len({key for key in keys if key[0] == policy}) == 1
        names[policy, model] = policy if alone else f"{policy}: {common or '/'.join(mine[0])}"
    return [names[key] for key in keys]


def row(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one evaluation, by the names of COLUMNS; those of models without exits have no counts."""
    exits = scores.get("exits")
    settings = {name: value for name, value in scores.get("overrides", {}).items() if name != "exit_policy"}
    told = ", ".join(f"{name.removeprefix('exit_')} {value}" for name, value in settings.items())
    return {
        "exits": exits["policy"] + (f" ({told})" if told else "") if exits else f"{scores['blocks']} blocks",
        "mean": exits["mean"] if exits else float(scores["blocks"]),
        "tokens": " ".join(str(exits["tokens"].get(str(n), 0)) for n in range(1, exits["blocks"] + 1)) if exits else "",
        "mflops": exits["mflops_per_token"] if exits else None,
        "bleu": scores["bleu"]["score"],
        "seconds": scores["seconds"],
        "speed": scores["tokens_per_second"],
    }


def table(lines: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> str:
    """Markdown."""
    digits = {"mean": 2, "mflops": 2, "bleu": 2, "seconds": 1, "speed": 0}

    def cell(line: Mapping[str, Any], name: str) -> str:
        value = line[name]
        return "" if value is None else f"{value:,.{digits[name]}f}" if name in digits else str(value)

    found = comparing.row(*(title for title, _ in COLUMNS)) + comparing.row(*["---"] * len(COLUMNS))
    for line in lines:
        found += comparing.row(*(cell(line, name) for _, name in COLUMNS))
    threads = f"{scores['threads']} thread{'s' * (scores['threads'] != 1)}"
    below = (
        f"{scores['corpus']}, {scores['split']} ({scores['sentences']:,} sentences), beam {scores['beam']}, "
        f"{scores['device']}, {threads}; BLEU `{scores['bleu']['signature']}`"
    )
    return "\n".join([*found, "", below]) + "\n"


def compare(arguments: argparse.Namespace) -> int:
    from recipes.reporting.plots.exits import plot_exit_curve

    systems = [read(given) for given in arguments.evaluations]
    check_comparable(systems)
    scores = systems[0].scores
    labels = short_labels(systems)
    told = zip(labels, series(systems, labels), systems, strict=True)
    lines = [{"label": label, "series": name, **row(system.scores)} for label, name, system in told]
    lines.sort(key=lambda line: (line["series"], line["mean"]))
    output: Path = arguments.output or systems[0].folder.resolve().parent
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}; give another folder with --output") from None
    with disk.disk_errors(output), tempfile.TemporaryDirectory(dir=output, prefix=".exits.") as building:
        picture = Path(building, "exits.png")
        points = [(line["series"], line["mean"], line["bleu"]) for line in lines]
        plot_exit_curve(points, picture, comparing.what(systems[0]), dashed=WITHOUT_EXITS)
        os.replace(picture, output / "exits.png")
    text = table(lines, scores)
    disk.write_atomically(output / "exits.md", text)
    print(text)
    print(f"Written to {output / 'exits.md'} and {output / 'exits.png'}")
    return 0


def main() -> int:
    arguments = parser().parse_args()
    with messages.quiet_libraries():
        return compare(arguments)


if __name__ == "__main__":
    errors.main(main)
