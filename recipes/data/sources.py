"""Where a corpus's raw text comes from: finding it without reading it, telling it apart, and reading it."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recipes.config.schema import RECIPES
from recipes.data import archives, text_files, wit3
from recipes.data.prepared_corpus import Corpus
from recipes.data.text_files import Pairs
from recipes.storage.corpus_folder import digest
from thoth_core.errors import UserError

FORMAT = 1  # raise it when the same inputs and settings come to give other files
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Input:
    """What will be read, and by which reader of corpus files."""

    reader: str
    places: dict[str, list[Path]]  # reader files: prefixes or tables by split
    data_set: str | Path | None  # reader hub: a name on the hub, or a folder; reader wit3: an archive or folder
    identities: list[str]  # what identifies the raw text: digests of files, or a name and revision
    url: str | None = None  # reader wit3: where to fetch the archive from, if it is not there


def locate(options: argparse.Namespace, path: Path, corpus: dict[str, Any]) -> Input:
    """The inputs of the corpus file `path`, which must exist."""
    reader, origin = corpus["reader"], options.origin
    named = any(getattr(options, split) is not None for split in SPLITS)
    if options.sha256 is not None and reader != "wit3":
        raise UserError(
            f"--sha256: is for corpora of the reader wit3, but {path.stem} is read by {reader}; leave it out"
        )
    if origin is not None and not origin.is_dir() and not (reader == "wit3" and origin.exists()):
        problem = "is a file" if origin.exists() else "no such folder"
        raise UserError(f"--from {origin}: {problem}; give the folder of the raw text")
    if reader == "quickstart":
        return _locate_generator(options, path, corpus)
    if options.sha256 is not None and named:
        raise UserError("--sha256: is of an archive, but --train, --valid or --test name text; leave it out")
    if options.valid is not None and corpus["valid"]["every"]:
        raise UserError(f"--valid: {path.stem} takes its validation set from the training text; leave it out")
    if reader == "wit3" and not named:
        if options.columns is not None:
            raise UserError("--columns: WIT3's archives have none; leave it out")
        return _locate_archive(options, path, corpus)
    if reader == "hub" and not named and (origin is None or not _holds_training_text(origin, corpus)):
        return _locate_data_set(origin, path, corpus)
    found = _locate_files(origin, path, corpus)
    tables = (text_files.is_table(place) for places in found.places.values() for place in places)
    if options.columns is not None and not any(tables):
        raise UserError("--columns: is of tables, but each text is a file a language; leave it out")
    return found


def _locate_generator(options: argparse.Namespace, path: Path, corpus: dict[str, Any]) -> Input:
    for option, value in (("from", options.origin), ("columns", options.columns),
                          *((split, getattr(options, split)) for split in SPLITS)):  # fmt: skip
        if value is not None:
            raise UserError(f"--{option}: corpus '{path.stem}' generates its text and reads none; leave the option out")
    if (corpus["source"], corpus["target"]) != ("de", "en"):
        raise UserError(f"{path}: the reader quickstart generates de to en only; leave --source and --target out")
    code = hashlib.sha256(
        b"".join(file.read_bytes() for file in sorted((RECIPES / "data" / "quickstart").glob("*.py")))
    )
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
    if corpus["hub"]["folder"] is not None and (origin / corpus["hub"]["folder"]).is_dir():
        origin = origin / corpus["hub"]["folder"]
    files = text_files.data_set_files(origin)
    if not files:
        train = corpus["files"]["train"]
        wanted = f"neither {train}.{corpus['source']}[.gz] nor a" if train else "no"
        held = text_files.holding(origin)
        raise UserError(f"--from {origin}: holds {wanted} .parquet, .jsonl or .csv file; {held}")
    # Which file is which split is told by its name, so names count too.
    return Input("hub", {}, origin.resolve(), [f"{file.relative_to(origin)} {_digest(file)}" for file in files])


def _locate_archive(options: argparse.Namespace, path: Path, corpus: dict[str, Any]) -> Input:
    """WIT3's archive or folder given by --from, or the place below --data that the archive is downloaded to."""
    origin, settings = options.origin, corpus["wit3"]
    if settings["pair"] is None or sorted(settings["pair"].split("-")) != sorted((corpus["source"], corpus["target"])):
        raise UserError(
            f"{path}: 'wit3.pair' is {settings['pair'] or 'missing'}, which must be made of the languages "
            f"{corpus['source']} and {corpus['target']}; mend it, or --source and --target"
        )
    valid = [settings["valid"]] if settings["valid"] or not corpus["valid"]["every"] else []
    for key, sets in (("test", settings["test"] or [None]), ("valid", valid)):
        if not all(isinstance(text, str) and all(wit3.parts(text)) for text in sets):
            raise UserError(f"{path}: 'wit3.{key}' must name sets such as IWSLT14.TED.dev2010; fill it in")
    if origin is None:
        return _locate_download(options, path, settings)
    if origin.is_dir():
        if options.sha256 is not None:
            raise UserError(f"--sha256: {origin} is a folder; give an archive, or leave it out")
        files = archives.folder_files(origin, wit3.wanted_names(corpus).__contains__)
        if not files:
            raise UserError(
                f"--from {origin}: holds no train.tags.{settings['pair']}.* and no {settings['pair']}.tgz; "
                f"{text_files.holding(origin)} (for a copy of a hub data set: --reader hub)"
            )
        return Input("wit3", {}, origin, [f"{file.name} {_digest(file)}" for file in files])
    found = _digest(origin)
    if options.sha256 is not None and found != options.sha256:
        raise UserError(
            f"{origin}: has the SHA-256 {found}, but --sha256 says {options.sha256}; get the official archive, or "
            "leave --sha256 out"
        )
    return Input("wit3", {}, origin, [f"archive {found}"])


