"""Run folders: what a training was asked, where it stands, and that only one process works in it.

RUNS/CORPUS/MODEL/
    checkpoints/      fairseq's checkpoints
    run.json          command, versions, commit, seed, corpus fingerprint, where the training stands
    training.yaml     the training for Hydra, where it was begun with --hydra
    progress.jsonl    one JSON object a log interval, an epoch and a validation
    train-1.log       what another machine printed that trains along (--nodes)
    train.log         the same for people, and all else that the training printed
    evaluation/       written by recipes/evaluate.sh
    calibration-*.json  written by recipes/calibrate.sh
    tuning*.json      written by recipes/tune.sh
    comparison/       written by recipes/compare.sh
    report.html       written by recipes/report.sh
    exits.md, .png    written by recipes/exits.sh
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from recipes.storage.disk import writable, write_json
from thoth_core.errors import UserError


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

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return any(self.checkpoints.glob("*.pt"))

    def record(self) -> dict[str, Any] | None:
        """What run.json says; None without one."""
        try:
            found = json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(f"{self.record_path}: not JSON; start the run anew with --force") from None
        if not isinstance(found, dict):
            raise UserError(f"{self.record_path}: not a JSON object; start the run anew with --force")
        return found

    def train_call(self) -> str | None:
        """The call that goes on with the training, of run.json; None where that does not say."""
        told = (self.record() or {}).get("call")
        if not isinstance(told, str):
            return None
        try:
            words = shlex.split(told)
        except ValueError:  # a quotation without end
            return None
        end = words.index("--") if "--" in words else len(words)
        return shlex.join([word for word in words[:end] if word != "--force"] + words[end:])

    def update(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_json(self.record_path, record)

    def progress(self) -> list[dict[str, Any]]:
        """The records of progress.jsonl; a line that is none, such as the last one cut short by a kill, is left out."""
        records = []
        try:
            lines = self.progress_path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                found = json.loads(line.decode("utf-8"))
            except ValueError:  # no JSON, or no UTF-8
                continue
            if isinstance(found, dict) and isinstance(found.get("kind"), str):
                records.append(found)
        return records

    def results(self) -> list[Path]:
        """The files and folders that were made of the trained model."""
        names = ("evaluation*", "comparison", "calibration-*.json", "tuning*.json", "report.html", "exits.md",
                 "exits.png")  # fmt: skip
        return sorted(path for name in names for path in self.folder.glob(name))

    def clear(self) -> None:
        """Remove what a training and what is made of it wrote, the record last; nothing else."""
        for path in self.checkpoints.iterdir() if self.checkpoints.is_dir() else ():  # it may be a link to another disk
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        killed = [path for name in (".evaluation*", ".comparison.*") for path in self.folder.glob(name)]
        for path in (*self.results(), *killed):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Not the files of other machines, which may have begun already.
        for path in (self.configuration_path, self.progress_path, self.log_path, self.record_path):
            path.unlink(missing_ok=True)

    def create(self) -> None:
        """Make the folder and its checkpoints folder, or say why that cannot be."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except (NotADirectoryError, FileExistsError):
            raise UserError(f"{self.folder}: a file is in the way; choose another folder with --runs") from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot create it ({error.strerror}); choose another with --runs") from None
        if not writable(self.folder) or not writable(self.checkpoints):
            raise UserError(f"{self.folder}: not writable; choose another folder with --runs")

    @contextmanager
    def lock(self, machine: int = 0) -> Iterator[IO[str]]:
        """Hold the run folder, which must exist, against other trainings on this one of several machines.

        Yields the locked file. A process that has it as its standard input keeps the lock alive, so that
        trainings left behind by a killed launcher still exclude a second one.
        """
        path = self.folder / (f".lock-{machine}" if machine else ".lock")
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed by the `with` below
        except OSError as error:
            raise UserError(f"{path}: cannot write ({error.strerror}); choose another folder with --runs") from None
        with file:
            if not _locked(file) and not _locked_without_orphans(file, path):
                by = ", ".join(map(str, _holders(path))) or "unknown"
                raise UserError(
                    f"{self.folder}: another training works in this folder (process {by}); "
                    "wait for it to end, or stop it"
                )
            yield file


def _locked(file: IO[str]) -> bool:
    """Take the lock, unless somebody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_without_orphans(file: IO[str], path: Path) -> bool:
    """Take the lock from trainings whose launcher was killed, by ending them; False if there is a launcher.

    A launcher has the lock open beside its standard input, the trainings it started have it as that (Linux).
    What was killed holds it until the system has cleared it away, which may take seconds if the disk is busy, and
    a training that is being started looks like its launcher for a moment: both are waited for.
    """
    begun = time.monotonic()
    while sys.platform == "linux" and time.monotonic() - begun < 30:
        if _locked(file):
            return True
        holders = {process: held for process, held in _holders(path).items() if not _is_ending(process)}
        if any(descriptors != {"0"} for descriptors in holders.values()):
            if time.monotonic() - begun > 2:
                return False
        else:
            for process in holders:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
    return False


def _holders(lock: Path) -> dict[int, set[str]]:
    """Other processes that have the file `lock` open, with the numbers of their file descriptors."""
    place = str(lock.resolve())
    found: dict[int, set[str]] = {}
    processes = os.listdir("/proc") if sys.platform == "linux" else []
    for process in (int(name) for name in processes if name.isdigit()):
        if process == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{process}/fd/{descriptor}") == place:
                        found.setdefault(process, set()).add(descriptor)
    return found


def _is_ending(process: int) -> bool:
    """Whether a process has ended, is about to, or has been sent SIGKILL (Linux)."""
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        pending = re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return True
    exiting = int(numbers[5]) & 0x4  # PF_EXITING of the kernel's flags of the process
    killed = any(int(signals, 16) >> (signal.SIGKILL - 1) & 1 for signals in pending)
    return state in "ZX" or bool(exiting) or killed
