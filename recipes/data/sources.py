"""Where a corpus's raw text comes from: locating it without reading it, identifying it, and reading it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recipes.config.corpora import CorpusSettings
from recipes.data import archives, hub, text_files, wit3
from recipes.data.download import download
from recipes.data.pairs import Pairs
from recipes.data.prepared_corpus import Corpus
from recipes.data.quickstart.generator import VERSION, generate
from recipes.storage.corpus_folder import digest
from thoth_core.errors import UserError

FORMAT = 1  # raise it when the same inputs and settings come to give other files
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class CorpusRequest:
    """A corpus file, and what the command line says about its raw text."""

    path: Path  # the corpus file
    settings: CorpusSettings  # with the values that the command line overrides
    data: Path  # the folder of prepared corpora
    origin: Path | None = None  # --from
    sha256: str | None = None  # --sha256
    columns: bool = False  # whether --columns was given
    named: Sequence[str] = ()  # the splits whose text was named: --train, --valid, --test


@dataclass(frozen=True)
class Source:
    """Raw text that was located, and the reader for it."""

    reader: str
    identities: list[str]  # what identifies the raw text: checksums of files, or a name and revision
    texts: dict[str, list[Path]] = field(default_factory=dict)  # reader files: prefixes or tables by split
    location: str | Path | None = None  # reader hub: a name or folder; reader wit3: an archive or folder
    url: str | None = None  # reader wit3: where to download the archive from


def locate(request: CorpusRequest) -> Source:
    """The source of the requested corpus's text.

    Raises:
        UserError: text is missing, or an option does not fit the reader.
    """
    reader, origin, name = request.settings.reader, request.origin, request.path.stem
    if request.sha256 is not None and reader != "wit3":
        raise UserError(f"--sha256: is for corpora of the reader wit3, but {name} is read by {reader}; leave it out")
    if origin is not None and not origin.is_dir() and not (reader == "wit3" and origin.exists()):
        problem = "is a file" if origin.exists() else "no such folder"
        raise UserError(f"--from {origin}: {problem}; give the folder of the raw text")
    if reader == "quickstart":
        return _locate_generator(request)
    if request.sha256 is not None and request.named:
        raise UserError("--sha256: is for an archive, but --train, --valid or --test name text; leave it out")
    if "valid" in request.named and request.settings.valid.every:
        raise UserError(f"--valid: {name} takes its validation set from the training text; leave it out")
    if reader == "wit3" and not request.named:
        if request.columns:
            raise UserError("--columns: WIT3's archives have none; leave it out")
        return _locate_archive(request)
    if reader == "hub" and not request.named and (origin is None or not _has_training_text(origin, request.settings)):
        return _locate_data_set(request)
    source = _locate_files(request)
    if request.columns and not any(text_files.is_table(text) for texts in source.texts.values() for text in texts):
        raise UserError("--columns: is for tables, but each text is one file per language; leave it out")
    return source


def _locate_generator(request: CorpusRequest) -> Source:
    options = [*(["from"] if request.origin is not None else []), *(["columns"] if request.columns else [])]
    if unused := [*options, *request.named]:
        raise UserError(f"--{unused[0]}: corpus '{request.path.stem}' generates its text and reads none; leave it out")
    if request.settings.languages != ("de", "en"):
        raise UserError(
            f"{request.path}: the reader quickstart generates de to en only; leave --source and --target out"
        )
    return Source("quickstart", [VERSION, version("num2words"), version("babel")])


def _has_training_text(origin: Path, corpus: CorpusSettings) -> bool:
    train = corpus.files.train
    sides = [f"{train}.{language}{ending}" for language in corpus.languages for ending in ("", ".gz")]
    return train is not None and any((origin / name).exists() for name in (train, *sides))


def _locate_data_set(request: CorpusRequest) -> Source:
    options, origin, train = request.settings.hub, request.origin, request.settings.files.train
    if origin is None:
        if options.name is None:
            raise UserError(
                f"{request.path}: key 'hub.name' is missing; name a data set of the hub, or give --from FOLDER"
            )
        return Source("hub", [f"{options.name}@{options.revision}"], location=options.name)
    if options.folder is not None and (origin / options.folder).is_dir():
        origin = origin / options.folder
    files = hub.data_set_files(origin)
    if not files:
        wanted = f"neither {train}.{request.settings.source}[.gz] nor a" if train else "no"
        raise UserError(
            f"--from {origin}: contains {wanted} .parquet, .jsonl or .csv file; {text_files.contents(origin)}"
        )
    # A file's name says which split it is, so that names count too.
    identities = [f"{file.relative_to(origin)} {_digest(file)}" for file in files]
    return Source("hub", identities, location=origin.resolve())


def _locate_archive(request: CorpusRequest) -> Source:
    """WIT3's archive or folder given by --from, or the archive to download."""
    path, corpus, origin, sha256 = request.path, request.settings, request.origin, request.sha256
    pair = corpus.wit3.pair
    if pair is None or sorted(pair.split("-")) != sorted(corpus.languages):
        raise UserError(
            f"{path}: 'wit3.pair' is {pair or 'missing'}, but must be made of the languages {corpus.source} and "
            f"{corpus.target}; correct it, or --source and --target"
        )
    valid = [corpus.wit3.valid or ""] if corpus.wit3.valid or not corpus.valid.every else []
    for key, sets in (("test", corpus.wit3.test or [""]), ("valid", valid)):
        if not all(all(wit3.parts(text)) for text in sets):
            raise UserError(f"{path}: 'wit3.{key}' must name sets such as IWSLT14.TED.dev2010; fill it in")
    if origin is None:
        return _locate_download(request)
    if origin.is_dir():
        if sha256 is not None:
            raise UserError(f"--sha256: {origin} is a folder; give an archive, or leave it out")
        files = archives.folder_files(origin, wit3.wanted_names(corpus).__contains__)
        if not files:
            raise UserError(
                f"--from {origin}: contains no train.tags.{pair}.* and no {pair}.tgz; {text_files.contents(origin)} "
                "(for a copy of a hub data set: --reader hub)"
            )
        return Source("wit3", [f"{file.name} {_digest(file)}" for file in files], location=origin)
    actual = _digest(origin)
    if sha256 is not None and actual != sha256:
        raise UserError(
            f"{origin}: has the SHA-256 {actual}, but --sha256 says {sha256}; get the official archive, or leave "
            "--sha256 out"
        )
    return Source("wit3", [f"archive {actual}"], location=origin)


