"""recipes/train.sh --hydra: the file that it writes gives the same training as the command line, bit by bit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fairseq_compat import checkpoints
from recipes.cli import train
from recipes.config.models import load_model
from recipes.training import fairseq_config
from recipes.training.run import Run
from tests.recipes.test_train import assert_same_training
from tests.support import command_lines
from tests.support.recipe_runs import recipe

TRANSFORMER = """--encoder-layers 1 --decoder-layers 2 --encoder-embed-dim 16 --decoder-embed-dim 16
    --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 --encoder-attention-heads 2 --decoder-attention-heads 2"""
MEMORY = "--memory-keys 16 --memory-key-dim 8 --memory-heads 2 --memory-topk 4"
PERVASIVE = (
    "--encoder-embed-dim 16 --decoder-embed-dim 16 --convnet-channels 16 --convnet-layers 2 --convnet-kernel-size 3"
)

# Each plugin's models, small: those with options from a dataclass, and those with a named set of defaults.
SMALL = {
    "transformer_iwslt": f"{TRANSFORMER} --max-source-positions 64",
    "transformer": f"{TRANSFORMER} --bf16",
    "depth_adaptive_iwslt_halting": f"{TRANSFORMER} --exit-training mixed",
    "memory_transformer_iwslt": f"{TRANSFORMER} {MEMORY} --memory-decoder-layers 1,2 --memory-share-table",
    "memory_transformer_lm": f"{MEMORY} --decoder-layers 3 --decoder-attention-heads 2",
    "pervasive": f"{PERVASIVE} --resnet-ffn-dim 32",
    "pervasive_densenet": f"{PERVASIVE} --densenet-growth 4 --aggregator attn",
}
FEW = "--max-tokens 300 --update-freq 1 --max-update 3 --log-interval 1"


def plan(model: str, data: Path, folder: Path, *extra: str) -> Any:
    arguments = [*("toy", model, "--data", str(data), "--runs", str(folder), "--cpu")]
    return train.make_plan(train.parser().parse_args(arguments), extra)


def records(output: str) -> list[dict[str, Any]]:
    """What the log says of each update, but for its times."""
    timed = ("wall", "wps", "ups", "train_wall", "wpb")
    logged = [json.loads(line) for line in re.findall(r"train_inner \| (\{.*\})", output)]
    return [{name: value for name, value in record.items() if name not in timed} for record in logged]


@pytest.mark.parametrize("model", SMALL)
def test_both_forms_give_the_same_bits(model: str, data: Path, tmp_path: Path) -> None:
    extra = [*SMALL[model].split(), *FEW.split()]
    if model != "pervasive_densenet":  # its schedule has no warm-up, and needs the validation loss
        extra += ["--warmup-updates", "2", "--disable-validation"]
    commands, states = [], []
    for form in ("words", "file"):
        planned = plan(model, data, tmp_path / form, *extra)
        planned.run.create()
        program, words = "fairseq_compat.train", planned.arguments()
        if form == "file":
            planned.run.configuration_path.write_text(planned.configuration(), encoding="utf-8")
            program, words = (
                "fairseq_compat.hydra_train",
                ["--config-dir", str(planned.run.folder), "--config-name", "training"],
            )
        command = command_lines.run(tmp_path / f"{form}.log", program, *words)
        assert command.status == 0, command.output
        commands.append(command)
        states.append(checkpoints.load(planned.run.checkpoints / "checkpoint_last.pt"))
    assert len(records(commands[0].output)) == 3
    assert records(commands[0].output) == records(commands[1].output)
    one, other = (state["model"] for state in states)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert {path.name for path in planned.run.folder.iterdir()} == {"checkpoints", "training.yaml"}


def test_a_run_may_change_its_form(data: Path, mini: Path, finished: Path, tmp_path: Path) -> None:
    """Begun by Hydra, resumed by the command line, it is the run that was never interrupted."""
    call = ["toy", mini, "--data", data, "--runs", tmp_path]
    done = recipe("train", *call, "--cpu", "--hydra", "--", "--max-epoch", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(tmp_path / "toy/mini")
    written = yaml.safe_load(run.configuration_path.read_text(encoding="utf-8"))
    assert written["optimization"]["max_epoch"] == 2
    assert "fairseq_compat.hydra_train" in done.stdout
    done = recipe("train", *call, "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from checkpoint" in done.stdout
    assert_same_training(tmp_path, finished)


def test_a_model_trained_by_hydra_alone_can_be_scored(data: Path, depth: Path, tmp_path: Path) -> None:
    call = ["toy", depth / "depth.yaml", "--data", data, "--runs", tmp_path, "--cpu"]
    done = recipe("train", *call, "--hydra", "--", "--max-epoch", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    done = recipe("evaluate", *call, "--pictures", 0, "--override", "exit_policy=fixed", "--override", "exit_layer=1")
    assert done.returncode == 0, done.stdout + done.stderr
    # and cut to a plain Transformer, with the sizes that the file of Hydra leaves to the architecture
    checkpoint, plain = tmp_path / "toy/depth/checkpoints/checkpoint_last.pt", tmp_path / "plain.pt"
    command = command_lines.run(tmp_path / "cut.log", "depth_adaptive.cut", checkpoint, 1, plain)
    assert command.status == 0, command.output
    words = [data / "toy/bin", "--path", plain, "--cpu", "--num-workers", 0, "--beam", 1]
    command = command_lines.run(tmp_path / "generate.log", "fairseq-generate", *words)
    assert command.status == 0, command.output


def test_the_file_holds_the_given_options_and_little_else(data: Path, tmp_path: Path) -> None:
    planned = plan("pervasive_small", data, tmp_path, "--max-tokens-valid", "50")
    configuration = yaml.safe_load(planned.configuration())
    train_block = load_model("pervasive_small").settings.train
    assert configuration["model"] == {"_name": "pervasive_small"}
    assert configuration["optimization"]["lr"] == [train_block["lr"]]
    assert "lr" not in configuration["optimizer"]  # it follows optimization.lr
    assert configuration["dataset"]["max_tokens_valid"] == 50
    assert configuration["task"]["data"] == str((data / "toy/bin").absolute())
    assert set(configuration) <= {*fairseq_config.GROUPS, "hydra", "defaults"}


def test_hydra_s_complaints_are_one_line(data: Path, tmp_path: Path) -> None:
    planned = plan("transformer", data, tmp_path)
    planned.run.create()
    planned.run.configuration_path.write_text(planned.configuration(), encoding="utf-8")
    words = ["--config-dir", planned.run.folder, "--config-name", "training"]
    for wrong in ("optimization.learning_rate=1", "optimization.max_epoch=many"):
        command = command_lines.run(tmp_path / "log", "fairseq_compat.hydra_train", *words, wrong)
        assert command.status == 1
        assert len(command.errors) == 1, command.output
        assert wrong.split("=")[0].split(".")[1] in command.errors[0]
        assert "Traceback" not in command.output


def test_dry_run_prints_the_file(data: Path, mini: Path, tmp_path: Path) -> None:
    done = recipe("train", "toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--hydra", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "  _name: label_smoothed_cross_entropy" in done.stdout
    assert "parameters: " in done.stdout
    assert not (tmp_path / "runs").exists()
