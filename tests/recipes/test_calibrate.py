"""recipes/calibrate.sh: thresholds against plain loops over the model's own forward pass, and refusals."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from depth_adaptive import calibration
from fairseq_compat import checkpoints
from recipes.cli import calibrate, evaluate
from recipes.cli.arguments import request_of
from recipes.config.search import search_options
from recipes.data.prepared_corpus import open_corpus
from recipes.evaluation import exit_calibration, exit_trials, forced_decoding, selection, threshold_search
from recipes.evaluation.exit_trials import Trial, Trials
from recipes.evaluation.model_loading import LoadedCheckpoint
from recipes.evaluation.request import Request
from recipes.evaluation.selection import read_lines
from recipes.evaluation.translator import ModelSource, Translator, load_translator
from recipes.metrics.results import Score
from recipes.storage import provenance
from recipes.storage.provenance import ROOT
from tests.support.depth_models import noted_exits
from tests.support.recipe_runs import paper_corpus, recipe, refusal
from thoth_core.errors import UserError

SEARCH = search_options({"beam": 2, "max-len-a": 1.5, "max-len-b": 5, "max-tokens": 40}, "options")
TRIED = (0.8, 0.4, 0.2)


def loaded(depth: Path, data: Path, *, trained: bool = False, **overrides: Any) -> Translator:
    """With random parameters: a few updates say the same about every token, these something else about each."""
    path = depth / "runs/toy/depth/checkpoints/checkpoint_best.pt"
    state = checkpoints.load(path)
    draw = torch.Generator().manual_seed(1)
    for value in state["model"].values():
        if value.dim() > 1 and not trained:
            value.normal_(0, 0.4, generator=draw)
    if not trained:
        state["model"]["decoder.halting.geometric.bias"].fill_(-2.0)  # else nearly all tokens leave at once
    corpus = open_corpus("toy", data)
    source = ModelSource(state, path, ROOT / "depth_adaptive")
    return load_translator([source], corpus=corpus, device="cpu", overrides=overrides)


def lines(data: Path, language: str) -> list[str]:
    return read_lines(data / f"toy/text/valid.{language}")


@pytest.fixture(scope="module", params=["confidence", "halting"])
def for_all(request: pytest.FixtureRequest, depth: Path, data: Path) -> Trials:
    model = loaded(depth, data)
    return Trials(model, lines(data, "de"), lines(data, "en"), SEARCH, policy=request.param, language="en")


@pytest.fixture
def trials(for_all: Trials) -> Iterator[Trials]:
    """With the options put back at the end."""
    before = for_all.options
    yield for_all
    for_all.options = before


def fitted(trials: Trials) -> list[float]:
    """The temperatures in use."""
    return [float(value) for value in str(trials.options.exit_temperature).split(",")]


# --- one threshold ---------------------------------------------------------------------------------


def test_teacher_forcing_is_a_plain_loop_over_the_models_forward(trials: Trials, depth: Path, data: Path) -> None:
    """A sentence at a time, without padding, with the policy as fairseq's own --model-overrides would set it."""
    full = loaded(depth, data)
    seen = set()
    for threshold in TRIED:
        model = loaded(depth, data, exit_policy=trials.policy, exit_threshold=threshold).model
        shares, exits = [], []
        for source, translation in zip(trials.sources, trials.translations, strict=True):
            indices = full.encode(source)[0][None]
            previous = torch.cat([torch.tensor([2]), translation.indices[:-1]])[None]
            inputs = (indices, torch.tensor([indices.size(1)]), previous)
            with torch.no_grad():
                ours, extra = model(*inputs)
                theirs, _ = full.model(*inputs)
            differ = [int(a != b) for a, b in zip(ours[0].argmax(-1), theirs[0].argmax(-1), strict=True)]
            shares.append(sum(differ) / len(differ))
            exits += extra["exits"][0].tolist()
        trial = trials.forced(threshold)
        assert trial.losses is not None
        assert trial.losses.tolist() == pytest.approx(shares)
        assert trial.disagreement == pytest.approx(sum(shares) / len(shares))
        assert trial.forced_exit == pytest.approx(sum(exits) / len(exits))
        seen.add(trial.forced_exit)
    assert len(seen) > 2
    assert trials.forced(1.0).losses.sum() == 0  # type: ignore[union-attr]
    assert trials.forced(1.0).forced_exit == 3


