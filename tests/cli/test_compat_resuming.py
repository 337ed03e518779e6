"""Exact resuming, and resuming from the newest readable checkpoint; see fairseq_compat/resuming.py."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fairseq_compat import checkpoints, resuming
from fairseq_compat.checkpoints import CheckpointError
from tests.support.command_lines import TINY, Command, run, start

# 13 updates per epoch, a checkpoint every 4: updates 8 and 20 are in mid-epoch.
EPOCHS = ["--max-epoch", 2, "--save-interval-updates", 4, "--patience", 50]
BLEU = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 12}']


def train(folder: Path, corpus: Path, *options: object, program: str = "fairseq_compat.train") -> Command:
    return run(folder.with_suffix(".log"), program, corpus, *TINY, "--save-dir", folder, *EPOCHS, *options)


def train_once(shared: Path, name: str, corpus: Path, *options: object) -> Path:
    """The checkpoints of a training that several tests use, made by the first that asks."""
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (folder / "checkpoint2.pt").exists():
            command = train(folder, corpus, *options)
            assert command.status == 0, command.output
    return folder


@pytest.fixture(scope="module")
def finished(shared_folder: Path, tiny_corpus: Path) -> Path:
    """Two epochs trained without interruption, with --eval-bleu."""
    return train_once(shared_folder, "resuming_finished", tiny_corpus, *BLEU)


def restart_from(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(checkpoint, folder / "checkpoint_last.pt")
    return folder


def assert_same_training(one: Path, other: Path) -> None:
    """Parameters and optimizer state of two checkpoints are the same to the last bit."""
    first, second = checkpoints.load(one), checkpoints.load(other)
    assert first["optimizer_history"][-1] == second["optimizer_history"][-1]
    assert_same_bits(first["model"], second["model"])
    assert_same_bits(first["last_optimizer_state"], second["last_optimizer_state"])
    assert first["extra_state"]["early_stopping"] == second["extra_state"]["early_stopping"]


def assert_same_bits(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same_bits(value, other[key])
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_same_bits(left, right)
    else:
        assert one == other


def test_fairseq_cannot_resume_its_own_training_after_eval_bleu(tmp_path, tiny_corpus, finished):
    """Our trainer resumes it; and fairseq's resumes what ours has saved."""
    folder = tmp_path / "run"
    assert train(folder, tiny_corpus, *BLEU, "--max-update", 8, program="fairseq-train").status == 0
    theirs = train(folder, tiny_corpus, *BLEU, program="fairseq-train")
    assert theirs.status == 1
    assert "Unsupported global" in theirs.output
    ours = train(folder, tiny_corpus, *BLEU, "--max-update", 12)
    assert ours.status == 0, ours.output
    assert "num_updates=12" in ours.output
    folder = restart_from(finished / "checkpoint_1_8.pt", tmp_path / "ours")
    assert train(folder, tiny_corpus, *BLEU, "--max-update", 12, program="fairseq-train").status == 0


@pytest.mark.parametrize("checkpoint", ["checkpoint_1_8.pt", "checkpoint1.pt", "checkpoint_2_20.pt"])
def test_resuming_is_exact(tmp_path, tiny_corpus, finished, checkpoint):
    folder = restart_from(finished / checkpoint, tmp_path / "run")
    command = train(folder, tiny_corpus, *BLEU)
    assert command.status == 0, command.output
    assert_same_training(folder / "checkpoint_last.pt", finished / "checkpoint_last.pt")


def test_fairseqs_default_does_not_resume_exactly(tmp_path, tiny_corpus):
    plain = ["--update-epoch-batch-itr", "False"]
    assert train(tmp_path / "one", tiny_corpus, *plain).status == 0
    folder = restart_from(tmp_path / "one" / "checkpoint1.pt", tmp_path / "two")
    assert train(folder, tiny_corpus, *plain).status == 0
    with pytest.raises(AssertionError):
        assert_same_training(folder / "checkpoint_last.pt", tmp_path / "one" / "checkpoint_last.pt")


def test_killed_at_any_moment(tmp_path, tiny_corpus, finished):
    """SIGKILL while starting, training, validating and saving, then once more to the end."""
    folder = tmp_path / "run"
    log = tmp_path / "run.log"
    arguments = [tiny_corpus, *TINY, "--save-dir", folder, *EPOCHS, *BLEU]
    for text, count in (("num_updates=6", 1), ("begin validation", 2), ("Saved checkpoint", 1), ("training on", 1)):
        command = start(log, "fairseq_compat.train", *arguments)
        command.wait_for(text, count)
        command.process.kill()
        assert command.wait().status == -9
    assert run(log, "fairseq_compat.train", *arguments).status == 0
    assert_same_training(folder / "checkpoint_last.pt", finished / "checkpoint_last.pt")
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_resuming_is_exact_in_half_precision(tmp_path, tiny_corpus, precision):
    half = [precision, "--fp16-init-scale", 4]
    whole = tmp_path / "whole"
    assert train(whole, tiny_corpus, *half).status == 0
    folder = restart_from(whole / "checkpoint_1_8.pt", tmp_path / "resumed")
    assert train(folder, tiny_corpus, *half).status == 0
    assert_same_training(folder / "checkpoint_last.pt", whole / "checkpoint_last.pt")
    if precision == "--bf16":  # without what is added to the checkpoint, it goes another way: fairseq's fault
        state = checkpoints.load(whole / "checkpoint_1_8.pt")
        del state["last_optimizer_state"]["float32_parameters"]
        folder = tmp_path / "rounded"
        folder.mkdir()
        checkpoints.save(state, folder / "checkpoint_last.pt")
        assert train(folder, tiny_corpus, *half).status == 0
        with pytest.raises(AssertionError):
            assert_same_bits(
                checkpoints.load(folder / "checkpoint_last.pt")["last_optimizer_state"]["state"],
                checkpoints.load(whole / "checkpoint_last.pt")["last_optimizer_state"]["state"],
            )


