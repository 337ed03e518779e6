"""Checkpoints: safe loading, saving that survives a full disk, averaging.

fairseq's faults that are mended here, by replacing the functions that `install` names:

- it cannot load checkpoints of every training mode under torch's safe loading (`--eval-bleu` puts numpy
  arrays into them, models without a dataclass an argparse.Namespace) and says so in a page of traceback;
- it copies a new checkpoint over `checkpoint_last.pt` and `checkpoint_best.pt` in place: a disk that fills
  leaves them truncated.

Safe loading (`weights_only=True`) is never switched off: it runs no code of the file.
"""

import argparse
import errno
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from numpy._core import multiarray

from thoth_core.errors import UserError

StrPath = str | os.PathLike[str]

# What checkpoints hold besides tensors and plain Python values. None of these can run code of the file's choice.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,  # the options of models, tasks, ... that have no dataclass
    multiarray._reconstruct,  # metrics after --eval-bleu: arrays and scalars
    multiarray.scalar,
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype("int64")),
    type(numpy.dtype("float64")),
    type(numpy.dtype("float32")),
]

TEMPORARY_SUFFIX = ".tmp"


class CheckpointError(UserError):
    """A checkpoint cannot be read or written; the message names the file and the remedy."""


def load(path: StrPath) -> dict[str, Any]:
    """Return the checkpoint's dictionary, tensors on the CPU, without running any code of the file.

    Raises CheckpointError if it is missing, empty, truncated, damaged, or holds anything but tensors and settings.
    """
    return read(Path(path), lazily=False)


def read(path: Path, *, lazily: bool) -> dict[str, Any]:
    """`load`; lazily: check the file's sums but leave its tensors on the disk until they are used."""
    is_archive = _check_file(path)
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily and is_archive)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"(?:GLOBAL|Unsupported global:?)\s+(?:GLOBAL\s+)?([\w.]+)", str(error))
        if foreign is None:
            raise CheckpointError(_damaged(path)) from error
        raise CheckpointError(
            f"checkpoint {path} is refused: it holds {foreign[1]}, which could run code when loaded; "
            "use only checkpoints that hold tensors and settings, as fairseq writes them"
        ) from error
    except MemoryError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch's readers raise RuntimeError, EOFError, KeyError, ... on damaged files
        raise CheckpointError(_damaged(path)) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"checkpoint {path} is not a fairseq checkpoint: it holds a {type(state).__name__}, not a dictionary"
        )
    return state


def _check_file(path: Path) -> bool:
    """Refuse a missing, empty, truncated or damaged file, with a message that says which.

    Returns whether it is a zip archive, which torch >= 1.6 writes and whose checksums torch does not look at.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path, or train first")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file; give the path of a .pt file")
    if path.stat().st_size == 0:
        raise CheckpointError(
            f"checkpoint {path} is empty: writing it was interrupted; use another checkpoint of {path.parent}"
        )
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    raise CheckpointError(_damaged(path))
                return True
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
        raise CheckpointError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return (
        f"checkpoint {path} is truncated or damaged ({path.stat().st_size:,} bytes); "
        f"use another checkpoint of {path.parent}"
    )


class _Recorder:
    """A binary file that remembers its first failure: torch's writer turns it into an error without a cause."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return self.file.write(data)
            except OSError as error:
                self.failure = error
        return len(data)  # nothing more is written; `save` raises the failure when torch is done

    def flush(self) -> None:
        pass


def save(state: dict[str, Any], path: StrPath) -> None:
    """Write a checkpoint so that `path` holds either the old file or the complete new one, never a part.

    Raises CheckpointError if it cannot be written (a full disk, a read-only folder); `path` is then untouched.
    """

    def write(file: BinaryIO) -> None:
        recorder = _Recorder(file)
        torch.save(state, recorder)  # type: ignore[arg-type]
        if recorder.failure is not None:
            raise recorder.failure

    _replace(Path(path), write)


