"""Section "Slots of memories": how much of its memories each system uses."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Figure, Section, figure


@dataclass(frozen=True)
class SlotsRow:
    """The use of the memory in one layer of a system."""

    system: SystemData
    layer: str
    used: Figure
    divergence: Figure
    picture: str  # a data: URL


@dataclass(frozen=True, kw_only=True)
class SlotsSection(Section):
    id: str = "slots"
    title: str = "Slots of memories"
    template: str = "slots.html.jinja"
    rows: list[SlotsRow]


def slots_section(systems: Sequence[SystemData]) -> SlotsSection | None:
    """None where no system has a memory."""
    rows = [
        SlotsRow(
            system,
            layer,
            used=figure(usage.used, "{:.1f}%", origin=f"slot_usage.{layer}.used", scale=100),
            divergence=figure(usage.kl, origin=f"slot_usage.{layer}.kl"),
            picture=system.slots[layer],
        )
        for system in systems
        for layer, usage in system.scores.slot_usage.items()
    ]
    return SlotsSection(rows=rows) if rows else None
