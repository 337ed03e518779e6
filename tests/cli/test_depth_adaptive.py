"""The plugin through fairseq's real command lines: every training, policy and oracle."""

import itertools
import re
from pathlib import Path

import pytest

from depth_adaptive.config import ARCHITECTURES
from depth_adaptive.halting import HALTINGS
from depth_adaptive.losses import WEIGHTINGS
from depth_adaptive.oracles import ORACLES
from tests.support.depth_commands import alike, assert_one_line, generate, scored, train, translations

# Options by the name of what they choose. "none" and "0" stand for options that are not given.
CHOICES: dict[str, dict[str, list[object]]] = {
    "training": {kind: ["--exit-weighting", kind] for kind in WEIGHTINGS}
    | {"mixed": ["--exit-training", "mixed", "--exit-samples", 2]},
    "halting": {kind: ["--halting", kind] for kind in HALTINGS},
    "oracle": {kind: ["--halting-oracle", kind, "--halting-penalty", 0.05] for kind in ORACLES},
    "smoothing": {"0": [], "1": ["--halting-smoothing", 1.0]},
    "exits": {"shared": [], "separate": ["--exit-projections", "separate", "--decoder-normalize-before"]},
    "gradients": {"plain": [], "scaled": ["--exit-gradient-scale", 0.5]},
    "distillation": {"none": [], "half": ["--exit-distillation", 0.5]},
    "average": {"tokens": [], "sentences": ["--sentence-avg"]},
    "arch": {name: ["--arch", name] for name in ("depth_adaptive_transformer", *ARCHITECTURES)},
}
Pairs = set[tuple[tuple[str, str], tuple[str, str]]]


def allowed(row: dict[str, str]) -> bool:
    """Whether every choice has an effect.

    Excluded are an oracle without halting, neighbours of a sentence, and distillation in mixed training.
    """
    smoothed = row["smoothing"] != "0"
    if row["training"] == "mixed" and row["distillation"] != "none":
        return False
    if row["halting"] == "none":
        return row["oracle"] == ORACLES[0] and not smoothed
    return row["halting"] != "sequence" or not smoothed


def pairs(row: dict[str, str]) -> Pairs:
    return set(itertools.combinations(row.items(), 2))


def covering() -> list[dict[str, str]]:
    """Rows of choices in which every two that are allowed together occur together; greedily, few."""
    product = (dict(zip(CHOICES, names, strict=True)) for names in itertools.product(*CHOICES.values()))
    left_of = [(row, pairs(row)) for row in product if allowed(row)]
    left: Pairs = set().union(*(covered for _, covered in left_of))
    rows = []
    while left:
        row, covered = max(left_of, key=lambda candidate: len(candidate[1] & left))
        rows.append(row)
        left -= covered
    return rows


ROWS = covering()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """A run with geometric halting."""
    folder = tmp_path_factory.mktemp("depth") / "run"
    command = train(folder, tiny_corpus, "--halting", "geometric", "--max-update", 26)
    assert command.status == 0, command.output
    return folder


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
def test_every_pair_of_choices_trains_and_decodes(row: dict[str, str], tmp_path: Path, tiny_corpus: Path) -> None:
    options = [option for name, chosen in row.items() for option in CHOICES[name][chosen]]
    command = train(tmp_path / "run", tiny_corpus, *options, "--max-update", 4)
    assert command.status == 0, command.output
    losses = re.findall(r"train_inner.*?\bloss=([\d.]+), nll_loss=([\d.]+)", command.output)
    assert len(losses) == 4
    assert min(float(nll) for _, nll in losses[1:]) < float(losses[0][1])
    assert (float(losses[0][0]) > 15) == (row["average"] == "sentences")  # bits per sentence, of about seven tokens
    halting = row["halting"] != "none"
    for name in ("accuracy_3", "nll_1", *(["halting_loss", "oracle_exit"] if halting else [])):
        assert f" {name} " in command.output
    overrides: dict[str, object] = {"exit_policy": "halting" if halting else "confidence"}
    if row["halting"] not in ("sequence", "token"):
        overrides["exit_threshold"] = 0.1
    decoded = generate(tmp_path / "generate.log", tiny_corpus, tmp_path / "run/checkpoint_last.pt", overrides)
    assert len(translations(decoded)) == 20


@pytest.fixture(scope="module")
def ends(trained: Path, tiny_corpus: Path) -> dict[str, dict[int, tuple[float, str]]]:
    """What full depth and the exits before it translate, which is not the same."""
    choices: dict[str, dict[str, object]] = {"full": {}}
    choices |= {name: {"exit_policy": "fixed", "exit_layer": n} for n, name in ((1, "first"), (2, "second"))}
    decoded = {
        name: scored(generate(trained.parent / f"{name}.log", tiny_corpus, trained / "checkpoint_last.pt", overrides))
        for name, overrides in choices.items()
    }
    assert len(decoded["full"]) == 20
    assert not any(alike(one, other) for one, other in itertools.combinations(decoded.values(), 2))
    return decoded


