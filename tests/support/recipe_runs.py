"""A small prepared corpus and a model file for the tests of recipes/train.sh and recipes/evaluate.sh."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.paths import ROOT
from thoth_core.errors import UserError

SYLLABLES = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti"]

MODEL = """\
description: a Transformer that trains in a second
train:
  task: translation
  arch: transformer
  share-all-embeddings: true
  encoder-layers: 1
  decoder-layers: 1
  encoder-embed-dim: 32
  decoder-embed-dim: 32
  encoder-ffn-embed-dim: 64
  decoder-ffn-embed-dim: 64
  encoder-attention-heads: 2
  decoder-attention-heads: 2
  dropout: 0.1
  criterion: label_smoothed_cross_entropy
  label-smoothing: 0.1
  optimizer: adam
  lr: 0.01
  max-tokens: 400
  max-epoch: 4
  log-interval: 2
generate:
  beam: 3
  max-len-b: 30
"""


def write_text(folder: Path, *, seed: int = 1) -> None:
    """folder/{train,valid,test}.{de,en}: two-syllable words; `en` is `de` in reverse order, in capitals."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for split, count in (("train", 160), ("valid", 20), ("test", 24)):
        sentences = [["".join(draw.choices(SYLLABLES, k=2)) for _ in range(draw.randint(2, 7))] for _ in range(count)]
        for language, lines in (
            ("de", [" ".join(sentence) for sentence in sentences]),
            ("en", [" ".join(sentence[::-1]).upper() for sentence in sentences]),
        ):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def paper_corpus(folder: Path, text: Path) -> Path:
    """folder/paper.yaml, a corpus prepared as in papers of what `write_text` has written into `text`."""
    path = folder / "paper.yaml"
    path.write_text(
        "description: toy\nsource: de\ntarget: en\nreader: files\npreparation: paper\n"
        f"files: {{train: {text}/train, valid: {text}/valid, test: {text}/test}}\n"
        "subwords: {operations: 40}\nclean: {language_check: false}\n"
    )
    return path


def recipe(
    script: str, *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run recipes/SCRIPT.sh with this Python and one thread."""
    return subprocess.run(
        [str(ROOT / "recipes" / f"{script}.sh"), *map(str, arguments)],
        env=recipe_environment(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def recipe_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **(more or {})}


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that a call failed with one line of error that holds `words`, without a traceback or a score."""
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2), output
    lines = [line for line in output.splitlines() if "error: " in line]
    assert len(lines) == 1, output
    assert lines[0].startswith("error: "), output
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in output
    assert "BLEU = " not in output


def refusal(command: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line by which a command in this process refuses its call."""
    capsys.readouterr()
    with pytest.raises((UserError, SystemExit)) as caught:
        command()
    message = str(caught.value) if isinstance(caught.value, UserError) else capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    return message


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content: to show that nothing was touched."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def prepared(shared: Path) -> Path:
    """A data folder with the prepared corpus `toy`, and beside it the model file `mini.yaml`; made once."""
    data = shared / "recipe_data"
    with FileLock(shared / "recipe_data.lock"):
        if not (data / "toy").exists():
            write_text(shared / "recipe_text")
            (shared / "mini.yaml").write_text(MODEL, encoding="utf-8")
            options: list[object] = ["files", "--name", "toy", "--source", "de", "--target", "en"]
            for split in ("train", "valid", "test"):
                options += [f"--{split}", shared / "recipe_text" / split]
            done = recipe("prepare", *options, "--vocab-size", 60, "--data", data, "--no-language-check")
            assert done.returncode == 0, done.stdout + done.stderr
    return data


def trained(shared: Path) -> Path:
    """A runs folder in which `mini` was trained on `toy`; made once. Do not write into it."""
    data, runs = prepared(shared), shared / "recipe_runs"
    with FileLock(shared / "recipe_runs.lock"):
        if not (runs / "toy" / "mini" / "run.json").exists():
            done = recipe("train", "toy", shared / "mini.yaml", "--data", data, "--runs", runs, "--cpu")
            assert done.returncode == 0, done.stdout + done.stderr
            (runs / "said.txt").write_text(done.stdout, encoding="utf-8")
    return runs


def trained_depth(shared: Path) -> Path:
    """A folder with a model file, depth.yaml, and in runs/ what was trained by it on `toy`; made once."""
    data, folder = prepared(shared), shared / "recipe_depth"
    folder.mkdir(exist_ok=True)
    with FileLock(shared / "recipe_depth.lock"):
        if not (folder / "runs" / "toy" / "depth" / "run.json").exists():
            text = MODEL.replace("arch: transformer", "arch: depth_adaptive_transformer_small\n  halting: geometric")
            text = text.replace("decoder-layers: 1", "decoder-layers: 3").replace("max-epoch: 4", "max-epoch: 2")
            text = text.replace("label_smoothed_cross_entropy", "depth_adaptive_cross_entropy")
            (folder / "depth.yaml").write_text(f"user_dir: {ROOT / 'depth_adaptive'}\n{text}", encoding="utf-8")
            done = recipe("train", "toy", folder / "depth.yaml", "--data", data, "--runs", folder / "runs", "--cpu")
            assert done.returncode == 0, done.stdout + done.stderr
    return folder
