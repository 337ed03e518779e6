"""Start a training as child processes, read what they print, and leave none behind."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from recipes.storage.provenance import ROOT

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Machines:
    """How many machines train together, which of them this is (from 0), and HOST:PORT of the first one."""

    nodes: int = 1
    rank: int = 0
    master: str = ""


ALONE = Machines()


def command_line(module: str, arguments: Sequence[str], *, processes: int, machines: Machines = ALONE) -> list[str]:
    """`python -m MODULE ARGUMENTS`, under torchrun where there is more than one process.

    `processes` are those on this machine. `python -m torch.distributed.run` is torchrun for this very Python.
    """
    program = ["-m", module, *arguments]
    if processes * machines.nodes == 1:
        return [sys.executable, *program]
    torchrun = ["-m", "torch.distributed.run"]
    if machines.nodes == 1:
        torchrun += ["--standalone"]
    else:
        host, _, port = machines.master.rpartition(":")
        torchrun += ["--nnodes", str(machines.nodes), "--node-rank", str(machines.rank)]
        torchrun += ["--master-addr", host, "--master-port", port]
    return [sys.executable, *torchrun, "--nproc-per-node", str(processes), *program]


def environment(threads: int) -> dict[str, str]:
    """This environment, the checkout importable, and `threads` threads a process (sums depend on it)."""
    path = [str(ROOT)] + [p for p in [os.environ.get("PYTHONPATH")] if p]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere, nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with(parent: int) -> None:
    """End this process, the forked child of `parent`, when that ends."""
    # SIGTERM and not SIGKILL: torchrun takes its workers along when it is asked to end.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # too late: it has ended already
        os._exit(1)


def _children() -> list[int]:
    """Process ids of this process's children (Linux)."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found += [int(pid) for pid in path.read_text().split()]
        except (OSError, ValueError):
            continue
    return found


def _end_children(patience: float = 10.0) -> None:
    """End the children that are left; orphans of a killed torchrun are ours too, as their subreaper."""
    deadline = time.monotonic() + patience
    stop = signal.SIGTERM
    while children := _children():
        if time.monotonic() > deadline:
            stop = signal.SIGKILL
        for pid in children:
            try:
                os.kill(pid, stop)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
        for pid in children:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def run(command: Sequence[str], *, threads: int, lock: IO[str], on_line: Callable[[str], None]) -> int:
    """Run `command`, handing every line it prints to `on_line`; its exit status (negative: a signal).

    `lock` becomes the standard input of the whole family of processes, so the run folder stays locked as long
    as one of them lives. On the way out, by an error or Ctrl-C too, no child is left.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    launcher = os.getpid()
    process = subprocess.Popen(
        command,
        stdin=lock,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(threads),
        preexec_fn=lambda: _die_with(launcher),
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            on_line(line.rstrip("\n"))
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _end_children()


def cause(lines: Sequence[str]) -> str:
    """The line that names why a training failed, out of the last lines it printed."""
    errors = [found[1] for line in lines if (found := re.search(r"\berror: (.+)$", line))]
    if errors:
        return errors[-1]
    exceptions = [
        line.strip() for line in lines if re.match(r"(?:\[rank\d+\]: ?)?[A-Za-z_.]*(Error|Exception)\b", line)
    ]
    # torchrun closes with its own ChildFailedError: the worker's comes before it.
    told = [line for line in exceptions if "ChildFailedError" not in line]
    if told:
        return told[-1]
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
