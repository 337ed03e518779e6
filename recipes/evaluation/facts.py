"""The facts that stand beside every result: corpus, model, training, machine and code."""

import shlex
from collections.abc import Sequence
from typing import Any

import torch

from recipes.evaluation import model_loading
from recipes.evaluation.model_loading import LoadedCheckpoint
from recipes.evaluation.selection import Selection
from recipes.metrics.results import ModelFacts
from recipes.storage import provenance


def model_facts(loaded: LoadedCheckpoint) -> ModelFacts:
    """The facts about one model."""
    record = loaded.selected.record
    return ModelFacts(
        model=loaded.selected.name,
        checkpoint=loaded.selected.checkpoint,
        updates=loaded.updates,
        checkpoint_seconds=loaded.training_seconds,
        training_command=record.command,
        training_commit=record.commit,
        parameters_sha256=model_loading.parameters_sha256(loaded.state),
    )


def facts(selection: Selection, model: ModelFacts, command: Sequence[str]) -> dict[str, Any]:
    """The fields of `recipes.metrics.results.Facts`; `model` is the first one, `command` the command's words."""
    corpus, record = selection.corpus, selection.model.record
    return {
        **model.model_dump(),
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "source_language": corpus.source,
        "target_language": corpus.target,
        "split": selection.split,
        "sentences": len(selection.sources),
        "overrides": selection.overrides,
        "training_status": record.status,
        "training_seconds": record.seconds,
        "device": "CPU" if model_loading.device_of(selection) == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(command),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }
