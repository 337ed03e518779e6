"""BLEU of parts of a test set: by the length of the source and by document."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from recipes.metrics import quality
from recipes.metrics.systems import System
from recipes.storage.records import Record

# Upper ends of the classes of sentences by the length of their source.
LENGTHS = (10, 20, 30, 40, 50)
# Languages written without spaces between words; their length is counted in characters.
UNSPACED = ("ja", "km", "lo", "my", "th", "zh")


class Part(Record):
    """A part of the test set."""

    part: str
    sentences: int
    bleu: list[float]  # of each system


def has_spaces(language: str) -> bool:
    """Whether words of `language` stand between spaces."""
    return quality.two_letter_code(language) not in UNSPACED


def length_unit(language: str) -> str:
    """The unit of `length`."""
    return "words" if has_spaces(language) else "characters"


def length(sentence: str, language: str) -> int:
    """Number of words between spaces, or of characters where words have no spaces."""
    return len(sentence.split()) if has_spaces(language) else len(sentence.replace(" ", ""))


def by_length(systems: Sequence[System]) -> list[Part]:
    """BLEU by the class in LENGTHS of the source's length."""
    language = systems[0].scores.source_language
    lengths = [length(sentence.source, language) for sentence in systems[0].sentences]
    # An empty source belongs to the first class.
    first = LENGTHS[0]
    parts = {f"up to {first}": [i for i, n in enumerate(lengths) if 0 < n <= first]}
    parts[f"up to {first}"] += [i for i, n in enumerate(lengths) if n == 0]
    for low, high in pairwise(LENGTHS):
        parts[f"{low + 1} to {high}"] = [i for i, n in enumerate(lengths) if low < n <= high]
    parts[f"above {LENGTHS[-1]}"] = [i for i, n in enumerate(lengths) if n > LENGTHS[-1]]
    return bleu_by_part(systems, parts)


def by_document(systems: Sequence[System]) -> list[Part]:
    """BLEU by document, in the order of the test set; empty where there are no documents."""
    parts: dict[str, list[int]] = {}
    for index, document in enumerate(systems[0].documents or []):
        parts.setdefault(document, []).append(index)
    return bleu_by_part(systems, parts)


def bleu_by_part(systems: Sequence[System], parts: Mapping[str, Sequence[int]]) -> list[Part]:
    """BLEU of each of `parts` (indices of sentences by name) that has sentences.

    A part is scored as a corpus of its own: the average over parts is not the score of the whole.
    """
    metric = {"bleu": quality.metrics_of(systems[0].scores.signatures)["bleu"]}
    rows = []
    for name, indices in parts.items():
        if not indices:
            continue
        scores = []
        for system in systems:
            hypotheses, references = ([texts[i] for i in indices] for texts in system.texts("bleu"))
            scores.append(quality.corpus_scores(metric, hypotheses, references)["bleu"].score)
        rows.append(Part(part=name, sentences=len(indices), bleu=scores))
    return rows
