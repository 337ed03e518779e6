"""Memories on two processes, by the real command line: the table replicated, and sharded by columns."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from command_lines import TINY, Command, run, start_processes

from fairseq_host import checkpoints

ROOT = Path(__file__).resolve().parent.parent
BAG, DIM = 2 * 4, 16
UPDATES = 9  # in the seventh, an epoch's last, two processes share a single batch
MEMORY = [
    *("--user-dir", ROOT / "memory_layers", "--arch", "memory_transformer_small", "--optimizer", "product_key_adam"),
    # A norm over single tokens: batch norm's running statistics are each process's own.
    *("--memory-keys", 16, "--memory-key-dim", 8, "--memory-topk", 4, "--memory-heads", 2, "--memory-query-norm"),
    *("layer", "--memory-encoder-layers", 1, "--memory-decoder-layers", 1, "--memory-share-table"),
    *("--clip-norm", 0.5, "--max-update", UPDATES, "--save-interval-updates", 3),
]  # fmt: skip
TABLE = "decoder.layers.0.memory.table.weight"


def on_two(folder: Path, corpus: Path, *options: object) -> list[Command]:
    """Train on two processes; their output is in folder/rank*.log, the checkpoints in folder/run."""
    arguments = [corpus, *TINY, *MEMORY, "--save-dir", folder / "run", *options]
    commands = start_processes(folder, 2, "fairseq_host.train", *arguments)
    for command in commands:
        command.wait(300)
    return commands


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> dict[str, tuple[Path, str]]:
    """The folder of checkpoints and the output of the same training: on one process, replicated, sharded."""
    base = tmp_path_factory.mktemp("trainings")
    folder = base / "one"
    command = run(
        base / "one.log", "fairseq_host.train", tiny_corpus, *TINY, *MEMORY, "--save-dir", folder, "--update-freq", 2
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
        assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    assert two["exp_avg"].shape == (256, DIM)
    assert "1/2 of the columns" in trainings["sharded"][1]
    for which in ("used", "kl"):
        pattern = rf"memory_{which}_d1 ([\d.]+)"
        figures = [re.findall(pattern, trainings[name][1]) for name in ("one", "replicated", "sharded")]
        assert figures[0]
        assert len(figures[0]) == len(figures[1]) == len(figures[2])
        assert float(figures[0][0]) == pytest.approx(float(figures[2][0]), rel=0.1)


def test_what_is_exchanged_is_logged_and_grows_with_the_tokens(trainings: dict[str, tuple[Path, str]]) -> None:
    """Each real token is sent once a memory: its gradient (float32), its slots (int32) and their weights (float32)."""
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
            (["--eval-bleu", "--eval-bleu-args", "{}"], "--eval-bleu does not work with --memory-sharded"),
        )
    ):
        for command in on_two(tmp_path / str(number), tiny_corpus, "--memory-sharded", *options):
            assert command.status == 1
            assert any(message in line for line in command.errors), command.output
