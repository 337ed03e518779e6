"""Section "Training": charts of the losses, and the validations as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting import charts, training_records
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
    for key, scale, label in (("updates", 1.0, "updates"), ("seconds", 1 / 60, "minutes of training")):
        series = [
            charts.Series(system.number, points, faint)
            for system in systems
            for records, faint in ((system.train, True), (system.valid, False))
            if (points := training_records.points(records, key, scale))
        ]
        if series:
            drawn.append(charts.line_chart(series, title=f"Loss against {label}", x_label=label, y_label=LOSS_UNIT))
    if not drawn:
        return None
    validations = [
        ValidationRow(
            system,
            updates=figure(record["updates"], "{:,}"),
            minutes=figure(record.get("seconds"), "{:,.1f}", scale=1 / 60),
            loss=figure(training_records.loss(record), "{:.3f}"),
        )
        for system in systems
        for record in system.valid
    ]
    recorded = {system.number: [*system.train, *system.valid] for system in systems}
    lost = [
        LostRecords(system, count, len(records))
        for system in systems
        if (records := recorded[system.number])
        and (count := sum(training_records.loss(record) is None for record in records))
    ]
    return TrainingSection(
        charts=drawn,
        validations=validations,
        unrecorded=[system for system in systems if not recorded[system.number]],
        lost=lost,
        ensembles=[system for system in systems if recorded[system.number] and system.scores.ensemble],
    )
