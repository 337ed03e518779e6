"""From a checkpoint to a model and its task on a prepared corpus."""

import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipes.data.prepared_corpus import Corpus
from thoth_core.errors import UserError


def is_language_model(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's `state` is a language model's."""
    configuration = state.get("cfg")
    task = configuration.get("task") if isinstance(configuration, Mapping) else None
    name = task.get("_name") if isinstance(task, Mapping) else getattr(task, "_name", None)
    return name == "language_modeling"


def parameters_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of the parameters of a checkpoint's `state`."""
    found, parameters = hashlib.sha256(), state.get("model")
    for name, value in sorted(parameters.items()) if isinstance(parameters, Mapping) else ():  # `load_model` refuses
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def known_options(model: Namespace) -> set[str]:
    """Options of a checkpoint's `model` that its class has now, among them those that the checkpoint is too old for."""
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

    found = ARCH_MODEL_REGISTRY.get(getattr(model, "arch", None)) or MODEL_REGISTRY.get(getattr(model, "_name", None))
    parser = ArgumentParser(add_help=False)
    if found is not None:
        found.add_args(parser)
    return {action.dest for action in parser._actions}


def load_model(
    state: Mapping[str, Any],
    *,
    path: Path,
    corpus: Corpus,
    user_dir: Path | None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """(model, task) for a checkpoint's `state` (of file `path`, for messages), with other options of the model.

    Raises:
        UserError: the state does not fit the corpus or the installed code, its parameters are not finite, or the
            model has no such option.
    """
    import fairseq_compat

    fairseq_compat.install()
    from fairseq import tasks
    from omegaconf import OmegaConf, open_dict

    from fairseq_compat import plugins

    if user_dir is not None:
        plugins.load(user_dir)
    if not isinstance(state.get("cfg"), Mapping) or not isinstance(state.get("model"), Mapping):
        raise UserError(f"{path}: not a training checkpoint of this fairseq (no cfg or no model in it)")
    configuration: Any = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    with open_dict(configuration):
        if is_language_model(state):
            configuration.task.data = str(corpus.alone)
        else:
            configuration.task.data = str(corpus.bin)
            configuration.task.source_lang, configuration.task.target_lang = corpus.source, corpus.target
        for name, value in (overrides or {}).items():
            if not hasattr(configuration.model, name) and name not in known_options(configuration.model):
                raise UserError(f"--override {name}={value}: the model has no option {name}")
            setattr(configuration.model, name, value)
        if "eval_bleu" in configuration.task:
            configuration.task.eval_bleu = False  # it would load a tokeniser for nothing
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
            f"{path}: holds parameters that are not finite, so the training diverged; take another checkpoint, or "
            "train anew with a lower --lr"
        )
    return model, task
