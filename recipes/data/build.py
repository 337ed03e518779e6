"""Build a corpus folder from cleaned text: text, tokens, sub-word models, pieces, binary files, corpus.json."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from recipes.console.messages import INTERVAL, progress, say
from recipes.data.prepared_corpus import Corpus
from recipes.storage.corpus_folder import LOG, digests
from thoth_core.cpu import cores
from thoth_core.errors import UserError

Splits = dict[str, list[tuple[str, str]]]  # "train", "valid", "test", "test1", ...: (source, target) lines


@dataclass(frozen=True)
class Ingredients:
    """All that a corpus is made of."""

    name: str
    settings: dict[str, Any]  # as in a corpus file
    pairs: Splits
    tokens: Splits | None  # the same lines, tokenised; None where sub-words are made from plain text
    counts: dict[str, dict[str, Any]]  # split -> {"read", "kept", "dropped": {reason: n}}
    tests: dict[str, str]  # test split -> what it is called
    leaks: dict[str, int]  # split -> how many of its source sentences occur in the training text
    fingerprint: str
    documents: dict[str, list[str]] = field(default_factory=dict)  # split -> the document of each pair, where known
    shared: Corpus | None = None  # whose sub-words and dictionaries are used; None: they are learned

    @property
    def languages(self) -> tuple[str, str]:
        return self.settings["source"], self.settings["target"]

    @property
    def joint(self) -> list[tuple[str, ...]]:
        """The languages that have sub-words in common."""
        return [self.languages] if self.settings["subwords"]["joint"] else [(side,) for side in self.languages]


Sides = dict[str, dict[str, list[str]]]  # split -> language -> lines


def build(folder: Path, corpus: Ingredients, lock: IO[str]) -> None:
    """Write everything into the empty `folder`. Child processes hold `lock` open."""
    text = _write_sides(folder / "text", corpus.pairs, corpus.languages)
    for split, documents in corpus.documents.items():
        _write_lines(folder / "text" / f"{split}.docs", documents)
    if corpus.tokens is None:
        lines, learn, packages = text, _learn_sentencepieces, ["sentencepiece"]
    else:
        lines = _write_sides(folder / "tokens", corpus.tokens, corpus.languages)
        learn, packages = _learn_merges, ["regex", "sacremoses", "subword-nmt"]
    subwords = learn(folder, lines, corpus) if corpus.shared is None else _take_subwords(folder, corpus.shared)
    _write_pieces(folder, lines, subwords)
    _binarise(folder, corpus, lock)
    description = {
        "name": corpus.name,
        "source": corpus.languages[0],
        "target": corpus.languages[1],
        "subwords": subwords,
        "splits": corpus.counts,
        "tests": corpus.tests,
        "leaks": corpus.leaks,
        "fingerprint": corpus.fingerprint,
        "versions": {package: version(package) for package in (*packages, "ve-fairseq")},
        "files": {path: digest for path, digest in digests(folder).items() if path != LOG},
    }
    content = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / "corpus.json").write_text(content, encoding="utf-8")


def _write_sides(folder: Path, splits: Splits, languages: tuple[str, str]) -> Sides:
    """folder/SPLIT.LANGUAGE; returns the lines."""
    sides = {
        split: {language: [pair[side] for pair in pairs] for side, language in enumerate(languages)}
        for split, pairs in splits.items()
    }
    for split, by_language in sides.items():
        for language, lines in by_language.items():
            _write_lines(folder / f"{split}.{language}", lines)
    return sides


def _learn_sentencepieces(folder: Path, lines: Sides, corpus: Ingredients) -> dict[str, Any]:
    """Learn sentencepiece models; returns the block "subwords" of corpus.json."""
    from recipes.tokenization import subwords  # sentencepiece is loaded only when the inputs have been found good

    settings = corpus.settings["subwords"]
    kind = f"{settings['model']}, {'joint' if settings['joint'] else 'for each language'}"
    say(f"learning {settings['vocab_size']:,} sub-words ({kind})")
    models: dict[str, str] = {}
    for languages in corpus.joint:
        model = subwords.train(
            (line for language in languages for line in lines["train"][language]),
            vocab_size=settings["vocab_size"],
            model=settings["model"],
            character_coverage=settings["character_coverage"],
            split_digits=settings["split_digits"],
        )
        stem = "sentencepiece" if settings["joint"] else f"sentencepiece.{languages[0]}"
        (folder / f"{stem}.model").write_bytes(model)
        (folder / f"{stem}.vocab").write_text(subwords.Encoder(model).vocabulary(), encoding="utf-8")
        models |= dict.fromkeys(languages, f"{stem}.model")
    return {
        "kind": "sentencepiece",
        "model": settings["model"],
        "joint": settings["joint"],
        "vocab_size": settings["vocab_size"],
        "models": models,
    }


def _learn_merges(folder: Path, lines: Sides, corpus: Ingredients) -> dict[str, Any]:
    """Learn byte-pair merges of tokens; returns the block "subwords" of corpus.json."""
    from recipes.tokenization import bpe

    settings = corpus.settings["subwords"]
    threshold = settings["vocabulary_threshold"]
    say(f"learning {settings['operations']:,} merges ({'joint' if settings['joint'] else 'for each language'})")
    models: dict[str, str] = {}
    vocabularies: dict[str, str] = {}
    for languages in corpus.joint:
        train = (line for language in languages for line in lines["train"][language])
        codes = bpe.learn(train, settings["operations"])
        name = "bpe.codes" if settings["joint"] else f"bpe.{languages[0]}.codes"
        (folder / name).write_text(codes, encoding="utf-8")
        models |= dict.fromkeys(languages, name)
        for language in languages if threshold is not None else ():
            vocabularies[language] = f"bpe.{language}.vocab"
            vocabulary = bpe.vocabulary(map(bpe.Merges(codes), lines["train"][language]))
            (folder / vocabularies[language]).write_text(vocabulary, encoding="utf-8")
    return {
        "kind": "subword-nmt",
        "operations": settings["operations"],
        "joint": settings["joint"],
        "lowercase": settings["lowercase"],
        "vocabulary_threshold": threshold,
        "models": models,
        "vocabularies": vocabularies,
    }


def _take_subwords(folder: Path, shared: Corpus) -> dict[str, Any]:
    """Copy the sub-words of `shared`; returns the block "subwords" of corpus.json."""
    say(f"taking the sub-words of {shared.folder}")
    for path in shared.subword_files:
        shutil.copyfile(path, folder / path.name)
        if (readable := path.with_suffix(".vocab")).is_file():
            shutil.copyfile(readable, folder / readable.name)
    return {**shared.subwords, "of": shared.name}


def _write_pieces(folder: Path, lines: Sides, block: dict[str, Any]) -> None:
    """folder/pieces, by the sub-words in `folder` that the `block` "subwords" of corpus.json tells."""
    from recipes.tokenization import subwords

    for language in block["models"]:
        cut: Callable[[list[str]], Iterable[str]]
        if block["kind"] == "sentencepiece":
            cut = subwords.Encoder((folder / block["models"][language]).read_bytes())
        else:  # the lines are tokens already
            cut = partial(map, subwords.merges(block, folder, language))
        for split, sides in lines.items():
            pieces = progress(cut(sides[language]), f"pieces of {split}.{language}", len(sides[language]))
            _write_lines(folder / "pieces" / f"{split}.{language}", pieces)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            assert "\n" not in line, f"{path}: a sentence of two lines: {line!r}"
            file.write(line + "\n")


def _binarise(folder: Path, corpus: Ingredients, lock: IO[str]) -> None:
    """fairseq-preprocess from folder/pieces to folder/bin; its words go to folder/preprocess.log."""
    source, target = corpus.languages
    tests = ",".join(f"pieces/{test}" for test in corpus.tests)
    command = [sys.executable, "-P", "-m", "fairseq_cli.preprocess", "--workers", _workers(corpus),
               "--source-lang", source, "--target-lang", target, "--destdir", "bin",
               "--trainpref", "pieces/train", "--validpref", "pieces/valid", "--testpref", tests]  # fmt: skip
    settings = corpus.settings["subwords"]
    if corpus.shared is not None:
        for side, language in (("src", source), ("tgt", target)):
            shutil.copyfile(corpus.shared.dictionary(language), folder / f"dict.{language}.txt")
            command += [f"--{side}dict", f"dict.{language}.txt"]
    elif settings["joint"] and settings.get("dictionary") != "separate":
        command.append("--joined-dictionary")
    say(f"binarising (fairseq-preprocess; its words: {LOG})")
    log = folder / LOG
    # Paths are relative to the folder, so that nothing written depends on where it lies. The child holds the
    # lock as well: should this process alone be killed, nobody else builds while the child still writes.
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
        ) as process,
    ):
        try:
            start = time.monotonic()
            while (status := _wait(process)) is None:
                say(f"binarising: {time.monotonic() - start:.0f} s")
        except BaseException:
            process.kill()
            raise
    words = log.read_text(encoding="utf-8", errors="replace")
    if status:
        last = words.strip().splitlines()[-1:] or [f"exit status {status} without a word: No space for its log?"]
        remedy = "; free some space or choose another folder with --data" if "No space" in last[0] else ""
        raise UserError(f"fairseq-preprocess failed: {last[0]}{remedy}")
    # Without times of day, and without fairseq's second copy, the whole folder is the same in every run.
    log.write_text(re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(,\d+)? \| ", "", words), encoding="utf-8")
    (folder / "bin" / "preprocess.log").unlink(missing_ok=True)
    for language in corpus.languages:
        (folder / f"dict.{language}.txt").unlink(missing_ok=True)
    for language in corpus.languages:
        _set_apart(folder / "bin", f"{source}-{target}", language)


def _set_apart(folder: Path, pair: str, language: str) -> None:
    """folder/LANGUAGE: one side alone, by the names that fairseq's language_modeling task looks for."""
    alone = folder / language
    alone.mkdir()
    for path in sorted(folder.glob(f"*.{pair}.{language}.*")):
        split, end = path.name.split(".")[0], path.suffix
        _link(path, alone / f"{split}{end}")
    _link(folder / f"dict.{language}.txt", alone / "dict.txt")


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # not every file system can
        shutil.copyfile(path, copy)


def _workers(corpus: Ingredients) -> str:
    """How many processes are worth their start; what they write does not depend on it."""
    return str(max(1, min(cores(), len(corpus.pairs["train"]) // 20_000)))


def _wait(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit status, or None if the process runs on after a while."""
    try:
        return process.wait(INTERVAL)
    except subprocess.TimeoutExpired:
        return None