def _locate_download(request: CorpusRequest) -> Source:
    url, sha256 = request.settings.wit3.url, request.settings.wit3.sha256
    if url is None:
        raise UserError(
            f"{request.path}: has no 'wit3.url' to download from; give WIT3's archive or folder with --from"
        )
    if sha256 is None:
        raise UserError(
            f"{url}: no SHA-256 is known to check a download with; download it yourself and give it with "
            "--from ARCHIVE, or give its checksum with --sha256 SUM"
        )
    target = request.data.absolute() / ".downloads" / f"{sha256[:12]}-{url.rsplit('/', 1)[-1]}"
    return Source("wit3", [f"archive {sha256}"], location=target, url=url)


def _locate_files(request: CorpusRequest) -> Source:
    corpus, texts = request.settings, {}
    for split in SPLITS:
        if split == "valid" and corpus.valid.every:
            continue  # it comes from the training text
        value = getattr(corpus.files, split)
        names = value if isinstance(value, list) else [value]
        if not names or not all(name and name.strip() for name in names):
            raise UserError(
                f"{request.path}: names no {split} text; give --{split} PREFIX or FILE, or fill in files.{split}"
            )
        texts[split] = [(request.origin or Path()) / name for name in names]
    identities = [
        f"{split} {_digest(file)}"
        for split, prefixes in texts.items()
        for prefix in prefixes
        for file in text_files.files_of(prefix, *corpus.languages)
    ]
    return Source("files", identities, texts)


def _digest(file: Path) -> str:
    try:
        return digest(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a readable file") from None


def fingerprint(corpus: CorpusSettings, source: Source, shared: Corpus | None = None) -> str:
    """SHA-256 of the raw inputs and of every setting that changes the result.

    `shared` is the corpus whose sub-word segmentation is used, if it is not learned.
    """
    settings = corpus.model_dump()
    # The keys of these blocks say which preparation it is.
    used: dict[str, Any] = {key: settings[key] for key in ("source", "target", "subwords", "clean")}
    if source.reader == "files":
        used["files"] = corpus.files.columns
    elif source.reader == "wit3":
        used["wit3"] = corpus.wit3.model_dump(include={"pair", "valid", "test"})
    else:
        used[source.reader] = settings[source.reader]
    # Keys that were added later count only where they are set, so that older corpora stay up to date.
    if source.reader == "hub" and corpus.hub.folder is None:
        used["hub"] = corpus.hub.model_dump(exclude={"folder"})
    if corpus.valid.every:
        used["valid"] = settings["valid"]
    if shared is not None:
        files = {*shared.subword_files, *map(shared.dictionary, shared.languages)}
        digests = {file.name: digest(file) for file in files}
        used["subwords"] = {**shared.subwords.model_dump(), "of": shared.name, "digests": digests}
    whole = json.dumps([FORMAT, used, source.identities], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def read(source: Source, request: CorpusRequest) -> tuple[dict[str, Pairs], dict[str, str]]:
    """The raw splits "train", "valid", "test", "test1", ..., and the title of each test set.

    There is no "valid" where `valid.every` takes it from the training text.
    """
    corpus = request.settings
    if source.reader == "quickstart":
        return _generate(request), {"test": "generated"}
    if source.reader == "hub":
        assert source.location is not None
        assert corpus.hub.columns is not None
        splits = hub.read_hub(source.location, corpus.hub, corpus.hub.columns, valid=not corpus.valid.every)
        titles = corpus.hub.test if isinstance(corpus.hub.test, list) else [corpus.hub.test]
    elif source.reader == "wit3":
        assert isinstance(source.location, Path)
        if source.url is not None:
            assert corpus.wit3.sha256 is not None
            download(source.url, source.location, corpus.wit3.sha256)
        splits = wit3.read(source.location, corpus)
        titles = corpus.wit3.test
    else:
        splits = {split: [_read_text(text, corpus) for text in texts] for split, texts in source.texts.items()}
        titles = [text.name for text in source.texts["test"]]
    tests = [f"test{number or ''}" for number in range(len(titles))]
    result = {"train": splits["train"][0]} | dict(zip(("valid",), splits.get("valid", []), strict=False))
    result |= dict(zip(tests, splits["test"], strict=True))
    return result, dict(zip(tests, titles, strict=True))


def _read_text(text: Path, corpus: CorpusSettings) -> Pairs:
    if text_files.is_table(text):
        assert corpus.files.columns is not None
        return text_files.read_table(text, corpus.files.columns)
    return text_files.read_prefix(text, *corpus.languages)


def _generate(request: CorpusRequest) -> dict[str, Pairs]:
    sizes = {split: getattr(request.settings.quickstart, split) for split in SPLITS}
    try:
        generated = generate(request.settings.quickstart.seed, sizes)
    except ValueError as error:
        raise UserError(f"{request.path}: {error}; change the sizes under 'quickstart'") from None
    return {
        split: Pairs([german for german, _ in pairs], [english for _, english in pairs], (f"{split}.de", f"{split}.en"))
        for split, pairs in generated.items()
    }
