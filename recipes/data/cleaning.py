"""Cleaning of parallel text: what is normalised in every line, and which training pairs are dropped."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

# Invisible characters that carry no text: soft hyphen, zero-width space, word joiner, byte order mark.
# Zero-width joiners stay: Indic scripts, Persian and emoji need them.
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"
_CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()]
# U+2581 marks a space inside sentencepiece; in text it would come back as one.
REPLACED: dict[str, str] = dict.fromkeys((*_CONTROLS, *_INVISIBLE), "") | {"\u2581": "_"}
_TABLE = str.maketrans(REPLACED)
_TO_REPLACE = re.compile("[" + re.escape("".join(REPLACED)) + "]")
SPACES: tuple[str, ...] = tuple(chr(code) for code in range(0x3001) if chr(code).isspace() and chr(code) != " ")


def normalise(line: str) -> str:
    """`line` in Unicode form NFC, without control and invisible characters, single spaces between words.

    Nothing visible changes, so the result is fit for scoring detokenised text.
    """
    if _TO_REPLACE.search(line):
        line = line.translate(_TABLE)
    return " ".join(unicodedata.normalize("NFC", line).split())


@dataclass(frozen=True)
class Limits:
    """Which training pairs stay. Lengths are counted in `unit` ("words" between spaces, or "characters").

    max_length: most units on either side.
    max_ratio: the longer side may have at most so many times the units of the shorter one; None: any.
    duplicates, identical: "drop" or "keep" pairs seen before, and pairs whose two sides are the same text.
    max_word_length: most characters of a word on either side; None: any.
    """

    unit: str = "words"
    max_length: int = 200
    max_ratio: float | None = 3.0
    duplicates: str = "drop"
    identical: str = "drop"
    max_word_length: int | None = None


# A name, a number or an exclamation may well be the same in both languages; a longer text is not translated.
IDENTICAL_WORDS = 4

REASONS = ("empty", "too long", "length ratio", "identical sides", "duplicate")

Pair = TypeVar("Pair", bound=tuple[str, ...])  # source, target, and what else goes with them


def clean_pairs(pairs: Iterable[Pair], limits: Limits, dropped: Counter[str]) -> Iterator[Pair]:
    """Those of the normalised `pairs` that pass `limits`, in order; `dropped` counts the others by reason."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        source, target = pair[:2]
        reason = _why_dropped(source, target, limits)
        if reason is None and limits.duplicates == "drop":
            if (source, target) in seen:
                reason = "duplicate"
            seen.add((source, target))
        if reason:
            dropped[reason] += 1
        else:
            yield pair


def _why_dropped(source: str, target: str, limits: Limits) -> str | None:
    if not source or not target:
        return "empty"
    if limits.unit == "words":
        lengths = source.count(" ") + 1, target.count(" ") + 1
    else:
        lengths = len(source), len(target)
    if max(lengths) > limits.max_length:
        return "too long"
    if (
        limits.max_word_length is not None
        and len(max(f"{source} {target}".split(" "), key=len)) > limits.max_word_length
    ):
        return "too long"
    if limits.max_ratio is not None and max(lengths) > limits.max_ratio * min(lengths):
        return "length ratio"
    if limits.identical == "drop" and source == target and source.count(" ") + 1 >= IDENTICAL_WORDS:
        return "identical sides"
    return None
