"""Section "Training": charts of the losses, and the validations as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting import charts, losses
from recipes.reporting.artifacts import SystemData
from recipes.reporting.charts import Chart
from recipes.reporting.sections.section import Figure, Section, figure

LOSS_UNIT = "loss (bits per token)"


@dataclass(frozen=True)
class ValidationRow:
    """A validation during the training of a system."""

    system: SystemData
    updates: Figure
    minutes: Figure | None
    loss: Figure | None


@dataclass(frozen=True)
class LostRecords:
    """`count` of the `total` records of a training have no finite loss."""

    system: SystemData
    count: int
    total: int


@dataclass(frozen=True, kw_only=True)
class TrainingSection(Section):
    id: str = "training"
    title: str = "Training"
    template: str = "training.html.jinja"
    unit: str = LOSS_UNIT
    charts: list[Chart]
    validations: list[ValidationRow]
    unrecorded: list[SystemData]  # systems without records of their training
    lost: list[LostRecords]
    ensembles: list[SystemData]


def training_section(systems: Sequence[SystemData]) -> TrainingSection | None:
    """None where no system has a loss to draw."""
    drawn = []
    for axis, scale, label in losses.AXES:
        series = [
            charts.Series(system.number, points, faint)
            for system in systems
            for figures, faint in ((system.train, True), (system.valid, False))
            if (points := losses.points(figures, axis, scale))
        ]
        if series:
            drawn.append(charts.line_chart(series, title=f"Loss against {label}", x_label=label, y_label=LOSS_UNIT))
    if not drawn:
        return None
    validations = [
        ValidationRow(
            system,
            updates=figure(validation.updates, "{:,}"),
            minutes=figure(validation.seconds, "{:,.1f}", scale=1 / 60),
            loss=figure(losses.loss(validation), "{:.3f}"),
        )
        for system in systems
        for validation in system.valid
    ]
    recorded = {system.number: [*system.train, *system.valid] for system in systems}
    lost = [
        LostRecords(system, count, len(figures))
        for system in systems
        if (figures := recorded[system.number]) and (count := sum(losses.loss(each) is None for each in figures))
    ]
    return TrainingSection(
        charts=drawn,
        validations=validations,
        unrecorded=[system for system in systems if not recorded[system.number]],
        lost=lost,
        ensembles=[system for system in systems if recorded[system.number] and system.scores.ensemble],
    )
