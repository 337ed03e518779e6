"""Build a corpus folder from cleaned text: text, tokens, sub-word models, binary files and corpus.json."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from recipes.config.corpora import Bpe, CorpusSettings, Sentencepiece
from recipes.console.messages import INTERVAL, progress, say
from recipes.data.prepared_corpus import Corpus
from recipes.data.splits import CleanedSplits, Splits
from recipes.storage.corpus_folder import LOG, RECORD, WITHOUT_CHECKSUM, digests
from recipes.storage.corpus_record import BpeSubwords, CorpusRecord, SentencepieceSubwords, Subwords
from recipes.storage.locks import Lock
from recipes.tokenization import bpe, sentencepiece_model
from recipes.tokenization.sentencepiece_model import SentencepieceModel
from recipes.tokenization.subwords import load_merges
from thoth_core.cpu import cores
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Ingredients:
    """Everything that a corpus is made of."""

    name: str
    settings: CorpusSettings
    splits: CleanedSplits
    tests: dict[str, str]  # the title of each test split
    leaks: dict[str, int]  # by split, how many source sentences occur in the training text
    fingerprint: str
    shared: Corpus | None = None  # whose sub-word models and dictionaries are used; None: they are learned

    @property
    def languages(self) -> tuple[str, str]:
        return self.settings.languages

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The languages that share a sub-word model."""
        return [self.languages] if self.settings.subwords.joint else [(language,) for language in self.languages]


Sides = dict[str, dict[str, list[str]]]  # split -> language -> lines


def build(folder: Path, corpus: Ingredients, lock: Lock) -> None:
    """Write everything into the empty `folder`. Child processes keep `lock` held."""
    lines = _write_sides(folder / "text", corpus.splits.text, corpus.languages)
    for split, documents in corpus.splits.documents.items():
        _write_lines(folder / "text" / f"{split}.docs", documents)
    packages = ["sentencepiece"]
    if corpus.splits.tokens is not None:
        lines = _write_sides(folder / "tokens", corpus.splits.tokens, corpus.languages)
        packages = ["regex", "sacremoses", "subword-nmt"]
    subwords = _subwords(folder, lines, corpus)
    _write_segmented(folder, lines, subwords)
    _binarise(folder, corpus, lock)
    record = CorpusRecord(
        name=corpus.name,
        source=corpus.languages[0],
        target=corpus.languages[1],
        subwords=subwords,
        splits=corpus.splits.counts,
        tests=corpus.tests,
        leaks=corpus.leaks,
        fingerprint=corpus.fingerprint,
        versions={package: version(package) for package in (*packages, "ve-fairseq")},
        files={path: digest for path, digest in digests(folder).items() if path not in WITHOUT_CHECKSUM},
    )
    record.write(folder / RECORD)


def _write_sides(folder: Path, splits: Splits, languages: tuple[str, str]) -> Sides:
    """Write folder/SPLIT.LANGUAGE. Returns the lines."""
    sides = {
        split: {language: [pair[side] for pair in pairs] for side, language in enumerate(languages)}
        for split, pairs in splits.items()
    }
    for split, by_language in sides.items():
        for language, lines in by_language.items():
            _write_lines(folder / f"{split}.{language}", lines)
    return sides


def _subwords(folder: Path, lines: Sides, corpus: Ingredients) -> Subwords:
    """Learn the sub-word models from `lines`, or copy them. Returns their block of corpus.json."""
    if corpus.shared is not None:
        return _copy_subwords(folder, corpus.shared)
    settings = corpus.settings.subwords
    if isinstance(settings, Bpe):
        return _learn_merges(folder, lines, corpus.groups, settings)
    return _learn_sentencepiece(folder, lines, corpus.groups, settings)


def _learn_sentencepiece(
    folder: Path, lines: Sides, groups: list[tuple[str, ...]], settings: Sentencepiece
) -> SentencepieceSubwords:
    kind = f"{settings.model}, {'joint' if settings.joint else 'one for each language'}"
    say(f"learning a sub-word vocabulary of {settings.vocab_size:,} ({kind})")
    models: dict[str, str] = {}
    for languages in groups:
        model = sentencepiece_model.train(
            (line for language in languages for line in lines["train"][language]),
            vocab_size=settings.vocab_size,
            model=settings.model,
            character_coverage=settings.character_coverage,
            split_digits=settings.split_digits,
        )
        stem = "sentencepiece" if settings.joint else f"sentencepiece.{languages[0]}"
        (folder / f"{stem}.model").write_bytes(model)
        (folder / f"{stem}.vocab").write_text(SentencepieceModel(model).vocabulary(), encoding="utf-8")
        models |= dict.fromkeys(languages, f"{stem}.model")
    return SentencepieceSubwords(
        model=settings.model, joint=settings.joint, vocab_size=settings.vocab_size, models=models
    )


