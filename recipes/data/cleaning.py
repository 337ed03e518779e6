"""Cleaning of parallel text: which training pairs are dropped, and why."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Limits:
    """Which training pairs stay.

    Args:
        unit: what lengths count: "words" between spaces, or "characters".
        max_length: the maximum length of either side.
        max_ratio: the maximum ratio of the longer to the shorter side; None sets no limit.
        duplicates: "drop" or "keep" pairs that occurred before.
        identical: "drop" or "keep" pairs whose two sides are the same text.
        max_word_length: the maximum characters of a word; None sets no limit.
    """

    unit: str = "words"
    max_length: int = 200
    max_ratio: float | None = 3.0
    duplicates: str = "drop"
    identical: str = "drop"
    max_word_length: int | None = None


# A name, a number or an exclamation may be the same in both languages. A longer identical text is not translated.
IDENTICAL_WORDS = 4

REASONS = ("empty", "too long", "length ratio", "identical sides", "duplicate")

Pair = TypeVar("Pair", bound=tuple[str, ...])  # source, target, and further values that belong to them


def clean_pairs(pairs: Iterable[Pair], limits: Limits, dropped: Counter[str]) -> Iterator[Pair]:
    """The normalised `pairs` that pass `limits`, in order. `dropped` counts the others by reason."""
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
