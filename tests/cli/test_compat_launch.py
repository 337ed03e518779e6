"""Several processes, precisions and refusals of the launcher; see fairseq_compat/launch.py and randomness.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_compat import checkpoints, launch
from tests.support.command_lines import TINY, run, start_processes
from thoth_core.errors import UserError

EPOCH = ["--max-epoch", 1, "--save-interval-updates", 3]


def assert_same_parameters(one: Path, other: Path) -> None:
    first, second = (checkpoints.load(path)["model"] for path in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def configuration(**changes: object) -> object:
    """The parts of fairseq's configuration that `prepare` looks at; `changes` by option name."""
    cfg = OmegaConf.create(
        {
            "common": {"cpu": True, "tpu": False, "bf16": False, "fp16": False, "amp": False},
            "distributed_training": {
                "tpu": False,
                "distributed_init_method": None,
                "distributed_world_size": 1,
                "distributed_rank": 0,
                "distributed_no_spawn": False,
                "distributed_backend": "nccl",
                "ddp_backend": "pytorch_ddp",
                "pipeline_model_parallel": False,
            },
            "checkpoint": {"load_checkpoint_on_all_dp_ranks": False},
            "task": {"_name": "translation"},
            "optimizer": {"_name": "adam", "tpu": False},
        }
    )
    cfg.common.fp16_no_flatten_grads = False
    for name, value in changes.items():
        for section in cfg.values():
            if name in section:
                section[name] = value
    return cfg


@pytest.fixture
def torchrun(monkeypatch):
    """torchrun's environment for rank 1 of 2; without it otherwise."""
    for name in (*launch.TORCHRUN, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def enter() -> None:
        for name, value in zip(launch.TORCHRUN, ("localhost", "29500", "2", "1"), strict=True):
            monkeypatch.setenv(name, value)

    return enter


def test_torchrun_is_silently_ignored_by_fairseq_on_the_cpu(tmp_path, tiny_corpus):
    # A folder for each, since in one they would stumble over each other's files, or not, as chance has it.
    save = ["--save-dir", tmp_path / "rankRANK", "--max-epoch", 1]
    for rank, command in enumerate(start_processes(tmp_path, 2, "fairseq-train", tiny_corpus, *TINY, *save)):
        assert command.wait().status == 0, command.output
        assert "training on 1 devices" in command.output
        assert (tmp_path / f"rank{rank}" / "checkpoint_last.pt").exists()  # each has trained on everything
    assert_same_parameters(*tmp_path.glob("rank*/checkpoint_last.pt"))


def test_two_processes_compute_what_one_does(tmp_path, tiny_corpus):
    """Bit for bit, dropout included, also when resumed; with 13 batches one process gets an empty one at the end."""
    two = ["--save-dir", tmp_path / "two", *EPOCH]
    commands = start_processes(tmp_path, 2, "fairseq_compat.train", tiny_corpus, *TINY, *two)
    for command in commands:
        assert command.wait().status == 0, command.output
    assert "training on 2 devices" in commands[0].output
    assert "Saved checkpoint" not in commands[1].output

    one = ["--save-dir", tmp_path / "one", *EPOCH, "--update-freq", 2]
    assert run(tmp_path / "one.log", "fairseq_compat.train", tiny_corpus, *TINY, *one).status == 0
    assert_same_parameters(tmp_path / "one" / "checkpoint_last.pt", tmp_path / "two" / "checkpoint_last.pt")

    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(tmp_path / "two" / "checkpoint_1_3.pt", resumed / "checkpoint_last.pt")
    for command in start_processes(
        tmp_path, 2, "fairseq_compat.train", tiny_corpus, *TINY, "--save-dir", resumed, *EPOCH
    ):
        assert command.wait().status == 0, command.output
    assert_same_parameters(tmp_path / "one" / "checkpoint_last.pt", resumed / "checkpoint_last.pt")


def test_fairseqs_own_resuming_on_several_processes_fails(tmp_path, tiny_corpus):
    """The flags that make fairseq itself train on two CPU processes do not make it resume."""
    save = ["--save-dir", tmp_path / "save", "--max-epoch", 2]
    flags = """
        --distributed-init-method env:// --distributed-no-spawn --distributed-world-size 2 --distributed-rank RANK
        --distributed-backend gloo --ddp-backend legacy_ddp --user-dir
    """.split()  # noqa: SIM905
    plugin = tmp_path / "allows_namespaces"  # the first fault, see test_host_resuming.py, would hide this one
    plugin.mkdir()
    (plugin / "__init__.py").write_text(
        "import argparse, torch\ntorch.serialization.add_safe_globals([argparse.Namespace])\n"
    )
    assert run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *TINY, *save, "--max-epoch", 1).status == 0
    commands = start_processes(tmp_path, 2, "fairseq-train", tiny_corpus, *TINY, *save, *flags, plugin)
    deadline = time.monotonic() + 60
    while all(command.process.is_alive() for command in commands) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any("Weights only load failed" in command.output for command in commands)
    for command in commands:
        command.process.kill()
        command.wait()


def test_a_killed_process_ends_the_others(tmp_path, tiny_corpus):
    save = ["--save-dir", tmp_path / "save", "--max-epoch", 10_000, "--no-save"]
    survivor, victim = start_processes(tmp_path, 2, "fairseq_compat.train", tiny_corpus, *TINY, *save)
    survivor.wait_for("num_updates=20")
    victim.process.kill()
    assert survivor.wait(60).status == 1
    assert "another process of this training ended" in survivor.errors[-1]
    victim.wait()