@pytest.mark.parametrize(
    ("overrides", "end"),
    [
        ({"exit_policy": "full"}, "full"),
        ({"exit_policy": "fixed", "exit_layer": 3}, "full"),
        ({"exit_policy": "random", "exit_distribution": "0,0,1"}, "full"),
        ({"exit_policy": "confidence", "exit_threshold": 1.0}, "full"),
        ({"exit_policy": "halting", "exit_threshold": 1}, "full"),
        ({"exit_policy": "confidence", "exit_threshold": 0}, "first"),
        ({"exit_policy": "halting", "exit_threshold": "0,1"}, "first"),
        ({"exit_policy": "confidence", "exit_threshold": "1,0", "exit_copies": "eager"}, "second"),
        ({"exit_policy": "halting", "exit_threshold": "1,0"}, "second"),
        ({"exit_policy": "random", "exit_distribution": "2,1,1"}, None),
        ({"exit_policy": "confidence", "exit_threshold": 0.14}, None),
        ({"exit_policy": "halting", "exit_threshold": 0.962}, None),
    ],
    ids=str,
)
def test_policies_are_chosen_at_generation(
    overrides: dict[str, object],
    end: str | None,
    ends: dict[str, dict[int, tuple[float, str]]],
    trained: Path,
    tmp_path: Path,
    tiny_corpus: Path,
) -> None:
    """And decode as one exit, where all tokens leave there, and else as none."""
    decoded = scored(generate(tmp_path / "generate.log", tiny_corpus, trained / "checkpoint_last.pt", overrides))
    assert [name for name, expected in ends.items() if alike(decoded, expected)] == ([end] if end else [])


def test_a_plain_transformer_goes_on_with_a_halting(tmp_path: Path, tiny_corpus: Path) -> None:
    """--finetune-from-model takes fairseq's own; with --halting-only full depth stays what that was. It resumes."""
    plain = ["--criterion", "label_smoothed_cross_entropy", "--max-update", 26]
    assert train(tmp_path / "plain", tiny_corpus, *plain, arch="transformer").status == 0
    start = tmp_path / "plain/checkpoint_last.pt"
    options = ["--halting", "geometric", "--halting-only", "--exit-projections", "separate"]
    command = train(tmp_path / "run", tiny_corpus, *options, "--max-update", 3, "--finetune-from-model", start)
    assert command.status == 0, command.output
    assert (
        "the checkpoint lacks decoder.exit_projections.0.weight, decoder.exit_projections.1.weight, " in command.output
    )
    command = train(tmp_path / "run", tiny_corpus, *options, "--max-update", 6)
    assert command.status == 0, command.output
    assert "@ 3 updates)" in command.output
    last = tmp_path / "run/checkpoint_last.pt"
    # Without a model of ours, fairseq leaves out the last batch where its size is no multiple of 8.
    whole = ["--required-batch-size-multiple", 1]
    expected = scored(generate(tmp_path / "plain.log", tiny_corpus, start, {}, *whole))
    assert len(expected) == 20
    assert alike(scored(generate(tmp_path / "full.log", tiny_corpus, last, {})), expected)
    halting = {"exit_policy": "halting", "exit_threshold": 0}
    assert not alike(scored(generate(tmp_path / "halting.log", tiny_corpus, last, halting)), expected)


