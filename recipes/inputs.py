"""Where a corpus's raw text comes from: finding it without reading it, telling it apart, and reading it."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fairseq_host.errors import UserError
from recipes import corpus_files
from recipes.corpus_files import Pairs
from recipes.declarative import RECIPES
from recipes.placing import digest

FORMAT = 1  # raise it when the same inputs and settings come to give other files
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Input:
    """What will be read, and by which reader of corpus files."""

    reader: str
    places: dict[str, list[Path]]  # reader files: prefixes or tables by split
    data_set: str | Path | None  # reader hub: a name on the hub, or a folder
    identities: list[str]  # what identifies the raw text: digests of files, or a name and revision


def locate(options: argparse.Namespace, path: Path, corpus: dict[str, Any]) -> Input:
    """The inputs of the corpus file `path`, which must exist."""
    reader, origin = corpus["reader"], options.origin
    if origin is not None and not origin.is_dir():
        problem = "is a file" if origin.exists() else "no such folder"
        raise UserError(f"--from {origin}: {problem}; give the folder of the raw text")
    if reader == "quickstart":
        return _locate_generator(options, path, corpus)
    if reader == "hub":
        named = any(getattr(options, split) is not None for split in SPLITS)
        if not named and (origin is None or not _holds_training_text(origin, corpus)):
            return _locate_data_set(origin, path, corpus)
    return _locate_files(origin, path, corpus)


def _locate_generator(options: argparse.Namespace, path: Path, corpus: dict[str, Any]) -> Input:
    for option, value in (("from", options.origin), ("columns", options.columns),
                          *((split, getattr(options, split)) for split in SPLITS)):  # fmt: skip
        if value is not None:
            raise UserError(f"--{option}: corpus '{path.stem}' generates its text and reads none; leave the option out")
    if (corpus["source"], corpus["target"]) != ("de", "en"):
        raise UserError(f"{path}: the reader quickstart generates de to en only; leave --source and --target out")
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(RECIPES.glob("quickstart_*.py"))))
    return Input("quickstart", {}, None, [code.hexdigest(), version("num2words"), version("babel")])


def _holds_training_text(origin: Path, corpus: dict[str, Any]) -> bool:
    train = corpus["files"]["train"]
    sides = [f"{train}.{corpus[side]}{packed}" for side in ("source", "target") for packed in ("", ".gz")]
    return train is not None and any((origin / name).exists() for name in (train, *sides))


def _locate_data_set(origin: Path | None, path: Path, corpus: dict[str, Any]) -> Input:
    name = corpus["hub"]["name"]
    if origin is None:
        if name is None:
            raise UserError(f"{path}: key 'hub.name' is missing; name a data set of the hub, or give --from FOLDER")
        return Input("hub", {}, name, [f"{name}@{corpus['hub']['revision']}"])
    files = corpus_files.data_set_files(origin)
    if not files:
        train = corpus["files"]["train"]
        wanted = f"neither {train}.{corpus['source']}[.gz] nor a" if train else "no"
        held = corpus_files.holding(origin)
        raise UserError(f"--from {origin}: holds {wanted} .parquet, .jsonl or .csv file; {held}")
    # Which file is which split is told by its name, so names count too.
    return Input("hub", {}, origin.resolve(), [f"{file.relative_to(origin)} {_digest(file)}" for file in files])


def _locate_files(origin: Path | None, path: Path, corpus: dict[str, Any]) -> Input:
    places: dict[str, list[Path]] = {}
    for split in SPLITS:
        given = corpus["files"][split]
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: names no {split} text; give --{split} PREFIX or FILE, or fill in files.{split}")
        places[split] = [(origin or Path()) / text for text in texts]
    identities = []
    for split, split_places in places.items():
        for place in split_places:
            files = corpus_files.files_of(place, corpus["source"], corpus["target"])
            identities += [f"{split} {_digest(file)}" for file in files]
    return Input("files", places, None, identities)


def _digest(file: Path) -> str:
    try:
        return digest(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a readable file") from None


def fingerprint(corpus: dict[str, Any], found: Input) -> str:
    """SHA-256 of the raw inputs and of every setting that changes the result."""
    used: dict[str, Any] = {key: corpus[key] for key in ("source", "target", "subwords", "clean")}
    used[found.reader] = corpus["files"]["columns"] if found.reader == "files" else corpus[found.reader]
    whole = json.dumps([FORMAT, used, found.identities], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def read(found: Input, path: Path, corpus: dict[str, Any]) -> tuple[dict[str, Pairs], dict[str, str]]:
    """The raw splits "train", "valid", "test", "test1", ..., and what each test set is called."""
    if found.reader == "quickstart":
        return _generate(path, corpus["quickstart"]), {"test": "generated"}
    if found.reader == "hub":
        assert found.data_set is not None
        splits = corpus_files.read_hub(found.data_set, corpus["hub"])
        given = corpus["hub"]["test"]
        titles = given if isinstance(given, list) else [given]
    else:
        splits = {split: [_read_place(place, corpus) for place in places] for split, places in found.places.items()}
        titles = [place.name for place in found.places["test"]]
    tests = [f"test{number or ''}" for number in range(len(titles))]
    result = {"train": splits["train"][0], "valid": splits["valid"][0]} | dict(zip(tests, splits["test"], strict=True))
    return result, dict(zip(tests, map(str, titles), strict=True))


def _read_place(place: Path, corpus: dict[str, Any]) -> Pairs:
    if corpus_files.is_table(place):
        return corpus_files.read_table(place, corpus["files"]["columns"])
    return corpus_files.read_prefix(place, corpus["source"], corpus["target"])


def _generate(path: Path, settings: dict[str, int]) -> dict[str, Pairs]:
    from recipes.quickstart_corpus import generate

    try:
        generated = generate(settings["seed"], {split: settings[split] for split in SPLITS})
    except ValueError as error:
        raise UserError(f"{path}: {error}; mend the sizes under 'quickstart'") from None
    return {
        split: Pairs([german for german, _ in pairs], [english for _, english in pairs], (f"{split}.de", f"{split}.en"))
        for split, pairs in generated.items()
    }