def _learn_merges(folder: Path, lines: Sides, groups: list[tuple[str, ...]], settings: Bpe) -> BpeSubwords:
    kind = "joint" if settings.joint else "for each language"
    say(f"learning {settings.operations:,} byte-pair merges ({kind})")
    models: dict[str, str] = {}
    vocabularies: dict[str, str] = {}
    for languages in groups:
        train = (line for language in languages for line in lines["train"][language])
        codes = bpe.learn(train, settings.operations)
        name = "bpe.codes" if settings.joint else f"bpe.{languages[0]}.codes"
        (folder / name).write_text(codes, encoding="utf-8")
        models |= dict.fromkeys(languages, name)
        for language in languages if settings.vocabulary_threshold is not None else ():
            vocabularies[language] = f"bpe.{language}.vocab"
            vocabulary = bpe.vocabulary(map(bpe.Merges(codes), lines["train"][language]))
            (folder / vocabularies[language]).write_text(vocabulary, encoding="utf-8")
    return BpeSubwords(
        operations=settings.operations,
        joint=settings.joint,
        lowercase=settings.lowercase,
        vocabulary_threshold=settings.vocabulary_threshold,
        models=models,
        vocabularies=vocabularies,
    )


def _copy_subwords(folder: Path, shared: Corpus) -> Subwords:
    say(f"using the sub-word models of {shared.folder}")
    for path in shared.subword_files:
        shutil.copyfile(path, folder / path.name)
        if (readable := path.with_suffix(".vocab")).is_file():
            shutil.copyfile(readable, folder / readable.name)
    return shared.subwords.model_copy(update={"of": shared.name})


def _write_segmented(folder: Path, lines: Sides, subwords: Subwords) -> None:
    """Write folder/pieces: the tokens after segmentation by the models in `folder`."""
    for language in subwords.models:
        segment: Callable[[list[str]], Iterable[str]]
        if isinstance(subwords, BpeSubwords):  # the lines are Moses' tokens already
            segment = partial(map, load_merges(subwords, folder, language))
        else:
            segment = SentencepieceModel((folder / subwords.models[language]).read_bytes()).segment_all
        for split, sides in lines.items():
            segmented = progress(segment(sides[language]), f"segmenting {split}.{language}", len(sides[language]))
            _write_lines(folder / "pieces" / f"{split}.{language}", segmented)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            if "\n" in line:
                raise ValueError(f"{path}: a sentence with a line break: {line!r}")
            file.write(line + "\n")


def _binarise(folder: Path, corpus: Ingredients, lock: Lock) -> None:
    """Run fairseq-preprocess from folder/pieces to folder/bin. Its output goes to folder/preprocess.log."""
    source, target = corpus.languages
    tests = ",".join(f"pieces/{test}" for test in corpus.tests)
    command = [sys.executable, "-P", "-m", "fairseq_cli.preprocess", "--workers", _workers(corpus),
               "--source-lang", source, "--target-lang", target, "--destdir", "bin",
               "--trainpref", "pieces/train", "--validpref", "pieces/valid", "--testpref", tests]  # fmt: skip
    settings = corpus.settings.subwords
    if corpus.shared is not None:
        for side, language in (("src", source), ("tgt", target)):
            shutil.copyfile(corpus.shared.dictionary(language), folder / f"dict.{language}.txt")
            command += [f"--{side}dict", f"dict.{language}.txt"]
    elif settings.joint and not (isinstance(settings, Bpe) and settings.dictionary == "separate"):
        command.append("--joined-dictionary")
    say(f"binarising (fairseq-preprocess; its output: {LOG})")
    _run(command, folder, lock)
    # fairseq writes its log a second time.
    (folder / "bin" / LOG).unlink(missing_ok=True)
    for language in corpus.languages:
        (folder / f"dict.{language}.txt").unlink(missing_ok=True)
    for language in corpus.languages:
        _link_side(folder / "bin", f"{source}-{target}", language)


def _run(command: list[str], folder: Path, lock: Lock) -> None:
    """Run fairseq-preprocess in `folder`, with its output in the log there.

    Paths are relative to the folder, so that nothing written depends on where it lies. The child keeps the lock held
    as well: should this process alone be killed, nobody else builds while the child still writes.
    """
    log = folder / LOG
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.descriptor,),
        ) as process,
    ):
        lock.add_holder(process.pid)
        try:
            start = time.monotonic()
            while (status := _wait(process)) is None:
                say(f"binarising: {time.monotonic() - start:.0f} s")
        except BaseException:
            process.kill()
            raise
    written = log.read_text(encoding="utf-8", errors="replace")
    if status:
        last = written.strip().splitlines()[-1:] or [f"exit status {status} without a message: No space for its log?"]
        remedy = "; free some space or choose another folder with --data" if "No space" in last[0] else ""
        raise UserError(f"fairseq-preprocess failed: {last[0]}{remedy}")
    # Without times of day, the whole folder is the same in every run.
    log.write_text(re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(,\d+)? \| ", "", written), encoding="utf-8")


def _link_side(folder: Path, pair: str, language: str) -> None:
    """Link folder/LANGUAGE to one side alone, by the names that fairseq's language_modeling task expects."""
    monolingual = folder / language
    monolingual.mkdir()
    for path in sorted(folder.glob(f"*.{pair}.{language}.*")):
        split, end = path.name.split(".")[0], path.suffix
        _link(path, monolingual / f"{split}{end}")
    _link(folder / f"dict.{language}.txt", monolingual / "dict.txt")


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # not every file system can
        shutil.copyfile(path, copy)


def _workers(corpus: Ingredients) -> str:
    """How many processes are worth their start; what they write does not depend on it."""
    return str(max(1, min(cores(), len(corpus.splits.text["train"]) // 20_000)))


def _wait(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit status, or None if the process still runs after a while."""
    try:
        return process.wait(INTERVAL)
    except subprocess.TimeoutExpired:
        return None
