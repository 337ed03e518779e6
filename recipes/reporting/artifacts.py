"""What a report shows of an evaluation beside its scores and sentences: losses, exits, alignments, slots."""

import base64
import re
from dataclasses import dataclass

from fairseq_compat.events import Figures
from recipes.metrics import decoding_traces
from recipes.metrics.decoding_traces import SentenceAlignment, SentenceExits
from recipes.metrics.results import AGAIN, TranslationScores
from recipes.metrics.systems import System
from recipes.reporting import losses
from recipes.reporting.losses import Losses
from recipes.training.run import Run
from thoth_core.errors import UserError


@dataclass(frozen=True)
class SystemData:
    """What a report shows of a system."""

    system: System
    number: int  # its position in the report, from 0
    label: str
    train: list[Figures]
    valid: list[Figures]
    exits: list[SentenceExits] | None  # of every sentence
    alignments: list[SentenceAlignment]
    slots: dict[str, str]  # pictures by layer, as data: URLs

    @property
    def source_language(self) -> str:
        return self.scores.source_language

    @property
    def target_language(self) -> str:
        return self.scores.target_language

    @property
    def scores(self) -> TranslationScores:
        return self.system.scores


def read(system: System, number: int, label: str) -> SystemData:
    """Everything that a report shows of a system.

    Raises:
        UserError: a file is missing, damaged or does not belong to scores.json.
    """
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


def read_losses(system: System) -> Losses:
    """The losses of the run in which the evaluation lies; none if it lies elsewhere or in the run of another model."""
    run = Run(system.folder.resolve().parent)
    if not run.record_path.is_file() or run.folder.name != system.scores.model:
        return Losses([], [])
    return losses.with_losses(run.figures())


def read_exits(system: System) -> list[SentenceExits] | None:
    """The exits of every sentence; None for a model without exits."""
    if system.scores.exits is None:
        return None
    path, blocks = system.folder / decoding_traces.EXITS_FILE, system.scores.exits.blocks
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
    for layer in system.scores.slot_usage:
        path = system.folder / f"slots-{layer}.png"
        if not re.fullmatch(r"\w+", layer) or not path.is_file():
            raise UserError(f"{path}: missing; {AGAIN}")
        picture = path.read_bytes()
        if not picture.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in picture[-12:]:
            raise UserError(f"{path}: damaged; {AGAIN}")
        pictures[layer] = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
    return pictures
