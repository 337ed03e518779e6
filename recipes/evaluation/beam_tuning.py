"""Beam size and length penalty chosen on the validation set, and tuning*.json, which keeps them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from recipes.config.search import SearchOptions
from recipes.evaluation.selection import Selection
from recipes.metrics.results import Facts, ModelFacts, TunedSearch, TuningRow
from thoth_core.errors import UserError

SPLIT = "valid"  # the only one: a search chosen on the test set would flatter itself
BEAMS = (1, 4, 5, 8)
LENPENS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0, 2.5, 3.0)  # each costs only a ranking
# Options of the search that are tuned, or do not affect the scores.
FREE = {"beam", "lenpen", "max_tokens"}


class Tuning(Facts):
    """The content of tuning*.json."""

    beam: int = Field(ge=1, le=1000)
    """the chosen beam size"""
    lenpen: float = Field(ge=-100, le=100)
    """the chosen length penalty"""
    bleu: float
    """BLEU with both on the validation set"""
    bleu_signature: str
    """sacreBLEU's signature of BLEU"""
    rows: list[TuningRow]
    """all pairs that were tried"""
    search: SearchOptions
    """the search of the model file, whose beam and length penalty were replaced"""
    parameters_of_models: list[str]
    """SHA-256 of the parameters of each model"""
    evaluate: str
    """command that evaluates the model with the chosen pair"""
    ensemble: list[ModelFacts] = Field(default_factory=list)
    """the other models of an ensemble"""


def path_of(selection: Selection) -> Path:
    """The file; other checkpoints, ensembles and overrides have other files."""
    name = selection.request.output_name("tuning", *selection.ensemble_name)
    return selection.model.run.folder / f"{name}.json"


def _remedy(selection: Selection) -> str:
    return f"tune again with: {selection.request.command('recipes/tune.sh')}"


def _fixed(search: SearchOptions) -> dict[str, Any]:
    """The options of the search that a tuning depends on."""
    return search.model_dump(exclude=FREE)


def read(selection: Selection) -> Tuning:
    """The tuning of the selected models; a UserError if it is missing, damaged, or of another corpus or search."""
    path, remedy = path_of(selection), _remedy(selection)
    if not path.exists():
        first = selection.request.command("recipes/tune.sh")
        raise UserError(f"--tuned: {path} is missing; tune first with: {first}")
    tuning = Tuning.read(path, remedy=remedy)
    for name, then, now in (
        ("split", tuning.split, SPLIT),
        ("corpus_fingerprint", tuning.corpus_fingerprint, selection.corpus.fingerprint),
        ("checkpoint", tuning.checkpoint, selection.model.checkpoint),
        ("search", _fixed(tuning.search), _fixed(selection.search)),
    ):
        if then != now:
            raise UserError(f"{path}: was tuned with {name} {then}, but here it is {now}; {remedy}")
    return tuning


def check_models(tuning: Tuning, models: Sequence[ModelFacts], selection: Selection) -> None:
    """Raise a UserError if the models do not have the parameters that were tuned."""
    if tuning.parameters_of_models != [model.parameters_sha256 for model in models]:
        raise UserError(
            f"{path_of(selection)}: was tuned with other parameters than the models have now; {_remedy(selection)}"
        )


def tuned_search(tuning: Tuning, selection: Selection) -> TunedSearch:
    """The part of scores.json about the tuning."""
    return TunedSearch(
        file=path_of(selection).name,
        split=tuning.split,
        rows=tuning.rows,
        bleu_signature=tuning.bleu_signature,
        command=tuning.command,
        commit=tuning.commit,
    )


def best(rows: Sequence[TuningRow]) -> TuningRow:
    """The highest BLEU; of equals the smallest beam, then the length penalty nearest to 1, fairseq's default."""
    return max(rows, key=lambda row: (row.bleu, -row.beam, -abs(row.lenpen - 1), row.lenpen))


def edge_note(rows: Sequence[TuningRow], chosen: TuningRow) -> str | None:
    """A note if a length penalty beyond those tried might be better still; else None."""
    bleu = {row.lenpen: row.bleu for row in rows if row.beam == chosen.beam}
    if len(set(bleu.values())) > 1:
        for name, edge in (("lowest", min(bleu)), ("highest", max(bleu))):
            if chosen.lenpen == edge:
                return f"length penalty {edge:g} is the {name} tried: give --lenpens beyond it"
    return None


def table(rows: Sequence[TuningRow], chosen: TuningRow) -> str:
    """BLEU as aligned text, with a row per beam and a column per length penalty."""
    lenpens = list(dict.fromkeys(row.lenpen for row in rows))
    lines = ["beam  length penalty " + "".join(f"{lenpen:>8g}" for lenpen in lenpens)]
    for beam in dict.fromkeys(row.beam for row in rows):
        cells = [f"{row.bleu:.2f}{'*' if row is chosen else ' '}" for row in rows if row.beam == beam]
        lines.append(f"{beam:>4}{'':17}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join([*lines, "* chosen"])
