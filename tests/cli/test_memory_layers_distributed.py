"""Memories on two processes, by the real command line: tables replicated, and sharded by columns."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq_compat import checkpoints
from memory_layers import ValueTable
from tests.support import memory_processes
from tests.support.command_lines import TINY, Command, run, start_processes
from tests.support.paths import ROOT

BAG, DIM = 2 * 4, 16
UPDATES = 9  # in the seventh, an epoch's last, two processes share a single batch
MEMORY = [
    *("--user-dir", ROOT / "memory_layers", "--arch", "memory_transformer_small", "--optimizer", "product_key_adam"),
    # A norm over single tokens: batch norm's running statistics are each process's own.
    *("--memory-keys", 16, "--memory-key-dim", 8, "--memory-topk", 4, "--memory-heads", 2, "--memory-query-norm"),
    *("layer", "--memory-encoder-layers", 1, "--memory-decoder-layers", 1, "--memory-share-table"),
    *("--clip-norm", 0.5, "--max-update", UPDATES, "--save-interval-updates", 3),
    *("--batch-size-valid", 8),  # three batches: two processes share a single one at the end
]  # fmt: skip
ROUNDING = dict(rtol=1e-3, atol=1e-4)


def on_two(folder: Path, corpus: Path, *options: object) -> list[Command]:
    """Train on two processes; their output is in folder/rank*.log, the checkpoints in folder/run."""
    arguments = [corpus, *TINY, *MEMORY, "--save-dir", folder / "run", *options]
    commands = start_processes(folder, 2, "fairseq_compat.train", *arguments)
    for command in commands:
        command.wait(300)
    return commands


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> dict[str, tuple[Path, str]]:
    """The folder of checkpoints and the output of the same training: on one process, replicated, sharded."""
    base = tmp_path_factory.mktemp("trainings")
    folder = base / "one"
    command = run(
        base / "one.log", "fairseq_compat.train", tiny_corpus, *TINY, *MEMORY, "--save-dir", folder, "--update-freq", 2
    )
    assert command.status == 0, command.output
    results = {"one": (folder, command.output)}
    for name, options in (("replicated", []), ("sharded", ["--memory-sharded"])):
        commands = on_two(base / name, tiny_corpus, *options)
        assert [command.status for command in commands] == [0, 0], commands[0].output
        results[name] = (base / name / "run", commands[0].output)
    return results


def model_and_rows(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    state = checkpoints.load(folder / "checkpoint_last.pt")
    tables = state["last_optimizer_state"]["tables"]
    assert tables["steps"] == UPDATES
    (rows,) = tables["tables"]
    return state["model"], rows


def logged(output: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"train_inner.*? {name}=([\d.]+)", output)]


def test_replicated_equals_one_process_to_the_bit(trainings: dict[str, tuple[Path, str]]) -> None:
    for one, two in zip(*(model_and_rows(trainings[name][0]) for name in ("one", "replicated")), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    assert logged(trainings["one"][1], "gnorm") == logged(trainings["replicated"][1], "gnorm")


def test_sharded_equals_one_process_to_rounding(trainings: dict[str, tuple[Path, str]]) -> None:
    for name in ("loss", "gnorm"):
        losses = [logged(trainings[kind][1], name) for kind in ("one", "sharded")]
        assert len(losses[0]) == UPDATES
        assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    for one, two in zip(*(model_and_rows(trainings[name][0]) for name in ("one", "sharded")), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")
    assert "1/2 of the columns" in trainings["sharded"][1]
    for which in ("used", "kl"):
        pattern = rf"memory_{which}_d1 ([\d.]+)"
        figures = [re.findall(pattern, trainings[name][1]) for name in ("one", "replicated", "sharded")]
        assert figures[0]
        assert len(figures[0]) == len(figures[1]) == len(figures[2])
        assert figures[0] == figures[1]  # the batch that a process gets again counts in neither
        assert [float(x) for x in figures[2]] == pytest.approx([float(x) for x in figures[0]], rel=0.1)


def test_what_is_exchanged_is_logged_and_grows_with_the_tokens(trainings: dict[str, tuple[Path, str]]) -> None:
    """Each real token is sent once per memory: its gradient (float32), slots (int32) and weights (float32)."""
    assert not logged(trainings["one"][1], "memory_kb_received")
    received = logged(trainings["replicated"][1], "memory_kb_received")
    assert len(received) == UPDATES
    bytes_a_token = 4 * DIM + (4 + 4) * BAG
    targets = logged(trainings["replicated"][1], "wpb")
    for kilobytes, words in zip(received, targets, strict=True):
        tokens = 1000 * kilobytes / bytes_a_token
        assert tokens == pytest.approx(round(tokens), abs=0.01)  # whole tokens, whatever the table's size
        assert words <= tokens <= 2 * words  # source and target, alike in length, of one of two processes
    alone = UPDATES - 3  # one process has nothing then
    assert received[alone] * 1000 == 2 * targets[alone] * bytes_a_token
    assert len(logged(trainings["sharded"][1], "memory_kb_received")) == UPDATES


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[bool, int], tuple]]:
    """The results of both processes, see memory_processes."""
    folder = tmp_path_factory.mktemp("steps")
    for command in start_processes(folder, 2, "tests.support.memory_processes", folder):
        assert command.wait(60).status == 0, command.output
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_bytes_received_depend_on_the_tokens_alone(steps: list[dict[tuple[bool, int], tuple]]) -> None:
    """Four bytes per number. Gathered parts are padded to the longest, sums and gradients are not."""
    tokens, bag, dim = memory_processes.TOKENS, memory_processes.BAG, memory_processes.DIM
    for rank in range(2):
        mine, others = tokens[rank], tokens[1 - rank]
        replicated = 4 * max(tokens) * (dim + 2 * bag)  # gradient, slots and weights
        gathered = 4 * max(tokens) * 2 * bag  # slots and weights
        sums, gradients, weights = 4 * mine * dim // 2, 4 * others * dim // 2, 4 * mine * bag
        for (sharded, _), (received, _, _) in steps[rank].items():
            assert received == (gathered + sums + gradients + weights if sharded else replicated)


def test_a_sharded_tables_state_is_the_first_processs(steps: list[dict[tuple[bool, int], tuple]]) -> None:
    for case in memory_processes.CASES:
        (_, table, rows), (_, others_table, others_rows) = (results[case] for results in steps)
        sharded, n_slots = case
        dim = memory_processes.DIM
        assert table["weight"].shape == rows["tables"][0]["exp_avg"].shape == (n_slots, dim)
        rest = (0, dim) if sharded else (n_slots, dim)
        assert others_table["weight"].shape == others_rows["tables"][0]["exp_avg"].shape == rest
        if sharded:  # what the processes drew and updated are the columns of one table
            torch.testing.assert_close(table["weight"], steps[0][False, n_slots][1]["weight"], rtol=0, atol=1e-6)
        ValueTable(n_slots, dim).load_state_dict(table)


def test_a_sharded_training_that_diverges_ends_in_one_line(tmp_path: Path, tiny_corpus: Path) -> None:
    """All processes end; the first one does not wait for the others' parts of a checkpoint."""
    for command in on_two(tmp_path, tiny_corpus, "--memory-sharded", "--lr", 1e30):
        assert command.status == 1
        assert any("the training diverged (gradients are not finite)" in line for line in command.errors)
    assert not (tmp_path / "run" / "crash.pt").exists()


