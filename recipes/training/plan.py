"""What a training is to do: its options from four layers, where it runs, when it stops, its command."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config import schema
from recipes.config.schema import plugin_folder
from recipes.data.prepared_corpus import Corpus
from recipes.training import fairseq_config, fairseq_options, launcher
from recipes.training.fairseq_options import Options
from recipes.training.run import Run
from thoth_core.cpu import cores
from thoth_core.errors import UserError

# What every training does unless the model file or the command line says otherwise.
DEFAULTS: Options = {
    "task": "translation",
    "max-tokens": 4096,
    "keep-last-epochs": 10,
    "log-interval": 100,
    "skip-invalid-size-inputs-valid-test": True,
}

# One of them at a time: fairseq would let --fp16 win over a file's bf16, without the scaling of losses it needs.
PRECISIONS = ("fp16", "bf16", "amp", "memory-efficient-fp16", "memory-efficient-bf16")

# Schedules of the learning rate that run over max-update: with another one the training is another one.
SCHEDULES_OVER_MAX_UPDATE = ("cosine", "polynomial_decay", "tri_stage", "step")


@dataclass(frozen=True)
class Plan:
    """One training. `options` are fairseq-train's, without those that the recipe sets, and `minutes`.

    `processes` are those of one machine; `hydra`: train from a file for Hydra, which says the same.
    """

    model: schema.ModelFile
    corpus: Corpus
    run: Run
    options: Options
    device: str
    processes: int
    seed: int
    machines: launcher.Machines = launcher.ALONE
    hydra: bool = False

    @property
    def all_processes(self) -> int:
        """Processes of all machines together."""
        return self.processes * self.machines.nodes

    @property
    def limits(self) -> Options:
        """When the training stops: any of max-update, max-epoch, patience (in validations) and minutes."""
        return {name: self.options[name] for name in fairseq_options.LIMITS if name in self.options}

    @property
    def languages(self) -> str:
        """`de to en`; `en` for a language model."""
        target = self.corpus.target
        return target if fairseq_options.is_language_model(self.options) else f"{self.corpus.source} to {target}"

    def arguments(self) -> list[str]:
        """The arguments of fairseq_compat.train, data folder first."""
        plugin = plugin_folder(self.model)
        minutes = self.options.get("minutes")
        alone = fairseq_options.is_language_model(self.options)
        ours: Options = {
            "user-dir": plugin,
            "source-lang": None if alone else self.corpus.source,
            "target-lang": None if alone else self.corpus.target,
            "save-dir": self.run.checkpoints,
            "seed": self.seed,
            "log-format": "json",
            "cpu": self.device == "cpu",
            # Without it, a resumed epoch would take its batches in another order than the interrupted one.
            "update-epoch-batch-itr": "True",
            # Else fairseq takes every GPU it sees.
            "distributed-world-size": 1 if self.all_processes == 1 else None,
            # fairseq's clock counts the training before an interruption too.
            "stop-time-hours": None if minutes is None else f"{float(minutes) / 60:.9g}",
        }
        first: Options = {name: self.options[name] for name in ("task", "arch") if name in self.options}
        theirs = first | {name: value for name, value in self.options.items() if name != "minutes"}
        # A worker process pays only where a GPU waits for data.
        theirs.setdefault("num-workers", 0 if self.device == "cpu" else 2)
        data = self.corpus.alone if alone else self.corpus.bin
        return [str(data), *fairseq_options.to_arguments(ours), *fairseq_options.to_arguments(theirs)]

    def command(self) -> list[str]:
        """The command line that trains, on this machine."""
        module, arguments = "fairseq_compat.train", self.arguments()
        if self.hydra:
            module, arguments = "fairseq_compat.hydra_train", ["--config-dir", str(self.run.folder.absolute())]
            arguments += ["--config-name", self.configuration_path.stem]
        return launcher.command_line(module, arguments, processes=self.processes, machines=self.machines)

    @property
    def configuration_path(self) -> Path:
        """Hydra's file. Machines that share the run have one each: one that was called otherwise is found out."""
        path, rank = self.run.configuration_path, self.machines.rank
        return path.with_stem(f"{path.stem}-{rank}") if rank else path

    def configuration(self) -> str:
        """The text of Hydra's file for this training."""
        head = f"{self.model.name} on {self.corpus.name}, seed {self.seed}: written by recipes/train.sh --hydra"
        return fairseq_config.as_yaml(fairseq_config.for_hydra(self.arguments()), head)

    def identity(self) -> Options:
        """All that the result depends on, as text: what must stay the same for a run to be resumed."""
        ignored = {*fairseq_options.LIMITS, *fairseq_options.DISPLAY}
        if self.options.get("lr-scheduler") in SCHEDULES_OVER_MAX_UPDATE:
            ignored.remove("max-update")
        kept = {f"--{name}": str(value) for name, value in self.options.items() if name not in ignored}
        return {
            **dict(sorted(kept.items())),
            "user_dir": self.model.user_dir,
            "--seed": self.seed,
            "processes": self.all_processes,
            "corpus fingerprint": self.corpus.fingerprint,
        }

    def place(self, threads: int) -> str:
        """`on the CPU with 2 threads`, `on 4 GPUs of each of 2 machines`."""
        count = f"{threads} thread{'s' * (threads != 1)}"
        others = f" of each of {self.machines.nodes} machines" if self.machines.nodes > 1 else ""
        if self.device == "gpu":
            return f"on {'one GPU' if self.processes == 1 else f'{self.processes} GPUs'}{others}"
        return f"on the CPU{others} {'with' if self.processes == 1 else f'in {self.processes} processes of'} {count}"


