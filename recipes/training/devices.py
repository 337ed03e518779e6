"""Where a training runs: CPU or GPUs, processes, threads, machines."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from thoth_core.cpu import cores
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Machines:
    """The machines that train together: how many, which of them this is (from 0), and HOST:PORT of the first."""

    nodes: int = 1
    rank: int = 0
    master: str = ""

    @classmethod
    def checked(cls, nodes: int, rank: int, master: str) -> "Machines":
        """The machines that the options --nodes, --node-rank and --master describe.

        Raises:
            UserError: the options do not fit together.
        """
        if nodes == 1 and (rank or master):
            raise UserError("--node-rank and --master go with --nodes N; give that too, or leave them out")
        if not 0 <= rank < nodes:
            raise UserError(f"--node-rank must be from 0 to {nodes - 1} with --nodes {nodes}, but is {rank}")
        if nodes > 1 and not re.fullmatch(r"[^\s:]+:[1-9]\d{0,4}", master):
            raise UserError(
                f"--nodes {nodes} needs --master HOST:PORT, the first machine's name and a free port there, "
                f"but it is {master!r}; give the same on each machine"
            )
        return cls(nodes, rank, master)


ONE_MACHINE = Machines()


@dataclass(frozen=True)
class Devices:
    """The devices of a training: `cpu` or `gpu`, the processes on each machine, and the machines."""

    kind: str
    processes: int = 1
    machines: Machines = ONE_MACHINE

    @property
    def all_processes(self) -> int:
        """Processes of all machines together."""
        return self.processes * self.machines.nodes

    def describe(self, threads: int) -> str:
        """`on the CPU with 2 threads`, `on 4 GPUs of each of 2 machines`."""
        count = f"{threads} thread{'s' * (threads != 1)}"
        others = f" of each of {self.machines.nodes} machines" if self.machines.nodes > 1 else ""
        if self.kind == "gpu":
            return f"on {'one GPU' if self.processes == 1 else f'{self.processes} GPUs'}{others}"
        return f"on the CPU{others} {'with' if self.processes == 1 else f'in {self.processes} processes of'} {count}"


def choose(*, cpu: bool, processes: int | None, gpus: int | None, machines: Machines = ONE_MACHINE) -> Devices:
    """The devices that the options --cpu, --processes and --gpus request; without them, one GPU if there is one.

    Raises:
        UserError: the options exclude each other, or this machine has fewer cores or GPUs.
    """
    if processes and gpus:
        raise UserError("--processes (on the CPU) and --gpus exclude each other; give one of them")
    if gpus and cpu:
        raise UserError("--gpus and --cpu exclude each other; for N processes on the CPU use --processes N")
    if cpu or processes:
        available_cores = os.cpu_count() or 1
        if processes and processes > available_cores:
            raise UserError(
                f"--processes {processes}: this machine has {available_cores} CPU cores; give at most {available_cores}"
            )
        return Devices("cpu", processes or 1, machines)
    available = usable_gpus()
    if gpus and gpus > available:
        raise UserError(f"--gpus {gpus}: this machine has {available} usable GPUs; give fewer, or --cpu")
    return Devices("gpu", gpus or 1, machines) if available else Devices("cpu", 1, machines)


def usable_gpus() -> int:
    """The number of usable GPUs. PyTorch, which is slow to import, is imported only where there is a driver."""
    drivers = [*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/kfd"), Path("/dev/dxg")]
    if not any(path.exists() for path in drivers):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def threads_for(processes: int) -> int:
    """Threads for each process: OMP_NUM_THREADS if set, else an equal share of the cores."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdigit() and int(requested) > 0:
        return int(requested)
    return max(1, cores() // processes)


def cpu_computes_bf16() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this CPU: on x86 with AVX-512."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def refuse_other_launchers() -> None:
    """Raise a UserError under torchrun or srun, which would start every training several times."""
    inherited = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ]
    if inherited:
        raise UserError(
            f"{inherited[0]} is set in the environment: recipes/train.sh starts its processes itself; "
            "call it once, without torchrun or srun, with --processes N or --gpus N"
        )