def test_what_is_observed_is_what_each_exit_alone_would_say(trials: Trials, depth: Path, data: Path) -> None:
    trials.options = replace(trials.options, exit_temperature="0.8,1.5,2")
    scores, wrong = trials.observed()
    alone = [
        loaded(depth, data, exit_policy="fixed", exit_layer=n, exit_temperature="0.8,1.5,2").model for n in (1, 2, 3)
    ]
    place, begins = 0, []
    for source, reference in zip(trials.sources, trials.references, strict=True):
        indices = trials.translator.encode(source)[0][None]
        words = trials.translator.task.target_dictionary.encode_line(
            " ".join(trials.translator.target.segment(reference)), add_if_not_exist=False
        ).long()
        previous = torch.cat([torch.tensor([2]), words[:-1]])[None]
        with torch.no_grad():
            logits = torch.stack([model(indices, torch.tensor([indices.size(1)]), previous)[0][0] for model in alone])
        part = slice(place, place + previous.size(1))
        assert torch.equal(wrong[:, part], logits.argmax(-1) != words)
        if trials.policy == "confidence":
            torch.testing.assert_close(scores[:, part], logits[:-1].softmax(-1).amax(-1), rtol=1e-4, atol=1e-5)
        begins.append(place)
        place = part.stop
    assert not scores.requires_grad
    assert scores.shape == (2, place)
    assert wrong.shape == (3, place)
    assert wrong.any()
    assert not wrong.all()
    # A first token sees no copied states: there the policy must do what the scores say.
    thresholds = (0.45, 0.2)
    _, exits = trials._forced(thresholds)
    expected = calibration.exits_at(scores[:, begins], torch.tensor(thresholds)[:, None])
    assert [int(exit[0]) for exit in exits] == expected.tolist()
    assert len(set(expected.tolist())) > 1


