"""The recipes with models that have exits."""

import json
from pathlib import Path

import pytest
import recipe_runs
from recipe_runs import ROOT, recipe, refused


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with a model file, depth.yaml, and what was trained by it on the corpus `toy`."""
    folder = tmp_path_factory.mktemp("depth")
    text = recipe_runs.MODEL.replace(
        "arch: transformer", "arch: depth_adaptive_transformer_small\n  halting: geometric"
    )
    text = text.replace("decoder-layers: 1", "decoder-layers: 3").replace("max-epoch: 4", "max-epoch: 2")
    text = text.replace("label_smoothed_cross_entropy", "depth_adaptive_cross_entropy")
    (folder / "depth.yaml").write_text(f"user_dir: {ROOT / 'depth_adaptive'}\n{text}", encoding="utf-8")
    done = recipe("train", "toy", folder / "depth.yaml", "--data", data, "--runs", folder / "runs", "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def evaluate(trained: Path, data: Path, *overrides: str) -> tuple[dict, Path]:
    call = ["toy", trained / "depth.yaml", "--data", data, "--runs", trained / "runs", "--cpu", "--pictures", 1]
    words = [word for override in overrides for word in ("--override", override)]
    done = recipe("evaluate", *call, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = trained / "runs/toy/depth" / "-".join(["evaluation", *overrides])
    return json.loads((folder / "scores.json").read_text()), folder


def test_full_depth_has_no_exits(trained: Path, data: Path) -> None:
    scores, folder = evaluate(trained, data)
    assert "exits" not in scores
    assert not (folder / "exits.jsonl").exists()
    last, other = evaluate(trained, data, "exit_policy=fixed", "exit_layer=3")
    assert last["bleu"] == scores["bleu"]
    assert (folder / "hypotheses.txt").read_bytes() == (other / "hypotheses.txt").read_bytes()
    assert last["exits"]["mean"] == 3


def test_exits_stand_beside_the_scores(trained: Path, data: Path) -> None:
    scores, folder = evaluate(trained, data, "exit_policy=random", "exit_distribution=3,2,1")
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
    assert f"mean {scores['exits']['mean']:.2f} (tokens by exit 1: " in (folder / "scores.txt").read_text()


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
def test_wrong_overrides_are_refused(override: str, words: list[str], trained: Path, data: Path) -> None:
    call = ["toy", trained / "depth.yaml", "--data", data, "--runs", trained / "runs", "--cpu"]
    refused(recipe("evaluate", *call, "--override", override), *words)
