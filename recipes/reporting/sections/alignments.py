"""Section "Alignments": heat maps of the sentences that have one."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Section


@dataclass(frozen=True, kw_only=True)
class AlignmentsSection(Section):
    """The alignments are those of the systems."""

    id: str = "alignments"
    title: str = "Alignments"
    template: str = "alignments.html.jinja"


def alignments_section(systems: Sequence[SystemData]) -> AlignmentsSection | None:
    """None where no system has alignments."""
    return AlignmentsSection() if any(system.alignments for system in systems) else None
