"""Run fairseq's command lines and ours in processes of their own, quickly.

Starting Python and importing fairseq takes seconds. Here a server process imports it once and is forked for each
command, which then runs as it would from a shell: its own arguments, environment, output and exit status. The
server has no plugin loaded and none of fairseq_compat's fixes, so the faults of fairseq can be shown as well.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOAD = ["fairseq_cli.train", "fairseq_cli.generate", "fairseq_cli.interactive", "fairseq_cli.validate"]

# The arguments of a tiny Transformer's training of about a second: 13 updates per epoch on `tiny_corpus`.
TINY = """
    --cpu --arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16
    --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 --encoder-attention-heads 2 --decoder-attention-heads 2
    --share-all-embeddings --dropout 0.2 --optimizer adam --lr 0.005 --batch-size 16 --seed 3 --num-workers 0
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --no-progress-bar --log-interval 1
""".split()  # noqa: SIM905

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


@dataclass
class Command:
    """A running or finished command: `status` is negative if a signal ended it, as in subprocess."""

    process: BaseProcess
    log: Path

    @property
    def output(self) -> str:
        """What it has printed so far, standard output and error together."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def errors(self) -> list[str]:
        """Our error lines."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def status(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = 120) -> "Command":
        """Wait for its end; kills it and fails if it is still there after `timeout` seconds."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout} s:\n{self.output[-2000:]}")
        return self

    def wait_for(self, text: str, count: int = 1, timeout: float = 60) -> None:
        """Wait until it has printed `text` `count` times; fails if it ends or the time is over before."""
        deadline = time.monotonic() + timeout
        while self.output.count(text) < count:
            if not self.process.is_alive() or time.monotonic() > deadline:
                raise AssertionError(f"never printed {text!r} {count} times:\n{self.output[-2000:]}")
            time.sleep(0.005)


def start(log: Path, program: str, *arguments: object, env: Mapping[str, str] | None = None) -> Command:
    """Start `program`: a command of fairseq's (`fairseq-train`) or a module (`fairseq_compat.train`)."""
    log.unlink(missing_ok=True)
    words = [str(argument) for argument in arguments]
    process = _context.Process(target=_run, args=(str(log), program, words, dict(env or {}), os.getcwd()))
    process.start()
    return Command(process, log)


def run(log: Path, program: str, *arguments: object, env: Mapping[str, str] | None = None) -> Command:
    """`start` and wait for the end."""
    return start(log, program, *arguments, env=env).wait()


def start_processes(folder: Path, count: int, program: str, *arguments: object) -> list[Command]:
    """Start `count` processes as torchrun would, output in folder/rank*.log; RANK in arguments is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        start(
            folder / f"rank{rank}.log",
            program,
            *(str(argument).replace("RANK", str(rank)) for argument in arguments),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def _run(log: str, program: str, arguments: list[str], env: dict[str, str], folder: str) -> None:
    """The forked process: become the command."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = [program, *arguments]
    status = 0
    try:
        _function(program)()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _function(program: str) -> Callable[[], object]:
    if program.startswith("fairseq-"):
        module = __import__("fairseq_cli." + program.removeprefix("fairseq-").replace("-", "_"), fromlist=["cli_main"])
        return module.cli_main
    return lambda: runpy.run_module(program, run_name="__main__", alter_sys=False)
