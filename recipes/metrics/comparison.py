"""comparison.json and comparison.md: systems side by side with their paired tests."""

from collections.abc import Callable, Sequence

from pydantic import ConfigDict, JsonValue

from recipes.config.search import SearchOptions
from recipes.metrics import breakdown, quality, significance
from recipes.metrics.breakdown import Part
from recipes.metrics.markdown import row, rule
from recipes.metrics.significance import MetricTest, Test
from recipes.metrics.systems import System
from recipes.storage import provenance
from recipes.storage.records import Record

JSON_NAME, TABLE_NAME = "comparison.json", "comparison.md"


class ComparedSystem(Record):
    """What a system was decoded with."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str  # as the user gave it
    corpus: str
    split: str
    model: str
    checkpoint: str
    source_language: str
    command: str
    sentences: int
    search: SearchOptions
    commit: str | None
    overrides: dict[str, JsonValue]


class Comparison(Record):
    """The content of comparison.json."""

    model_config = ConfigDict(serialize_by_alias=True)

    corpus: str
    split: str
    sentences: int
    test: Test
    samples: int
    seed: int
    meaning: str  # of p and of the intervals, for people
    systems: list[ComparedSystem]
    tests: dict[str, MetricTest]  # by metric
    length_unit: str
    by_length: list[Part]
    by_document: list[Part]
    command: str
    commit: str | None
    versions: dict[str, str]


def compare(
    systems: Sequence[System],
    *,
    test: Test,
    samples: int,
    seed: int,
    command: str,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Test every system against the first; see `significance.paired_tests`. One system alone has no tests."""
    first, tests = systems[0].scores, {}
    if len(systems) > 1:
        tests = significance.paired_tests(systems, test=test, samples=samples, seed=seed, report=report)
    return Comparison(
        corpus=first.corpus,
        split=first.split,
        sentences=first.sentences,
        test=test,
        samples=samples,
        seed=seed,
        meaning=significance.explanation(test, samples),
        systems=[_compared(system) for system in systems],
        tests=tests,
        length_unit=breakdown.length_unit(first.source_language),
        by_length=breakdown.by_length(systems),
        by_document=breakdown.by_document(systems),
        command=command,
        commit=provenance.commit(),
        versions=provenance.versions(),
    )


def _compared(system: System) -> ComparedSystem:
    scores = system.scores
    return ComparedSystem(
        name=system.name,
        corpus=scores.corpus,
        split=scores.split,
        model=scores.model,
        checkpoint=scores.checkpoint,
        source_language=scores.source_language,
        command=scores.command,
        sentences=scores.sentences,
        search=scores.search,
        commit=scores.commit,
        overrides=scores.overrides,
    )


def table(comparison: Comparison, systems: Sequence[System]) -> str:
    """The comparison in Markdown."""
    numbers = [str(position) for position in range(1, len(systems) + 1)]
    titles = [quality.TITLES[name] for name in comparison.tests]
    lines = [f"# {systems[0].test_set}: {comparison.sentences:,} sentences", ""]
    head = ["", "system", "decoded with", *(cell for title in titles for cell in (title, "95% interval", "p"))]
    lines += [row(*head), rule(len(head))]
    for position, system in enumerate(systems):
        cells = []
        for metric in comparison.tests.values():
            tested = metric.systems[position]
            p_value = "baseline" if tested.p_value is None else f"{tested.p_value:.4f}"
            cells += [f"{tested.score:.2f}", f"{tested.mean:.2f} ± {tested.ci:.2f}", p_value]
        lines.append(row(numbers[position], system.name, system.scores.searched_with, *cells))
    lines += ["", comparison.meaning, ""]
    lines += [f"- {quality.TITLES[name]}: `{metric.signature}`" for name, metric in comparison.tests.items()]
    lines += _parts_table(
        "the length of the source", f"source, {comparison.length_unit}", numbers, comparison.by_length
    )
    lines += _parts_table("document", "document", numbers, comparison.by_document)
    return "\n".join(lines) + "\n"


def _parts_table(title: str, heading: str, numbers: Sequence[str], parts: Sequence[Part]) -> list[str]:
    if not parts:
        return []
    lines = ["", f"BLEU by {title}:", "", row(heading, "sentences", *numbers), rule(2 + len(numbers))]
    return lines + [row(part.part, f"{part.sentences:,}", *(f"{bleu:.2f}" for bleu in part.bleu)) for part in parts]
