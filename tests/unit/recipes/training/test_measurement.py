"""What recipes/train.sh --dry-run and --measure print: parameters, batches, updates; memory and time."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import train
from recipes.training import dry_run, measurement
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


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_size(model: str, iwslt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["iwslt14.de-en", model, "--data", str(iwslt), "--runs", str(iwslt / "runs"), "--cpu", "--dry-run"]
    few = ["--batch-size", "8"]
    train.train(train.parser().parse_args(call), few, ["recipes/train.sh", *call, "--", *few])
    output = capsys.readouterr().out
    assert f"--save-dir {iwslt}/runs/iwslt14.de-en/{model}/checkpoints" in output
    assert int(re.search(r"^parameters: ([\d,]+)$", output, flags=re.M)[1].replace(",", "")) > 100_000  # type: ignore[index]
    assert re.search(r"^batches: 20 per epoch, of 8.0 sentences on average; \d+ per update$", output, flags=re.M)
    assert re.search(r"^updates: [\d,]+ \([\d.,]+ epochs\)$", output, flags=re.M)
    assert "memory, " not in output
    assert not (iwslt / "runs").exists()


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
    size = dry_run.size(planned("toy", mini, data, "--batch-size", "16", *extra, options=options))
    assert size.batches == 10  # of 160 sentences
    assert (size.updates, size.epochs) == (updates, epochs)


@pytest.mark.slow
def test_measuring_trains_and_keeps_nothing(data: Path, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    call: list[Any] = ["toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--measure", 6]
    done = recipe("train", *call, environment={"TMPDIR": str(tmp_path / "scratch")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "update 6 of 6" in done.stderr
    assert re.search(r"^memory, measured: \d+ MB", done.stdout, flags=re.M)
    assert re.search(r"^time, measured: \S+ s per update, .+ for all updates", done.stdout, flags=re.M)
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
