"""What recipes/train.sh --dry-run and --measure foretell: memory, updates, time."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.cli import train
from recipes.training import measurement
from recipes.training.plan import Plan
from tests.support.recipe_runs import ROOT, recipe

MODELS = sorted(path.stem for path in (ROOT / "recipes" / "models").glob("*.yaml"))


@pytest.fixture(scope="module")
def iwslt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose `iwslt14.de-en` is the toy corpus."""
    folder = tmp_path_factory.mktemp("iwslt")
    shutil.copytree(data / "toy", folder / "iwslt14.de-en")
    return folder


def planned(corpus: str, model: object, data: Path, *extra: str, options: tuple[str, ...] = ("--cpu",)) -> Plan:
    arguments = [corpus, str(model), "--data", str(data), "--runs", str(data / "runs"), *options]
    return train.make_plan(train.parser().parse_args(arguments), extra)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_foretold(model: str, iwslt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["iwslt14.de-en", model, "--data", str(iwslt), "--runs", str(iwslt / "runs"), "--cpu", "--dry-run"]
    few = ["--batch-size", "8"]  # sentences, so that the large models take seconds
    assert train.train(train.parser().parse_args(call), few, ["recipes/train.sh", *call, "--", *few]) == 0
    told = capsys.readouterr().out
    assert f"--save-dir {iwslt}/runs/iwslt14.de-en/{model}/checkpoints" in told
    assert int(re.search(r"^parameters: ([\d,]+)$", told, flags=re.M)[1].replace(",", "")) > 100_000  # type: ignore[index]
    amounts = re.findall(r"^  (\w+ ?\w*) +([\d.]+ [MG]B)", told, flags=re.M)
    names = [name.strip() for name, _ in amounts]
    assert names == ["parameters", "gradients", "optimizer", "largest batch", "together"]
    assert re.search(r"^time, estimated: \S+ s an update, .+ to the end", told, flags=re.M)
    assert not (iwslt / "runs").exists()


def test_memory_of_each_number_format() -> None:
    """Bytes a parameter, by fairseq's optimizers; a table of values has no gradient."""
    model = torch.nn.Module()
    model.weight, model.table = torch.nn.Parameter(torch.zeros(10)), torch.nn.Parameter(torch.zeros(100), False)
    trial = measurement.Trial(sentences=8, tried=2, shape=(3, 4), bytes=50, seconds=1.0)
    for optimizer, half, efficient, expected in (
        ("adam", False, False, (440, 40, 80)),
        ("adam", True, False, (260, 60, 80)),
        ("product_key_adam", False, False, (440, 40, 880)),
        ("product_key_adam", True, False, (660, 60, 880)),
        ("product_key_adam", True, True, (220, 20, 880)),
        ("sgd", False, False, (440, 40, 0)),
        ("cpu_adam", False, False, (440, 40, None)),
    ):
        found = measurement._memory(model, optimizer, half=half, efficient=efficient, passes=trial)
        assert (found.weights, found.gradients, found.states) == expected, (optimizer, half, efficient)
        assert found.passes == 200
        assert found.total == sum(filter(None, expected)) + 200


def test_peak_of_tensors() -> None:
    def work() -> None:
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        del second, third

    assert measurement.peak_bytes(work) == 16_000


@pytest.mark.parametrize("model", ["transformer", "pervasive_small", "memory_transformer"])
def test_a_part_of_a_batch_tells_of_the_whole(model: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planned("toy", model, data, "--bf16", "False", "--batch-size", "32")
    part = measurement.expect(asked).largest
    monkeypatch.setattr(measurement, "SHARE", 1)
    whole = measurement.expect(asked).largest
    assert part.tried < part.sentences == whole.tried == whole.sentences
    assert part.bytes * part.factor == pytest.approx(whole.bytes, rel=0.2)


@pytest.mark.parametrize(
    ("extra", "options", "updates", "epochs"),
    [
        (["--max-epoch", "3"], ("--cpu",), 30, 3.0),
        (["--max-epoch", "3", "--update-freq", "3"], ("--cpu",), 12, 3.0),
        (["--max-epoch", "3", "--max-update", "4"], ("--cpu",), 4, 0.4),
        (["--max-epoch", "3"], ("--processes", "2"), 15, 3.0),
    ],
)
def test_updates_until_the_limits(
    extra: list[str], options: tuple[str, ...], updates: int, epochs: float, data: Path, mini: Path
) -> None:
    found = measurement.expect(planned("toy", mini, data, "--batch-size", "16", *extra, options=options))
    assert found.batches == 10  # of 160 sentences
    assert (found.updates, found.epochs) == (updates, epochs)


@pytest.mark.slow
def test_measuring_trains_and_keeps_nothing(data: Path, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    call: list[Any] = ["toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--measure", 6]
    done = recipe("train", *call, environment={"TMPDIR": str(tmp_path / "scratch")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "update 6 of 6" in done.stderr
    assert re.search(r"^memory, measured: \d+ MB", done.stdout, flags=re.M)
    assert re.search(r"^time, measured: \S+ s an update, .+ to the end", done.stdout, flags=re.M)
    assert not (tmp_path / "runs").exists()
    assert not [*(tmp_path / "scratch").glob("thoth-measure-*")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (600, "10 min"), (9000, "2 h 30 min"), (200000, "2 days 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert measurement.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(3.21e6, "3.2 MB"), (1.234e7, "12 MB"), (2.55e9, "2.5 GB")])
def test_sizes(number: float, text: str) -> None:
    assert measurement.size(number) == text
