"""Prepare a corpus, DATA/CORPUS with cleaned text, sub-word models and binary files: `recipes/prepare.sh CORPUS`.

Every input is read and checked before anything is written. The corpus is built in a hidden folder beside its final
place and renamed when it is complete. The same inputs and settings give the same bytes.
"""

import argparse
import errno
import re
from collections.abc import Sequence
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.config.corpora import CorpusSettings, load_corpus
from recipes.config.schema import FOLDER_NAME, RECIPES
from recipes.data.preparation import Preparation
from recipes.data.sources import SPLITS, CorpusRequest
from thoth_core.errors import UserError, end_as_by_ctrl_c


def parser() -> argparse.ArgumentParser:
    """The options of recipes/prepare.sh."""
    prepare = Parser(
        prog="recipes/prepare.sh",
        allow_abbrev=False,
        description="Clean parallel text, learn a sub-word segmentation from its training part, and binarise it for "
        "fairseq.",
        epilog="examples:\n"
        "  recipes/prepare.sh quickstart\n"
        "  recipes/prepare.sh multi30k.de-en --from FOLDER\n"
        "  recipes/prepare.sh files --name mine --source de --target en"
        " --train my/train --valid my/dev --test my/test",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(sorted(path.stem for path in (RECIPES / "corpora").glob("*.yaml")))
    option = prepare.add_argument
    option("corpus", metavar="CORPUS", help=f"{known}, or the path of a corpus file (.yaml)")
    option(
        "--from",
        dest="origin",
        metavar="FOLDER",
        type=_folder,
        help="folder of the raw text or data set; for IWSLT also the archive itself",
    )
    option("--reader", metavar="KIND", help="files, hub or wit3 (IWSLT's archives) instead of the corpus file's reader")
    option("--sha256", metavar="SUM", help="SHA-256 of the archive that is downloaded or given")
    option("--data", metavar="DIR", type=_folder, default=Path("data"), help="write DIR/CORPUS (default: data)")
    option("--name", help="write DIR/NAME instead")
    option("--source", metavar="LANG", help="source language, e.g. de")
    option("--target", metavar="LANG", help="target language, e.g. en")
    text = "PREFIX (PREFIX.LANG or PREFIX.LANG.gz), or a .tsv or .jsonl (or .gz of these) or .parquet file"
    option("--train", metavar="TEXT", help=f"training text: {text}")
    option("--valid", metavar="TEXT", help="validation text, likewise")
    option("--test", metavar="TEXT", action="append", help="test text, likewise; may be repeated")
    option("--columns", metavar="SOURCE,TARGET", help="names of the two columns (default: the languages)")
    option("--vocab-size", metavar="N", type=int, help="size of the sub-word vocabulary (preparation: sentencepiece)")
    option("--operations", metavar="N", type=int, help="number of byte-pair merges (preparation: moses-bpe)")
    option("--subword-model", metavar="KIND", help="sentencepiece's algorithm: bpe or unigram")
    option(
        "--subwords-of",
        metavar="NAME",
        help="use the sub-word models and dictionaries of the prepared corpus DIR/NAME, so that its models can be "
        "trained further with this text",
    )
    option(
        "--max-length",
        metavar="N",
        type=int,
        help="maximum length of a training sentence, in words or the unit of clean.unit",
    )
    option("--max-ratio", metavar="X", type=float, help="maximum ratio of the two lengths of a training pair")
    option("--no-language-check", action="store_true", help="accept text that does not look like its language")
    option("--force", action="store_true", help="build the corpus again although it is there")
    return prepare


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, but is empty")
    return Path(text)


# Option -> the key of corpus files that it overrides.
OVERRIDES = {
    "source": ("source",),
    "target": ("target",),
    "reader": ("reader",),
    "sha256": ("wit3", "sha256"),
    "train": ("files", "train"),
    "valid": ("files", "valid"),
    "test": ("files", "test"),
    "vocab_size": ("subwords", "vocab_size"),
    "operations": ("subwords", "operations"),
    "subword_model": ("subwords", "model"),
    "max_length": ("clean", "max_length"),
    "max_ratio": ("clean", "max_ratio"),
}


def preparation(options: argparse.Namespace) -> Preparation:
    """The requested preparation: the corpus file with what the command line overrides.

    Raises:
        UserError: an option has no effect, or a value is not valid.
    """
    path, corpus = load_corpus(options.corpus)
    for option, keys in OVERRIDES.items():
        value = getattr(options, option)
        if value is not None:
            _override(corpus, f"--{option.replace('_', '-')}", keys, value)
    if options.no_language_check:
        corpus.clean.language_check = False
    _check_languages(path, corpus)
    _set_columns(path, corpus, options.columns)
    if options.subwords_of is not None:
        for name in ("vocab_size", "operations", "subword_model"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')}: --subwords-of learns no sub-word models; leave one of them out"
                )
    request = CorpusRequest(
        path=path,
        settings=corpus,
        data=options.data,
        origin=options.origin,
        sha256=options.sha256,
        columns=options.columns is not None,
        named=[split for split in SPLITS if getattr(options, split) is not None],
    )
    name = options.name if options.name is not None else path.stem
    _check_name(name)
    return Preparation(request, name, subwords_of=options.subwords_of, force=options.force)


def _override(corpus: CorpusSettings, option: str, keys: tuple[str, ...], value: str | float | list[str]) -> None:
    block = type(getattr(corpus, keys[0])) if len(keys) > 1 else type(corpus)
    if keys[-1] not in block.model_fields:
        raise UserError(
            f"{option}: the preparation '{corpus.preparation}' has no '{'.'.join(keys)}' but "
            f"{', '.join(block.model_fields)}; leave the option out"
        )
    corpus.override(keys, value, option)


def _check_languages(path: Path, corpus: CorpusSettings) -> None:
    for key in ("source", "target"):
        if getattr(corpus, key) is None:
            raise UserError(f"{path}: names no {key} language; give --{key} LANG, e.g. --{key} de")
    if corpus.source == corpus.target:
        raise UserError(f"--source and --target: are both '{corpus.source}'; give two languages")


def _set_columns(path: Path, corpus: CorpusSettings, requested: str | None) -> None:
    """Fill in the columns of tables and data sets: those of --columns or of the corpus file, or else the languages."""
    for block, settings in (("files", corpus.files), ("hub", corpus.hub)):
        columns = requested.split(",") if requested is not None else settings.columns or list(corpus.languages)
        if len(columns) != 2 or not all(columns) or columns[0] == columns[1]:
            where = "--columns" if requested is not None else f"{path}: '{block}.columns'"
            raise UserError(f"{where} must name two different columns, the source's and the target's")
        settings.columns = columns


def _check_name(name: str) -> None:
    if not re.fullmatch(FOLDER_NAME, name):
        raise UserError(f"--name '{name}': must be letters, digits, dots, dashes and underscores")
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"--name '{name}': would be taken for a corpus file; leave the ending out")


NO_SPACE = "free some space or choose another folder with --data"
NO_FOLDER = "choose a folder to write in with --data"
REMEDIES = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
}


def main(words: Sequence[str] | None = None) -> None:
    """The command; `words` are its arguments instead of the process's."""
    end_as_by_ctrl_c()
    arguments = parser().parse_args(words)
    try:
        preparation(arguments).run()
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or "output"
        raise UserError(f"{where}: {error.strerror}; {REMEDIES.get(error.errno, NO_FOLDER)}") from None


if __name__ == "__main__":
    errors.main(main)
