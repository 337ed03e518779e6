"""Raw parallel text -> DATA/CORPUS/: cleaned text, sub-word models, pieces, and fairseq's binary files.

Every input is read and checked before anything is written. The corpus is then built in a hidden folder
beside its final place and renamed when complete; the same inputs and settings give the same bytes.
"""

import argparse
import errno
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_compat.errors import main
from recipes.cli.arguments import Parser
from recipes.config.schema import FOLDER_NAME, RECIPES, corpus_schema, load_corpus
from recipes.console.messages import progress, say, warn
from recipes.data import language_check, sources
from recipes.data.build import Ingredients, Splits, build
from recipes.data.cleaning import REASONS, Limits, clean_pairs, normalise
from recipes.data.prepared_corpus import Corpus, open_corpus
from recipes.data.text_files import Pairs
from recipes.storage.corpus_folder import Place, State, made
from thoth_core.errors import UserError, end_as_by_ctrl_c


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="recipes/prepare.sh",
        allow_abbrev=False,
        description="Clean parallel text, learn sub-words from its training part, binarise it for fairseq.",
        epilog="examples:\n"
        "  recipes/prepare.sh quickstart\n"
        "  recipes/prepare.sh multi30k.de-en --from FOLDER\n"
        "  recipes/prepare.sh files --name mine --source de --target en"
        " --train my/train --valid my/dev --test my/test",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(sorted(path.stem for path in (RECIPES / "corpora").glob("*.yaml")))
    option = parser.add_argument
    option("corpus", metavar="CORPUS", help=f"{known}, or the path of a corpus file (.yaml)")
    option(
        "--from",
        dest="origin",
        metavar="FOLDER",
        type=_folder,
        help="where the raw text or the data set lies; for IWSLT also the archive itself",
    )
    option(
        "--reader", metavar="KIND", help="files, hub or wit3 (IWSLT's archives), where the corpus file names another"
    )
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
    option("--vocab-size", metavar="N", type=int, help="number of sub-words (preparation: sentencepiece)")
    option("--operations", metavar="N", type=int, help="number of merges (preparation: paper)")
    option("--subword-model", metavar="KIND", help="how sentencepiece learns them: bpe or unigram")
    option(
        "--subwords-of",
        metavar="NAME",
        help="learn none: take the sub-words and dictionaries of the prepared corpus DIR/NAME, so that its models can "
        "go on with this text",
    )
    option(
        "--max-length",
        metavar="N",
        type=int,
        help="longest training sentence, in words or what clean.unit says",
    )
    option("--max-ratio", metavar="X", type=float, help="largest ratio of the lengths of a training pair")
    option("--no-language-check", action="store_true", help="accept text that does not look like its language")
    option("--force", action="store_true", help="build the corpus anew although it is there")
    return parser.parse_args(arguments)


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


def settings_of(options: argparse.Namespace) -> tuple[str, Path, dict[str, Any]]:
    """The corpus's name, its file, and its settings with what the command line overrides."""
    path, corpus = load_corpus(options.corpus)
    for option, keys in OVERRIDES.items():
        value = getattr(options, option)
        if value is not None:
            _override(corpus, f"--{option.replace('_', '-')}", keys, value)
    if options.no_language_check:
        corpus["clean"]["language_check"] = False
    for key in ("source", "target"):
        if corpus[key] is None:
            raise UserError(f"{path}: names no {key} language; give --{key} LANG, e.g. --{key} de")
    if corpus["source"] == corpus["target"]:
        raise UserError(f"--source and --target: are both '{corpus['source']}'; give two languages")
    name = options.name if options.name is not None else path.stem
    if not re.fullmatch(FOLDER_NAME, name):
        raise UserError(f"--name '{name}': must be letters, digits, dots, dashes and underscores")
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"--name '{name}': would be taken for a corpus file; leave the ending out")
    for block in ("files", "hub"):
        columns = options.columns.split(",") if options.columns is not None else corpus[block]["columns"]
        columns = columns or [corpus["source"], corpus["target"]]
        named = all(isinstance(column, str) and column for column in columns)
        if not (named and len(columns) == 2 and columns[0] != columns[1]):
            where = "--columns" if options.columns is not None else f"{path}: '{block}.columns'"
            raise UserError(f"{where} must name two different columns, the source's and the target's")
        corpus[block]["columns"] = columns
    return name, path, corpus


