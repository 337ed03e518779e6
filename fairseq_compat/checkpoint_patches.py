"""fairseq's reading and writing of checkpoints, replaced by `fairseq_compat.checkpoints`.

Faults of fairseq that are fixed here:

- It cannot load the checkpoints of every training under torch's safe loading: `--eval-bleu` puts NumPy arrays into
  them, and models without a dataclass put an argparse.Namespace. Its error is a page of traceback.
- It copies a new checkpoint over `checkpoint_last.pt` and `checkpoint_best.pt` in place: a full disk leaves them
  truncated.

A checkpoint that is saved here holds plain values instead, so that fairseq's own commands can load it safely.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from fairseq_compat import checkpoints, patching
from fairseq_compat.checkpoints import CheckpointError, StrPath

# Parts of a checkpoint that hold tensors under plain names. PyTorch keeps attributes on their dictionaries.
TENSORS = ("model", "criterion", "last_optimizer_state", "ema")


def install() -> None:
    """Replace fairseq's functions that read and write checkpoints."""
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    torch.serialization.add_safe_globals(checkpoints.SAFE_GLOBALS)  # for a bare torch.load, as on several processes
    patching.replace(checkpoint_utils, "load_checkpoint_to_cpu", lambda _: load_checkpoint_to_cpu)
    patching.replace(checkpoint_utils, "torch_persistent_save", lambda _: _torch_persistent_save)
    patching.replace(PathManager, "copy", lambda _: staticmethod(_copy))


def load_checkpoint_to_cpu(
    path: str, arg_overrides: dict[str, Any] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """fairseq's function of that name for local files, which loads safely. Raises CheckpointError."""
    from fairseq import checkpoint_utils
    from fairseq.dataclass.utils import overwrite_args_by_name
    from omegaconf import OmegaConf

    state = checkpoints.load(path)
    if "model" not in state:
        raise CheckpointError(f"checkpoint {path} is not a fairseq checkpoint: it holds no model")
    if state.get("args") is not None:
        for name, value in (arg_overrides or {}).items():
            setattr(state["args"], name, value)
    if state.get("cfg") is not None:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        if arg_overrides is not None:
            overwrite_args_by_name(state["cfg"], arg_overrides)
    state = checkpoint_utils._upgrade_state_dict(state)
    check_registered(state, path)
    return state


def check_registered(state: dict[str, Any], path: StrPath) -> None:
    """Raise CheckpointError if fairseq does not know the checkpoint's task or model: its plugin is not loaded."""
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    cfg = state.get("cfg")
    if cfg is None:
        return
    for kind, options, known in (
        ("model", cfg.get("model"), [ARCH_MODEL_REGISTRY, MODEL_REGISTRY]),
        ("task", cfg.get("task"), [TASK_REGISTRY]),
    ):
        name = getattr(options, "_name", None)
        if name is not None and not any(name in registry for registry in known):
            plugin = Path(getattr(cfg.get("common"), "user_dir", None) or "PLUGIN").name
            raise CheckpointError(
                f"checkpoint {path} has the {kind} {name}, which is not part of fairseq; "
                f"load its plugin with --user-dir {plugin}"
            )


def _torch_persistent_save(state: dict[str, Any], filename: str, async_write: bool = False) -> None:
    checkpoints.save({name: value if name in TENSORS else plain(value) for name, value in state.items()}, filename)


def _copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    checkpoints.copy_file(src_path, dst_path)
    return True


def plain(value: Any) -> Any:
    """`value` with dictionaries for namespaces, and lists and numbers of Python for NumPy's; tensors as they are.

    Containers of unknown types are left alone.
    """
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    if isinstance(value, numpy.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        copy: Any = type(value)()
        for name, item in value.items():
            copy[name] = plain(item)
        return copy
    return value
