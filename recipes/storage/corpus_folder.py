"""The final place of a prepared corpus: a lock, a hidden folder to build in, and a rename when all is done.

Whatever interrupts a preparation, nothing incomplete has the final name, and the next one removes what is
left.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any

from recipes.console.messages import say

LOG = "preprocess.log"  # it names the number of processes, so it is no part of what is the same everywhere
BESIDE = ("corpus.json", LOG)  # files of a prepared corpus that corpus.json has no sum of


class State(Enum):
    """What is at the final place."""

    ABSENT = "nothing"
    COMPLETE = "the same corpus, undamaged"
    DAMAGED = "the same corpus with files missing or changed"
    OTHER = "a corpus made from other inputs or with other settings"
    FOREIGN = "something that is no prepared corpus"


@dataclass(frozen=True)
class Place:
    """The final folder `data`/`name`, and the hidden names beside it, which belong to who holds the lock."""

    data: Path
    name: str

    @property
    def final(self) -> Path:
        return self.data / self.name

    @property
    def partial(self) -> Path:
        return self.data / f".{self.name}.partial"

    @property
    def replaced(self) -> Path:
        return self.data / f".{self.name}.replaced"

    @property
    def lock(self) -> Path:
        return self.data / f".{self.name}.lock"

    def state(self, fingerprint: str) -> State:
        """What is at the final place, when `fingerprint` is what should be there."""
        if not os.path.lexists(self.final):
            return State.ABSENT
        try:
            description = json.loads((self.final / "corpus.json").read_text(encoding="utf-8"))
            recorded, files = description["fingerprint"], dict(description["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return State.FOREIGN
        if recorded != fingerprint:
            return State.OTHER
        present = digests(self.final)
        undamaged = all(present.get(path) == digest for path, digest in files.items())
        return State.COMPLETE if undamaged else State.DAMAGED

    def strangers(self) -> list[str]:
        """Files in the prepared corpus's folder that no preparation has written."""
        written = json.loads((self.final / "corpus.json").read_text(encoding="utf-8"))["files"]
        found = (path.relative_to(self.final).as_posix() for path in self.final.rglob("*") if not path.is_dir())
        return sorted({*found} - {*written, *BESIDE})

    @contextlib.contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[IO[str]]:
        """Hold the corpus's lock; wait for another process that does, or raise BlockingIOError.

        The file is removed afterwards.
        """
        while True:
            with self.lock.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        raise
                    say(f"waiting for another process that prepares {self.final}")
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Its last holder may have removed the file after we opened it: then we lock nothing.
                if not is_open_file(file, self.lock):
                    continue
                try:
                    yield file
                finally:
                    self.lock.unlink(missing_ok=True)
                return

    def recover(self) -> None:
        """Remove what a killed process left; bring back a corpus it had moved away and not yet replaced."""
        shutil.rmtree(self.partial, ignore_errors=True)
        if self.replaced.exists() and not self.final.exists():
            self.replaced.rename(self.final)
        shutil.rmtree(self.replaced, ignore_errors=True)

    def tidy(self) -> None:
        """Recover beside a complete corpus, unless another process works there or nothing may be written."""
        if any(os.path.lexists(path) for path in (self.partial, self.replaced, self.lock)):
            with contextlib.suppress(OSError), self.locked(wait=False):
                self.recover()

    def install(self) -> None:
        """Give the finished partial folder its final name; what had that name is removed."""
        for path in (*self.partial.rglob("*"), self.partial):
            sync(path)
        if self.final.exists():
            self.final.rename(self.replaced)
        self.partial.rename(self.final)
        sync(self.data)
        shutil.rmtree(self.replaced, ignore_errors=True)


def is_open_file(file: IO[Any], path: Path) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make `folder`; should something fail, remove again what was made and stayed empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def digest(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def sync(path: Path) -> None:
    """Have the system put `path` on the disk, so that a rename that follows cannot get there first."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
