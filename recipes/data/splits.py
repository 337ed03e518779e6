"""The splits of a corpus, from raw pairs to cleaned text and tokens: cleaning, leaks, and the table of counts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipes.config.corpora import CorpusSettings, MosesBpeCorpus
from recipes.console.messages import progress, say
from recipes.data.cleaning import REASONS, Limits, clean_pairs
from recipes.data.pairs import Pairs
from recipes.storage.corpus_record import SplitCounts
from recipes.tokenization import moses
from recipes.tokenization.normalisation import normalise
from thoth_core.errors import UserError

Splits = dict[str, list[tuple[str, str]]]  # "train", "valid", "test", "test1", ...: (source, target) lines
_Row = tuple[str, str, str, str, str]  # the two sides that are cleaned, the document, the two sides as plain text


@dataclass(frozen=True)
class CleanedSplits:
    """The cleaned text of all splits."""

    text: Splits
    tokens: Splits | None  # the same lines as Moses' tokens; None where plain text is segmented
    documents: dict[str, list[str]]  # by split, the document of each pair, where documents are known
    counts: dict[str, SplitCounts]


def clean(raw: dict[str, Pairs], corpus: CorpusSettings) -> CleanedSplits:
    """Drop training pairs by the settings of the corpus.

    Text is normalised. With Moses and BPE it stays as it was read, and cleaning measures its tokens. With
    `valid.every: N` every Nth pair that stays becomes the validation set (fairseq's prepare-iwslt14.sh).

    Raises:
        UserError: a line of a validation or test set is empty, or no training pair stays.
    """
    with_tokens = isinstance(corpus, MosesBpeCorpus)
    settings = corpus.clean.model_dump()
    limits = Limits(**{key: settings[key] for key in Limits.__dataclass_fields__ if key in settings})
    every = corpus.valid.every
    rows: dict[str, list[_Row]] = {}
    counts: dict[str, SplitCounts] = {}
    for split, text in raw.items():
        if every and split == "valid":
            continue
        dropped: Counter[str] = Counter()
        read = (_tokenised if with_tokens else _normalised)(split, text, corpus.languages)
        # Scores are comparable on whole sets only: nothing is dropped from the others.
        rows[split] = list(clean_pairs(read, limits, dropped) if split == "train" else read)
        if split != "train" and corpus.clean.empty_evaluation_lines == "error":
            _refuse_empty(rows[split], text)
        taken: list[_Row] = []
        if every and split == "train" and (taken := rows[split][every - 1 :: every]):
            del rows[split][every - 1 :: every]
            rows["valid"] = taken
            say(f"valid: one of every {every} pairs of the cleaned training text, {len(taken):,}")
        by_reason = {reason: dropped[reason] for reason in REASONS if dropped[reason]}
        counts[split] = SplitCounts(
            available=len(text.source), kept=len(rows[split]), dropped=by_reason, taken=len(taken) or None
        )
        if taken:
            counts["valid"] = SplitCounts(available=len(taken), kept=len(taken), dropped={})
    if not rows["train"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["train"].dropped.items())
        raise UserError(
            f"{raw['train'].origins[0]}: cleaning leaves no training pair ({reasons}); correct the text or the limits"
        )
    if every and "valid" not in rows:
        raise UserError(
            f"{raw['train'].origins[0]}: cleaning leaves {len(rows['train']):,} training pairs, too few for "
            f"'valid.every' {every}; give more text"
        )
    return CleanedSplits(
        text={split: [row[3:] for row in rows[split]] for split in rows},
        tokens=_lowercased(rows, corpus.subwords.lowercase) if isinstance(corpus, MosesBpeCorpus) else None,
        documents={split: [row[2] for row in rows[split]] for split in rows if rows[split][0][2]},
        counts=counts,
    )


def _rows(split: str, text: Pairs) -> Iterator[tuple[str, str, str]]:
    documents = text.documents or [""] * len(text.source)
    pairs = zip(text.source, text.target, documents, strict=True)
    return progress(pairs, f"cleaning {split}", len(text.source))


def _normalised(split: str, text: Pairs, _: tuple[str, str]) -> Iterator[_Row]:
    for source, target, document in _rows(split, text):
        sides = normalise(source), normalise(target)
        yield (*sides, document, *sides)


def _tokenised(split: str, text: Pairs, languages: tuple[str, str]) -> Iterator[_Row]:
    for source, target, document in _rows(split, text):
        tokens = moses.tokenise(source, languages[0]), moses.tokenise(target, languages[1])
        if split == "train":  # as clean-corpus-n.perl
            tokens = tokens[0].strip(), tokens[1].strip()
        yield (*tokens, document, source, target)


def _lowercased(rows: dict[str, list[_Row]], lowercase: bool) -> Splits:
    """The tokens of `rows`, in lower case if requested."""
    case = moses.lowercase if lowercase else str
    return {split: [(case(row[0]), case(row[1])) for row in rows[split]] for split in rows}


def _refuse_empty(pairs: Sequence[tuple[str, ...]], text: Pairs) -> None:
    for number, pair in enumerate(pairs, 1):
        for line, origin in zip(pair[:2], text.origins, strict=True):
            if not line.strip():
                raise UserError(
                    f"{origin}, sentence {number}: is empty; validation and test sets are used whole: correct it in "
                    "both languages (or set clean.empty_evaluation_lines: keep in a corpus file)"
                )


def leaks(splits: Splits) -> dict[str, int]:
    """By split, how many of its source sentences occur in the training text, where any do."""
    seen = {source for source, _ in splits["train"]}
    counts = {split: sum(source in seen for source, _ in pairs) for split, pairs in splits.items() if split != "train"}
    return {split: count for split, count in counts.items() if count}


def table(counts: dict[str, SplitCounts]) -> str:
    """A table of the pairs read, kept and dropped."""
    rows = [["split", "read", "kept", *REASONS]]
    for split, count in counts.items():
        numbers = [count.available, count.kept, *(count.dropped.get(reason, 0) for reason in REASONS)]
        rows.append([split, *(f"{number:,}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: list[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *numbers])

    return "\n".join(map(line, rows))