def merged_options(model: schema.ModelFile, corpus: Corpus, extra: Sequence[str], *, device: str) -> Options:
    """Model file over defaults, its part for this corpus over that, the command line over all.

    A model file's bf16 is passed over, and that is said, on a CPU where it would be slower than float32.
    """
    from_file = fairseq_options.normalised(model.options("train", corpus.name))
    fairseq_options.refuse_reserved(from_file, f"in {model.path}")
    from_user = fairseq_options.from_command_line(extra)
    if "minutes" in from_user:
        raise UserError("--minutes (after --) is an option of recipes/train.sh itself: put it before the --")
    if device == "cpu" and from_file.get("bf16") and "bf16" not in from_user and not cpu_computes_bf16():
        print("note: this CPU has no bfloat16 matrix products: training in float32 (-- --bf16 would insist)")
        del from_file["bf16"]
    fairseq_options.refuse_reserved(from_user, "after --")
    for name, value in from_user.items():
        if from_file.get(name) is True and str(value).lower() == "false":
            from_user[name] = False  # a flag of the file, switched off
    if any(from_user.get(name) for name in PRECISIONS):
        from_file = {name: value for name, value in from_file.items() if name not in PRECISIONS}
    merged = DEFAULTS | from_file | from_user
    if "batch-size" in from_user and "max-tokens" not in from_user:
        merged["max-tokens"] = None
    return {name: value for name, value in merged.items() if value is not None and value is not False}


def check_limits(limits: Options) -> None:
    """Raise a UserError for a limit that is no number above 0; to fairseq, 0 would mean that there is none."""
    for name, value in limits.items():
        kind = "a number above 0" if name == "minutes" else "a whole number of at least 1"
        try:
            number = float(value) if name == "minutes" else int(str(value))
        except (TypeError, ValueError):
            number = 0
        if isinstance(value, bool) or not 0 < number < 1e9:
            raise UserError(f"--{name} must be {kind}, but is {value}")


def cpu_computes_bf16() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this CPU: on x86 with AVX-512."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`--lr 0.001 (now 0.002), ...` for the keys in which two identities differ."""
    told: list[str] = []
    for name in {**before, **now}:
        if before.get(name) == now.get(name):
            continue
        if name == "corpus fingerprint":
            told.insert(0, "another state of the corpus")
        else:
            told.append(f"{name} {before.get(name, 'unset')} (now {now.get(name, 'unset')})")
    return ", ".join(told)


def place(*, cpu: bool, processes: int | None, gpus: int | None) -> tuple[str, int]:
    """Where to train and in how many processes: ("cpu" or "gpu", number), from the options of those names."""
    if processes and gpus:
        raise UserError("--processes (on the CPU) and --gpus exclude each other; give one of them")
    if gpus and cpu:
        raise UserError("--gpus and --cpu exclude each other; for N processes on the CPU use --processes N")
    if cpu or processes:
        cores = os.cpu_count() or 1
        if processes and processes > cores:
            raise UserError(f"--processes {processes}: this machine has {cores} CPU cores; give at most {cores}")
        return "cpu", processes or 1
    available = usable_gpus()
    if gpus and gpus > available:
        raise UserError(f"--gpus {gpus}: this machine has {available} usable GPUs; give fewer, or --cpu")
    return ("gpu", gpus or 1) if available else ("cpu", 1)


def usable_gpus() -> int:
    """The number of usable GPUs. PyTorch, slow to import, is asked only where a driver shows itself."""
    drivers = [*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/kfd"), Path("/dev/dxg")]
    if not any(path.exists() for path in drivers):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def threads_for(processes: int) -> int:
    """Threads for each process: OMP_NUM_THREADS if set, else an equal share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, cores() // processes)


def shown(command: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(str(part) for part in command)
