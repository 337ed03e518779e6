"""Starting a training, following it, and finding out why it failed."""

import os
import subprocess
import sys
from pathlib import Path

from fairseq_compat import events
from fairseq_compat.errors import ANOTHER_PROCESS
from recipes.training import launcher


def run(code: str, report: Path) -> tuple[int, list[str], list[events.AnyEvent]]:
    lines: list[str] = []
    reported: list[events.AnyEvent] = []
    status = launcher.run([sys.executable, "-c", code], threads=1, lock=None, report=report,
                          on_line=lines.append, on_event=reported.append)  # fmt: skip
    return status, lines, reported


def failure(status: int, errors: list[str], lines: list[str]) -> str:
    """The cause that a training's errors and lines show."""
    symptoms = launcher.Symptoms()
    for message in errors:
        symptoms.add_event(events.Error(kind="error", message=message))
    for line in lines:
        symptoms.add_line(line)
    return symptoms.cause(status)


def test_lines_and_events_arrive(tmp_path: Path) -> None:
    """Also those that are reported last, and none that stood in the file before."""
    report = tmp_path / "progress.jsonl"
    events.append(report, events.Saved(kind="saved", checkpoint="old.pt", updates=1))
    code = (
        "import os, sys, time; from fairseq_compat import events; print(os.environ['OMP_NUM_THREADS'], flush=True)\n"
        "events.report(events.Parameters(kind='parameters', count=7)); time.sleep(0.5); print('on', flush=True)\n"
        "os.close(1); os.close(2); events.report(events.Error(kind='error', message='no memory')); os._exit(3)"
    )
    status, lines, reported = run(code, report)
    assert (status, lines) == (3, ["1", "on"])
    assert reported == [
        events.Parameters(kind="parameters", count=7),
        events.Error(kind="error", message="no memory"),
    ]


def test_a_training_whose_launcher_is_gone_does_not_start() -> None:
    done = subprocess.run(["echo", "started"], preexec_fn=lambda: launcher._die_with(parent=1), capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_signal_is_a_negative_status(tmp_path: Path) -> None:
    status, _, _ = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "events")
    assert status == -9
    assert failure(status, [], ["last words"]) == "ended by signal 9"
    assert not os.path.exists(tmp_path / "events")


def test_the_first_reported_error_is_the_cause() -> None:
    assert failure(1, ["--lr is 1 in process 1", "another process ended"], ["KeyError: 1"]).startswith("--lr")
    torchrun = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    crash = ["[rank0]: KeyError: 1", f"error: {ANOTHER_PROCESS}", torchrun]
    assert failure(1, [ANOTHER_PROCESS], crash) == "[rank0]: KeyError: 1"
    assert failure(1, [ANOTHER_PROCESS], [f"error: {ANOTHER_PROCESS}", torchrun]) == ANOTHER_PROCESS


def test_the_cause_of_a_failure_is_found() -> None:
    torchrun = ["[rank1]: Traceback", "[rank1]: RuntimeError: Connection closed by peer",
                "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "]  # fmt: skip
    assert "Connection closed by peer" in launcher.cause(torchrun)
    assert launcher.cause(["x: error: unrecognized arguments: --lrr 3"]) == "unrecognized arguments: --lrr 3"
    assert launcher.cause(["error: no such file", "KeyError: 'x'"]) == "no such file"
    assert launcher.cause(["last words", ""]) == "last words"
    assert launcher.cause([]) == "it printed nothing"
