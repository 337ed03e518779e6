"""What a training reports to the program that started it: one JSON object per line of a file.

The schema of the lines, their writer and their reader. The file only grows: a `Resumed` event says from which update
the training goes on, and so which earlier figures no longer count.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# The environment variable that names the file. A training without it reports nothing.
VARIABLE = "FAIRSEQ_COMPAT_EVENTS"


class Event(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Figures(Event):
    """Figures of a log interval (`train`), averages of an epoch (`epoch`), or a validation (`valid`).

    Figures of the criterion or the model, such as the accuracy of each exit, are further fields under the names that
    it logs them by. A loss may be infinite or not a number.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, float] = Field(init=False)

    kind: Literal["train", "epoch", "valid"]
    epoch: int | None = None
    epochs: float | None = None  # position of a log interval, in epochs
    updates: int
    seconds: float | None = None  # of training, including the time before an interruption
    loss: float | None = None  # in bits per target token
    nll_loss: float | None = None  # the same, without label smoothing
    perplexity: float | None = None
    lr: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None  # target tokens
    bleu: float | None = None  # of the validation's translations


class Parameters(Event):
    """The model was built and has `count` parameters; training begins."""

    kind: Literal["parameters"]
    count: int


class Initialised(Event):
    """The training begins with the weights of the checkpoint of another training."""

    kind: Literal["initialised"]
    checkpoint: str


class Resumed(Event):
    """The training goes on from a checkpoint: figures of later updates, before this line, do not count."""

    kind: Literal["resumed"]
    checkpoint: str
    epoch: int
    updates: int


class Saved(Event):
    """A checkpoint was written."""

    kind: Literal["saved"]
    checkpoint: str
    updates: int


class Ended(Event):
    """The training ended by a limit, or was interrupted by Ctrl-C."""

    kind: Literal["ended"]
    reason: Literal["max-update", "max-epoch", "patience", "minutes", "minimum-lr", "interrupted"]
    updates: int


class Error(Event):
    """The training failed: the line that its user reads."""

    kind: Literal["error"]
    message: str


AnyEvent = Annotated[
    Figures | Parameters | Initialised | Resumed | Saved | Ended | Error,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


def line(event: Event) -> str:
    """The event as a line of the file. Numbers that are not finite are NaN and Infinity, as Python's json has them."""
    return json.dumps(event.model_dump(exclude_none=True)) + "\n"


def parse(text: str | bytes) -> AnyEvent | None:
    """The event in a line; None for a line that is not a JSON object with a `kind`, such as one cut by a kill.

    Raises:
        pydantic.ValidationError: it has a `kind`, but breaks the schema.
    """
    try:
        value: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return None
    return _EVENT.validate_python(value)


def report(event: Event) -> None:
    """Append the event to the file that the environment names, if it names one."""
    path = os.environ.get(VARIABLE)
    if path:
        append(Path(path), event)


def append(path: Path, event: Event) -> None:
    """Append the event to the file `path`, in a single write."""
    with open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a killed process wrote a part of a line
                file.write(b"\n")
        file.write(line(event).encode())


def remaining(events: Iterable[AnyEvent]) -> list[AnyEvent]:
    """The events that count: without the figures that a later `Resumed` event invalidates."""
    kept: list[AnyEvent] = []
    for event in events:
        if isinstance(event, Resumed):
            kept = [e for e in kept if not isinstance(e, Figures) or e.updates <= event.updates]
        elif isinstance(event, Initialised):
            kept = [e for e in kept if not isinstance(e, Figures)]
        kept.append(event)
    return kept


class Follower:
    """Reads the events that are appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self) -> list[AnyEvent]:
        """The events that were completed since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(text)
        *lines, self._rest = (self._rest + text).split(b"\n")
        return [event for text in lines if (event := parse(text)) is not None]
