"""recipes/exits.sh: every figure of the table is that of scores.json; what cannot be compared is refused."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.metrics import exit_table
from recipes.storage import disk
from tests.support.evaluations import corpus, evaluation, language_model, translated
from tests.support.recipe_runs import files, recipe, refused


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change scores.json."""
    path = folder / "scores.json"
    scores = json.loads(path.read_text())
    change(scores)
    path.write_text(json.dumps(scores))


def systems(folder: Path) -> list[Path]:
    """A Transformer of two blocks, and a model of three at its full depth and with two thresholds of confidence."""
    sources, references = corpus(24)
    folders = []
    for n, (name, depth, threshold) in enumerate(
        [("plain", 2, None), ("full", 3, None), ("low", 3, 0.25), ("high", 3, 0.5)], 1
    ):
        facts: dict[str, Any] = {"blocks": depth, "overrides": {}, "seconds": 10.0 * n, "tokens_per_second": 1000.0 + n}
        if name != "plain":
            facts["model"] = "deep"
            counts = {"full": [0, 0, 30], "low": [20, 10, 0], "high": [10, 10, 10]}[name]
            mean = sum(exit * count for exit, count in enumerate(counts, 1)) / 30
            facts["exits"] = {
                "policy": "full" if threshold is None else "confidence", "blocks": 3, "mean": mean,
                "tokens": {str(exit): count for exit, count in enumerate(counts, 1) if count},
                "mflops_per_token": 1234.5 * n, "mflops_per_token_full_depth": 9000.0,
            }  # fmt: skip
        if threshold is not None:
            facts["overrides"] = {"exit_policy": "confidence", "exit_threshold": threshold}
        hypotheses = translated(references, n, 0.1 * n)
        folders.append(evaluation(folder / name / "evaluation", sources, references, hypotheses, **facts))
    return folders


def test_the_table_says_what_the_evaluations_say(tmp_path: Path) -> None:
    plain, full, low, high = systems(tmp_path / "runs")
    done = recipe("exits", high, plain, low.parent, full, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["exits.md", "exits.png"]
    assert (tmp_path / "out/exits.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out/exits.md").read_text()
    assert text in done.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    heads = "evaluation|exits|mean exit|tokens by exit|MFLOP per token|BLEU|seconds|tokens per second"
    assert rows[0] == heads.split("|")
    bleu = {
        path: f"{json.loads((path / 'scores.json').read_text())['bleu']['score']:.2f}"
        for path in (plain, full, low, high)
    }
    assert len(set(bleu.values())) == 4
    assert rows[2:] == [
        ["low", "confidence (threshold 0.25)", "1.33", "20 10 0", "3,703.50", bleu[low], "30.0", "1,003"],
        ["high/evaluation", "confidence (threshold 0.5)", "2.00", "10 10 10", "4,938.00", bleu[high], "40.0", "1,004"],
        ["full/evaluation", "full", "3.00", "0 0 30", "2,469.00", bleu[full], "20.0", "1,002"],
        ["plain/evaluation", "2 blocks", "2.00", "", "", bleu[plain], "10.0", "1,001"],
    ]
    assert "toy, test (24 sentences), beam 5, CPU, 1 thread;" in text
    assert "`nrefs:1|case:mixed" in text


def test_by_default_it_stands_beside_the_first(tmp_path: Path) -> None:
    plain, full, *_ = systems(tmp_path)
    done = recipe("exits", full, plain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in full.parent.iterdir()) == ["evaluation", "exits.md", "exits.png"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["search"].update(beam=1), ["beam is 1, that of", "is 5"]),
        (lambda s: s["search"].update({"max-tokens": 200}), ["max-tokens is 200, that of", "is 2000"]),
        (lambda s: s.update(threads=2), ["threads is 2"]),
        (lambda s: s.update(device="GPU"), ["device is GPU"]),
        (
            lambda s: s["bleu"].update(signature=s["bleu"]["signature"].replace("case:mixed", "case:lc")),
            ["BLEU has the signature nrefs:1|case:lc|", "score both alike"],
        ),
        (lambda s: s["bleu"].update(signature="tok:none"), ["'tok:none' is not a signature", "evaluate again"]),
        (lambda s: s.pop("blocks"), ["field blocks", "is null", "evaluate again"]),
        (lambda s: s.pop("seconds"), ["field seconds is missing", "evaluate again"]),
        (lambda s: s["exits"].update(mean="deep"), ["field exits.mean: "]),
        (lambda s: s.update(exits=[]), ["field exits: "]),
    ],
)
def test_refusals(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: list[str]) -> None:
    plain, full, *_ = systems(tmp_path / "runs")
    changed(full, change)
    before = files(tmp_path)
    refused(recipe("exits", plain, full), "full", *words)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["EVALUATION"]),
        (["runs/none"], ["no such folder"]),
        (["runs"], ["no scores.json in it"]),
        (["runs/plain", "runs/plain"], ["given twice"]),
        (["runs/plain", "--output", "runs/plain/evaluation/scores.json"], ["--output"]),
    ],
)
def test_wrong_calls(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    systems(tmp_path / "runs")
    before = files(tmp_path)
    refused(recipe("exits", *arguments, cwd=tmp_path), *words)
    assert files(tmp_path) == before


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """The unfinished copy of this very file, by a process that has ended; nothing else."""
    ended = 2**22 + 1  # no process has so high a number
    here = socket.gethostname()
    kept = [
        ".exits.md.abc",
        f".exits.md.{here}.1.12345678",
        f".exits.md.{here}.{ended}.1234567",
        f".exits.md.elsewhere-{here}.{ended}.12345678",  # of another machine, which may be alive there
        f".other.md.{here}.{ended}.12345678",
    ]
    for name in [*kept, f".exits.md.{here}.{ended}.12345678"]:
        (tmp_path / name).write_text("")
    disk.write_atomically(tmp_path / "exits.md", "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "exits.md"])
    assert (tmp_path / "exits.md").read_text() == "all"


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    plain, full, *_ = systems(tmp_path)
    language_model(full)
    refused(recipe("exits", plain, full), "full", "language model")


def test_a_line_is_of_one_model(tmp_path: Path) -> None:
    """The points of a policy are joined; those of two models are not, and are told apart by where they lie."""
    plain, full, low, high = (exit_table.open_system(path) for path in systems(tmp_path / "a"))
    assert exit_table.series([plain, full, low, high], ["plain", "full", "low", "high"]) == [
        "models of this depth", "full", "confidence", "confidence"
    ]  # fmt: skip
    labels = ["a/plain", "a/full", "a/low", "a/high", "b/low", "b/plain"]
    _, _, other, _ = (exit_table.open_system(path) for path in systems(tmp_path / "b"))
    other = replace(other, scores=other.scores.model_copy(update={"training_command": "another"}))
    assert exit_table.series([plain, full, low, high, other, plain], labels) == [
        "models of this depth", "full", "confidence: a", "confidence: a", "confidence: b/low", "models of this depth"
    ]  # fmt: skip