WRONG: dict[str, tuple[list[object], str]] = {
    "layer": (
        ["--exit-policy", "fixed", "--exit-layer", 4],
        "--exit-layer must be from 1 to 3, the decoder's blocks, given 4",
    ),
    "no layer": (["--exit-policy", "fixed"], "--exit-policy fixed needs --exit-layer: from 1 to 3"),
    "layer in words": (["--exit-layer", "two"], "argument --exit-layer: invalid int value: 'two'"),
    "threshold": (
        ["--exit-policy", "confidence", "--exit-threshold", 2],
        "--exit-threshold: a threshold must be from 0 to 1, given 2",
    ),
    "threshold that is not read": (["--exit-threshold", "nan"], "a threshold must be from 0 to 1, given nan"),
    "thresholds": (
        ["--exit-policy", "confidence", "--exit-threshold", "0.1,0.2,0.3"],
        "--exit-threshold: 1 or 2 thresholds are needed for 3 exits, given 3",
    ),
    "threshold in words": (
        ["--exit-threshold", "high"],
        "--exit-threshold must be numbers with commas between them, as in 0.9,0.8, given 'high'",
    ),
    "weights": (
        ["--exit-policy", "random", "--exit-distribution", "1,2"],
        "--exit-distribution: 3 weights of at least 0, one of them above, are needed, given [1.0, 2.0]",
    ),
    "negative weight": (["--exit-distribution=2,-1,1"], "--exit-distribution: 3 weights of at least 0"),
    "infinite weight": (["--exit-distribution", "1,1,inf"], "--exit-distribution: 3 weights of at least 0"),
    "policy": (["--exit-policy", "entropy"], "argument --exit-policy: invalid choice: 'entropy' (choose from 'full', "),
    "policy without halting": (
        ["--exit-policy", "halting"],
        "was trained with --halting; policies of this model: full, fixed, random, confidence",
    ),
    "halting alone": (["--halting-only"], "--halting-only needs --halting: one of sequence, token, geometric"),
    "halting alone, of nothing": (
        ["--halting", "geometric", "--halting-only"],
        "--halting-only trains the halting module of a trained model, and none was loaded: give its checkpoint to "
        "--finetune-from-model",
    ),
    "samples": (["--exit-samples", 0], "--exit-samples must be at least 1, given 0"),
    "scale": (["--exit-gradient-scale", "nan"], "--exit-gradient-scale must be above 0, given nan"),
    "smoothing": (["--label-smoothing", 1.5], "--label-smoothing must be at least 0 and below 1, given 1.5"),
    "penalty": (["--halting-penalty", "nan"], "--halting-penalty must be at least 0, given nan"),
    "other model": (
        ["--arch", "transformer"],
        "--criterion depth_adaptive_cross_entropy needs --arch depth_adaptive_transformer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_end_in_one_line(case: str, tmp_path: Path, tiny_corpus: Path) -> None:
    options, message = WRONG[case]
    assert_one_line(train(tmp_path / "run", tiny_corpus, *options), message)
    assert not list(tmp_path.glob("run/checkpoint*.pt"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"exit_policy": "confidense"},
            "--exit-policy must be one of full, fixed, random, confidence, halting, given 'confidense'",
        ),
        ({"exit_policy": "fixed", "exit_layer": "two"}, "--exit-layer must be a whole number, given 'two'"),
        ({"exit_policy": "fixed", "exit_layer": 4}, "--exit-layer must be from 1 to 3"),
        ({"exit_policy": "confidence", "exit_threshold": "0.5,0.5,0.5"}, "1 or 2 thresholds are needed for 3 exits"),
        ({"exit_policy": "confidence", "exit_copies": "later"}, "--exit-copies must be one of deferred, eager"),
        (
            {"exit_policy": "halting", "halting": "token"},
            "--exit-policy halting needs a model that was trained with --halting token, and the checkpoint was not",
        ),
    ],
    ids=["policy", "no layer", "layer", "thresholds", "copies", "halting"],
)
def test_wrong_overrides_end_in_one_line(
    overrides: dict[str, object], message: str, trained: Path, tmp_path: Path, tiny_corpus: Path
) -> None:
    assert_one_line(generate(tmp_path / "log", tiny_corpus, trained / "checkpoint_last.pt", overrides), message)


def test_a_policy_without_weights_for_it_is_refused(tmp_path: Path, tiny_corpus: Path) -> None:
    assert train(tmp_path / "run", tiny_corpus, "--max-update", 2).status == 0
    command = generate(
        tmp_path / "generate.log", tiny_corpus, tmp_path / "run/checkpoint_last.pt", {"exit_policy": "halting"}
    )
    assert_one_line(
        command, "--exit-policy halting needs a model that was trained with --halting; policies of this model: "
    )
    geometric = {"exit_policy": "halting", "halting": "geometric"}
    command = generate(tmp_path / "generate.log", tiny_corpus, tmp_path / "run/checkpoint_last.pt", geometric)
    assert_one_line(command, "--exit-policy halting needs a model that was trained with --halting geometric, and the ")


def test_dropout_is_retained_and_alignments_are_printed_at_full_depth_only(
    ends: dict[str, dict[int, tuple[float, str]]], trained: Path, tmp_path: Path, tiny_corpus: Path
) -> None:
    checkpoint = trained / "checkpoint_last.pt"
    dropped = generate(tmp_path / "full.log", tiny_corpus, checkpoint, {}, "--retain-dropout")
    assert not alike(scored(dropped), ends["full"])
    fixed = {"exit_policy": "fixed", "exit_layer": 3}
    command = generate(tmp_path / "fixed.log", tiny_corpus, checkpoint, fixed, "--retain-dropout")
    assert_one_line(command, "--retain-dropout works with --exit-policy full only: leave one of them out")
    aligned = generate(tmp_path / "aligned.log", tiny_corpus, checkpoint, {}, "--print-alignment")
    assert aligned.status == 0, aligned.output
    assert alike(scored(aligned), ends["full"])
    command = generate(tmp_path / "fixed.log", tiny_corpus, checkpoint, fixed, "--print-alignment")
    assert_one_line(command, "--print-alignment works with --exit-policy full only: leave one of them out")
