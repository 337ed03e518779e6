"""Files of checkpoints: safe loading, and saving that survives a full disk.

Safe loading (`weights_only=True`) is never switched off: it runs no code of the file.
"""

import argparse
import errno
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from numpy._core import multiarray

from thoth_core.errors import UserError

StrPath = str | os.PathLike[str]

# What fairseq puts into checkpoints besides tensors and plain Python values. None of these can run code of the file's
# choice. Checkpoints that are saved under our patches hold none of them (see checkpoint_patches).
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,  # the options of models and tasks that have no dataclass
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
    """The dictionary that `load` returns.

    With `lazily`, the file's checksums are verified, but its tensors stay on the disk until they are used.
    """
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

    Returns whether it is a zip archive, which torch >= 1.6 writes and whose checksums torch does not verify.
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

    A copy and not a hard link: a fairseq-train without our patches writes into the files of the folder in place.
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
    """The readable checkpoint of `folder` with the most updates; None if there is none."""
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