def test_temperatures_make_the_references_likely(depth: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other temperature does better, by a loop over sentences and exits alone."""
    translator = loaded(depth, data, trained=True)
    texts = lines(data, "de"), lines(data, "en")
    trials = Trials(translator, *texts, SEARCH, policy="confidence", language="en")
    step = calibration.slope_and_curvature

    def without_graph(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not logits.requires_grad  # sums would keep it: gigabytes
        return step(logits, targets)

    monkeypatch.setattr(calibration, "slope_and_curvature", without_graph)
    trials.fit_temperatures()
    temperatures = fitted(trials)
    assert all(exit_trials.COOLEST < temperature < exit_trials.HOTTEST for temperature in temperatures)
    assert len(set(temperatures)) > 1
    for n, temperature in enumerate(temperatures, start=1):
        model = loaded(depth, data, trained=True, exit_policy="fixed", exit_layer=n).model
        loss = dict.fromkeys((temperature / 1.02, temperature, temperature * 1.02), 0.0)
        for source, reference in zip(trials.sources, trials.references, strict=True):
            indices = trials.translator.encode(source)[0][None]
            words = trials.translator.from_text(reference).indices
            previous = torch.cat([torch.tensor([2]), words[:-1]])[None]
            with torch.no_grad():
                logits = model(indices, torch.tensor([indices.size(1)]), previous)[0][0].double()
            for divisor in loss:
                loss[divisor] += torch.nn.functional.cross_entropy(logits / divisor, words, reduction="sum").item()
        assert min(loss, key=lambda divisor: loss[divisor]) == temperature


def test_a_model_that_knows_nothing_has_the_highest_temperatures(trials: Trials) -> None:
    trials.fit_temperatures()
    assert max(fitted(trials)) == exit_trials.HOTTEST


def test_decoding_is_that_of_the_override(trials: Trials, depth: Path, data: Path) -> None:
    trial = trials.decoded(0.3)
    translator = loaded(depth, data, exit_policy=trials.policy, exit_threshold=0.3)
    translations, _ = translator.translate(trials.sources, SEARCH)
    exits = forced_decoding.exits(translator, trials.sources, translations, 40)
    assert exits is not None
    flat = [exit for sentence in exits for exit in sentence]
    assert trial.exit == pytest.approx(sum(flat) / len(flat), abs=1e-4)
    assert trial.exit < 3
    expected, _ = loaded(depth, data).translate(trials.sources, SEARCH)
    assert [t.text for t in trials.translations] == [t.text for t in expected]


@pytest.mark.parametrize("policy", ["confidence", "halting"])
def test_the_exits_that_are_told_are_those_of_the_search(policy: str, depth: Path, data: Path) -> None:
    """Led through its translations in batches, the model leaves where beam search did, which saw a sentence alone."""
    translator = loaded(depth, data, exit_policy=policy, exit_threshold=0.3)
    sources, translations, taken = lines(data, "de"), [], []
    for source in sources:
        with noted_exits(translator.model.decoder) as exits:
            ((translation,), _) = translator.translate([source], SEARCH)
        words = translation.indices.tolist()
        translations.append(translation)
        taken.append(exits[0, 2, *words[:-1]])
    assert forced_decoding.exits(translator, sources, translations, 40) == taken
    assert len({exit for sentence in taken for exit in sentence}) > 1


# --- choosing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1.0, 2.0, 3.0])
def test_the_mean_exit_is_the_wanted_one(wanted: float, trials: Trials) -> None:
    threshold = threshold_search.for_mean_exit(trials, wanted, 100)
    mean_exit = trials.decoded(threshold).exit
    assert mean_exit is not None
    assert mean_exit <= wanted
    above = trials.decoded(round(threshold + 0.01, 6)).exit if threshold < 1 else math.inf
    assert above is not None
    assert mean_exit >= wanted - threshold_search.CLOSE or above > wanted


@pytest.mark.parametrize("wanted", [1.0, 1.6, 2.5])
def test_the_mean_exit_with_a_threshold_for_each_block_is_the_wanted_one(wanted: float, trials: Trials) -> None:
    dial = threshold_search.one_per_block(trials, 20)
    assert dial(0) == (0.0, 0.0)
    chosen = threshold_search.for_mean_exit(trials, wanted, 20, dial)
    assert isinstance(chosen, tuple)
    exit = trials.decoded(chosen).exit
    assert exit is not None
    assert exit <= wanted
    position = max(n for n in range(21) if dial(n) == chosen)
    above = trials.decoded(dial(position + 1)).exit if position < 20 else math.inf
    assert above is not None
    assert exit >= wanted - threshold_search.CLOSE or above > wanted


def test_bleu_is_walked_down_to_the_first_failure(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    bleu_of = {None: 30.0, 0.8: 29.9, 0.6: 31.0, 0.4: 29.0, 0.2: 28.9, 0.0: 30.0}

    def decoded(threshold: float | None) -> Trial:
        return Trial(threshold, bleu=Score(score=bleu_of[threshold], signature=""))

    monkeypatch.setattr(trials, "decoded", decoded)
    monkeypatch.setattr(trials, "full", decoded(None))
    assert threshold_search.for_bleu_loss(trials, 0.0, 5) is None
    assert threshold_search.for_bleu_loss(trials, 0.5, 5) == 0.6
    assert threshold_search.for_bleu_loss(trials, 1.0, 5) == 0.4
    assert threshold_search.for_bleu_loss(trials, 2.0, 5) == 0.0


def test_disagreement_is_that_of_learn_then_test(trials: Trials) -> None:
    """Stopping early leaves out thresholds that no half would have reached, and no others."""
    every = threshold_search.descending(10)
    assert every[0] == 0.9
    assert every[-1] == 0
    losses = torch.stack([trials.forced(threshold).losses for threshold in every])  # type: ignore[misc]
    for tolerated in (0.3, 0.5, 0.9):
        chosen, resplits = threshold_search.for_disagreement(
            trials, tolerated=tolerated, level=0.2, steps=10, resplits=50
        )
        assert chosen == calibration.lowest_valid_threshold(losses, every, tolerated=tolerated, level=0.2)
        halves = calibration.halves(len(trials.sources), 50)
        assert resplits == calibration.resplit(losses, every, halves, tolerated=tolerated, level=0.2)
        alone, none = threshold_search.for_disagreement(trials, tolerated=tolerated, level=0.2, steps=10, resplits=None)
        assert (alone, none) == (chosen, None)


# --- the whole recipe ---------------------------------------------------------------------------------


def call(depth: Path, data: Path) -> list[object]:
    return ["toy", depth / "depth.yaml", "--data", data, "--runs", depth / "runs", "--cpu"]


def test_from_a_checkpoint_to_the_call_of_the_evaluation(depth: Path, data: Path, tmp_path: Path) -> None:
    """The last line decodes with what was found: the mean exit of the evaluation is the one that is reported."""
    done = recipe("calibrate", *call(depth, data), "--mean-exit", 2, "--beam", 2, "--override", "exit_copies=eager")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = depth / "runs/toy/depth"
    record = json.loads((folder / "calibration-confidence-mean-exit-2-beam-2-exit_copies=eager.json").read_text())
    (row,) = [row for row in record["rows"] if row["threshold"] == record["threshold"]]
    assert row["mean_exit"] <= 2
    assert record["wanted"] == {"mean_exit": 2.0}
    assert (record["split"], record["sentences"], record["search"]["beam"]) == ("valid", 20, 2)
    assert record["commit"] == provenance.commit()
    last = done.stdout.splitlines()[-1]
    assert last == record["evaluate"]
    script, *words = shlex.split(last)
    assert script == "recipes/evaluate.sh"
    assert words[-2:] == ["--override", f"exit_threshold={record['threshold']:g}"]
    scored = recipe("evaluate", *words, "--split", "valid", "--pictures", 0, "--output", tmp_path / "scored")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    scores = json.loads((tmp_path / "scored/scores.json").read_text())
    assert scores["exits"]["mean"] == row["mean_exit"]
    assert scores["exits"]["tokens"] == row["tokens_by_exit"]
    assert scores["exits"]["mflops_per_token"] == row["mflops_per_token"]
    (line,) = [line for line in done.stdout.splitlines() if line.endswith("< chosen")]
    counts = " ".join(str(row["tokens_by_exit"].get(str(n), 0)) for n in (1, 2, 3))
    assert f" {row['mflops_per_token']:.2f}  {counts} " in line
    assert scores["bleu"] == {"score": row["bleu"], "signature": record["bleu_signature"]}
    assert scores["beam"] == 2


def calibrated(depth: Path, data: Path, *more: str) -> int:
    """In this process: starting one takes seconds."""
    return calibrate.main([*map(str, call(depth, data)), *more])


def test_a_corpus_prepared_as_in_papers(depth: Path, data: Path, tmp_path: Path) -> None:
    """Whose translations have no case: BLEU passes over it, as that of the evaluation does."""
    place = ["--data", str(tmp_path / "data")]
    call = ["paper", str(depth / "depth.yaml"), *place, "--runs", str(tmp_path / "runs"), "--cpu"]
    for script, *words in (
        ("prepare", paper_corpus(tmp_path, data.parent / "recipe_text"), *place),
        ("train", *call, "--", "--max-epoch", 15),
    ):
        done = recipe(script, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert calibrate.main([*call, "--bleu-loss", "100", "--steps", "1", "--beam", "1"]) == 0
    (path,) = (tmp_path / "runs/paper/depth").glob("calibration-*.json")
    record = json.loads(path.read_text())
    words = [
        *shlex.split(record["evaluate"])[1:],
        "--split",
        "valid",
        "--pictures",
        "0",
        "--output",
        str(tmp_path / "scored"),
    ]
    assert evaluate.main(words) == 0
    scores = json.loads((tmp_path / "scored/scores.json").read_text())
    assert "case:lc" in scores["bleu"]["signature"]
    assert scores["bleu"] == {"score": record["rows"][-1]["bleu"], "signature": record["bleu_signature"]}
    assert scores["bleu"]["score"] > 0


def test_another_question_has_another_file() -> None:
    def name(*more: str) -> str:
        arguments = calibrate.parser().parse_args(["toy", "depth", "--mean-exit", "2", *more])
        return calibrate.calibration_request(arguments).output_name(request_of(arguments))

    questions = [
        *(["--policy", "halting"], ["--per-exit"], ["--steps", "50"], ["--split", "test"]),
        *(["--beam", "1"], ["--lenpen", "0.6"], ["--override", "exit_copies=eager"]),
        *(["--checkpoint", "last"], ["--checkpoint", "average"], ["--average", "2"]),
    ]
    assert len({name(), *(name(*more) for more in questions)}) == 1 + len(questions)
    assert name("--steps", "1000", "--checkpoint", "best", "--cpu") == name() == "calibration-confidence-mean-exit-2"


def test_a_guarantee_with_resplits(depth: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--disagreement", "0.5", "--level", "0.2", "--resplits", "200", "--steps", "5", "--policy", "halting"]
    assert calibrated(depth, data, *more) == 0
    printed = capsys.readouterr().out
    path = depth / "runs/toy/depth/calibration-halting-disagreement-0.5-level-0.2-steps-5.json"
    record = json.loads(path.read_text())
    assert record["resplits"]["count"] == 200
    assert record["guarantee"] in printed
    assert "over the draw of these 20 sentences" in record["guarantee"]
    assert "Chosen on 200 random halves of 10 sentences" in printed
    wanted = "exit_policy=full" if record["threshold"] is None else f"exit_threshold={record['threshold']:g}"
    assert printed.splitlines()[-1].endswith(wanted)


def test_a_threshold_for_each_block(depth: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrated(depth, data, "--per-exit", "--mean-exit", "2", "--steps", "8", "--beam", "1") == 0
    printed = capsys.readouterr().out.splitlines()
    path = depth / "runs/toy/depth/calibration-confidence-per-exit-mean-exit-2-steps-8-beam-1.json"
    record = json.loads(path.read_text())
    assert len(record["threshold"]) == 2
    (row,) = [row for row in record["rows"] if row["threshold"] == record["threshold"]]
    assert row["mean_exit"] <= 2
    thresholds = ",".join(f"{x:g}" for x in record["threshold"])
    assert len(record["temperature"].split(",")) == 3
    overrides = [
        f"exit_policy=confidence --override exit_threshold={thresholds}",
        f"exit_temperature={record['temperature']}",
    ]
    assert printed[-1].endswith(" --override " + " --override ".join(overrides))
    (line,) = [line for line in printed if line.endswith("< chosen")]
    assert line.startswith(thresholds + " ")


def test_no_temperatures_are_given_by_null(depth: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--per-exit", "--mean-exit", "2", "--steps", "4", "--beam", "1", "--override", "exit_temperature=null"]
    assert calibrated(depth, data, *more) == 0
    name, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert name == "recipes/evaluate.sh"
    overrides = request_of(evaluate.parser().parse_args(words)).override_values
    assert len(overrides["exit_temperature"].split(",")) == 3


def test_temperatures_that_are_given_stay(depth: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--per-exit", "--mean-exit", "2", "--steps", "4", "--beam", "1", "--override", "exit_temperature=1"]
    assert calibrated(depth, data, *more) == 0
    printed = capsys.readouterr().out.splitlines()
    path = depth / "runs/toy/depth/calibration-confidence-per-exit-mean-exit-2-steps-4-beam-1-exit_temperature=1.json"
    assert json.loads(path.read_text())["temperature"] == 1
    assert printed[-1].count("exit_temperature=1") == 1


def test_any_loss_of_bleu_is_the_first_exit(depth: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrated(depth, data, "--bleu-loss", "100", "--steps", "2", "--beam", "1", "--split", "test") == 0
    printed = capsys.readouterr().out
    path = depth / "runs/toy/depth/calibration-confidence-bleu-loss-100-steps-2-test-beam-1.json"
    record = json.loads(path.read_text())
    assert record["threshold"] == 0
    assert [row["threshold"] for row in record["rows"]] == [None, 0.5, 0.0]
    assert [row["mean_exit"] for row in record["rows"]][::2] == [3, 1]
    assert re.search(r"^0 +1\.00 .* < chosen$", printed, flags=re.M)
    assert printed.splitlines()[-1].endswith("--override exit_policy=confidence --override exit_threshold=0")


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "nothing wanted": ([], ["--mean-exit", "--bleu-loss", "--disagreement"]),
    "two wanted": (["--mean-exit", "2", "--bleu-loss", "1"], ["--bleu-loss"]),
    "mean exit of zero": (["--mean-exit", "0"], ["--mean-exit must be a number of at least 1", "is 0"]),
    "mean exit above the blocks": (["--mean-exit", "4"], ["--mean-exit must be from 1 to 3", "is 4"]),
    "mean exit of nan": (["--mean-exit", "nan"], ["--mean-exit must be a number of at least 1"]),
    "negative loss": (["--bleu-loss", "-1"], ["--bleu-loss must be a number from 0"]),
    "loss of nan": (["--bleu-loss", "nan"], ["--bleu-loss must be a number from 0"]),
    "disagreement of one": (["--disagreement", "1"], ["--disagreement must be a number above 0 and below 1"]),
    "level of zero": (["--disagreement", "0.1", "--level", "0"], ["--level must be a number above 0"]),
    "level without": (["--mean-exit", "2", "--level", "0.1"], ["--level belongs to --disagreement"]),
    "resplits without": (["--bleu-loss", "1", "--resplits", "9"], ["--resplits belongs to --disagreement"]),
    "no resplits": (["--disagreement", "0.5", "--resplits", "0"], ["--resplits must be a whole number from 1"]),
    "a promise of found thresholds": (["--disagreement", "0.5", "--per-exit"], ["--per-exit: ", "guarantee nothing"]),
    "no steps": (["--mean-exit", "2", "--steps", "0"], ["--steps must be a whole number from 1"]),
    "too few sentences": (["--disagreement", "0.1"], ["needs 29 sentences at least, but valid has 20"]),
    "too few in a half": (
        ["--disagreement", "0.2", "--resplits", "9"],
        ["needs 14 sentences at least, but valid has half of 20"],
    ),
    "what is found here": (["--mean-exit", "2", "--override", "exit_threshold=1"], ["exit_threshold=1", "--policy"]),
    "unknown policy": (["--mean-exit", "2", "--policy", "fixed"], ["--policy", "confidence"]),
    "unknown split": (["--mean-exit", "2", "--split", "dev"], ["--split dev", "valid"]),
    "checkpoint is missing": (["--mean-exit", "2", "--average", "9"], ["--average 9", "only 2"]),
    "beam of zero": (["--mean-exit", "2", "--beam", "0"], ["--beam", "from 1"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_refused(case: str, depth: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = WRONG[case]
    before = sorted((depth / "runs/toy/depth").glob("*calibration*"))
    message = refusal(lambda: calibrate.main([*map(str, call(depth, data)), *arguments]), capsys)
    for word in expected:
        assert word in message
    assert sorted((depth / "runs/toy/depth").glob("*calibration*")) == before


def test_models_without_exits_are_refused(data: Path, finished: Path, mini: Path) -> None:
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    selected = selection.select(Request("toy", str(mini), data, finished, "valid", cpu=True))
    loaded = LoadedCheckpoint(selected.model, checkpoints.load(path))
    with pytest.raises(UserError, match=r"checkpoint_best.pt: the model has no exits; .*depth_adaptive"):
        exit_calibration.load(selected, loaded, "confidence")


@pytest.mark.parametrize("halting", ["none", "sequence", "token"])
def test_haltings_without_a_threshold_are_refused(halting: str, depth: Path, data: Path) -> None:
    path = depth / "runs/toy/depth/checkpoints/checkpoint_best.pt"
    state = checkpoints.load(path)
    state["cfg"]["model"]["halting"] = halting
    selected = selection.select(Request("toy", str(depth / "depth.yaml"), data, depth / "runs", "valid", cpu=True))
    with pytest.raises(UserError, match=f"--policy halting: .*--halting {halting}, .*no threshold"):
        exit_calibration.load(selected, LoadedCheckpoint(selected.model, state), "halting")


def test_a_failing_calibration_keeps_the_last_one(
    depth: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(depth / "runs", tmp_path / "runs")
    path = tmp_path / "runs/toy/depth/calibration-confidence-mean-exit-3-beam-1.json"
    path.write_text("earlier")
    before = sorted(path.parent.iterdir())

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrated(depth, data, "--runs", str(tmp_path / "runs"), "--mean-exit", "3", "--beam", "1")
    assert path.read_text() == "earlier"
    assert sorted(path.parent.iterdir()) == before
