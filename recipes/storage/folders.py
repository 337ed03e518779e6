"""Folders that are replaced as a whole: readers see the old one or the new one, and a kill loses neither."""

import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

from recipes.storage import disk
from thoth_core.errors import UserError


def make_ready(output: Path, written: re.Pattern[str]) -> None:
    """Repair what a killed process left of the folder `output`, and refuse one that must not be replaced.

    To be called before the work whose results the folder is to hold. `written` matches the names of our own files.

    Raises:
        UserError: `output` is a file, a link, the working folder or a mount point, contains other files, or its parent
            cannot be written.
    """
    recover(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file is in the way; give another folder with --output")
    for wrong, what in (
        (output.is_symlink(), "a link"),
        (output.is_dir() and output.samefile(Path.cwd()), "the working folder"),
        (output.is_mount(), "a mount point"),
    ):
        if wrong:
            raise UserError(f"{output}: is {what}, and is replaced as a whole; give another folder with --output")
    if output.is_dir():
        others = sorted(path.name for path in output.iterdir() if not written.fullmatch(path.name))
        if others:
            raise UserError(
                f"{output}: contains unexpected files ({others[0]}), and is replaced as a whole; move them away, or "
                "give a new or empty folder with --output"
            )
    parent = output.parent
    while not parent.exists():
        parent = parent.parent
    if not disk.writable(parent):
        raise UserError(f"{parent}: not writable; give another folder with --output")


def _make_beside(final: Path, kind: str) -> Path:
    """A new folder beside `final`, whose name gives the process and the host that it belongs to."""
    name = f".{final.name}.{kind}.{socket.gethostname()}.{getpid()}.{secrets.token_hex(4)}"
    folder = final.with_name(name)
    folder.mkdir()
    return folder


@contextmanager
def replaced(final: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `final` when the block ends without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    new = _make_beside(final, "new")
    try:
        yield new
        put(new, final)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put(new: Path, final: Path) -> None:
    """Put the complete folder `new` in the place of `final`, and then remove the old one."""
    if not final.exists():
        new.rename(final)
        return
    old = _make_beside(final, "old")
    final.rename(old / "old")
    try:
        new.rename(final)
    except BaseException:
        (old / "old").rename(final)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path) -> None:
    """Remove what killed processes of this host left beside `final`, and put back what they had moved."""
    prefix = f".{final.name}."
    for left in final.parent.iterdir() if final.parent.is_dir() else ():
        if not left.name.startswith(prefix):
            continue
        match = re.fullmatch(r"(new|old)\.(.+)\.(\d+)\.\w+", left.name.removeprefix(prefix))
        if match is None or match[2] != socket.gethostname() or disk.alive(int(match[3])):
            continue
        if match[1] == "old" and (left / "old").is_dir() and not final.exists():
            (left / "old").rename(final)
        shutil.rmtree(left, ignore_errors=True)
