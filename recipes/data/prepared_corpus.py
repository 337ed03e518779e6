"""A corpus that recipes/prepare.sh has built: opening and verifying it."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.storage.corpus_folder import digest
from recipes.storage.naming import short_name
from recipes.storage.provenance import ROOT
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """A corpus that recipes/prepare.sh has built."""

    argument: str
    name: str
    folder: Path
    source: str
    target: str
    fingerprint: str
    subwords: dict[str, Any]  # as in corpus.json
    splits: tuple[str, ...]
    files: dict[str, str]

    @property
    def languages(self) -> tuple[str, str]:
        return self.source, self.target

    @property
    def bin(self) -> Path:
        """The folder of `fairseq-preprocess`'s output."""
        return self.folder / "bin"

    @property
    def subword_models(self) -> dict[str, Path]:
        """The sentencepiece model or the codes of each language."""
        return {language: self.folder / name for language, name in self.subwords["models"].items()}

    @property
    def subword_files(self) -> set[Path]:
        """All that text is cut into pieces by."""
        vocabularies = self.subwords.get("vocabularies", {}).values()
        return {*self.subword_models.values(), *(self.folder / name for name in vocabularies)}

    def dictionary(self, language: str) -> Path:
        """fairseq's dictionary of a language."""
        return self.bin / f"dict.{language}.txt"

    @property
    def alone(self) -> Path:
        """The target language's files of `bin`, by the names that fairseq's language_modeling task looks for."""
        return self.bin / self.target

    @property
    def prepare_again(self) -> str:
        """The remedy for damage."""
        return _again(_prepare_call(self.argument, self.folder.parent))

    def verify(self, *parts: str) -> None:
        """Compare the files below the sub-folders or files `parts` with the sums in corpus.json.

        Raises a UserError that names the first file that is missing or differs.
        """
        for name, known in self.files.items():
            if not any(name == part or name.startswith(part + "/") for part in parts):
                continue
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing; {self.prepare_again}")
            if digest(path) != known:
                raise UserError(f"{path}: damaged or changed since it was prepared; {self.prepare_again}")

    def text(self, split: str, language: str) -> Path:
        """The plain text of one side of a split."""
        return self.folder / "text" / f"{split}.{language}"


def _prepare_call(argument: str, data: Path) -> str:
    """The call that builds a corpus; one without a corpus file of its own was made from the user's files."""
    known = argument.endswith((".yaml", ".yml")) or (ROOT / "recipes/corpora" / f"{argument}.yaml").is_file()
    parts = ["recipes/prepare.sh", *([argument] if known else ["files", "--name", argument])]
    if data != Path("data"):
        parts += ["--data", str(data)]
    return shlex.join(parts) + ("" if known else " ...")


def _again(prepare: str) -> str:
    return f"build it anew with: {prepare} --force (and --from and all else that it was built with)"


def open_corpus(argument: str, data: Path) -> Corpus:
    """The prepared corpus of that name below `data`, if complete; else a UserError with the remedy."""
    name = short_name(argument, "CORPUS")
    folder = data / name
    prepare = _prepare_call(argument, data)
    description = folder / "corpus.json"
    if not description.is_file():
        raise UserError(f"{folder}: no prepared corpus here; build it with: {prepare}")
    again = _again(prepare)
    try:
        facts = json.loads(description.read_text(encoding="utf-8"))
        source, target = facts["source"], facts["target"]
        subwords = dict(facts["subwords"])
        models = [folder / subwords["models"][language] for language in (source, target)]
        fingerprint, splits = str(facts["fingerprint"]), tuple(facts["splits"])
        files = {str(name): str(known) for name, known in facts.get("files", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{description}: damaged ({type(error).__name__}: {error}); {again}") from None
    needed = [folder / "bin" / f"dict.{language}.txt" for language in (source, target)]
    for split in ("train", "valid"):
        for language in (source, target):
            stem = f"{split}.{source}-{target}.{language}"
            needed += [folder / "bin" / f"{stem}.bin", folder / "bin" / f"{stem}.idx"]
    for path in [*needed, *models]:
        if not path.is_file():
            raise UserError(f"{path}: missing; {again}")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty; {again}")
    return Corpus(
        argument=argument,
        name=name,
        folder=folder,
        source=source,
        target=target,
        fingerprint=fingerprint,
        subwords=subwords,
        splits=splits,
        files=files,
    )
