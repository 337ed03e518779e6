"""What a report shows of an evaluation beside its scores and sentences: curves, exits, alignments, slots."""

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipes.config import schema
from recipes.config.schema import Value
from recipes.metrics.systems import System
from recipes.reporting import plots
from recipes.training.run import Run
from thoth_core.errors import UserError

AGAIN = "evaluate anew (recipes/evaluate.sh)"
# Figures of scores.json that a report needs, and those it shows where there are any.
FIGURES: dict[str, Any] = {
    **dict.fromkeys(("beam", "lenpen", "parameters", "seconds", "tokens_per_second", "threads"), Value(float)),
    **dict.fromkeys(("updates", "training_seconds", "checkpoint_seconds"), Value((float, type(None)))),
    "device": Value(str),
    "versions": {},
}
EXITS: dict[str, Any] = {
    "policy": Value(str),
    "tokens": {},
    **dict.fromkeys(("mean", "blocks", "mflops_per_token", "mflops_per_token_full_depth"), Value(float)),
}


@dataclass(frozen=True)
class Shown:
    """A system as a report shows it. Exits and alignments are those of the lines of their files."""

    system: System
    label: str
    train: list[dict[str, Any]]  # records of progress.jsonl
    valid: list[dict[str, Any]]
    exits: list[dict[str, Any]] | None  # of every sentence: pieces, exits from 1
    alignments: list[dict[str, Any]]  # number, source, target, weights
    slots: dict[str, str]  # pictures by layer, as data: URLs

    @property
    def scores(self) -> dict[str, Any]:
        return self.system.scores


def labels(systems: Sequence[System]) -> list[str]:
    """Short names that tell systems apart: of what was given, the parts that not all of them have."""
    parts = [Path(system.name).parts for system in systems]
    common = set(parts[0]).intersection(*parts[1:])
    short = ["/".join(part for part in mine if part not in common) for mine in parts]
    found = [name or str(system.scores["model"]) for name, system in zip(short, systems, strict=True)]
    return found if len(set(found)) == len(found) else [system.name for system in systems]


def read(system: System, label: str) -> Shown:
    """All that there is beside an evaluation's scores; a UserError for what is damaged."""
    check_figures(system)
    train, valid = curves(system)
    return Shown(system, label, train, valid, exits(system), alignments(system), slots(system))


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_figures(system: System) -> None:
    """Raise a UserError unless the figures that a report shows are numbers."""
    scores = system.scores
    exits, usage = scores.get("exits"), scores.get("slot_usage", {})
    kinds = FIGURES | {name: {} for name in ("overrides", "slot_usage") if name in scores}
    if exits is not None:
        kinds["exits"] = EXITS
    check = partial(schema.check_written, where=str(system.folder / "scores.json"), again=AGAIN)
    check(scores, kinds)
    if exits is not None:
        check(exits["tokens"], dict.fromkeys(exits["tokens"], Value(float)), name="exits.tokens")
    for layer, figures in usage.items():
        check(figures, {"used": Value(float), "kl": Value(float)}, name=f"slot_usage.{layer}")


def curves(system: System) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation records of the run that the evaluation lies in; empty where it lies elsewhere, or in
    another model's."""
    run = Run(system.folder.resolve().parent)
    if not run.record_path.is_file() or run.folder.name != system.scores["model"]:
        return [], []
    train, valid = plots.curves(run.progress())
    for record in (*train, *valid):
        for name in ("updates", "loss", "nll_loss", "seconds"):
            if record.get(name) is not None and not is_number(record[name]):
                raise UserError(f"{run.progress_path}: {name} must be a number, but is {record[name]!r}; train anew")
    return train, valid


def lines(path: Path, sound: Callable[[Any], bool]) -> list[dict[str, Any]] | None:
    """The objects of a file of JSON lines, each of them `sound`; None without the file. Raises a UserError."""
    try:
        given = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}; {AGAIN}") from None
    found = []
    for place, line in enumerate(given):
        try:
            told = json.loads(line)
            good = isinstance(told, dict) and sound(told)
        except (ValueError, RecursionError):
            good = False
        if not good:
            raise UserError(f"{path}: line {place + 1} is damaged; {AGAIN}")
        found.append(told)
    return found


def exits(system: System) -> list[dict[str, Any]] | None:
    """Sub-words and exits of every sentence; None for a model without exits."""
    if "exits" not in system.scores:
        return None
    blocks, path = system.scores["exits"]["blocks"], system.folder / "exits.jsonl"

    def sound(told: Any) -> bool:
        pieces, chosen = told.get("pieces"), told.get("exits")
        return (
            texts(pieces)
            and isinstance(chosen, list)
            and len(chosen) == len(pieces)
            and all(isinstance(exit, int) and 1 <= exit <= blocks for exit in chosen)
        )

    found = lines(path, sound)
    if found is None:
        raise UserError(f"{path}: missing; {AGAIN}")
    if len(found) != len(system.sentences):
        raise UserError(f"{path}: {len(found):,} sentences, but scores.json is of {len(system.sentences):,}; {AGAIN}")
    return found


def alignments(system: System) -> list[dict[str, Any]]:
    """What was looked at in some sentences; empty if the model did not say."""

    def sound(told: Any) -> bool:
        source, target, weights, number = (told.get(name) for name in ("source", "target", "weights", "number"))
        return (
            texts(source)
            and texts(target)
            and isinstance(number, int)
            and 1 <= number <= len(system.sentences)
            and isinstance(weights, list)
            and len(weights) == len(target)
            and all(isinstance(row, list) and len(row) == len(source) and all(map(is_number, row)) for row in weights)
        )

    return lines(system.folder / "alignments.jsonl", sound) or []


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def slots(system: System) -> dict[str, str]:
    """The picture of each memory's slots."""
    found = {}
    for layer in system.scores.get("slot_usage", {}):
        path = system.folder / f"slots-{layer}.png"
        if not re.fullmatch(r"\w+", layer) or not path.is_file():
            raise UserError(f"{path}: missing; {AGAIN}")
        picture = path.read_bytes()
        if not picture.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in picture[-12:]:
            raise UserError(f"{path}: damaged; {AGAIN}")
        found[layer] = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
    return found
