"""Files: atomic writing, and errors of the disk as one line for the user."""

import errno
import glob
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thoth_core.errors import UserError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the disk (full, read-only) into a UserError that names the file, or else `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and call again" if full else "correct that and call again"
        raise UserError(f"{error.filename or folder}: {error.strerror}; {remedy}") from None


def writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`. It is tried, since permissions say nothing about read-only disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a temporary name beside `path`, then rename: readers see the old or the new file.

    Temporary files that killed processes of this host left are removed. Other hosts may share the folder.
    """
    prefix = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        match = re.fullmatch(r"(\d+)\.\w{8}", left.name.removeprefix(prefix))
        if match and not alive(int(match[1])):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have the system put the file or folder `path` on the disk, so that a rename that follows comes after it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alive(process: int) -> bool:
    """Whether there is a process of that number on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
