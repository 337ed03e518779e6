"""Folders that are replaced as a whole: readers see the old one or the new one, and a kill loses neither."""

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

from recipes.storage import disk
from thoth_core.errors import UserError


def make_ready(output: Path, written: re.Pattern[str]) -> None:
    """Put right what a killed process has left of it; refuse one with other files than those `written`, or no place.

    To be called before the work whose results it is to hold.
    """
    recover(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file is in the way; give another folder with --output")
    for wrong, what in (
        (output.is_symlink(), "a link"),
        (output.is_dir() and output.samefile(Path.cwd()), "the working folder"),
        (output.is_mount(), "a disk of its own"),
    ):
        if wrong:
            raise UserError(f"{output}: is {what}, and is replaced as a whole; give another folder with --output")
    if output.is_dir():
        others = sorted(path.name for path in output.iterdir() if not written.fullmatch(path.name))
        if others:
            raise UserError(
                f"{output}: holds other things than belong there ({others[0]}), and is replaced as a whole; "
                "move them away, or give a new or empty folder with --output"
            )
    parent = output.parent
    while not parent.exists():
        parent = parent.parent
    if not disk.writable(parent):
        raise UserError(f"{parent}: not writable; give another folder with --output")


def _beside(final: Path, kind: str) -> Path:
    """A new folder that tells whose it is: of which process, on which of the machines that may share the place."""
    return Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.{kind}.{socket.gethostname()}.{getpid()}."))


@contextmanager
def replaced(final: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `final` when the block ends without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(final, "new")
    try:
        new.chmod(0o755)
        yield new
        put(new, final)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put(new: Path, final: Path) -> None:
    """Put the complete folder `new` in the place of `final`; an old `final` goes once that is there."""
    if not final.exists():
        new.rename(final)
        return
    old = _beside(final, "old")
    final.rename(old / "old")
    try:
        new.rename(final)
    except BaseException:
        (old / "old").rename(final)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path) -> None:
    """Clear away what a killed process of this machine has left beside `final`, and put back what it had moved."""
    prefix = f".{final.name}."
    for left in final.parent.iterdir() if final.parent.is_dir() else ():
        if not left.name.startswith(prefix):
            continue
        found = re.fullmatch(r"(new|old)\.(.+)\.(\d+)\.\w+", left.name.removeprefix(prefix))
        if found is None or found[2] != socket.gethostname() or disk.alive(int(found[3])):
            continue
        if found[1] == "old" and (left / "old").is_dir() and not final.exists():
            (left / "old").rename(final)
        shutil.rmtree(left, ignore_errors=True)