def _locate_download(options: argparse.Namespace, path: Path, settings: dict[str, Any]) -> Input:
    url, sha256 = settings["url"], settings["sha256"]
    if url is None:
        raise UserError(f"{path}: has no 'wit3.url' to download from; give WIT3's archive or folder with --from")
    if sha256 is None:
        raise UserError(
            f"{url}: no SHA-256 is known to check a download by; download it yourself and give it with --from ARCHIVE, "
            "or say the sum with --sha256 SUM"
        )
    place = options.data.absolute() / ".downloads" / f"{sha256[:12]}-{url.rsplit('/', 1)[-1]}"
    return Input("wit3", {}, place, [f"archive {sha256}"], url)


def _locate_files(origin: Path | None, path: Path, corpus: dict[str, Any]) -> Input:
    places: dict[str, list[Path]] = {}
    for split in SPLITS:
        if split == "valid" and corpus["valid"]["every"]:
            continue  # it comes from the training text
        given = corpus["files"][split]
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: names no {split} text; give --{split} PREFIX or FILE, or fill in files.{split}")
        places[split] = [(origin or Path()) / text for text in texts]
    identities = []
    for split, split_places in places.items():
        for place in split_places:
            files = text_files.files_of(place, corpus["source"], corpus["target"])
            identities += [f"{split} {_digest(file)}" for file in files]
    return Input("files", places, None, identities)


def _digest(file: Path) -> str:
    try:
        return digest(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a readable file") from None


def fingerprint(corpus: dict[str, Any], found: Input, shared: Corpus | None = None) -> str:
    """SHA-256 of the raw inputs and of every setting that changes the result; `shared` is whose sub-words are used."""
    # The preparation is told by the keys of its blocks.
    used: dict[str, Any] = {key: corpus[key] for key in ("source", "target", "subwords", "clean")}
    if found.reader == "files":
        used["files"] = corpus["files"]["columns"]
    elif found.reader == "wit3":
        used["wit3"] = {key: corpus["wit3"][key] for key in ("pair", "valid", "test")}
    else:
        used[found.reader] = corpus[found.reader]
    # Keys that came later count where they say something, so that what was prepared before stays up to date.
    if found.reader == "hub" and corpus["hub"]["folder"] is None:
        used["hub"] = {key: value for key, value in corpus["hub"].items() if key != "folder"}
    if corpus["valid"]["every"]:
        used["valid"] = corpus["valid"]
    if shared is not None:
        files = {*shared.subword_files, *map(shared.dictionary, shared.languages)}
        digests = {file.name: digest(file) for file in files}
        used["subwords"] = {**shared.subwords, "of": shared.name, "digests": digests}
    whole = json.dumps([FORMAT, used, found.identities], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def read(found: Input, path: Path, corpus: dict[str, Any]) -> tuple[dict[str, Pairs], dict[str, str]]:
    """The raw splits "train", "valid", "test", "test1", ..., and what each test set is called.

    There is no "valid" where `valid.every` takes it from the training text.
    """
    if found.reader == "quickstart":
        return _generate(path, corpus["quickstart"]), {"test": "generated"}
    if found.reader == "hub":
        assert found.data_set is not None
        options = corpus["hub"] | ({"valid": None} if corpus["valid"]["every"] else {})
        splits = text_files.read_hub(found.data_set, options)
        given = corpus["hub"]["test"]
        titles = given if isinstance(given, list) else [given]
    elif found.reader == "wit3":
        assert isinstance(found.data_set, Path)
        if found.url is not None:
            assert corpus["wit3"]["sha256"] is not None
            archives.download(found.url, found.data_set, corpus["wit3"]["sha256"])
        splits = wit3.read(found.data_set, corpus)
        titles = corpus["wit3"]["test"]
    else:
        splits = {split: [_read_place(place, corpus) for place in places] for split, places in found.places.items()}
        titles = [place.name for place in found.places["test"]]
    tests = [f"test{number or ''}" for number in range(len(titles))]
    result = {"train": splits["train"][0]} | dict(zip(("valid",), splits.get("valid", []), strict=False))
    result |= dict(zip(tests, splits["test"], strict=True))
    return result, dict(zip(tests, map(str, titles), strict=True))


def _read_place(place: Path, corpus: dict[str, Any]) -> Pairs:
    if text_files.is_table(place):
        return text_files.read_table(place, corpus["files"]["columns"])
    return text_files.read_prefix(place, corpus["source"], corpus["target"])


def _generate(path: Path, settings: dict[str, int]) -> dict[str, Pairs]:
    from recipes.data.quickstart.generator import generate

    try:
        generated = generate(settings["seed"], {split: settings[split] for split in SPLITS})
    except ValueError as error:
        raise UserError(f"{path}: {error}; mend the sizes under 'quickstart'") from None
    return {
        split: Pairs([german for german, _ in pairs], [english for _, english in pairs], (f"{split}.de", f"{split}.en"))
        for split, pairs in generated.items()
    }
