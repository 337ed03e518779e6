"""Starts a training as child processes, follows what they print and report, and leaves none behind."""

import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from fairseq_compat import events
from fairseq_compat.errors import ANOTHER_PROCESS
from recipes.storage.locks import Lock
from recipes.storage.provenance import ROOT
from recipes.training.devices import Devices

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

_EXCEPTION = re.compile(r"(?:\[rank\d+\]: ?)?[A-Za-z_.]*(Error|Exception)\b")

INTERVAL = 0.1  # seconds between two looks at the reported events
LINES_KEPT = 200  # of what a training printed last, to find the cause of a crash in


def command_line(module: str, arguments: Sequence[str], devices: Devices) -> list[str]:
    """`python -m MODULE ARGUMENTS`, under torchrun where there is more than one process.

    `python -m torch.distributed.run` is torchrun for this very Python.
    """
    program, machines = ["-m", module, *arguments], devices.machines
    if devices.all_processes == 1:
        return [sys.executable, *program]
    torchrun = ["-m", "torch.distributed.run"]
    if machines.nodes == 1:
        torchrun += ["--standalone"]
    else:
        host, _, port = machines.master.rpartition(":")
        torchrun += ["--nnodes", str(machines.nodes), "--node-rank", str(machines.rank)]
        torchrun += ["--master-addr", host, "--master-port", port]
    return [sys.executable, *torchrun, "--nproc-per-node", str(devices.processes), *program]


def environment(threads: int, report: Path) -> dict[str, str]:
    """This environment with the checkout importable, `threads` threads per process, and the file for events."""
    path = [str(ROOT)] + [p for p in [os.environ.get("PYTHONPATH")] if p]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        events.VARIABLE: str(report.absolute()),
    }


def run(
    command: Sequence[str],
    *,
    threads: int,
    lock: Lock | None,
    report: Path,
    on_line: Callable[[str], None],
    on_event: Callable[[events.AnyEvent], None],
) -> int:
    """Run a training to its end. On the way out, by an error or Ctrl-C too, no child is left.

    Args:
        command: the command line.
        threads: threads of each process. The order of sums depends on it, and so do the last bits of the result.
        lock: becomes the standard input of all processes, so that it is held as long as one of them lives.
        report: the file to which the training appends its events.
        on_line: called with every line that the training prints.
        on_event: called with every event.

    Returns:
        The exit status; negative for a signal.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    launcher = os.getpid()
    follower = events.Follower(report)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if lock is None else lock.descriptor,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(threads, report),
        preexec_fn=lambda: _die_with(launcher),
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    try:
        if lock is not None:
            lock.add_holder(process.pid)
        for line in _lines(process.stdout):
            for event in follower.read():
                on_event(event)
            if line is not None:
                on_line(line)
        status = process.wait()
        for event in follower.read():
            on_event(event)
        return status
    finally:
        _end(process)
        _end_children()


def _lines(stream: IO[str]) -> Iterator[str | None]:
    """The lines of `stream`, and None at least once per `INTERVAL`, until its end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=INTERVAL)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _end(process: "subprocess.Popen[str]") -> None:
    """End the process, by SIGKILL if SIGTERM does not end it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere, nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with(parent: int) -> None:
    """Let this process, the forked child of `parent`, end when that ends."""
    # SIGTERM and not SIGKILL: torchrun then ends its workers first.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # too late: it has ended already
        os._exit(1)


def _children() -> list[int]:
    """Process ids of this process's children (Linux)."""
    children: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            children += [int(pid) for pid in path.read_text().split()]
        except (OSError, ValueError):
            continue
    return children


def _end_children(patience: float = 10.0) -> None:
    """End the children that are left. As their subreaper, this process inherits the workers of a killed torchrun."""
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


def cause(lines: Sequence[str]) -> str:
    """The line that names why a program of others failed, out of the last lines that it printed.

    Our own trainings report their errors as events; this is for crashes, and for what torchrun and argparse print.
    """
    errors = [match[1] for line in lines if (match := re.search(r"\berror: (.+)$", line))]
    if errors:
        return errors[-1]
    if exceptions := _exceptions(lines):
        return exceptions[-1]
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _exceptions(lines: Iterable[str]) -> list[str]:
    """The last lines of tracebacks, without torchrun's own ChildFailedError, which follows the worker's exception."""
    return [line.strip() for line in lines if _EXCEPTION.match(line) and "ChildFailedError" not in line]


class Symptoms:
    """What is kept of a training's output to find the cause of a failure: its last lines, and its errors."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._errors: list[str] = []

    def add_line(self, line: str) -> None:
        """Note a line that the training printed."""
        self._lines.append(line)

    def add_event(self, event: events.AnyEvent) -> None:
        """Note an event that the training reported; only errors count."""
        if isinstance(event, events.Error):
            self._errors.append(event.message)

    def cause(self, status: int) -> str:
        """Why the training ended with `status` other than 0."""
        causes = [error for error in self._errors if error != ANOTHER_PROCESS]
        if causes:
            return causes[0]  # the others may be consequences, in other processes
        if status < 0:
            return f"ended by signal {-status}"
        if exceptions := _exceptions(self._lines):  # of a process that crashed; one that was killed prints none
            return exceptions[-1]
        return self._errors[0] if self._errors else cause(list(self._lines))
