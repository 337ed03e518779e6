"""The recipes with models that have exits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_compat import checkpoints
from recipes.data.prepared_corpus import open_corpus
from recipes.evaluation import model_loading
from recipes.storage.provenance import ROOT
from recipes.training.run import Run
from tests.support.recipe_runs import recipe, refused
from thoth_core.errors import UserError


def evaluate(depth: Path, data: Path, *overrides: str) -> tuple[dict, Path]:
    call = ["toy", depth / "depth.yaml", "--data", data, "--runs", depth / "runs", "--cpu", "--pictures", 1]
    words = [word for override in overrides for word in ("--override", override)]
    done = recipe("evaluate", *call, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = depth / "runs/toy/depth" / "-".join(["evaluation", *overrides])
    return json.loads((folder / "scores.json").read_text()), folder


def test_full_depth_is_the_last_exit(depth: Path, data: Path) -> None:
    scores, folder = evaluate(depth, data)
    last, other = evaluate(depth, data, "exit_policy=fixed", "exit_layer=3")
    for name in ("hypotheses.txt", "exits.jsonl"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert last["bleu"] == scores["bleu"]
    assert scores["exits"].pop("policy") == "full"
    assert last["exits"].pop("policy") == "fixed"
    assert last["exits"] == scores["exits"]
    assert last["exits"]["mean"] == last["exits"]["blocks"] == 3
    assert last["exits"]["mflops_per_token"] == last["exits"]["mflops_per_token_full_depth"] > 0


def test_the_losses_of_each_exit_are_kept_and_told(depth: Path) -> None:
    run = Run(depth / "runs/toy/depth")
    records = [figures.model_dump(exclude_none=True) for figures in run.figures()]
    assert {record["kind"] for record in records} == {"train", "epoch", "valid"}
    for record in records:
        assert [name for name in record if name.startswith("nll_") and name != "nll_loss"] == [
            "nll_1",
            "nll_2",
            "nll_3",
        ]
        assert record["nll_3"] == pytest.approx(record["nll_loss"], abs=2e-3)
        assert {"accuracy_1", "accuracy_3", "exits_loss", "halting_loss", "oracle_exit"} <= set(record)
        assert 1 <= record["oracle_exit"] <= 3
    logged = [line for line in run.log_path.read_text().splitlines() if "valid loss" in line]
    last = [record for record in records if record["kind"] == "valid"][-1]
    accuracies = " ".join(f"{last[name]:.1f}" for name in ("accuracy_1", "accuracy_2", "accuracy_3"))
    assert f"accuracy by exit {accuracies}  " in logged[-1]


def test_halting_alone_goes_on_from_a_trained_model(depth: Path, data: Path, tmp_path: Path) -> None:
    start = depth / "runs/toy/depth/checkpoints/checkpoint1.pt"
    call = ["toy", depth / "depth.yaml", "--data", data, "--runs", tmp_path, "--cpu", "--"]
    options = ["--halting-only", "--max-epoch", 1, "--finetune-from-model", start]
    dry_run = recipe("train", *call[:-1], "--dry-run", "--", *options)  # which loads no model, and trains none
    assert dry_run.returncode == 0, dry_run.stdout + dry_run.stderr
    done = recipe("train", *call, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "begins with the weights of checkpoint1.pt\n" in done.stdout
    before, after = (checkpoints.load(p)["model"] for p in (start, tmp_path / "toy/depth/checkpoints/checkpoint1.pt"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all("halting" in name for name in changed), changed


def test_exits_stand_beside_the_scores(depth: Path, data: Path) -> None:
    scores, folder = evaluate(depth, data, "exit_policy=random", "exit_distribution=3,2,1")
    assert scores["overrides"] == {"exit_policy": "random", "exit_distribution": "3,2,1"}
    lines = [json.loads(line) for line in (folder / "exits.jsonl").read_text(encoding="utf-8").splitlines()]
    hypotheses = (folder / "hypotheses.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(hypotheses) == scores["sentences"]
    for line, text in zip(lines, hypotheses, strict=True):
        assert len(line["pieces"]) == len(line["exits"])
        assert "".join(line["pieces"][:-1]).replace("▁", " ").split() == text.split()
    exits = [exit for line in lines for exit in line["exits"]]
    assert scores["exits"]["tokens"] == {str(n): exits.count(n) for n in sorted(set(exits))}
    assert scores["exits"]["mean"] == pytest.approx(sum(exits) / len(exits), abs=1e-4)
    assert len(set(exits)) > 1
    assert (folder / "exits.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "scores.txt").read_text()
    assert f"random, mean {scores['exits']['mean']:.2f} of 3 (tokens by exit 1: " in text
    assert f"{scores['exits']['mflops_per_token']:.2f} MFLOP per token" in text
    assert scores["exits"]["mflops_per_token"] < scores["exits"]["mflops_per_token_full_depth"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("exit_policy", ["NAME=VALUE"]),
        ("exit_policy=[", ["no value in YAML"]),
        ("exit_policies=fixed", ["the model has no option exit_policies"]),
        ("exit_layer=7", ["--exit-layer must be from 1 to 3"]),
        ("exit_threshold=a/b", ["NAME=VALUE"]),
    ],
)
def test_wrong_overrides_are_refused(override: str, words: list[str], depth: Path, data: Path) -> None:
    call = ["toy", depth / "depth.yaml", "--data", data, "--runs", depth / "runs", "--cpu"]
    refused(recipe("evaluate", *call, "--override", override), *words)


def test_an_override_may_be_an_option_that_the_checkpoint_is_older_than(depth: Path, data: Path) -> None:
    path = depth / "runs/toy/depth/checkpoints/checkpoint_best.pt"
    corpus, user_dir = open_corpus("toy", data), ROOT / "depth_adaptive"

    def load(**overrides: object) -> Any:
        state = checkpoints.load(path)
        del state["cfg"]["model"]["exit_temperature"]
        return model_loading.load_model(state, path=path, corpus=corpus, user_dir=user_dir, overrides=overrides)[0]

    assert load().decoder.temperatures is None
    assert load(exit_temperature=1.5).decoder.temperatures == [1.5] * 3
    with pytest.raises(UserError, match="the model has no option exit_temperatures"):
        load(exit_temperatures=1.5)


@pytest.fixture(scope="module")
def evaluations(depth: Path, data: Path) -> list[Path]:
    """Full depth, two thresholds of the halting, and one exit for all."""
    choices = [
        [],
        *(["exit_policy=halting", f"exit_threshold={x}"] for x in (0.3, 0.9)),
        ["exit_policy=fixed", "exit_layer=2"],
    ]
    return [evaluate(depth, data, *choice)[1] for choice in choices]


def test_evaluations_side_by_side(evaluations: list[Path], tmp_path: Path) -> None:
    done = recipe("exits", *evaluations, "--output", tmp_path / "new/folder")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "new/folder/exits.md").read_text(encoding="utf-8")
    assert text in done.stdout
    assert (tmp_path / "new/folder/exits.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "new/folder").iterdir()} == {"exits.md", "exits.png"}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    lines = [dict(zip(rows[0], line, strict=True)) for line in rows[2:]]
    by_exits = {line["exits"]: line for line in lines}
    assert all(line["evaluation"].startswith("evaluation") for line in lines)
    assert list(by_exits) == ["fixed (layer 2)", "full", *sorted(name for name in by_exits if "halting" in name)]
    for folder in evaluations:
        scores = json.loads((folder / "scores.json").read_text())
        threshold = (
            f" (threshold {scores['overrides']['exit_threshold']})" if "exit_threshold" in scores["overrides"] else ""
        )
        layer = " (layer 2)" if "exit_layer" in scores["overrides"] else ""
        line = by_exits[scores["exits"]["policy"] + threshold + layer]
        assert line["mean exit"] == f"{scores['exits']['mean']:.2f}"
        assert line["BLEU"] == f"{scores['bleu']['score']:.2f}"
        assert line["seconds"] == f"{scores['seconds']:,.1f}"
        assert sum(map(int, line["tokens by exit"].split())) == scores["tokens"]
    assert scores["bleu"]["signature"] in text
