"""One planned training: its command, its limits, and what its result depends on."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.models import ModelFile
from recipes.data.prepared_corpus import Corpus
from recipes.training import fairseq_config, fairseq_options, launcher
from recipes.training.devices import Devices, threads_for
from recipes.training.fairseq_options import Options
from recipes.training.run import Run

# Schedules of the learning rate that run over max-update: another number of updates makes another training.
SCHEDULES_OVER_MAX_UPDATE = ("cosine", "polynomial_decay", "tri_stage", "step")


@dataclass(frozen=True)
class Plan:
    """One training.

    `options` are fairseq-train's without those that the recipe sets, and `minutes`. With `hydra`, the training reads
    them from a file for Hydra instead of the command line.
    """

    model: ModelFile
    corpus: Corpus
    run: Run
    options: Options
    devices: Devices
    seed: int
    hydra: bool = False

    @property
    def limits(self) -> Options:
        """When the training stops: any of max-update, max-epoch, patience (in validations) and minutes."""
        return {name: self.options[name] for name in fairseq_options.LIMITS if name in self.options}

    @property
    def is_language_model(self) -> bool:
        """Whether a language model is trained, on the target language alone."""
        return fairseq_options.is_language_model(self.options)

    @property
    def languages(self) -> str:
        """`de to en`; `en` for a language model."""
        target = self.corpus.target
        return target if self.is_language_model else f"{self.corpus.source} to {target}"

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return threads_for(self.devices.processes)

    def arguments(self) -> list[str]:
        """The arguments of fairseq_compat.train, data folder first."""
        monolingual, minutes = self.is_language_model, self.options.get("minutes")
        ours: Options = {
            "user-dir": self.model.plugin,
            "source-lang": None if monolingual else self.corpus.source,
            "target-lang": None if monolingual else self.corpus.target,
            "save-dir": self.run.checkpoints,
            "seed": self.seed,
            "log-format": "json",
            "cpu": self.devices.kind == "cpu",
            # Without it, a resumed epoch would take its batches in another order than the interrupted one.
            "update-epoch-batch-itr": "True",
            # Else fairseq takes every GPU that it sees.
            "distributed-world-size": 1 if self.devices.all_processes == 1 else None,
            # fairseq's clock includes the training before an interruption.
            "stop-time-hours": None if minutes is None else f"{float(minutes) / 60:.9g}",
        }
        first: Options = {name: self.options[name] for name in ("task", "arch") if name in self.options}
        theirs = first | {name: value for name, value in self.options.items() if name != "minutes"}
        # A worker process pays only where a GPU waits for data.
        theirs.setdefault("num-workers", 0 if self.devices.kind == "cpu" else 2)
        data = self.corpus.monolingual if monolingual else self.corpus.bin
        return [str(data), *fairseq_options.to_arguments(ours), *fairseq_options.to_arguments(theirs)]

    def command(self) -> list[str]:
        """The command line that trains, on this machine."""
        module, arguments = "fairseq_compat.train", self.arguments()
        if self.hydra:
            module, arguments = "fairseq_compat.hydra_train", ["--config-dir", str(self.run.folder.absolute())]
            arguments += ["--config-name", self.configuration_path.stem]
        return launcher.command_line(module, arguments, self.devices)

    @property
    def configuration_path(self) -> Path:
        """Hydra's file. Each machine that shares the run has its own, so that different options are noticed."""
        path, rank = self.run.configuration_path, self.devices.machines.rank
        return path.with_stem(f"{path.stem}-{rank}") if rank else path

    def configuration(self) -> str:
        """The text of Hydra's file for this training."""
        head = f"{self.model.name} on {self.corpus.name}, seed {self.seed}: written by recipes/train.sh --hydra"
        return fairseq_config.as_yaml(fairseq_config.for_hydra(self.arguments()), head)

    def identity(self) -> Options:
        """All that the result depends on: what must be unchanged for a run to be resumed."""
        ignored = {*fairseq_options.LIMITS, *fairseq_options.DISPLAY}
        if self.options.get("lr-scheduler") in SCHEDULES_OVER_MAX_UPDATE:
            ignored.remove("max-update")
        kept = {f"--{name}": str(value) for name, value in self.options.items() if name not in ignored}
        return {
            **dict(sorted(kept.items())),
            "user_dir": self.model.settings.user_dir,
            "--seed": self.seed,
            "processes": self.devices.all_processes,
            "corpus fingerprint": self.corpus.fingerprint,
        }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`--lr 0.001 (now 0.002), ...` for the keys in which two identities differ."""
    parts: list[str] = []
    for name in {**before, **now}:
        if before.get(name) == now.get(name):
            continue
        if name == "corpus fingerprint":
            parts.insert(0, "another state of the corpus")
        else:
            parts.append(f"{name} {before.get(name, 'unset')} (now {now.get(name, 'unset')})")
    return ", ".join(parts)


def as_typed(command: Sequence[str]) -> str:
    """The command as a user would type it."""
    return shlex.join(os.fspath(part) for part in command)
