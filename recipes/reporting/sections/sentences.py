"""Section "Sentences": the translations side by side, with their differences from the reference marked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from recipes.metrics import breakdown
from recipes.reporting import differences
from recipes.reporting.artifacts import SystemData
from recipes.reporting.differences import Segment
from recipes.reporting.sections.section import Figure, Section, figure

PER_PAGE = 25  # sentences; without scripts all are there, and static/report.css prints as many


@dataclass(frozen=True)
class TranslationCell:
    """The translation of a sentence by a system."""

    system: SystemData
    bleu: Figure
    chrf: Figure
    segments: list[Segment]


@dataclass(frozen=True)
class SentenceRow:
    """A sentence of the test set with its translations."""

    number: int
    document: str | None
    length: int  # of the source, by which the page sorts
    chrf: list[float]  # of each system, by which the page sorts
    source: str
    reference: str
    translations: list[TranslationCell]


@dataclass(frozen=True, kw_only=True)
class SentencesSection(Section):
    """`count` of the `total` sentences of the test set; `sentences` can be iterated once."""

    id: str = "sentences"
    title: str = "Sentences"
    template: str = "sentences.html.jinja"
    per_page: int = PER_PAGE
    source_language: str
    target_language: str
    count: int
    total: int
    sentences: Iterator[SentenceRow]


def sentences_section(
    systems: Sequence[SystemData], order: Sequence[int], progress: Callable[[], object]
) -> SentencesSection:
    """The sentences of the indices `order`, the first of them first; `progress` is called after each."""

    def sentences() -> Iterator[SentenceRow]:
        for index in order:
            yield _sentence(systems, index)
            progress()

    return SentencesSection(
        source_language=systems[0].source_language,
        target_language=systems[0].target_language,
        count=len(order),
        total=len(systems[0].system.sentences),
        sentences=sentences(),
    )


def _sentence(systems: Sequence[SystemData], index: int) -> SentenceRow:
    first = systems[0].system.sentences[index]
    spaced = breakdown.has_spaces(systems[0].target_language)
    lowercase = "case:lc" in systems[0].scores.bleu.signature
    translations = []
    for system in systems:
        line = system.system.sentences[index]
        segments = differences.segments(line.hypothesis, line.reference, spaced=spaced, lowercase=lowercase)
        bleu, chrf = figure(line.bleu, "{:.1f}", origin="bleu"), figure(line.chrf, "{:.1f}", origin="chrf")
        translations.append(TranslationCell(system, bleu, chrf, segments))
    return SentenceRow(
        number=index + 1,
        document=first.document,
        length=breakdown.length(first.source, systems[0].source_language),
        chrf=[round(system.system.sentences[index].chrf, 4) for system in systems],
        source=first.source,
        reference=first.reference,
        translations=translations,
    )
