"""BLEU against the mean exit, of several evaluations: `python -m recipes.exits EVALUATION...` (recipes/exits.sh)."""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_host import errors
from fairseq_host.errors import UserError
from recipes import runs

# What evaluations must have in common to stand in one table.
SAME = ("corpus", "corpus_fingerprint", "split", "sentences", "beam", "lenpen", "device", "threads")
COLUMNS = (
    ("exits", "exits"),
    ("mean exit", "mean"),
    ("tokens by exit", "tokens"),
    ("MFLOP a token", "mflops"),
    ("BLEU", "bleu"),
    ("seconds", "seconds"),
    ("sub-words a second", "speed"),
)


def parser() -> argparse.ArgumentParser:
    found = runs.Parser(
        prog="recipes/exits.sh",
        allow_abbrev=False,
        description="Set evaluations of models with exits side by side: mean exit, operations of the decoder, BLEU and "
        "time in a table, and a picture of BLEU against the mean exit. Models without exits are drawn at their depth.",
    )
    found.add_argument(
        "evaluations", metavar="EVALUATION", nargs="+", type=Path, help="a folder that recipes/evaluate.sh has written"
    )
    found.add_argument(
        "--output", metavar="DIR", type=Path, help="where to write exits.md and exits.png (default: beside the first)"
    )
    return found


def read(folder: Path) -> dict[str, Any]:
    """scores.json of an evaluation of a translation model; else a UserError."""
    path = folder / "scores.json"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; give the folder of an evaluation (recipes/evaluate.sh)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}; evaluate anew") from None
    needed = {*SAME, "bleu", "seconds", "tokens_per_second", "blocks", "overrides"}
    lacking = sorted(needed - set(scores)) if isinstance(scores, dict) else ["everything"]
    if lacking:
        raise UserError(f"{path}: has no {lacking[0]}; evaluate a translation model anew (recipes/evaluate.sh)")
    return scores


def check_comparable(folders: Sequence[Path], found: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError if evaluations differ in what scores and times depend on."""
    for folder, scores in zip(folders, found, strict=True):
        for name in SAME:
            if scores[name] != found[0][name]:
                raise UserError(
                    f"{folder}: {name} is {scores[name]}, that of {folders[0]} is {found[0][name]}; "
                    "only evaluations that are alike can be compared"
                )
        mine, first = scores["bleu"]["signature"], found[0]["bleu"]["signature"]
        if mine != first:
            raise UserError(f"{folder}: BLEU has the signature {mine}, that of {folders[0]} {first}; score both alike")


def row(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one evaluation, by the names of COLUMNS; those of models without exits have no counts."""
    exits = scores.get("exits")
    settings = {name: value for name, value in scores["overrides"].items() if name != "exit_policy"}
    told = ", ".join(f"{name.removeprefix('exit_')} {value}" for name, value in settings.items())
    line = {
        "series": exits["policy"] if exits else "models of this depth",
        "exits": exits["policy"] + (f" ({told})" if told else "") if exits else f"{scores['blocks']} blocks",
        "mean": exits["mean"] if exits else float(scores["blocks"]),
        "tokens": " ".join(str(exits["tokens"].get(str(n), 0)) for n in range(1, exits["blocks"] + 1)) if exits else "",
        "mflops": exits["mflops_per_token"] if exits else None,
        "bleu": scores["bleu"]["score"],
        "seconds": scores["seconds"],
        "speed": scores["tokens_per_second"],
    }
    return line


def table(lines: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> str:
    """Markdown."""
    digits = {"mean": 2, "mflops": 2, "bleu": 2, "seconds": 1, "speed": 0}

    def cell(line: Mapping[str, Any], name: str) -> str:
        value = line[name]
        return "" if value is None else f"{value:,.{digits[name]}f}" if name in digits else str(value)

    head = [f"| {' | '.join(title for title, _ in COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    body = [f"| {' | '.join(cell(line, name) for _, name in COLUMNS)} |" for line in lines]
    below = (
        f"{scores['corpus']}, {scores['split']} ({scores['sentences']:,} sentences), beam {scores['beam']}, "
        f"{scores['device']}, {scores['threads']} threads; BLEU {scores['bleu']['signature']}"
    )
    return "\n".join([*head, *body, "", below]) + "\n"


def compare(arguments: argparse.Namespace) -> int:
    from recipes import pictures

    found = [read(folder) for folder in arguments.evaluations]
    check_comparable(arguments.evaluations, found)
    lines = sorted((row(scores) for scores in found), key=lambda line: (line["series"], line["mean"]))
    output: Path = arguments.output or arguments.evaluations[0].resolve().parent
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}; give another folder with --output") from None
    with runs.disk_errors(output), tempfile.TemporaryDirectory(dir=output, prefix=".exits.") as building:
        picture = Path(building, "exits.png")
        pictures.exit_curve(
            [(line["series"], line["mean"], line["bleu"]) for line in lines], picture, found[0]["corpus"]
        )
        os.replace(picture, output / "exits.png")
    text = table(lines, found[0])
    runs.write_atomically(output / "exits.md", text)
    print(text)
    print(f"Written to {output / 'exits.md'} and {output / 'exits.png'}")
    return 0


def main() -> int:
    arguments = parser().parse_args()
    with runs.quiet():
        return compare(arguments)


if __name__ == "__main__":
    errors.main(main)
