"""Differences between a hypothesis and its reference, for marking them."""

from difflib import SequenceMatcher
from itertools import groupby, pairwise
from typing import NamedTuple

import regex

# Words in which differences are looked for, since the time is quadratic; the rest of a longer line stands unmarked.
COMPARED = 500


class Segment(NamedTuple):
    """A part of a hypothesis; `differs` if the reference does not have it, in this order."""

    text: str
    differs: bool


def segments(hypothesis: str, reference: str, *, spaced: bool, lowercase: bool) -> list[Segment]:
    """`hypothesis` in parts, which alternate between equal to `reference` and different.

    `spaced` compares words, else characters (languages without spaces); `lowercase` ignores case.
    """
    parts = split(hypothesis, spaced=spaced)
    places = [place for place, part in enumerate(parts) if not part.isspace()][:COMPARED]
    ours = [parts[place] for place in places]
    theirs = [part for part in split(reference, spaced=spaced) if not part.isspace()][:COMPARED]
    if lowercase:
        ours, theirs = ([word.lower() for word in words] for words in (ours, theirs))
    different = set(places)
    for block in SequenceMatcher(None, ours, theirs).get_matching_blocks():
        different -= set(places[block.a : block.a + block.size])
    # A space between two different words is marked with them.
    for before, after in pairwise(places):
        if before in different and after in different:
            different.update(range(before, after))
    runs = groupby(range(len(parts)), key=different.__contains__)
    return [Segment("".join(parts[place] for place in run), differs) for differs, run in runs]


def split(line: str, *, spaced: bool) -> list[str]:
    """Words, punctuation marks and the spaces between them; if not `spaced`, characters as readers see them."""
    parts: list[str] = regex.findall(r"\s+|\w+|[^\w\s]" if spaced else r"\X", line)
    return parts