def share(options: argparse.Namespace, path: Path, corpus: dict[str, Any]) -> Corpus | None:
    """The corpus of --subwords-of, whose settings of sub-words the settings `corpus` take over."""
    if options.subwords_of is None:
        return None
    for name in ("vocab_size", "operations", "subword_model"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: --subwords-of learns no sub-words; leave one of them out")
    shared = open_corpus(options.subwords_of, options.data)
    option = f"--subwords-of {options.subwords_of}"
    if set(shared.languages) != {corpus["source"], corpus["target"]}:
        raise UserError(
            f"{option}: has the languages {' and '.join(shared.languages)}, but {path.stem} {corpus['source']} and "
            f"{corpus['target']}; name a corpus of the same languages"
        )
    kind = "subword-nmt" if corpus["preparation"] == "paper" else "sentencepiece"
    if (found := shared.subwords.get("kind")) != kind:
        raise UserError(
            f"{option}: has sub-words of {found}, but {path.stem} is prepared with {kind}; name a corpus prepared alike"
        )
    dictionaries = [str(shared.dictionary(language).relative_to(shared.folder)) for language in shared.languages]
    shared.verify(*dictionaries, *(file.name for file in shared.subword_files))
    settings = corpus["subwords"]
    settings |= {key: shared.subwords[key] for key in settings if key in shared.subwords}
    return shared


def _override(corpus: dict[str, Any], option: str, keys: tuple[str, ...], value: Any) -> None:
    rule: Any = corpus_schema(corpus["preparation"])
    for key in keys:
        if key not in rule:
            raise UserError(
                f"{option}: the preparation '{corpus['preparation']}' has no '{'.'.join(keys)}' but {', '.join(rule)}; "
                "leave the option out"
            )
        rule = rule[key]
    if problem := rule.wrong(value):
        raise UserError(f"{option} {problem}")
    block = corpus
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value


def check_languages(raw: dict[str, Pairs], corpus: dict[str, Any]) -> None:
    """Refuse text whose two sides are the same, or that certainly is not in the language it is said to be."""
    for text in raw.values():
        if text.source == text.target:
            raise UserError(f"{text.origins[0]} and {text.origins[1]}: hold the same text; give two languages")
        if not corpus["clean"]["language_check"]:
            continue
        sides = (
            (text.source, corpus["source"], text.origins[0]),
            (text.target, corpus["target"], text.origins[1]),
        )
        for lines, language, origin in sides:
            if seen := language_check.mismatch(lines, language):
                raise UserError(
                    f"{origin}: is said to be '{language}' but looks like {seen}; mend swapped or misnamed "
                    "languages, or accept it with --no-language-check"
                )


Row = tuple[str, str, str, str, str]  # the two sides that are cleaned, the document, the two sides as plain text
Documents = dict[str, list[str]]  # split -> the document of each pair, where that is known


def clean(
    raw: dict[str, Pairs], corpus: dict[str, Any]
) -> tuple[Splits, Splits | None, Documents, dict[str, dict[str, Any]]]:
    """The splits, the training one without the pairs to drop, their tokens and documents, the counts for corpus.json.

    Text is normalised and has no tokens; for the preparation `paper` it is as it was read, and cleaning measures its
    tokens. With `valid.every: N` every Nth pair that stays becomes the validation set (fairseq's prepare-iwslt14.sh).
    """
    settings = corpus["clean"]
    limits = Limits(**{key: settings[key] for key in Limits.__dataclass_fields__ if key in settings})
    read_pairs = _tokenised if corpus["preparation"] == "paper" else _normalised
    every = corpus["valid"]["every"]
    rows: dict[str, list[Row]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for split, text in raw.items():
        if every and split == "valid":
            continue
        dropped: Counter[str] = Counter()
        read = read_pairs(split, text, corpus)
        # Scores are comparable on whole sets only: nothing is dropped elsewhere.
        rows[split] = list(clean_pairs(read, limits, dropped) if split == "train" else read)
        if split != "train" and settings["empty_evaluation_lines"] == "error":
            _refuse_empty(rows[split], text)
        counts[split] = {
            "read": len(text.source),
            "kept": len(rows[split]),
            "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
        }
        if every and split == "train" and (taken := rows[split][every - 1 :: every]):
            del rows[split][every - 1 :: every]
            rows["valid"] = taken
            counts["valid"] = {"read": len(taken), "kept": len(taken), "dropped": {}}
            counts[split] |= {"kept": len(rows[split]), "taken for valid": len(taken)}
            say(f"valid: one of every {every} pairs of the cleaned training text, {len(taken):,}")
    if not rows["train"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["train"]["dropped"].items())
        raise UserError(
            f"{raw['train'].origins[0]}: cleaning leaves no training pair ({reasons}); mend it or the limits"
        )
    if every and "valid" not in rows:
        raise UserError(
            f"{raw['train'].origins[0]}: cleaning leaves {len(rows['train']):,} training pairs, too few for "
            f"'valid.every' {every}; give more text"
        )
    splits = {split: [row[3:] for row in rows[split]] for split in rows}
    documents = {split: [row[2] for row in rows[split]] for split in rows if rows[split][0][2]}
    tokens = _lowercased(rows, corpus) if corpus["preparation"] == "paper" else None
    return splits, tokens, documents, counts


def _rows(split: str, text: Pairs) -> Iterator[tuple[str, str, str]]:
    documents = text.documents or [""] * len(text.source)
    pairs = zip(text.source, text.target, documents, strict=True)
    return progress(pairs, f"cleaning {split}", len(text.source))


def _normalised(split: str, text: Pairs, _: dict[str, Any]) -> Iterator[Row]:
    for source, target, document in _rows(split, text):
        sides = normalise(source), normalise(target)
        yield (*sides, document, *sides)


def _tokenised(split: str, text: Pairs, corpus: dict[str, Any]) -> Iterator[Row]:
    from recipes.tokenization.moses import tokenise

    for source, target, document in _rows(split, text):
        tokens = tokenise(source, corpus["source"]), tokenise(target, corpus["target"])
        if split == "train":  # as clean-corpus-n.perl
            tokens = tokens[0].strip(), tokens[1].strip()
        yield (*tokens, document, source, target)


def _lowercased(rows: dict[str, list[Row]], corpus: dict[str, Any]) -> Splits:
    """The tokens of `rows`, in lower case where the corpus wants it."""
    from recipes.tokenization.moses import lowercase

    case = lowercase if corpus["subwords"]["lowercase"] else str
    return {split: [(case(row[0]), case(row[1])) for row in rows[split]] for split in rows}


def _refuse_empty(pairs: Sequence[tuple[str, ...]], text: Pairs) -> None:
    for number, pair in enumerate(pairs, 1):
        for line, origin in zip(pair[:2], text.origins, strict=True):
            if not line.strip():
                raise UserError(
                    f"{origin}, sentence {number}: is empty; validation and test sets are used whole: mend it in both "
                    "languages (or set clean.empty_evaluation_lines: keep in a corpus file)"
                )


def leaks(splits: Splits) -> dict[str, int]:
    """How many source sentences of each other split occur in the training text, where any do."""
    seen = {source for source, _ in splits["train"]}
    counts = {split: sum(source in seen for source, _ in pairs) for split, pairs in splits.items() if split != "train"}
    return {split: count for split, count in counts.items() if count}


def table(counts: dict[str, dict[str, Any]]) -> str:
    """What was read, kept and dropped, for people."""
    rows = [["split", "read", "kept", *REASONS]]
    for split, count in counts.items():
        numbers = [count["read"], count["kept"], *(count["dropped"].get(reason, 0) for reason in REASONS)]
        rows.append([split, *(f"{number:,}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def prepare(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    name, path, settings = settings_of(options)
    place = Place(options.data.absolute(), name)
    shared = share(options, path, settings)
    found = sources.locate(options, path, settings)
    fingerprint = sources.fingerprint(settings, found, shared)
    if up_to_date(place, fingerprint, force=options.force):
        place.tidy()
        return

    say(f"reading {name}: {settings['description']}")
    raw, tests = sources.read(found, path, settings)
    check_languages(raw, settings)
    splits, tokens, documents, counts = clean(raw, settings)
    del raw
    say(table(counts))
    leaked = leaks(splits)
    for split, count in leaked.items():
        message = f"{split}: {count:,} of {len(splits[split]):,} source sentences occur in the training text"
        if found.reader == "quickstart":
            raise UserError(f"{path}: {message}; change the seed or the sizes under 'quickstart'")
        warn(message)

    corpus = Ingredients(name, settings, splits, tokens, counts, tests, leaked, fingerprint, documents, shared)
    with made(place.data), place.locked() as lock:
        place.recover()
        # Another process may have built it while this one was reading or waiting.
        if up_to_date(place, fingerprint, force=options.force):
            return
        try:
            place.partial.mkdir()
            build(place.partial, corpus, lock)
            place.install()
        except BaseException as error:
            shutil.rmtree(place.partial, ignore_errors=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(place.final)  # a write that fails does not know its file
            raise
    say(f"wrote {place.final}")


def up_to_date(place: Place, fingerprint: str, *, force: bool) -> bool:
    """Whether there is nothing to do; `UserError` where the final place holds what must not be replaced."""
    state = place.state(fingerprint)
    if state is State.FOREIGN:
        raise UserError(
            f"{place.final}: exists and is no prepared corpus; choose another --name or --data, or remove it"
        )
    if state is State.OTHER and not force:
        raise UserError(
            f"{place.final}: was prepared from other text or with other settings; --force builds it anew, "
            "--name NAME writes beside it"
        )
    if state is State.COMPLETE and not force:
        say(f"{place.final} is up to date")
        return True
    if place.final.is_symlink():
        raise UserError(
            f"{place.final}: is a link, and would be replaced by a folder; remove it, or build where it leads to with "
            "--data and --name"
        )
    if state is not State.ABSENT and (others := place.strangers()):
        raise UserError(
            f"{place.final}: holds other things than a preparation writes ({others[0]}), and is replaced as a whole; "
            "move them away, or choose another --name"
        )
    return False


SPACE, FOLDER = (
    "free some space or choose another folder with --data",
    "choose a folder to write in with --data",
)
REMEDIES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
}


def cli() -> None:
    end_as_by_ctrl_c()
    try:
        prepare()
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or "output"
        raise UserError(f"{where}: {error.strerror}; {REMEDIES.get(error.errno, FOLDER)}") from None


if __name__ == "__main__":
    main(cli)
