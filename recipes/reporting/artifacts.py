"""What a report shows of an evaluation beside its scores and sentences: losses, exits, alignments, slots."""

import base64
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from recipes.config import schema
from recipes.config.schema import Value
from recipes.metrics import decoding_traces
from recipes.metrics.decoding_traces import SentenceAlignment, SentenceExits
from recipes.metrics.systems import System
from recipes.reporting import training_records
from recipes.reporting.training_records import LossRecords, ProgressRecord
from recipes.training.run import Run
from thoth_core.errors import UserError

AGAIN = "evaluate again (recipes/evaluate.sh)"
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
class SystemData:
    """What a report shows of a system."""

    system: System
    number: int  # its position in the report, from 0
    label: str
    train: list[ProgressRecord]
    valid: list[ProgressRecord]
    exits: list[SentenceExits] | None  # of every sentence
    alignments: list[SentenceAlignment]
    slots: dict[str, str]  # pictures by layer, as data: URLs

    @property
    def source_language(self) -> str:
        return str(self.scores["source_language"])

    @property
    def target_language(self) -> str:
        return str(self.scores.get("target_language", ""))

    @property
    def scores(self) -> dict[str, Any]:
        return self.system.scores


def read(system: System, number: int, label: str) -> SystemData:
    """Everything that a report shows of a system.

    Raises:
        UserError: a file is missing, damaged or does not belong to scores.json.
    """
    check_figures(system)
    train, valid = read_losses(system)
    return SystemData(
        system,
        number,
        label,
        train=train,
        valid=valid,
        exits=read_exits(system),
        alignments=read_alignments(system),
        slots=read_slots(system),
    )


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


def read_losses(system: System) -> LossRecords:
    """The records of the run in which the evaluation lies; none if it lies elsewhere or in the run of another model."""
    run = Run(system.folder.resolve().parent)
    if not run.record_path.is_file() or run.folder.name != system.scores["model"]:
        return LossRecords([], [])
    losses = training_records.with_losses(run.progress())
    for record in (*losses.train, *losses.valid):
        for name in ("updates", "loss", "nll_loss", "seconds"):
            if record.get(name) is not None and not is_number(record[name]):
                raise UserError(f"{run.progress_path}: {name} must be a number, but is {record[name]!r}; train again")
    return losses


def read_exits(system: System) -> list[SentenceExits] | None:
    """The exits of every sentence; None for a model without exits."""
    if "exits" not in system.scores:
        return None
    path, blocks = system.folder / decoding_traces.EXITS_FILE, system.scores["exits"]["blocks"]
    sentences = SentenceExits.read_lines(path, remedy=AGAIN)
    if len(sentences) != len(system.sentences):
        raise UserError(f"{path}: {len(sentences):,} sentences, but scores.json has {len(system.sentences):,}; {AGAIN}")
    for number, sentence in enumerate(sentences, 1):
        if max(sentence.exits, default=1) > blocks:
            raise UserError(
                f"{path}: line {number}: exit {max(sentence.exits)} of a decoder with {blocks} blocks; {AGAIN}"
            )
    return sentences


def read_alignments(system: System) -> list[SentenceAlignment]:
    """The alignments of some sentences; empty if the model reports none."""
    path = system.folder / decoding_traces.ALIGNMENTS_FILE
    alignments = SentenceAlignment.read_lines(path, remedy=AGAIN) if path.exists() else []
    for line, alignment in enumerate(alignments, 1):
        if alignment.number > len(system.sentences):
            raise UserError(f"{path}: line {line}: sentence {alignment.number:,} of {len(system.sentences):,}; {AGAIN}")
    return alignments


def read_slots(system: System) -> dict[str, str]:
    """The picture of the slots of each memory, as a data: URL by layer."""
    pictures = {}
    for layer in system.scores.get("slot_usage", {}):
        path = system.folder / f"slots-{layer}.png"
        if not re.fullmatch(r"\w+", layer) or not path.is_file():
            raise UserError(f"{path}: missing; {AGAIN}")
        picture = path.read_bytes()
        if not picture.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in picture[-12:]:
            raise UserError(f"{path}: damaged; {AGAIN}")
        pictures[layer] = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
    return pictures