def test_torchrun_itself(tmp_path, tiny_corpus):
    """The real torchrun; when one of its processes is killed, it ends the other and itself with an error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fairseq_compat.train", str(tiny_corpus), *TINY, "--max-epoch", "10000"]
    command += ["--no-save", "--save-dir", str(tmp_path / "save")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    assert process.stdout is not None
    workers: list[int] = []
    for line in process.stdout:
        assert "training on 1 devices" not in line
        if "num_updates=20" in line:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            workers = [int(pid) for pid in children.split()]
            assert len(workers) >= 2
            os.kill(workers[-1], signal.SIGKILL)
            break
    process.communicate(timeout=90)
    assert process.returncode == 1
    for pid in workers:
        assert not Path(f"/proc/{pid}").exists()


def test_incomplete_torchrun_environment_is_refused(torchrun, monkeypatch):
    torchrun()
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match=r"WORLD_SIZE=2 is set but MASTER_ADDR not.*start with torchrun"):
        launch.prepare(configuration())


def test_several_cpu_processes_without_torchrun_are_refused(torchrun):
    with pytest.raises(UserError, match=r"--distributed-world-size 2 on the CPU: start .* torchrun --nproc-per-node 2"):
        launch.prepare(configuration(distributed_world_size=2))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("distributed_world_size", 3, "--distributed-world-size 3 under torchrun with 2 processes"),
        ("ddp_backend", "slowmo", "--ddp-backend slowmo does not work on the CPU"),
        ("pipeline_model_parallel", True, "--pipeline-model-parallel does not work"),
    ],
)
def test_what_does_not_work_under_torchrun_is_refused(torchrun, option, value, message):
    torchrun()
    with pytest.raises(UserError, match=message):
        launch.prepare(configuration(**{option: value}))


def test_torchrun_on_gpus(torchrun, monkeypatch):
    torchrun()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cfg = configuration(cpu=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # rank 1 is the first process of a second machine
    launch.prepare(cfg)
    options = cfg.distributed_training
    assert (options.distributed_rank, options.distributed_world_size, options.device_id) == (1, 2, 0)
    assert (options.distributed_backend, options.ddp_backend) == ("nccl", "pytorch_ddp")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"more processes than this machine has GPUs \(1\)"):
        launch.prepare(configuration(cpu=False))


def test_bf16_asks_fairseq_for_xla(tmp_path, tiny_corpus):
    save = ["--save-dir", tmp_path / "save", "--max-update", 2]
    fault = run(tmp_path / "log", "fairseq-train", tiny_corpus, *TINY, *save, "--bf16")
    assert fault.status == 1
    assert "xla" in fault.output.lower().rsplit("Traceback", 1)[-1]
    # Fixed: see test_resuming_is_exact_in_half_precision.


def test_fp16_asks_fairseq_for_cuda(tmp_path, tiny_corpus):
    save = ["--save-dir", tmp_path / "save", "--max-update", 2]
    fault = run(tmp_path / "log", "fairseq-train", tiny_corpus, *TINY, *save, "--fp16")
    assert fault.status == 1
    assert "CUDA" in fault.output.rsplit("Traceback", 1)[-1]


@pytest.mark.parametrize(
    ("changes", "task", "products"),
    [
        ({"bf16": True}, {"_name": "translation"}, True),
        ({"bf16": False}, {"_name": "translation"}, False),
        ({"bf16": True}, {"_name": "language_modeling", "tokens_per_sample": 512}, False),
        ({"bf16": True}, {"_name": "language_modeling", "tokens_per_sample": None}, True),
    ],
)
def test_attention_of_short_rows_in_bf16_is_not_fused(changes, task, products):
    """Long rows of a language model, and float32, keep PyTorch's fused attention."""
    cfg = configuration(**changes)
    cfg.task = task
    try:
        launch.prepare(cfg)
        assert torch.backends.cuda.flash_sdp_enabled() is not products
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_bf16_without_xla_is_no_tpu(torchrun):
    cfg = configuration(bf16=True, tpu=True)
    launch.prepare(cfg)
    assert not any(section.get("tpu") for section in cfg.values())
    assert cfg.common.bf16


def test_amp_on_the_cpu_is_refused(torchrun):
    with pytest.raises(UserError, match="--amp has no effect on the CPU; use --bf16"):
        launch.prepare(configuration(amp=True))


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "OTHER"])
def test_processes_end_with_their_torchrun(launcher):
    """torchrun gives each a session of its own: what ends torchrun at once, as SIGKILL does, does not reach them."""
    worker = "import time; from fairseq_compat import train; train.end_with_torchrun(); print('up'); time.sleep(100)"
    torchrun = (
        "import os, subprocess, sys, time; "
        f"w = subprocess.Popen([sys.executable, '-uc', {worker!r}], start_new_session=True); print(w.pid, flush=True); "
        "time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", torchrun], env={**os.environ, launcher: "1"}, stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "up\n"
        parent.kill()
        parent.wait()
        if launcher == "OTHER":  # of a parent that is none, it may outlive it
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
        else:
            assert parent.stdout.read() == ""  # at its end: the worker has closed it
