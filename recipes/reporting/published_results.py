"""The schema of `results/*.json`: the figures that docs/RESULTS.md publishes, with what is needed to check them.

A file contains either scores of translations (`Translations`) or any other measurement (`Measurement`).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from recipes.storage.records import Record, first_problem
from thoth_core.errors import UserError

Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]


class Difference(Record):
    """A system's BLEU less that of its baseline, and what is known about chance. None: not recorded."""

    baseline: str
    """The `label` of another system in the same file."""
    bleu: float
    interval: tuple[float, float] | None = None
    """95% interval of the difference."""
    p: Annotated[float, Field(ge=0, le=1)] | None = None
    """By paired bootstrap resampling of BLEU, as recipes/compare.sh computes it."""


class PublishedSystem(Record):
    """One evaluated model. A field that was not recorded, or does not apply, is None."""

    name: str
    """The model file, without `.yaml`."""
    setting: str = ""
    """What distinguishes the row from others of the same model."""
    seeds: Annotated[int, Field(ge=1)] = 1
    parameters: int | None = None
    updates: int | None = None
    epochs: float | None = None
    training_minutes: float | None = None
    validation_loss: float | None = None
    """Bits per token."""
    mean_exit: float | None = None
    """Decoder blocks per token, on average."""
    decoder_mflop: float | None = None
    """Millions of operations per token in the decoder."""
    bleu: float
    chrf: float | None = None
    ter: float | None = None
    training_speed: int | None = None
    """Tokens per second."""
    decoding_speed: int | None = None
    """Tokens per second."""
    decoding_seconds: float | None = None
    slots_read: float | None = None
    """Percentage of the memory's slots that the test set reads."""
    difference: Difference | None = None
    cost: str | None = None
    """For the summary: what the model costs beside its baseline. A system with a cost is a row of the summary."""

    @property
    def label(self) -> str:
        """The name, with the setting after a comma if there is one."""
        return ", ".join(filter(None, (self.name, self.setting)))


class Commits(Record):
    """The commits of the checkout that trained and that evaluated the systems."""

    trained: list[Commit]
    evaluated: list[Commit]


class Translations(Record):
    """Scores of systems on one test set."""

    kind: Literal["translations"]
    title: str
    """The heading of the section of docs/RESULTS.md."""
    corpus: str
    test_set: str
    sentences: int
    beam: int
    commands: list[str]
    """Lines of shell code, as typed."""
    commits: Commits
    recorded: Date
    """The day on which the figures were entered."""
    machine: str
    signatures: dict[Literal["BLEU", "chrF2", "TER"], str]
    systems: Annotated[list[PublishedSystem], Field(min_length=1)]


class Table(Record):
    """Any table. Each row has one cell per column."""

    caption: str = ""
    columns: list[str]
    rows: list[list[str | int | float]]
    decimals: int | None = None
    """Of the numbers that are no whole numbers; None: as many as each one has."""


class Measurement(Record):
    """Figures of a benchmark or of a stress test."""

    kind: Literal["measurement"]
    title: str
    """The heading of the section of docs/RESULTS.md."""
    commands: list[str]
    commits: Annotated[list[Commit], Field(min_length=1)]
    recorded: Date
    machine: str
    tables: Annotated[list[Table], Field(min_length=1)]


Published = Translations | Measurement
ADAPTER: TypeAdapter[Published] = TypeAdapter(Annotated[Published, Field(discriminator="kind")])


def read(path: Path) -> Published:
    """The figures in one file.

    Raises:
        UserError: the file breaks the schema, or a difference does not follow from the scores beside it.
    """
    try:
        result = ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None
    if isinstance(result, Translations):
        check_differences(path, result)
    elif any(len(row) != len(table.columns) for table in result.tables for row in table.rows):
        raise UserError(f"{path}: a row of a table has more or fewer cells than the table has columns")
    return result


def check_differences(path: Path, result: Translations) -> None:
    """Raise a UserError unless each difference in BLEU is that of two systems of the file."""
    bleu = {system.label: system.bleu for system in result.systems}
    if len(bleu) != len(result.systems):
        raise UserError(f"{path}: two systems have the same name and setting")
    for system in result.systems:
        if (difference := system.difference) is None:
            continue
        if difference.baseline not in bleu:
            raise UserError(f"{path}: {system.label}: no system is called {difference.baseline!r}")
        expected = round(system.bleu - bleu[difference.baseline], 2)
        if difference.bleu != expected:
            raise UserError(f"{path}: {system.label}: the difference is {expected}, not {difference.bleu}")
