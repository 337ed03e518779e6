"""The generated corpus: German and English sentences about numbers, dates, times and prices, made from a seed.

A sentence is a frame whose slots are filled. Every German sentence has exactly one English one.
"""

import re
from functools import cache
from random import Random
from string import Formatter
from typing import NamedTuple

from recipes.data.quickstart.frames import FRAMES, SHARES, SLOTS
from recipes.data.quickstart.phrases import Pair
from recipes.data.quickstart.slots import by_weight

# Change it when a seed comes to give other sentences: corpora made before are out of date then. (The first one is a
# checksum of the code that made them.)
VERSION = "ea53772a5bda560a5b3c2d204727ca2eaa347614848b337fc7deffdd3faaba48"

# With more pairs, frames with few sentences are used up and the mixture of kinds shifts.
MOST_PAIRS = 100_000


class Sentence(NamedTuple):
    """A sentence pair and the kind of its frame (a key of FRAMES)."""

    kind: str
    german: str
    english: str


def generate(seed: int, sizes: dict[str, int]) -> dict[str, list[Pair]]:
    """Draw distinct sentence pairs for the splits named in `sizes`.

    The outcome depends on the arguments alone. No German sentence occurs twice, within a split or across
    splits, and all splits have the same mixture of kinds. Returns (german, english) pairs by split; raises
    ValueError when a size is negative or all of them together exceed MOST_PAIRS.
    """
    total = sum(sizes.values())
    if min(sizes.values(), default=0) < 0:
        raise ValueError(f"sizes must not be negative, given {sizes}")
    if total > MOST_PAIRS:
        raise ValueError(f"the quickstart corpus has at most {MOST_PAIRS:,} distinct pairs, requested {total:,}")
    rng = Random(seed)
    distinct: dict[str, str] = {}
    while len(distinct) < total:
        sentence = draw(rng)
        distinct[sentence.german] = sentence.english
    pairs = list(distinct.items())
    # Frames with few sentences thin out as the draw goes on: only shuffled are the splits alike.
    rng.shuffle(pairs)
    ends = [sum(list(sizes.values())[: i + 1]) for i in range(len(sizes))]
    return {split: pairs[end - sizes[split] : end] for split, end in zip(sizes, ends, strict=True)}


def draw(rng: Random) -> Sentence:
    """Draw one sentence pair: a kind by its share, one of its frames, then its slots."""
    kind = by_weight(rng, SHARES)
    german, english = fill(rng, *rng.choice(FRAMES[kind]))
    return Sentence(kind, german, english)


def fill(rng: Random, german: str, english: str) -> Pair:
    """Draw a frame's slots, in the order of the German, and write out both sentences."""
    fillers = {name: SLOTS[name.rstrip("0123456789")](rng) for name in _slots(german)}
    return (
        _finish(german.format(**{name: filler[0] for name, filler in fillers.items()})),
        _finish(english.format(**{name: filler[1] for name, filler in fillers.items()})),
    )


@cache
def _slots(frame: str) -> tuple[str, ...]:
    """Names of a frame's slots, each once, in order."""
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(frame) if name))


def _finish(text: str) -> str:
    """Drop an apposition's closing comma before other punctuation; begin with a capital."""
    text = re.sub(r",(?=[.,?])", "", text)
    return text[0].upper() + text[1:]
