"""A corpus that recipes/prepare.sh has built: opening and verifying it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from recipes.config.schema import RECIPES
from recipes.storage.corpus_folder import RECORD, digest
from recipes.storage.corpus_record import BpeSubwords, CorpusRecord, Subwords
from recipes.storage.naming import short_name
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus."""

    argument: str  # as the command line names it
    folder: Path
    record: CorpusRecord

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def source(self) -> str:
        return self.record.source

    @property
    def target(self) -> str:
        return self.record.target

    @property
    def languages(self) -> tuple[str, str]:
        return self.source, self.target

    @property
    def fingerprint(self) -> str:
        return self.record.fingerprint

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.record.splits)

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of each file by its path below the folder."""
        return self.record.files

    @property
    def subwords(self) -> Subwords:
        return self.record.subwords

    @property
    def bin(self) -> Path:
        """The folder with the output of fairseq-preprocess."""
        return self.folder / "bin"

    @property
    def subword_models(self) -> dict[str, Path]:
        """The sentencepiece model or the file of merges of each language."""
        return {language: self.folder / name for language, name in self.subwords.models.items()}

    @property
    def subword_files(self) -> set[Path]:
        """All files that segmentation needs."""
        vocabularies = self.subwords.vocabularies.values() if isinstance(self.subwords, BpeSubwords) else ()
        return {*self.subword_models.values(), *(self.folder / name for name in vocabularies)}

    def dictionary(self, language: str) -> Path:
        """fairseq's dictionary of a language."""
        return self.bin / f"dict.{language}.txt"

    @property
    def monolingual(self) -> Path:
        """The target language's files of `bin`, by the names that fairseq's language_modeling task expects."""
        return self.bin / self.target

    def text(self, split: str, language: str) -> Path:
        """The plain text of one side of a split."""
        return self.folder / "text" / f"{split}.{language}"

    @property
    def prepare_again(self) -> str:
        """The remedy for damage."""
        return _prepare_again(self.argument, self.folder.parent)

    def verify(self, *parts: str) -> None:
        """Compare files with the checksums in corpus.json: those below the folders `parts`, or the files of that name.

        Raises:
            UserError: a file is missing or differs; the message names the first one.
        """
        for name, checksum in self.files.items():
            if not any(name == part or name.startswith(part + "/") for part in parts):
                continue
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing; {self.prepare_again}")
            if digest(path) != checksum:
                raise UserError(f"{path}: damaged or changed since it was prepared; {self.prepare_again}")


def _prepare_call(argument: str, data: Path) -> str:
    """The call that builds a corpus. One without a corpus file was made from the user's own files."""
    known = argument.endswith((".yaml", ".yml")) or (RECIPES / "corpora" / f"{argument}.yaml").is_file()
    parts = ["recipes/prepare.sh", *([argument] if known else ["files", "--name", argument])]
    if data != Path("data"):
        parts += ["--data", str(data)]
    return shlex.join(parts) + ("" if known else " ...")


def _prepare_again(argument: str, data: Path) -> str:
    call = _prepare_call(argument, data)
    return f"build it again with: {call} --force (and --from and the other options that it was built with)"


def open_corpus(argument: str, data: Path) -> Corpus:
    """The prepared corpus of that name below `data`.

    Raises:
        UserError: the corpus is missing, damaged or incomplete; the message gives the call that builds it.
    """
    folder = data / short_name(argument, "CORPUS")
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: no prepared corpus here; build it with: {_prepare_call(argument, data)}")
    remedy = _prepare_again(argument, data)
    # Preparing does not replace a folder without a readable record: it could be anything.
    without_record = f"remove the folder, and {remedy}"
    corpus = Corpus(argument, folder, CorpusRecord.read(folder / RECORD, remedy=without_record))
    needed = [corpus.dictionary(language) for language in corpus.languages]
    for split in ("train", "valid"):
        for language in corpus.languages:
            stem = f"{split}.{corpus.source}-{corpus.target}.{language}"
            needed += [corpus.bin / f"{stem}.bin", corpus.bin / f"{stem}.idx"]
    for path in [*needed, *corpus.subword_models.values()]:
        if not path.is_file():
            raise UserError(f"{path}: missing; {remedy}")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty; {remedy}")
    return corpus
