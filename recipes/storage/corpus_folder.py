"""The folder of a prepared corpus: a lock, a hidden folder to build in, and a rename when everything is complete.

Whatever interrupts a preparation, nothing incomplete has the final name, and the next preparation removes what is left.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from recipes.storage.corpus_record import CorpusRecord
from recipes.storage.disk import sync
from recipes.storage.locks import Lock, LockHeldError, locked
from thoth_core.errors import UserError

RECORD = "corpus.json"
LOG = "preprocess.log"  # it names the number of processes, so that it differs between machines
WITHOUT_CHECKSUM = (RECORD, LOG)


class FolderState(Enum):
    """What stands at a corpus's final place."""

    ABSENT = "nothing"
    COMPLETE = "the same corpus, undamaged"
    DAMAGED = "the same corpus with files missing or changed"
    OTHER = "a corpus made from other inputs or with other settings"
    FOREIGN = "something that is not a prepared corpus"


@dataclass(frozen=True)
class CorpusFolder:
    """The final folder `data`/`name` and the hidden names beside it, which belong to the holder of the lock."""

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

    def _record(self) -> CorpusRecord:
        return CorpusRecord.read(self.final / RECORD, remedy="remove the folder")

    def state(self, fingerprint: str) -> FolderState:
        """What stands at the final place, where the corpus with this `fingerprint` is wanted."""
        if not os.path.lexists(self.final):
            return FolderState.ABSENT
        try:
            record = self._record()
        except UserError:
            return FolderState.FOREIGN
        if record.fingerprint != fingerprint:
            return FolderState.OTHER
        present = digests(self.final)
        undamaged = all(present.get(path) == digest for path, digest in record.files.items())
        return FolderState.COMPLETE if undamaged else FolderState.DAMAGED

    def unexpected_files(self) -> list[str]:
        """Files in the corpus's folder that no preparation has written."""
        present = (path.relative_to(self.final).as_posix() for path in self.final.rglob("*") if not path.is_dir())
        return sorted({*present} - {*self._record().files, *WITHOUT_CHECKSUM})

    def locked(self, *, patience: float | None = None) -> AbstractContextManager[Lock]:
        """Hold the corpus's lock, whose file is removed afterwards. `patience` and errors: as in `locks.locked`."""
        what = f"another process prepares {self.final}"
        return locked(self.lock, what=what, patience=patience, remove=True)

    def recover(self) -> None:
        """Remove what a killed process left; bring back a corpus that it had moved away and not yet replaced."""
        shutil.rmtree(self.partial, ignore_errors=True)
        if self.replaced.exists() and not self.final.exists():
            self.replaced.rename(self.final)
        shutil.rmtree(self.replaced, ignore_errors=True)

    def tidy(self) -> None:
        """Recover beside a complete corpus, unless another process works there or the folder cannot be written."""
        if any(os.path.lexists(path) for path in (self.partial, self.replaced, self.lock)):
            with contextlib.suppress(OSError, LockHeldError), self.locked(patience=0):
                self.recover()

    def install(self) -> None:
        """Give the complete partial folder its final name. What had that name is removed."""
        for path in (*self.partial.rglob("*"), self.partial):
            sync(path)
        if self.final.exists():
            self.final.rename(self.replaced)
        self.partial.rename(self.final)
        sync(self.data)
        shutil.rmtree(self.replaced, ignore_errors=True)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make `folder`. If the block fails, remove the folders that were made and stayed empty."""
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
    """The SHA-256 of the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`, by its path relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}
