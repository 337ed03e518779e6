"""Run folders.

RUNS/CORPUS/MODEL/
    checkpoints/      fairseq's checkpoints
    run.json          command, versions, commit, seed, corpus fingerprint, state of the training (`RunRecord`)
    training.yaml     the training for Hydra, if it was started with --hydra
    progress.jsonl    what the training reports: figures, checkpoints, its end (`fairseq_compat.events`)
    train.log         the same for people, and all else that the training printed
    train-1.log       what another machine printed that trains along (--nodes)
    evaluation/       written by recipes/evaluate.sh
    calibration-*.json  written by recipes/calibrate.sh
    tuning*.json      written by recipes/tune.sh
    comparison/       written by recipes/compare.sh
    report.html       written by recipes/report.sh
    exits.md, .png    written by recipes/exits.sh
"""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError

from fairseq_compat import events
from fairseq_compat.events import Figures
from recipes.config.models import OptionValue
from recipes.storage.disk import disk_errors, writable
from recipes.storage.locks import Lock, locked
from recipes.storage.records import Record, first_problem
from thoth_core.errors import UserError

# A training whose launcher was killed ends by itself, within seconds unless the disk is busy.
LOCK_PATIENCE = 15.0


class RunRecord(Record):
    """run.json: the latest call of a training, and where the training stands."""

    corpus: str
    model: str
    status: Literal["running", "finished", "interrupted", "failed"]
    reason: str | None  # why it has ended
    call: str  # of recipes/train.sh
    command: str
    commit: str | None  # of the checkout
    versions: dict[str, str]
    seed: int
    corpus_fingerprint: str
    device: Literal["cpu", "gpu"]
    processes: int  # of all machines
    threads: int  # of each process
    limits: dict[str, OptionValue]
    identity: dict[str, OptionValue]  # all that the result depends on
    parameters: int | None = None
    epoch: int | None = None
    updates: int | None = None
    seconds: float | None = None  # of training, over all resumptions
    best_valid_loss: float | None = None
    best_updates: int | None = None

    def changed(self, **fields: Any) -> Self:
        """A copy with other values of some fields."""
        return type(self).model_validate({**self.model_dump(), **fields})


@dataclass(frozen=True)
class Run:
    """The folder of one model trained on one corpus."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def record_path(self) -> Path:
        return self.folder / "run.json"

    @property
    def configuration_path(self) -> Path:
        return self.folder / "training.yaml"

    @property
    def progress_path(self) -> Path:
        return self.folder / "progress.jsonl"

    @property
    def log_path(self) -> Path:
        return self.folder / "train.log"

    @property
    def start_again(self) -> str:
        """The remedy for a damaged record."""
        runs = self.folder.parent.parent
        folder = [] if runs == Path("runs") else ["--runs", str(runs)]
        call = shlex.join(["recipes/train.sh", self.folder.parent.name, self.folder.name, *folder, "--force"])
        return f"start the training again with: {call}"

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return any(self.checkpoints.glob("*.pt"))

    def record(self) -> RunRecord | None:
        """run.json; None if there is none. Raises UserError if it is damaged."""
        return RunRecord.read(self.record_path, remedy=self.start_again) if self.record_path.exists() else None

    def write(self, record: RunRecord) -> None:
        """Replace run.json."""
        record.write(self.record_path)

    def train_call(self) -> str | None:
        """The call of recipes/train.sh that continues the training, by run.json; None without it."""
        try:
            record = self.record()
            words = shlex.split(record.call) if record is not None else []
        except (UserError, ValueError):  # ValueError: a quotation without end
            return None
        end = words.index("--") if "--" in words else len(words)
        return shlex.join([word for word in words[:end] if word != "--force"] + words[end:]) or None

    def events(self) -> list[events.AnyEvent]:
        """What the training has reported: the events of progress.jsonl that count.

        A line that is not an event, such as the last one cut by a kill, is left out.

        Raises:
            UserError: an event breaks its schema.
        """
        reported: list[events.AnyEvent] = []
        lines = self.progress_path.read_bytes().split(b"\n") if self.progress_path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                event = events.parse(line)
            except ValidationError as error:
                problem = f"{self.progress_path}: line {number}: {first_problem(error)}"
                raise UserError(f"{problem}; remove this line, or {self.start_again}") from None
            if event is not None:
                reported.append(event)
        return events.remaining(reported)

    def figures(self) -> list[Figures]:
        """The figures that the training has reported. Raises UserError as `events`."""
        return [event for event in self.events() if isinstance(event, Figures)]

    def results(self) -> list[Path]:
        """The files and folders that were made from the trained model."""
        names = ("evaluation*", "comparison", "calibration-*.json", "tuning*.json", "report.html", "exits.md",
                 "exits.png")  # fmt: skip
        return sorted(path for name in names for path in self.folder.glob(name))

    def clear(self) -> None:
        """Remove what a training and the recipes that use its model wrote, the record last; nothing else."""
        for path in self.checkpoints.iterdir() if self.checkpoints.is_dir() else ():  # it may be a link to another disk
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        killed = [path for name in (".evaluation*", ".comparison.*") for path in self.folder.glob(name)]
        for path in (*self.results(), *killed):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Not the files of other machines, which may have begun already.
        for path in (self.configuration_path, self.progress_path, self.log_path, self.record_path):
            path.unlink(missing_ok=True)

    def create(self) -> None:
        """Make the folder and its checkpoints folder. Raises a UserError that says why that is impossible."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except (NotADirectoryError, FileExistsError):
            raise UserError(f"{self.folder}: a file is in the way; choose another folder with --runs") from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot create it ({error.strerror}); choose another with --runs") from None
        if not writable(self.folder) or not writable(self.checkpoints):
            raise UserError(f"{self.folder}: not writable; choose another folder with --runs")

    @contextmanager
    def lock(self, machine: int = 0, patience: float = LOCK_PATIENCE) -> Iterator[Lock]:
        """Hold the run folder, which must exist, against other trainings on this one of several machines.

        A training that inherits the lock's descriptor keeps it locked after its launcher was killed.

        Raises:
            UserError: another training still works in the folder after `patience` seconds; the message names it.
        """
        path = self.folder / (f".lock-{machine}" if machine else ".lock")
        what = f"another training works in {self.folder}"
        with disk_errors(self.folder), locked(path, what=what, patience=patience) as lock:
            yield lock
