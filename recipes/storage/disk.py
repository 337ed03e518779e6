"""Files: atomic writing, and errors of the disk as one line for the user."""

import errno
import glob
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thoth_core.errors import UserError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only) into a UserError that names the file, or else `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "free some space and call again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise UserError(f"{error.filename or folder}: {error.strerror}; {remedy}") from None


def writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`: tried, since permissions do not tell of read-only disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a temporary name beside `path`, then rename: readers see the old or the new one.

    What a killed process of this machine left of its own attempt is removed; others may share the folder.
    """
    ours = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(ours)}*"):
        found = re.fullmatch(r"(\d+)\.\w{8}", left.name.removeprefix(ours))
        if found and not alive(int(found[1])):
            left.unlink(missing_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{ours}{os.getpid()}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
