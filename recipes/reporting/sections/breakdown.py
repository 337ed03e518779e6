"""Sections "BLEU by length" and "BLEU by document": the scores of parts of the test set."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.metrics import breakdown
from recipes.metrics.comparison import Comparison
from recipes.reporting import charts
from recipes.reporting.charts import Chart
from recipes.reporting.sections.section import Figure, Section, figure


@dataclass(frozen=True)
class PartRow:
    """A part of the test set, such as the sentences of one document."""

    name: str
    sentences: Figure
    bleu: list[Figure]  # one of each system


@dataclass(frozen=True, kw_only=True)
class BreakdownSection(Section):
    """A table of the parts, and a chart of the lengths."""

    template: str = "breakdown.html.jinja"
    heading: str
    rows: list[PartRow]
    chart: Chart | None


def _parts(rows: Sequence[breakdown.Part], origin: str) -> list[PartRow]:
    return [
        PartRow(
            row.part,
            figure(row.sentences, "{:,}"),
            [figure(bleu, origin=f"{origin}.{place}.{number}") for number, bleu in enumerate(row.bleu)],
        )
        for place, row in enumerate(rows)
    ]


def length_section(comparison: Comparison) -> BreakdownSection:
    """BLEU by the length of the source."""
    rows, unit = comparison.by_length, f"{comparison.length_unit} of the source"
    chart = charts.bar_chart(
        [row.part for row in rows],
        [row.bleu for row in rows],
        title="BLEU by the length of the source",
        x_label=unit,
        y_label="BLEU",
    )
    return BreakdownSection(
        id="length", title="BLEU by length", heading=unit, rows=_parts(rows, "by_length"), chart=chart
    )


def documents_section(comparison: Comparison) -> BreakdownSection | None:
    """None for a test set without documents."""
    rows = _parts(comparison.by_document, "by_document")
    if not rows:
        return None
    return BreakdownSection(id="documents", title="BLEU by document", heading="document", rows=rows, chart=None)