def test_torchrun_itself_in_half_precision(tmp_path: Path, tiny_corpus: Path) -> None:
    """Two processes of the real torchrun under --bf16 give the bits of one.

    Without clipping: fairseq multiplies its factor in float64 on several processes and in float32 on one.
    """
    options = [str(word) for word in (tiny_corpus, *TINY, *MEMORY, "--clip-norm", 0, "--bf16", "--save-dir")]
    one = run(tmp_path / "one.log", "fairseq_compat.train", *options, tmp_path / "one", "--update-freq", 2)
    assert one.status == 0, one.output
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fairseq_compat.train", *options, str(tmp_path / "two")]
    two = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert two.returncode == 0, two.stderr
    assert len(logged(two.stdout + two.stderr, "memory_kb_received")) == UPDATES
    for left, right in zip(model_and_rows(tmp_path / "one"), model_and_rows(tmp_path / "two"), strict=True):
        for name, value in left.items():
            assert torch.equal(value, right[name]), name


def test_a_sharded_training_resumes_exactly(
    trainings: dict[str, tuple[Path, str]], tmp_path: Path, tiny_corpus: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(trainings["sharded"][0] / "checkpoint_1_3.pt", tmp_path / "run" / "checkpoint_last.pt")
    commands = on_two(tmp_path, tiny_corpus, "--memory-sharded")
    assert [command.status for command in commands] == [0, 0], commands[0].output
    for one, two in zip(model_and_rows(trainings["sharded"][0]), model_and_rows(tmp_path / "run"), strict=True):
        for name, value in one.items():
            assert torch.equal(value, two[name]), name


def test_a_sharded_checkpoint_decodes_in_one_process(
    trainings: dict[str, tuple[Path, str]], tmp_path: Path, tiny_corpus: Path
) -> None:
    command = run(
        tmp_path / "log",
        "fairseq-generate",
        *(tiny_corpus, "--user-dir", ROOT / "memory_layers", "--cpu", "--beam", 2, "--max-len-b", 12),
        *("--num-workers", 0, "--path", trainings["sharded"][0] / "checkpoint_last.pt"),
    )
    assert command.status == 0, command.output
    assert len(re.findall(r"^D-\d+", command.output, flags=re.M)) == 20


def test_wrong_options_for_shards(tmp_path: Path, tiny_corpus: Path) -> None:
    for number, (options, message) in enumerate(
        (
            (["--memory-value-dim", 15], "multiple of the 2 processes, given 15; set --memory-value-dim"),
            (["--store-ema"], "--store-ema (beside --memory-sharded) does not work with memories; leave it out"),
            (["--eval-bleu", "--eval-bleu-args", "{}"], "--eval-bleu does not work with --memory-sharded"),
        )
    ):
        commands = on_two(tmp_path / str(number), tiny_corpus, "--memory-sharded", *options)
        assert [command.status for command in commands] == [1, 1]
        errors = [line for command in commands for line in command.errors]
        assert any(message in line for line in errors), commands[0].output + commands[1].output
        # A process that meets the other too late reports that.
        assert all(message in line or "another process of this training ended" in line for line in errors), errors
