"""Trainings and generations of small depth-adaptive models by fairseq's command lines."""

import re
from pathlib import Path

import pytest

from tests.support.command_lines import TINY, Command, run
from tests.support.paths import ROOT

PLUGIN = ROOT / "depth_adaptive"
COMMON = [*TINY, "--user-dir", PLUGIN, "--criterion", "depth_adaptive_cross_entropy", "--decoder-layers", 3]


def train(folder: Path, corpus: Path, *options: object, arch: str = "depth_adaptive_transformer_small") -> Command:
    arguments = [corpus, *COMMON, "--arch", arch, "--save-dir", folder, "--max-update", 8, *options]
    return run(folder.with_suffix(".log"), "fairseq_compat.train", *arguments)


def generate(log: Path, corpus: Path, checkpoint: Path, overrides: dict[str, object], *more: object) -> Command:
    options = ["--path", checkpoint, "--cpu", "--beam", 3, "--max-len-b", 12, "--num-workers", 0, *more]
    return run(log, "fairseq-generate", corpus, "--user-dir", PLUGIN, *options, "--model-overrides", repr(overrides))


def translations(command: Command) -> dict[int, str]:
    """Sentence number → best hypothesis."""
    return {number: text for number, (_, text) in scored(command).items()}


def scored(command: Command) -> dict[int, tuple[float, str]]:
    """Sentence number → score and best hypothesis."""
    assert command.status == 0, command.output
    hypotheses = re.findall(r"^D-(\d+)\t(\S+)\t(.*)$", command.output, flags=re.M)
    return {int(number): (float(score), text) for number, score, text in hypotheses}


def alike(some: dict[int, tuple[float, str]], others: dict[int, tuple[float, str]]) -> bool:
    """Whether texts are the same, and scores but for rounding: those of other exits are not."""
    assert some.keys() == others.keys()
    return all(some[n][1] == others[n][1] and some[n][0] == pytest.approx(others[n][0], abs=1e-3) for n in some)


def assert_one_line(command: Command, message: str) -> None:
    assert command.status in (1, 2)
    assert len(command.errors) == 1, command.output
    assert message in command.errors[0]
    assert "Traceback" not in command.output
