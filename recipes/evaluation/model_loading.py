"""From selected checkpoints to models and their task on a prepared corpus."""

import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from omegaconf import OmegaConf, open_dict

import fairseq_compat
from fairseq_compat import averaging, checkpoints, plugins
from recipes.data.prepared_corpus import Corpus
from recipes.evaluation.selection import SelectedModel, Selection
from thoth_core.errors import UserError


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The checkpoint of a selected model, or the average of its checkpoints."""

    selected: SelectedModel
    state: dict[str, Any]

    @property
    def path(self) -> Path:
        """The checkpoint file, for messages."""
        return self.selected.checkpoints[0]

    @property
    def is_language_model(self) -> bool:
        return is_language_model(self.state)

    @property
    def updates(self) -> int | None:
        """Updates that the checkpoint has seen; None if it does not say."""
        history = self.state.get("optimizer_history") or [{}]
        updates: int | None = history[-1].get("num_updates")
        return updates

    @property
    def training_seconds(self) -> float | None:
        """Seconds of training to this checkpoint; None if the run does not say."""
        updates = self.updates
        seconds = [
            figures.seconds
            for figures in self.selected.run.figures()
            if figures.updates == updates and figures.seconds is not None
        ]
        return min(seconds, default=None)


def device_of(selection: Selection) -> str:
    """The device to compute on: cpu or cuda."""
    return "cuda" if torch.cuda.is_available() and not selection.request.cpu else "cpu"


def load_checkpoints(selection: Selection) -> list[LoadedCheckpoint]:
    """The checkpoint of each selected model.

    Raises:
        UserError: a file is damaged, or a language model is part of an ensemble.
    """
    loaded = []
    for model in selection.models:
        torch.manual_seed(1)
        print(f"Loading {model.checkpoint} of {model.run.folder}", flush=True)
        status = model.record.status
        if status != "finished":
            print(f"note: this training is not finished ({status}); {model.train_command} continues it")
        checkpoint = LoadedCheckpoint(model, _state(model))
        if len(selection.models) > 1 and checkpoint.is_language_model:
            raise UserError(f"--ensemble: {model.name} is a language model; only translation models can be ensembled")
        loaded.append(checkpoint)
    return loaded


def _state(model: SelectedModel) -> dict[str, Any]:
    """The state of one checkpoint, or the average of several."""
    paths = model.checkpoints
    try:
        # Everything but the parameters, such as the number of updates, is that of the last path: the last epoch's.
        return checkpoints.load(paths[0]) if len(paths) == 1 else averaging.average(paths[::-1])
    except checkpoints.CheckpointError as error:
        raise UserError(f"{error}; try another --checkpoint, or train again: {model.train_command}") from None


def is_language_model(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's `state` is that of a language model."""
    configuration = state.get("cfg")
    task = configuration.get("task") if isinstance(configuration, Mapping) else None
    name = task.get("_name") if isinstance(task, Mapping) else getattr(task, "_name", None)
    return name == "language_modeling"


def parameters_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of the parameters of a checkpoint's `state`."""
    digest, parameters = hashlib.sha256(), state.get("model")
    # A state without a model is refused by `load_model`.
    for name, value in sorted(parameters.items()) if isinstance(parameters, Mapping) else ():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def known_options(model: Namespace) -> set[str]:
    """Options of a checkpoint's `model` that its class has now, also those that are newer than the checkpoint."""
    cls = ARCH_MODEL_REGISTRY.get(getattr(model, "arch", None)) or MODEL_REGISTRY.get(getattr(model, "_name", None))
    parser = ArgumentParser(add_help=False)
    if cls is not None:
        cls.add_args(parser)
    return {action.dest for action in parser._actions}


def load_model(
    state: Mapping[str, Any],
    *,
    path: Path,
    corpus: Corpus,
    user_dir: Path | None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Model and task for a checkpoint.

    Args:
        state: the checkpoint's content.
        path: its file, for messages.
        user_dir: the folder of its plugin.
        overrides: other values of the model's options.

    Raises:
        UserError: the state does not fit the corpus or the installed code, its parameters are not finite, or the
            model has no such option.
    """
    fairseq_compat.install()
    if user_dir is not None:
        plugins.load(user_dir)
    if not isinstance(state.get("cfg"), Mapping) or not isinstance(state.get("model"), Mapping):
        raise UserError(f"{path}: not a training checkpoint of this fairseq (no cfg or no model in it)")
    configuration: Any = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    with open_dict(configuration):
        if is_language_model(state):
            configuration.task.data = str(corpus.monolingual)
        else:
            configuration.task.data = str(corpus.bin)
            configuration.task.source_lang, configuration.task.target_lang = corpus.source, corpus.target
        for name, value in (overrides or {}).items():
            if not hasattr(configuration.model, name) and name not in known_options(configuration.model):
                raise UserError(f"--override {name}={value}: the model has no option {name}")
            setattr(configuration.model, name, value)
        if "eval_bleu" in configuration.task:
            configuration.task.eval_bleu = False  # it would load a tokeniser that nothing uses
    try:
        task = tasks.setup_task(configuration.task, from_checkpoint=True)
        model = task.build_model(configuration.model, from_checkpoint=True)
        model.load_state_dict(state["model"], strict=True, model_cfg=configuration.model)
    except UserError:
        raise
    except Exception as error:  # plugins and fairseq raise anything
        line = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(f"{path}: does not fit the corpus {corpus.folder} or the installed code ({line})") from None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise UserError(
            f"{path}: some parameters are not finite, so the training diverged; take another checkpoint, or train from "
            "scratch with a lower --lr"
        )
    return model, task
