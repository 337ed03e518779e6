"""recipes/tune.sh, recipes/evaluate.sh --tuned and --ensemble: against plain loops and full searches, and refusals."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_compat import checkpoints
from recipes.cli import evaluate, tune
from recipes.config.search import search_options
from recipes.data.prepared_corpus import open_corpus
from recipes.evaluation import beam_tuning
from recipes.evaluation.alignments import alignment
from recipes.evaluation.selection import read_lines
from recipes.evaluation.translator import ModelSource, Translator, load_translator
from recipes.metrics import systems
from recipes.metrics.results import TuningRow
from recipes.training.run import Run
from tests.support.recipe_runs import files, refusal
from thoth_core.errors import UserError

LENPENS = (-1.0, 0.0, 0.7, 1.0, 2.5)


def state_of(path: Path, seed: int) -> dict[str, Any]:
    """With random parameters: a few updates say the same about every sentence, these something else about each."""
    state = checkpoints.load(path)
    draw = torch.Generator().manual_seed(seed)
    for value in state["model"].values():
        if value.dim() > 1:
            value.normal_(0, 0.5, generator=draw)
    return state


def translator_of(finished: Path, data: Path, *seeds: int) -> Translator:
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    corpus = open_corpus("toy", data)
    return load_translator([ModelSource(state_of(path, seed), path) for seed in seeds], corpus=corpus, device="cpu")


@pytest.fixture(scope="module")
def sources(data: Path) -> list[str]:
    return read_lines(data / "toy/text/valid.de")


@pytest.fixture
def two(copied: Path, mini: Path, tmp_path: Path) -> Path:
    """The runs folder of two models, mini and other, the second with other parameters; other.yaml lies beside it."""
    shutil.copytree(copied / "toy/mini", copied / "toy/other")
    shutil.copy(mini, tmp_path / "other.yaml")
    for path in (copied / "toy").glob("*/checkpoints/checkpoint_best.pt"):
        torch.save(state_of(path, 1 if "mini" in path.parts else 2), path)
    return copied


def words(data: Path, folder: Path, mini: Path, *more: object) -> list[str]:
    return ["toy", str(mini), "--data", str(data), "--runs", str(folder), "--cpu", *map(str, more)]


def evaluated(data: Path, folder: Path, mini: Path, *more: object) -> dict[str, Any]:
    """scores.json, of an evaluation in this process."""
    call = words(data, folder, mini, "--output", folder / "found", "--pictures", 0, *more)
    assert evaluate.main(call) == 0
    scores: dict[str, Any] = json.loads((folder / "found/scores.json").read_text())
    return scores


def tuned(data: Path, folder: Path, mini: Path, *more: object) -> int:
    return tune.main(words(data, folder, mini, *more))


# --- ensembles ---------------------------------------------------------------------------------


def test_an_ensemble_takes_the_mean_of_probabilities(finished: Path, data: Path, sources: list[str]) -> None:
    """With beam 1 against a plain loop over both models, without incremental states; and neither model alone."""
    ensemble = translator_of(finished, data, 1, 2)
    search = search_options({"beam": 1, "max-len-b": 12}, "options")
    translated, _ = ensemble.translate(sources[:8], search)
    dictionary = ensemble.task.target_dictionary
    banned = [dictionary.pad()]
    banned += [index for index, word in enumerate(dictionary.symbols) if word.startswith("madeupword")]
    for source, translation in zip(sources, translated, strict=False):
        indices = ensemble.encode(source)[0][None]
        tokens = [dictionary.eos()]
        while len(tokens) == 1 or tokens[-1] != dictionary.eos():
            mean = torch.zeros(len(dictionary))
            for model in ensemble.models:
                with torch.no_grad():
                    output, _ = model(indices, torch.tensor([indices.size(1)]), torch.tensor([tokens]))
                mean += output[0, -1].softmax(-1) / 2
            mean[banned] = 0
            if len(tokens) == 1:
                mean[dictionary.eos()] = 0  # one token at least
            tokens.append(dictionary.eos() if len(tokens) > 12 else int(mean.argmax()))
        assert translation.indices.tolist() == tokens[1:]
    for seed in (1, 2):
        alone, _ = translator_of(finished, data, seed).translate(sources[:8], search)
        assert [t.tokens for t in alone] != [t.tokens for t in translated]
    assert ensemble.parameters == 2 * sum(p.numel() for p in ensemble.model.parameters())
    assert alignment(ensemble, sources[0], translated[0]) is None


def test_an_ensemble_is_evaluated_in_a_folder_of_its_own(two: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    call = words(data, two, mini, "--ensemble", tmp_path / "other.yaml", "--pictures", 1)
    assert evaluate.main(call) == 0
    folder = two / "toy/mini/evaluation-ensemble-other"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["model"] == "mini"
    (other,) = scores["ensemble"]
    assert (other["model"], other["checkpoint"], other["updates"]) == ("other", "checkpoint_best.pt", scores["updates"])
    assert scores["tuned"] is None
    assert "model mini + other" in (folder / "scores.txt").read_text()
    assert not list(folder.glob("alignment*"))
    alone = evaluated(data, two, mini)
    assert scores["parameters"] == 2 * alone["parameters"]
    assert (folder / "hypotheses.txt").read_bytes() != (two / "found/hypotheses.txt").read_bytes()
    system = systems.open_system(folder)
    systems.check_scores(system)  # a real evaluation is what recipes/compare.sh takes
    assert system.scores.searched_with.endswith("; mini (checkpoint_best.pt) + other (checkpoint_best.pt)")


def test_models_that_pad_on_other_sides_are_refused(finished: Path, data: Path) -> None:
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    states = [checkpoints.load(path), checkpoints.load(path)]
    states[1]["cfg"]["task"]["left_pad_source"] = not states[1]["cfg"]["task"]["left_pad_source"]
    corpus = open_corpus("toy", data)
    with pytest.raises(UserError, match="pads the source on the other side"):
        load_translator([ModelSource(state, path) for state in states], corpus=corpus, device="cpu")


def test_language_models_are_refused(
    two: Path, data: Path, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.evaluation.model_loading.is_language_model", lambda state: True)
    with pytest.raises(UserError, match="--ensemble: mini is a language model"):
        evaluated(data, two, mini, "--ensemble", tmp_path / "other.yaml")
    with pytest.raises(UserError, match="mini is a language model"):
        tuned(data, two, mini)


# --- tuning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 4])
def test_one_search_serves_every_length_penalty(beam: int, finished: Path, data: Path, sources: list[str]) -> None:
    translator = translator_of(finished, data, 1)
    bonus = torch.zeros(len(translator.task.target_dictionary))
    bonus[translator.task.target_dictionary.eos()] = 4.0  # else every hypothesis is of the greatest length allowed
    translator.model.decoder.output_projection.register_forward_hook(lambda *args: args[2] + bonus)
    search = search_options({"beam": beam, "max-len-b": 12}, "options")
    candidates = translator.candidates([*sources, " "], search)
    seen = set()
    for lenpen in LENPENS:
        expected, _ = translator.translate([*sources, " "], search.model_copy(update={"lenpen": lenpen}))
        texts = translator.best_texts(candidates, lenpen)
        assert texts == [translation.text for translation in expected]
        seen.add(tuple(texts))
    assert len(seen) > 1 or beam == 1


def test_from_validation_to_the_call_of_the_evaluation(
    two: Path, data: Path, mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--beams", 3, 1, "--lenpens", 1, 0.5]
    assert tuned(data, two, mini, *grid) == 0
    printed = capsys.readouterr().out
    path = two / "toy/mini/tuning.json"
    record = json.loads(path.read_text())
    assert [(row["beam"], row["lenpen"]) for row in record["rows"]] == [(1, 0.5), (1, 1), (3, 0.5), (3, 1)]
    assert record["split"] == "valid"
    assert record["bleu"] == max(row["bleu"] for row in record["rows"])
    for row in record["rows"]:
        scores = evaluated(data, two, mini, "--split", "valid", "--beam", row["beam"], "--lenpen", row["lenpen"])
        assert scores["bleu"] == {"score": row["bleu"], "signature": record["bleu_signature"]}
        assert scores["tuned"] is None
    last = printed.splitlines()[-1]
    assert last == record["evaluate"]
    script, *call = shlex.split(last)
    assert script == "recipes/evaluate.sh"
    assert call == [*words(data, two, mini), "--tuned"]

    scores = evaluated(data, two, mini, "--tuned")
    assert (scores["beam"], scores["lenpen"], scores["split"]) == (record["beam"], record["lenpen"], "test")
    assert scores["tuned"]["file"] == "tuning.json"
    assert scores["tuned"]["rows"] == record["rows"]
    assert "(the best of 4 on valid)" in (two / "found/scores.txt").read_text()
    assert "(tuned on valid)" in systems.open_system(two / "found").scores.searched_with
    before = path.read_bytes()
    assert tuned(data, two, mini, *grid) == 0
    assert path.read_bytes() == before  # nothing in it depends on the time

    stale = json.loads(before)
    for change, message in (
        ({"parameters_of_models": ["0" * 64]}, "was tuned with other parameters than the models have now"),
        ({"corpus_fingerprint": "x"}, "was tuned with corpus_fingerprint x"),
        ({"split": "test"}, "was tuned with split test"),
        ({"search": {**stale["search"], "max-len-b": 7}}, "'max-len-b': 7"),
        ({"beam": None}, "field beam: "),
        ({"beam": -3}, "field beam: "),
        ({"lenpen": float("nan")}, "field lenpen: "),
        ({"bleu_signature": None}, "field bleu_signature: "),
    ):
        path.write_text(json.dumps({**stale, **change}))
        with pytest.raises(UserError, match=f"{message}.*tune again with: recipes/tune.sh toy"):
            evaluated(data, two, mini, "--tuned")
    path.write_bytes(before[:-9])
    with pytest.raises(UserError, match=r"tuning.json: not JSON; tune again"):
        evaluated(data, two, mini, "--tuned")


def test_an_ensemble_is_tuned_apart(
    two: Path, data: Path, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble = ["--ensemble", tmp_path / "other.yaml"]
    assert tuned(data, two, mini, *ensemble, "--beams", 2) == 0
    printed = capsys.readouterr().out
    record = json.loads((two / "toy/mini/tuning-ensemble-other.json").read_text())
    assert len(record["rows"]) == len(beam_tuning.LENPENS)
    assert len({*record["parameters_of_models"]}) == 2
    assert printed.splitlines()[-1].endswith(f"--ensemble {ensemble[1]} --tuned")
    scores = evaluated(data, two, mini, *ensemble, "--tuned")
    assert scores["tuned"]["file"] == "tuning-ensemble-other.json"
    with pytest.raises(UserError, match=r"--tuned: .*tuning.json is missing; tune first with: recipes/tune.sh toy"):
        evaluated(data, two, mini, "--tuned")


def test_of_equals_the_cheapest_is_taken() -> None:
    rows = [TuningRow(beam=beam, lenpen=lenpen, bleu=30.0) for beam in (8, 4) for lenpen in (0.4, 1.2, 0.8)]
    chosen = beam_tuning.best([*rows, TuningRow(beam=1, lenpen=1.0, bleu=29.9)])
    assert (chosen.beam, chosen.lenpen) == (4, 1.2)


@pytest.mark.parametrize(
    ("bleu", "word"),
    [((3, 2, 1), "0.5 is the lowest"), ((1, 2, 3), "2 is the highest"), ((1, 3, 2), None), ((2, 2, 2), None)],
)
def test_a_length_penalty_at_the_edge_is_noted(bleu: tuple[float, ...], word: str | None) -> None:
    rows = [TuningRow(beam=4, lenpen=x, bleu=float(score)) for x, score in zip((0.5, 1.0, 2.0), bleu, strict=True)]
    rows.append(TuningRow(beam=1, lenpen=1.0, bleu=0.0))
    note = beam_tuning.edge_note(rows, beam_tuning.best(rows))
    assert (note is None) if word is None else (note or "").startswith(f"length penalty {word} tried: ")


WRONG: dict[str, tuple[str, list[str], list[str]]] = {
    "tuned on the test set": ("tune", ["--split", "test"], ["--split test", "valid only"]),
    "one beam": ("tune", ["--beam", "3"], ["--beam is chosen here", "--beams"]),
    "one length penalty": ("tune", ["--lenpen", "3"], ["--lenpen is chosen here", "--lenpens"]),
    "beam of zero": ("tune", ["--beams", "4", "0"], ["--beams must be a whole number from 1"]),
    "length penalty of nan": ("tune", ["--lenpens", "1", "nan"], ["--lenpens must be a number from -100"]),
    "tuned and a beam": ("evaluate", ["--tuned", "--beam", "3"], ["--tuned and --beam exclude each other"]),
    "never tuned": ("evaluate", ["--tuned"], ["tuning.json is missing", "recipes/tune.sh toy"]),
    "tuned for other parameters": ("evaluate", ["--tuned", "--average", "2"], ["tuning-average-2.json is missing"]),
    "an ensemble with itself": ("evaluate", ["--ensemble", "{mini}"], ["--ensemble: mini is given twice"]),
    "an unknown model": ("evaluate", ["--ensemble", "nonsense"], ["unknown model 'nonsense'"]),
    "a model not trained": ("evaluate", ["--ensemble", "transformer"], ["toy/transformer: no such run"]),
    "an override": ("tune", ["--ensemble", "transformer", "--override", "a=1"], ["--override and --ensemble"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_refused(
    case: str, data: Path, finished: Path, mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, more, expected = WRONG[case]
    module: Any = {"tune": tune, "evaluate": evaluate}[script]
    call = words(data, finished, mini, *[word.format(mini=mini) for word in more])
    before = files(finished)
    message = refusal(lambda: module.main(call), capsys)
    for word in expected:
        assert word in message
    assert files(finished) == before


def test_a_model_of_another_corpus_is_refused(two: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    run = Run(two / "toy/other")
    record = run.record()
    assert record is not None
    run.write(record.changed(corpus_fingerprint="another"))
    with pytest.raises(UserError, match=r"other was trained on another state of the corpus"):
        evaluated(data, two, mini, "--ensemble", tmp_path / "other.yaml")


def test_a_failing_search_keeps_the_last_one(
    two: Path, data: Path, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two / "toy/mini/tuning.json").write_text("earlier")
    before = files(two)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(data, two, mini, "--beams", 1)
    assert files(two) == before
