"""tuning*.json: the search that recipes/tune.sh found on the validation set, for recipes/evaluate.sh --tuned."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.config import schema
from recipes.config.schema import Value
from recipes.storage import commands, naming
from thoth_core.errors import UserError

if TYPE_CHECKING:
    from recipes.cli.evaluate import Chosen

SPLIT = "valid"  # the only one: a search chosen on the test set would flatter itself
# What the search is not chosen from, and what does not move the result.
FREE = ("beam", "lenpen", "max-tokens")
KINDS: dict[str, Any] = {
    "beam": Value(int, minimum=1, maximum=1000),
    "lenpen": Value(float, minimum=-100, maximum=100),
    **dict.fromkeys(("split", "bleu_signature", "command"), Value(str)),
    "commit": Value((str, type(None))),
    "rows": [],
    "search": {},
    "parameters_of_models": [],
}


def place(chosen: "Chosen", arguments: argparse.Namespace) -> Path:
    """The file; another for other parameters, other models of an ensemble or other options of the model."""
    return chosen.run.folder / f"{naming.name(['tuning', *chosen.ensemble], arguments)}.json"


def fixed(search: dict[str, Any]) -> dict[str, Any]:
    """The options of the search that are not tuned."""
    return {name: value for name, value in search.items() if name not in FREE}


def read(chosen: "Chosen", arguments: argparse.Namespace) -> dict[str, Any]:
    """What was found for these models; a UserError if it is missing, damaged, or of something else."""
    path, again = place(chosen, arguments), commands.call("recipes/tune.sh", arguments)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--tuned: {path} is missing; tune first with: {again}") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: not JSON; tune anew with: {again}") from None
    schema.check_written(found, KINDS, str(path), f"tune anew with: {again}")
    expected = {
        "split": SPLIT,
        "corpus_fingerprint": chosen.place.corpus.fingerprint,
        "checkpoint": chosen.checkpoint,
        "search": fixed(chosen.search),
    }
    for name, value in expected.items():
        known = fixed(found["search"]) if name == "search" else found.get(name)
        if known != value:
            raise UserError(f"{path}: was found with {name} {known}, but here it is {value}; tune anew with: {again}")
    return {**found, "file": path.name}


def check_parameters(
    chosen: "Chosen", found: dict[str, Any], digests: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Raise a UserError if a model's parameters, by their SHA-256, are others than those that the search is of."""
    if found["parameters_of_models"] != list(digests):
        raise UserError(
            f"{chosen.run.folder / found['file']}: was found with other parameters than the models have now; "
            f"tune anew with: {commands.call('recipes/tune.sh', arguments)}"
        )


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What scores.json says of it."""
    return {name: found[name] for name in ("file", "split", "rows", "bleu_signature", "command", "commit")}
