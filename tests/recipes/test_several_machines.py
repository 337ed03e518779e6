"""recipes/train.sh --nodes: several machines, played by this one."""

import socket
import subprocess
from pathlib import Path

import pytest

from recipes.cli import train
from recipes.training import launcher
from recipes.training.devices import Devices, Machines
from recipes.training.run import Run
from tests.recipes.test_train import assert_same_training
from tests.support.recipe_runs import ROOT, recipe, recipe_environment
from thoth_core.errors import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_two(call: list[str], *, first: list[str], second: list[str]) -> list[subprocess.Popen[str]]:
    """The second machine and the first, with what each is given after `--`."""
    nodes = ["--cpu", "--nodes", "2", "--master", f"127.0.0.1:{free_port()}", "--node-rank"]
    return [
        subprocess.Popen(
            [str(ROOT / "recipes/train.sh"), *call, *nodes, rank, "--", *options],
            env=recipe_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, options in (("1", second), ("0", first))
    ]


@pytest.mark.parametrize("form", [[], ["--hydra"]])
def test_machines_with_different_options_do_not_train_together(
    form: list[str], data: Path, mini: Path, tmp_path: Path
) -> None:
    """Gradients that were summed of them would be nobody's."""
    call = ["toy", str(mini), "--data", str(data), "--runs", str(tmp_path), *form]
    machines = start_two(call, first=["--max-epoch", "1"], second=["--max-epoch", "1", "--lr", "0.5"])
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1], outputs
    for words in outputs:
        assert "0.5" in words, outputs
        assert "--lr is" in words, outputs
        assert "start all with the same options" in words, outputs
        assert "Traceback" not in words, outputs
    assert not list((tmp_path / "toy/mini/checkpoints").iterdir())


def test_two_machines_train_like_one_with_twice_the_batches(data: Path, mini: Path, tmp_path: Path) -> None:
    call = ["toy", str(mini), "--data", str(data), "--runs"]
    options = ["--max-epoch", "1"]
    machines = start_two([*call, str(tmp_path / "two")], first=options, second=options)
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    done = recipe("train", *call, tmp_path / "one", "--cpu", "--", "--update-freq", "2", "--max-epoch", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(tmp_path / "one", tmp_path / "two")
    run = Run(tmp_path / "two/toy/mini")
    record = run.record()
    assert record is not None
    assert record.processes == 2
    assert record.status == "finished"
    assert "the first reports" in outputs[0]
    assert "valid" in outputs[1]
    assert "process 1 of 2" in (run.folder / "train-1.log").read_text(encoding="utf-8")


def test_the_command_of_a_machine() -> None:
    devices = Devices("cpu", 4, Machines(nodes=3, rank=2, master="node0:29500"))
    words = launcher.command_line("fairseq_compat.train", ["data"], devices)[1:]
    assert " ".join(words) == (
        "-m torch.distributed.run --nnodes 3 --node-rank 2 --master-addr node0 --master-port 29500 "
        "--nproc-per-node 4 -m fairseq_compat.train data"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "--nodes 2 needs --master HOST:PORT"),
        (["--nodes", "2", "--master", "node0"], "--master HOST:PORT"),
        (["--nodes", "2", "--master", "node0:0"], "--master HOST:PORT"),
        (["--nodes", "2", "--master", "node0:1", "--node-rank", "2"], "--node-rank must be from 0 to 1"),
        (["--node-rank", "1"], "go with --nodes"),
        (["--master", "node0:1"], "go with --nodes"),
        (["--nodes", "2", "--master", "node0:1", "--measure", "9"], "--measure works on one machine"),
    ],
)
def test_machines_that_do_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.make_plan(train.parser().parse_args(["toy", "mini", *words]), [])


def test_no_machines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parser().parse_args(["toy", "mini", "--nodes", "0"])
    assert "error: --nodes must be a whole number from 1 to 1024, but is 0" in capsys.readouterr().err