def copy_file(source: StrPath, target: StrPath) -> None:
    """Copy a checkpoint so that `target` is either untouched or complete; errors as in `save`.

    A copy and not a hard link: an unmended fairseq-train in the same folder writes into its files in place.
    """

    def write(file: BinaryIO) -> None:
        with open(source, "rb") as reader:
            shutil.copyfileobj(reader, file, 1 << 20)

    _replace(Path(target), write)


def _replace(path: Path, write: Any) -> None:
    """Let `write(file)` fill a temporary file beside `path`, bring it to the disk, then rename it to `path`."""
    # A fixed name: what a killed process left behind is overwritten by the next one.
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = "check the folder's permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space (--no-epoch-checkpoints and --keep-last-epochs save it)"
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error.strerror}; earlier checkpoints are untouched: {remedy} "
            "and start the same command again, which resumes"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot; the file itself has been synced
        pass
    finally:
        os.close(descriptor)


def newest_readable(folder: StrPath) -> Path | None:
    """Return the readable checkpoint of `folder` with the most updates, None if there is none."""
    candidates = []
    for path in Path(folder).glob("checkpoint*.pt"):
        try:
            state = read(path, lazily=True)
            updates = int(state["optimizer_history"][-1]["num_updates"])
        except (CheckpointError, KeyError, IndexError, TypeError, ValueError):
            continue
        if "last_optimizer_state" in state:  # else an average: training cannot go on from it
            candidates.append((updates, path.stat().st_mtime_ns, path))
    return max(candidates)[2] if candidates else None


def average(paths: Iterable[StrPath]) -> dict[str, Any]:
    """Return a checkpoint whose parameters are the mean of those in `paths` (float32 or wider), without optimizer.

    Integer tensors and everything else are those of the last path. Raises CheckpointError if the models differ.
    """
    total: dict[str, torch.Tensor] = {}
    count = 0
    state: dict[str, Any] = {}
    first: Path | None = None
    for path in map(Path, paths):
        state = load(path)
        model = state.get("model")
        if not isinstance(model, dict):
            raise CheckpointError(f"checkpoint {path} holds no model; give checkpoints that fairseq-train wrote")
        count += 1
        if first is None:
            first = path
            total = {name: _accumulator(value) for name, value in model.items()}
            continue
        if {name: value.shape for name, value in model.items()} != {name: value.shape for name, value in total.items()}:
            raise CheckpointError(
                f"checkpoints {first} and {path} cannot be averaged: their models differ; "
                "average checkpoints of one training only"
            )
        for name, value in model.items():
            if value.is_floating_point():
                total[name] += value
            else:
                total[name] = value
    if first is None:
        raise CheckpointError("no checkpoints to average; give at least one path")
    for value in total.values():
        if value.is_floating_point():
            value /= count
    state["model"] = total
    state.pop("last_optimizer_state", None)
    return state


def _accumulator(value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value.clone()
    return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)


def install() -> None:
    """Replace fairseq's reading and writing of checkpoints by this module's. Called by `fairseq_compat.install`."""
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    torch.serialization.add_safe_globals(SAFE_GLOBALS)  # for a bare torch.load, as resuming on several processes
    checkpoint_utils.load_checkpoint_to_cpu = _load_checkpoint_to_cpu
    checkpoint_utils.torch_persistent_save = _torch_persistent_save
    PathManager.copy = staticmethod(_path_manager_copy)


def _load_checkpoint_to_cpu(
    path: str, arg_overrides: dict[str, Any] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """fairseq.checkpoint_utils.load_checkpoint_to_cpu for local files, through `load`."""
    from fairseq import checkpoint_utils
    from fairseq.dataclass.utils import overwrite_args_by_name
    from omegaconf import OmegaConf

    state = load(path)
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
    save(state, filename)


def _path_manager_copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    copy_file(src_path, dst_path)
    return True
