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

import argparse
import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn

from fairseq_host.errors import UserError
from recipes import declarative
from recipes.placing import digest

ROOT = Path(__file__).resolve().parent.parent

# Distributions whose version a score depends on.
DISTRIBUTIONS = ("thoth-seq2seq", "torch", "ve-fairseq", "sentencepiece", "sacremoses", "subword-nmt",
                 "regex", "sacrebleu", "numpy")  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def call(script: str, arguments: argparse.Namespace) -> str:
    """The call of another recipe for the same corpus, model and folders."""
    parts = [script, arguments.corpus, arguments.model]
    for name in ("data", "runs"):
        if getattr(arguments, name) != Path(name):
            parts += [f"--{name}", str(getattr(arguments, name))]
    return shlex.join(parts)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of libraries: those that matter to a user are ours to tell."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only) into a UserError that names the file, or else `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "free some space and call again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise UserError(f"{error.filename or folder}: {error.strerror}; {remedy}") from None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`: tried, since permissions do not tell of read-only disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a temporary name beside `path`, then rename: readers see the old or the new one.

    What a killed process of this machine left of its own attempt is removed; others may share the folder.
    """
    ours = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(ours)}*"):
        found = re.fullmatch(r"(\d+)\.\w{8}", left.name.removeprefix(ours))
        if found and not alive(int(found[1])):
            left.unlink(missing_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{ours}{os.getpid()}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def commit() -> str | None:
    """The checkout's commit, with `-dirty` when tracked files differ from it; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=ROOT,
            # Unpacked within another repository, this is no part of it.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)},
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Version of Python and of each distribution that is installed."""
    import platform

    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def short_name(argument: str, option: str) -> str:
    """The folder name that CORPUS or MODEL stands for: itself, or the stem of a path to a .yaml file."""
    name = Path(argument).stem if argument.endswith((".yaml", ".yml")) else argument
    if not name or name.startswith(".") or "/" in name or os.sep in name:
        raise UserError(f"{option} {argument!r} is neither a name nor a path to a .yaml file")
    return name


@dataclass(frozen=True)
class Corpus:
    """A corpus that recipes/prepare.sh has built."""

    argument: str
    name: str
    folder: Path
    source: str
    target: str
    fingerprint: str
    subwords: dict[str, Any]  # as in corpus.json
    splits: tuple[str, ...]
    files: dict[str, str]

    @property
    def languages(self) -> tuple[str, str]:
        return self.source, self.target

    @property
    def bin(self) -> Path:
        """The folder of `fairseq-preprocess`'s output."""
        return self.folder / "bin"

    @property
    def subword_models(self) -> dict[str, Path]:
        """The sentencepiece model or the codes of each language."""
        return {language: self.folder / name for language, name in self.subwords["models"].items()}

    @property
    def subword_files(self) -> set[Path]:
        """All that text is cut into pieces by."""
        vocabularies = self.subwords.get("vocabularies", {}).values()
        return {*self.subword_models.values(), *(self.folder / name for name in vocabularies)}

    def dictionary(self, language: str) -> Path:
        """fairseq's dictionary of a language."""
        return self.bin / f"dict.{language}.txt"

    @property
    def alone(self) -> Path:
        """The target language's files of `bin`, by the names that fairseq's language_modeling task looks for."""
        return self.bin / self.target

    @property
    def prepare_again(self) -> str:
        """The remedy for damage."""
        return _again(_prepare_call(self.argument, self.folder.parent))

    def verify(self, *parts: str) -> None:
        """Compare the files below the sub-folders or files `parts` with the sums in corpus.json.

        Raises a UserError that names the first file that is missing or differs.
        """
        for name, known in self.files.items():
            if not any(name == part or name.startswith(part + "/") for part in parts):
                continue
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing; {self.prepare_again}")
            if digest(path) != known:
                raise UserError(f"{path}: damaged or changed since it was prepared; {self.prepare_again}")

    def text(self, split: str, language: str) -> Path:
        """The plain text of one side of a split."""
        return self.folder / "text" / f"{split}.{language}"


def _prepare_call(argument: str, data: Path) -> str:
    """The call that builds a corpus; one without a corpus file of its own was made from the user's files."""
    known = argument.endswith((".yaml", ".yml")) or (ROOT / "recipes/corpora" / f"{argument}.yaml").is_file()
    parts = ["recipes/prepare.sh", *([argument] if known else ["files", "--name", argument])]
    if data != Path("data"):
        parts += ["--data", str(data)]
    return shlex.join(parts) + ("" if known else " ...")


def _again(prepare: str) -> str:
    return f"build it anew with: {prepare} --force (and --from and all else that it was built with)"


def open_corpus(argument: str, data: Path) -> Corpus:
    """The prepared corpus of that name below `data`, if complete; else a UserError with the remedy."""
    name = short_name(argument, "CORPUS")
    folder = data / name
    prepare = _prepare_call(argument, data)
    description = folder / "corpus.json"
    if not description.is_file():
        raise UserError(f"{folder}: no prepared corpus here; build it with: {prepare}")
    again = _again(prepare)
    try:
        facts = json.loads(description.read_text(encoding="utf-8"))
        source, target = facts["source"], facts["target"]
        subwords = dict(facts["subwords"])
        models = [folder / subwords["models"][language] for language in (source, target)]
        fingerprint, splits = str(facts["fingerprint"]), tuple(facts["splits"])
        files = {str(name): str(known) for name, known in facts.get("files", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{description}: damaged ({type(error).__name__}: {error}); {again}") from None
    needed = [folder / "bin" / f"dict.{language}.txt" for language in (source, target)]
    for split in ("train", "valid"):
        for language in (source, target):
            stem = f"{split}.{source}-{target}.{language}"
            needed += [folder / "bin" / f"{stem}.bin", folder / "bin" / f"{stem}.idx"]
    for path in [*needed, *models]:
        if not path.is_file():
            raise UserError(f"{path}: missing; {again}")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty; {again}")
    return Corpus(
        argument=argument,
        name=name,
        folder=folder,
        source=source,
        target=target,
        fingerprint=fingerprint,
        subwords=subwords,
        splits=splits,
        files=files,
    )


def plugin(model: declarative.ModelFile) -> Path | None:
    """The folder of the model file's plugin: below the checkout, or an absolute path. None without one."""
    if model.user_dir is None:
        return None
    folder = ROOT / model.user_dir
    if not (folder / "__init__.py").is_file():
        raise UserError(f"{model.path}: user_dir {model.user_dir!r} is no plugin: {folder}/__init__.py is missing")
    return folder


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
