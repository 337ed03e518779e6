"""Section "How it was measured": commands, commits, versions."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.metrics import score_table
from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Section


@dataclass(frozen=True)
class ProvenanceRow:
    """What a system was measured with."""

    system: SystemData
    facts: str  # as in scores.txt
    training_command: str | None


@dataclass(frozen=True, kw_only=True)
class ProvenanceSection(Section):
    """The facts about each system, and the command that made the page."""

    id: str = "provenance"
    title: str = "How it was measured"
    template: str = "provenance.html.jinja"
    command: str
    rows: list[ProvenanceRow]


def provenance_section(systems: Sequence[SystemData], command: str) -> ProvenanceSection:
    rows = [ProvenanceRow(s, score_table.table(s.scores), s.scores.training_command) for s in systems]
    return ProvenanceSection(command=command, rows=rows)