@pytest.mark.parametrize("damage", [0, 1000, -1], ids=["empty", "truncated", "one byte short"])
def test_resumes_from_the_newest_readable_checkpoint(tmp_path, caplog, finished, damage):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    last = folder / "checkpoint_last.pt"
    for path in (last, folder / "checkpoint2.pt", folder / "checkpoint_best.pt"):
        path.write_bytes(path.read_bytes()[:damage])
    with caplog.at_level(logging.WARNING):
        assert resuming.readable_checkpoint(folder, last.name) == folder / "checkpoint_2_24.pt"
    assert f"{last} is " in caplog.text
    assert f"resuming from the newest readable one, {folder / 'checkpoint_2_24.pt'}" in caplog.text


def test_training_goes_on_from_the_newest_readable_checkpoint(tmp_path, tiny_corpus, finished):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("checkpoint_1_8.pt", "checkpoint_1_4.pt"):
        shutil.copy(finished / name, folder)
    (folder / "checkpoint_last.pt").write_bytes(b"")
    fault = train(folder, tiny_corpus, *BLEU, program="fairseq-train")
    assert fault.status == 1
    assert "EOFError" in fault.output

    command = train(folder, tiny_corpus, *BLEU)
    assert command.status == 0, command.output
    assert "checkpoint_last.pt is empty" in command.output
    assert f"resuming from the newest readable one, {folder / 'checkpoint_1_8.pt'}" in command.output
    assert_same_training(folder / "checkpoint_last.pt", finished / "checkpoint_last.pt")


def test_a_first_save_that_was_interrupted_is_no_new_beginning(tmp_path, tiny_corpus, finished):
    """checkpoint_1_4.pt is written before checkpoint_last.pt: without the latter, fairseq starts from scratch."""
    for name in ("fault", "run"):
        (tmp_path / name).mkdir()
        shutil.copy(finished / "checkpoint_1_4.pt", tmp_path / name)
    fault = train(tmp_path / "fault", tiny_corpus, "--max-update", 1, program="fairseq-train")
    assert "No existing checkpoint found" in fault.output
    folder = tmp_path / "run"
    command = train(folder, tiny_corpus, *BLEU)
    assert command.status == 0, command.output
    assert f"no checkpoint_last.pt: resuming from the newest readable one, {folder / 'checkpoint_1_4.pt'}" in (
        command.output
    )
    assert_same_training(folder / "checkpoint_last.pt", finished / "checkpoint_last.pt")


def learning_rate(checkpoint: Path) -> float:
    return checkpoints.load(checkpoint)["last_optimizer_state"]["param_groups"][0]["lr"]


@pytest.mark.parametrize(("patience", "epoch"), [(0, 2), (1, 3)])
def test_resuming_tells_the_scheduler_what_it_has_missed(tmp_path, tiny_corpus, patience, epoch):
    """No loss is good enough here: the learning rate is due to shrink after `epoch`, right where it resumes."""
    plateau = ["--lr-scheduler", "reduce_lr_on_plateau", "--lr-shrink", 0.5, "--lr-threshold", 0.9,
               "--lr-patience", patience, "--max-epoch", epoch + 1]  # fmt: skip
    whole = tmp_path / "whole"
    assert train(whole, tiny_corpus, *plateau).status == 0
    assert learning_rate(whole / f"checkpoint{epoch + 1}.pt") < learning_rate(whole / f"checkpoint{epoch}.pt")
    folder = restart_from(whole / f"checkpoint{epoch}.pt", tmp_path / "resumed")
    assert train(folder, tiny_corpus, *plateau).status == 0
    assert_same_training(folder / "checkpoint_last.pt", whole / "checkpoint_last.pt")
    if patience == 0:  # without the validation's loss, it goes another way: fairseq's fault
        state = checkpoints.load(whole / f"checkpoint{epoch}.pt")
        state["extra_state"]["val_loss"] = None
        folder = tmp_path / "untold"
        folder.mkdir()
        checkpoints.save(state, folder / "checkpoint_last.pt")
        assert train(folder, tiny_corpus, *plateau).status == 0
        assert learning_rate(folder / "checkpoint_last.pt") > learning_rate(whole / "checkpoint_last.pt")


def test_resuming_at_the_end_of_an_epoch_tells_of_the_whole_log_interval(tmp_path, tiny_corpus):
    """The mean of updates 13, the epoch's last, to 15 is reported at 15, as without interruption."""
    interval = ("--log-interval", 3)
    whole = train(tmp_path / "whole", tiny_corpus, *interval)
    folder = restart_from(tmp_path / "whole/checkpoint1.pt", tmp_path / "resumed")
    resumed = train(folder, tiny_corpus, *interval)
    losses = [
        re.findall(r"loss=([\d.]+), nll_loss=([\d.]+), .*num_updates=15,", run.output) for run in (whole, resumed)
    ]
    assert len(losses[0]) == 1
    assert losses[0] == losses[1]


def test_no_readable_checkpoint_is_an_error(tmp_path):
    for name in ("checkpoint_last.pt", "checkpoint1.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of .* is readable \(checkpoint1.pt, checkpoint_last.pt\)"):
        resuming.readable_checkpoint(tmp_path, "checkpoint_last.pt")
