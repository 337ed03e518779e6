"""The plugin through fairseq's real command lines: every training, policy and oracle."""

import re
from pathlib import Path

import pytest
from command_lines import TINY, Command, run

from fairseq_host import checkpoints

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "depth_adaptive"
COMMON = [*TINY, "--user-dir", PLUGIN, "--criterion", "depth_adaptive_cross_entropy", "--decoder-layers", 3]
ARCHS = {
    "depth_adaptive_transformer": ["--decoder-normalize-before", "--exit-projections", "separate"],
    "depth_adaptive_transformer_iwslt_de_en": ["--exit-gradient-scale", 0.5, "--exit-weighting", "inverse"],
    "depth_adaptive_transformer_small": ["--exit-training", "mixed", "--exit-samples", 2],
}


def train(folder: Path, corpus: Path, *options: object, arch: str = "depth_adaptive_transformer_small") -> Command:
    arguments = [corpus, *COMMON, "--arch", arch, "--save-dir", folder, "--max-update", 8, *options]
    return run(folder.with_suffix(".log"), "fairseq_host.train", *arguments)


def generate(log: Path, corpus: Path, checkpoint: Path, overrides: dict[str, object]) -> Command:
    options = ["--path", checkpoint, "--cpu", "--beam", 3, "--max-len-b", 12, "--num-workers", 0]
    return run(log, "fairseq-generate", corpus, "--user-dir", PLUGIN, *options, "--model-overrides", repr(overrides))


def translations(command: Command) -> dict[int, str]:
    """Sentence number → best hypothesis."""
    assert command.status == 0, command.output
    return {int(number): text for number, text in re.findall(r"^D-(\d+)\t\S+\t(.*)$", command.output, flags=re.M)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """A run with geometric halting."""
    folder = tmp_path_factory.mktemp("depth") / "run"
    command = train(folder, tiny_corpus, "--halting", "geometric", "--max-update", 26)
    assert command.status == 0, command.output
    return folder


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("halting", ["sequence", "token", "geometric"])
@pytest.mark.parametrize("oracle", ["likelihood", "correctness"])
def test_every_training_halting_and_oracle(
    arch: str, halting: str, oracle: str, tmp_path: Path, tiny_corpus: Path
) -> None:
    options = ["--halting", halting, "--halting-oracle", oracle, "--halting-penalty", 0.05, *ARCHS[arch]]
    smoothing = ["--halting-smoothing", 1.0] if halting != "sequence" else []
    command = train(tmp_path / "run", tiny_corpus, *options, *smoothing, arch=arch)
    assert command.status == 0, command.output
    losses = [float(loss) for loss in re.findall(r"train_inner.*?\bloss=([\d.]+)", command.output)]
    assert min(losses[2:]) < losses[0]
    for name in ("halting_loss", "oracle_exit", "accuracy_3", "nll_1"):
        assert name in command.output
    overrides = {"exit_policy": "halting"}
    found = generate(tmp_path / "generate.log", tiny_corpus, tmp_path / "run/checkpoint_last.pt", overrides)
    assert len(translations(found)) == 20


@pytest.mark.parametrize(
    "overrides",
    [
        {"exit_policy": "full"},
        {"exit_policy": "fixed", "exit_layer": 1},
        {"exit_policy": "random", "exit_distribution": "2,1,1"},
        {"exit_policy": "confidence", "exit_threshold": 0.1},
        {"exit_policy": "confidence", "exit_threshold": "0.1,0.05", "exit_copies": "eager"},
        {"exit_policy": "halting", "exit_threshold": 0.4},
    ],
    ids=str,
)
def test_policies_are_chosen_at_generation(
    overrides: dict[str, object], trained: Path, tmp_path: Path, tiny_corpus: Path
) -> None:
    command = generate(tmp_path / "generate.log", tiny_corpus, trained / "checkpoint_last.pt", overrides)
    assert len(translations(command)) == 20


def test_the_last_exit_is_full_depth(trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    checkpoint = trained / "checkpoint_last.pt"
    full = translations(generate(tmp_path / "full.log", tiny_corpus, checkpoint, {}))
    last = translations(
        generate(tmp_path / "last.log", tiny_corpus, checkpoint, {"exit_policy": "fixed", "exit_layer": 3})
    )
    assert full == last
    confident = {"exit_policy": "confidence", "exit_threshold": 1.0}
    assert translations(generate(tmp_path / "confident.log", tiny_corpus, checkpoint, confident)) == full


def test_a_training_resumes_exactly(tmp_path: Path, tiny_corpus: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--halting", "geometric", "--exit-training", "mixed"]
    for folder, updates in ((whole, 20), (parts, 9), (parts, 20)):
        command = train(folder, tiny_corpus, *options, "--max-update", updates)
        assert command.status == 0, command.output
    one, other = (checkpoints.load(folder / "checkpoint_last.pt")["model"] for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("precision", [["--bf16"], ["--fp16", "--fp16-no-flatten-grads"]], ids=["bf16", "fp16"])
def test_half_precision_trains_and_decodes(precision: list[str], tmp_path: Path, tiny_corpus: Path) -> None:
    command = train(tmp_path / "run", tiny_corpus, "--halting", "geometric", *precision)
    assert command.status == 0, command.output
    found = generate(
        tmp_path / "generate.log", tiny_corpus, tmp_path / "run/checkpoint_last.pt", {"exit_policy": "halting"}
    )
    assert len(translations(found)) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--exit-policy", "fixed", "--exit-layer", 4],
            "--exit-layer must be from 1 to 3, the decoder's blocks, given 4",
        ),
        (["--exit-policy", "confidence", "--exit-threshold", 2], "--exit-threshold: a threshold must be from 0 to 1"),
        (["--label-smoothing", 1.5], "--label-smoothing must be at least 0 and below 1, given 1.5"),
    ],
    ids=["layer", "threshold", "smoothing"],
)
def test_wrong_options_end_in_one_line(options: list[object], message: str, tmp_path: Path, tiny_corpus: Path) -> None:
    command = train(tmp_path / "run", tiny_corpus, *options)
    assert command.status == 1
    assert len(command.errors) == 1, command.output
    assert message in command.errors[0]
    assert "Traceback" not in command.output


def test_a_policy_without_weights_for_it_is_refused(tmp_path: Path, tiny_corpus: Path) -> None:
    assert train(tmp_path / "run", tiny_corpus, "--max-update", 2).status == 0
    command = generate(
        tmp_path / "generate.log", tiny_corpus, tmp_path / "run/checkpoint_last.pt", {"exit_policy": "halting"}
    )
    assert command.status == 1
    assert "--exit-policy halting needs a model that was trained with --halting" in command.output
