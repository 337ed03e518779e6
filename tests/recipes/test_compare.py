"""recipes/compare.sh and recipes/score.sh: sacreBLEU's own command line on the same text, kills, and refusals."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import BLEU, CHRF

from recipes.cli import compare, score
from recipes.metrics import breakdown, quality, sentences, systems
from tests.support.evaluations import corpus, evaluation, language_model, translated
from tests.support.recipe_runs import ROOT, files, recipe_environment, refusal, refused
from thoth_core.errors import UserError


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runs of three systems: the second much like the first, the third much worse."""
    folder = tmp_path_factory.mktemp("runs")
    sources, references = corpus(40)
    for name, seed, errors in (("plain", 1, 0.3), ("alike", 2, 0.28), ("worse", 3, 0.6)):
        evaluation(folder / name / "evaluation", sources, references, translated(references, seed, errors))
    return [folder / name for name in ("plain", "alike", "worse")]


def compared(*words: object) -> int:
    """In this process."""
    return compare.main([str(word) for word in words])


def sacrebleu(*words: object) -> str:
    """What sacreBLEU's own command says, with 14 digits after the point."""
    call = [sys.executable, "-m", "sacrebleu", *map(str, words), "-w", "14"]
    environment = {name: value for name, value in os.environ.items() if name != "SACREBLEU_SEED"}
    return subprocess.run(call, capture_output=True, text=True, check=True, env=environment).stdout


def numbers(line: str) -> list[str]:
    return re.findall(r"\d+\.\d+", re.sub(r"\x1b\[[\d;]*m", "", line))


# --- the figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_paired_tests_are_those_of_sacrebleus_command(test: str, three: list[Path], tmp_path: Path) -> None:
    """Scores, means, intervals and p-values as printed, with the default seed."""
    texts = [run / "evaluation/hypotheses.txt" for run in three]
    call = [three[0] / "evaluation/references.txt", "-i", *texts, "-m", "bleu", "chrf", "ter", f"--paired-{test}"]
    fewer = [] if test == "bs" else ["--paired-ar-n", 500]
    printed = [line for line in sacrebleu(*call, *fewer, "-f", "latex").splitlines() if "hypotheses.txt &" in line]
    ours = [] if test == "bs" else ["--paired-ar", "--samples", 500]
    assert compared(*three, *ours, "--output", tmp_path / "found") == 0
    comparison = json.loads((tmp_path / "found/comparison.json").read_text())
    for position, line in enumerate(printed):
        expected = []
        for name in quality.METRICS:
            its = comparison["tests"][name]["systems"][position]
            keys = ("score",) if test == "ar" else ("score", "mean", "ci")
            expected += [f"{its[key]:.14f}" for key in keys]
            expected += [] if its["p_value"] is None else [f"{its['p_value']:.4f}"]
            assert its["ci"] > 0
        assert numbers(line.partition("&")[2]) == expected
    assert len(printed) == 3
    for name in quality.METRICS:
        signature = comparison["tests"][name]["signature"].split("|")
        assert {f"{test}:{comparison['samples']}", "seed:12345"} <= set(signature)
    p_values = [system["p_value"] for system in comparison["tests"]["bleu"]["systems"]]
    assert p_values[0] is None
    assert p_values[1] > 0.05 > p_values[2]


def test_tests_of_tokens_are_those_of_sacrebleus_command(three: list[Path], tmp_path: Path) -> None:
    """BLEU of tokens, without another tokenisation."""
    stored = sentences.read(three[0] / "evaluation", 40)
    (tmp_path / "references").write_text("".join(f"{s.reference_tokens}\n" for s in stored), encoding="utf-8")
    call = [tmp_path / "references", "-i", *(run / "evaluation/tokens.txt" for run in three[::2]), "-m", "bleu"]
    printed = sacrebleu(*call, "-tok", "none", "--force", "--paired-bs", "-f", "latex")
    lines = [line for line in printed.splitlines() if "tokens.txt &" in line]
    assert compared(*three[::2], "--output", tmp_path / "found") == 0
    comparison = json.loads((tmp_path / "found/comparison.json").read_text())["tests"]
    for line, its in zip(lines, comparison["tokenised_bleu"]["systems"], strict=True):
        expected = [f"{its[key]:.14f}" for key in ("score", "mean", "ci")]
        expected += [] if its["p_value"] is None else [f"{its['p_value']:.4f}"]
        assert numbers(line.partition("&")[2]) == expected
    assert "|tok:none|" in comparison["tokenised_bleu"]["signature"]
    assert comparison["tokenised_bleu"]["systems"] != comparison["bleu"]["systems"]


def test_intervals_are_those_of_sacrebleus_command(three: list[Path], tmp_path: Path) -> None:
    """A system alone, with --confidence; the interval of the paired test is the same."""
    folder = three[1] / "evaluation"
    call = [folder / "references.txt", "-i", folder / "hypotheses.txt", "-m", "bleu", "--confidence", "-f", "text"]
    printed = sacrebleu(*call).partition(" = ")[2]
    assert compared(*three[:2], "--output", tmp_path / "found") == 0
    ours = json.loads((tmp_path / "found/comparison.json").read_text())["tests"]["bleu"]["systems"][1]
    score, mean, interval = numbers(printed)[:3]
    assert [score, interval] == [f"{ours[name]:.14f}" for name in ("score", "ci")]
    assert float(mean) == pytest.approx(ours["mean"], abs=1e-12)  # sacreBLEU adds up in another order here


@pytest.mark.parametrize("test", [[], ["--paired-ar"]])
def test_the_same_translations_do_not_differ(test: list[str], three: list[Path], tmp_path: Path) -> None:
    """p is 1, and not the smallest that so many samples can give; what settings they were decoded with is reported."""
    shutil.copytree(three[0], tmp_path / "again")
    edit(tmp_path / "again/evaluation/scores.json", lambda s: {**s, "overrides": {"exit_policy": "fixed"}})
    assert (
        compared(three[0], tmp_path / "again", three[2], *test, "--samples", 200, "--output", tmp_path / "found") == 0
    )
    comparison = json.loads((tmp_path / "found/comparison.json").read_text())
    for test in comparison["tests"].values():
        first, same, worse = (system["p_value"] for system in test["systems"])
        assert (first, same) == (None, 1.0)
        assert worse < 0.1
    assert [system["overrides"] for system in comparison["systems"]] == [{}, {"exit_policy": "fixed"}, {}]
    assert (tmp_path / "found/comparison.md").read_text().count("; exit_policy=fixed |") == 1


def test_another_seed_draws_others_and_leaves_the_environment(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    means = []
    for seed in ([], ["--seed", 5], ["--seed", 5]):
        assert compared(*three[:2], "--samples", 100, *seed, "--output", tmp_path / "found") == 0
        comparison = json.loads((tmp_path / "found/comparison.json").read_text())
        means.append(comparison["tests"]["bleu"]["systems"][1]["mean"])
    assert means[0] != means[1] == means[2]
    assert os.environ["SACREBLEU_SEED"] == "7"


def test_sentence_scores_are_those_of_sacrebleus_command(three: list[Path]) -> None:
    folder = three[0] / "evaluation"
    stored = sentences.read(folder, 40)
    for metric in ("bleu", "chrf"):
        call = [folder / "references.txt", "-i", folder / "hypotheses.txt", "-m", metric, "-sl", "-b"]
        printed = sacrebleu(*call).split()
        assert printed == [f"{getattr(sentence, metric):.14f}" for sentence in stored]
    assert len({sentence.bleu for sentence in stored}) > 25


def test_parts_are_scored_as_corpora(three: list[Path], tmp_path: Path) -> None:
    """By length and by document every sentence is in one part; each is scored as a text of its own."""
    assert compared(*three, "--samples", 100, "--output", tmp_path / "found") == 0
    comparison = json.loads((tmp_path / "found/comparison.json").read_text())
    system = systems.open_system(three[2])
    for key, of in (
        ("by_document", lambda s: s.document),
        ("by_length", lambda s: min((len(s.source.split()) - 1) // 10, 5)),
    ):
        rows = comparison[key]
        assert sum(row["sentences"] for row in rows) == 40
        kinds = list(dict.fromkeys(of(s) for s in system.sentences))
        for row, kind in zip(rows, kinds if key == "by_document" else sorted(kinds), strict=True):
            chosen = [s for s in system.sentences if of(s) == kind]
            expected = BLEU().corpus_score([s.hypothesis for s in chosen], [[s.reference for s in chosen]])
            assert (row["sentences"], row["bleu"][2]) == (len(chosen), expected.score)
    assert [row["part"] for row in comparison["by_document"]] == ["7", "12", "3"]
    assert [row["part"] for row in comparison["by_length"]][:2] == ["up to 10", "11 to 20"]


@pytest.mark.parametrize(("text", "language", "expected"), [
    ("a b  c", "en", 3), ("", "en", 0), ("我们 在公园", "zh_Hans", 5), ("tôi đi", "vi", 2), ("我们 在公园", "zho", 5),
])  # fmt: skip
def test_lengths_are_of_words_or_characters(text: str, language: str, expected: int) -> None:
    assert breakdown.length(text, language) == expected


@pytest.mark.parametrize("language", ["en", "zh", "ja", "ko"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_signatures_make_the_same_metrics_again(language: str, lowercase: bool) -> None:
    metrics = {"bleu": BLEU(trg_lang=language, lowercase=lowercase), "chrf": CHRF(word_order=2, lowercase=lowercase)}
    texts = ["Ein A b c d e f.", "我们在公园里踢足球。"], ["ein a B c d e g.", "我们在公园里踢球。"]
    known = quality.corpus_scores(metrics, *texts)
    again = quality.metrics_of({name: score.signature for name, score in known.items()})
    assert quality.corpus_scores(again, *texts) == known


# --- the whole recipe ---------------------------------------------------------------------------------


def recipe_call(*words: object) -> list[str]:
    return [str(ROOT / "recipes/compare.sh"), *map(str, words)]


def test_the_table_stands_beside_the_first_and_is_repeated_byte_for_byte_after_kills(
    three: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(three[0].parent, tmp_path / "runs")
    inputs = [tmp_path / "runs" / run.name for run in three]
    before = files(tmp_path / "runs")
    call = recipe_call(*inputs[:2], "--samples", 100)
    begun = time.monotonic()
    done = subprocess.run(call, capture_output=True, text=True, env=recipe_environment())
    took = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    output = inputs[0] / "comparison"
    expected = files(output)
    assert set(expected) == {"comparison.json", "comparison.md"}
    assert expected["comparison.md"].decode() in done.stdout
    assert "system 1, of no difference" in done.stdout
    draw = random.Random(1)
    for share in (0.9, draw.random()):
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=recipe_environment())
        time.sleep(took * share)
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = subprocess.run(call, capture_output=True, text=True, env=recipe_environment())
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert files(output) == expected
    left = {name for name in files(tmp_path / "runs") if "comparison" not in Path(name).parts}
    assert left == set(before)  # nothing beside it, and the evaluations untouched


@pytest.mark.parametrize("place", ["os.replace", "recipes.storage.folders.put"])
def test_a_comparison_that_is_broken_off_keeps_the_last_one(
    place: str, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compared(*three[:2], "--samples", 100, "--output", tmp_path / "found") == 0
    before = files(tmp_path)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        compared(*three, "--samples", 100, "--output", tmp_path / "found")
    assert files(tmp_path) == before


# --- refusals ---------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change scores.json, or the list of objects of sentences.jsonl."""
    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        objects = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(f"{json.dumps(value)}\n" for value in objects))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "scores.json", lambda s: {k: v for k, v in s.items() if k != name})


def sentence(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / sentences.NAME, lambda lines: [*lines[:4], {**lines[4], name: value}, *lines[5:]]
    )


def signature(metric: str, old: str, new: str) -> Callable[[Path], None]:
    def change(scores: Any) -> Any:
        scores[metric]["signature"] = scores[metric]["signature"].replace(old, new)
        return scores

    return lambda folder: edit(folder / "scores.json", change)


def cut(name: str, count: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count]) and None


def update(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "scores.json", lambda scores: {**scores, **values})


BROKEN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no evaluation": (shutil.rmtree, ["alike: no scores.json in it", "recipes/evaluate.sh"]),
    "no scores": (lambda folder: (folder / "scores.json").unlink(), ["alike: no scores.json in it"]),
    "no sentences": (lambda folder: (folder / sentences.NAME).unlink(), ["sentences.jsonl: missing", "evaluate again"]),
    "empty sentences": (lambda folder: (folder / sentences.NAME).write_text(""), ["0 sentences", "has 40"]),
    "scores cut short": (cut("scores.json", 9), ["scores.json: not JSON"]),
    "scores of a list": (lambda folder: (folder / "scores.json").write_text("[]"), ["scores.json: ", "object"]),
    "scores without a metric": (without("chrf"), ["scores.json: field chrf is missing"]),
    "scores without search": (without("search"), ["scores.json: field search is missing"]),
    "a metric that is a number": (update(bleu=30.0), ["scores.json: field bleu: "]),
    "an empty search": (update(search={}), ["scores.json: field search.beam is missing"]),
    "a search that is a list": (update(search=[]), ["scores.json: field search: ", "evaluate again"]),
    "a checkpoint that is a number": (update(checkpoint=3), ["scores.json: field checkpoint: "]),
    "no language": (update(source_language=None), ["scores.json: field source_language: "]),
    "sentences as text": (update(sentences="40"), ["scores.json: field sentences: "]),
    "versions that are a list": (update(versions=[]), ["scores.json: field versions: "]),
    "exits that are a list": (update(exits=[]), ["scores.json: field exits: "]),
    "half a block": (update(exits={"policy": "x", "blocks": 3.5}), ["field exits.", "evaluate again"]),
    "a tuned search of text": (update(tuned="valid"), ["scores.json: field tuned: "]),
    "a model without a checkpoint": (
        update(ensemble=[{"model": "b"}]), ["scores.json: field ensemble.0.checkpoint is missing"]),
    "a commit that is a number": (update(commit=1), ["scores.json: field commit: "]),
    "a language model": (language_model, ["language model"]),
    "a line cut short": (cut(sentences.NAME, 5), ["sentences.jsonl: line 40: "]),
    "a line too few": (
        lambda folder: edit(folder / sentences.NAME, lambda lines: lines[:-1]), ["39 sentences", "has 40"]),
    "a line twice": (
        lambda folder: edit(folder / sentences.NAME, lambda lines: [lines[0], *lines]), ["line 2 holds sentence 1"]),
    "a hypothesis that is a number": (sentence("hypothesis", 4), ["line 5: field hypothesis: "]),
    "a score that is not finite": (sentence("chrf", float("nan")), ["line 5: field chrf: "]),
    "a key too many": (sentence("note", "x"), ["line 5: unknown field note"]),
    "pieces that are numbers": (sentence("pieces", [1]), ["line 5: field pieces.0: "]),
    "not UTF-8": (
        lambda folder: (folder / sentences.NAME).write_bytes(b"\xff" + (folder / sentences.NAME).read_bytes()),
        ["sentences.jsonl: line 1: "]),
    "another hypothesis": (
        sentence("hypothesis", "the snow"), ["scores.json: the score of BLEU is", "recipes/score.sh --update"]),
    "another reference": (sentence("reference", "the snow"), ["sentence 5", "another reference", "same test set"]),
    "another source": (sentence("source", "der Schnee"), ["sentence 5", "another source", "same test set"]),
    "other tokens of a reference": (sentence("reference_tokens", "x"), ["sentence 5", "another reference_tokens"]),
    "tokens that are missing": (sentence("hypothesis_tokens", None), ["the score of BLEU of tokens is"]),
    "no score of tokens": (without("tokenised_bleu"), ["BLEU of tokens has the signature (no such score)"]),
    "another document": (sentence("document", "8"), ["sentence 5", "another document"]),
    "another tokeniser": (signature("bleu", "tok:13a", "tok:intl"), ["tok:intl", "tok:13a", "score both alike"]),
    "another version": (signature("ter", "version:2", "version:1"), ["TER has the signature", "version:1"]),
    "no signature": (signature("bleu", "tok:13a", "t"), ["scores.json: ", "not a signature", "recipes/evaluate.sh"]),
    "another case": (signature("chrf", "case:mixed", "case:lc"), ["chrF2 has the signature", "case:lc"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_compared_is_refused(case: str, three: list[Path], tmp_path: Path) -> None:
    shutil.copytree(three[0].parent, tmp_path / "runs")
    change, words = BROKEN[case]
    change(tmp_path / "runs/alike/evaluation")
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        compared(tmp_path / "runs/plain", tmp_path / "runs/alike")
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)
    assert files(tmp_path) == before


def test_other_test_sets_are_refused(three: list[Path], tmp_path: Path) -> None:
    sources, references = corpus(39)
    other = evaluation(tmp_path / "evaluation-valid", sources, references, references, documents=False, split="valid")
    with pytest.raises(UserError, match=r"39 sentences of toy, valid, .* 40 of toy, test; .*same test set"):
        compared(three[0], other)


def test_signatures_that_both_lack_the_installed_version_are_refused(three: list[Path], tmp_path: Path) -> None:
    """Alike, but no longer what sacreBLEU makes of the text: until they have been scored again."""
    shutil.copytree(three[0].parent, tmp_path / "runs")
    both = [tmp_path / "runs/plain", tmp_path / "runs/alike"]
    for run in both:
        signature("bleu", "version:2", "version:1")(run / "evaluation")
    with pytest.raises(UserError, match=r"the signature of BLEU is .*version:1.*recipes/score.sh --update"):
        compared(*both)
    assert score.main(["--update", *map(str, both)]) == 0
    assert compared(*both, "--samples", 100) == 0


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "one run": (["{0}"], ["RUN: one system alone"]),
    "the same twice": (["{0}", "{0}/evaluation"], ["given twice"]),
    "no such folder": (["{0}", "nowhere"], ["nowhere: no such folder"]),
    "too few samples": (["{0}", "{1}", "--samples", "1"], ["--samples must be a whole number from 100"]),
    "seed of zero": (["{0}", "{1}", "--seed", "0"], ["--seed must be a whole number from 1"]),
    "output with unexpected files": (["{0}", "{1}", "--output", "{0}/evaluation"], ["--output", "hypotheses.txt"]),
    "output is a file": (["{0}", "{1}", "--output", "{0}/evaluation/scores.json"], ["a file is in the way"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_refused(case: str, three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG[case]
    before = files(three[0].parent)
    message = refusal(lambda: compared(*[word.format(*three) for word in arguments]), capsys)
    for word in words:
        assert word in message
    assert files(three[0].parent) == before


def test_the_help_has_no_doubled_percent_sign(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    printed = capsys.readouterr().out
    assert "95% intervals" in " ".join(printed.split())
    assert "%%" not in printed


def test_a_folder_of_that_name_is_not_ours_to_delete(three: list[Path], tmp_path: Path) -> None:
    shutil.copytree(three[0].parent, tmp_path / "runs")
    (tmp_path / "runs/plain/comparison").mkdir()
    (tmp_path / "runs/plain/comparison/thesis.tex").write_text("years of work")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"comparison: contains unexpected files .*thesis.tex"):
        compared(tmp_path / "runs/plain", tmp_path / "runs/alike")
    assert files(tmp_path) == before


def test_the_script_ends_in_one_line(three: list[Path], tmp_path: Path) -> None:
    done = subprocess.run(recipe_call(three[0]), capture_output=True, text=True, env=recipe_environment())
    refused(done, "RUN: one system alone", "recipes/score.sh")
    assert done.returncode == 1


# --- scoring again ---------------------------------------------------------------------------------


def test_scores_that_hold_and_scores_that_do_not(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(three[0], tmp_path / "run")
    before = files(tmp_path)
    call = [str(tmp_path / "run")]
    assert score.main(call) == 0
    assert "scores.json holds" in capsys.readouterr().out
    assert files(tmp_path) == before
    folder = tmp_path / "run/evaluation"
    sentence("bleu", 12.5)(folder)
    with pytest.raises(UserError, match=r"other scores of sentence 5; recipes/score.sh --update"):
        score.main(call)
    edit(folder / "scores.json", lambda s: {**s, "bleu": {**s["bleu"], "score": 99.0}})
    with pytest.raises(UserError, match=r"the score of BLEU is 99.0 in scores.json"):
        score.main(call)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"run/evaluation: the score of BLEU is 99.0"):  # those after it are scored too
        score.main([str(tmp_path / "run"), str(three[1])])
    assert "scores.json holds" in capsys.readouterr().out
    assert score.main([str(tmp_path / "run"), "--update"]) == 0
    updated = json.loads((folder / "scores.json").read_text())
    known = json.loads(before["run/evaluation/scores.json"])
    versions = updated.pop("versions"), known.pop("versions")
    assert versions[0]["sacrebleu"] != versions[1]["sacrebleu"] == "1"
    assert updated == known
    assert f"{updated['bleu']['score']:.2f}" in (folder / "scores.txt").read_text()
    assert sentences.read(folder, 40) == sentences.read(three[0] / "evaluation", 40)


def test_what_fails_leaves_the_evaluation_as_it_is(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scores.txt cannot show is refused; whatever else fails does so before the first file is written."""
    shutil.copytree(three[0], tmp_path / "run")
    folder = tmp_path / "run/evaluation"
    sentence("bleu", 12.5)(folder)
    call = [str(tmp_path / "run"), "--update"]
    known = files(tmp_path)
    without("threads")(folder)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"scores.json: field threads is missing; evaluate again"):
        score.main(call)
    assert files(tmp_path) == before
    (folder / "scores.json").write_bytes(known["run/evaluation/scores.json"])

    def failing(_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("recipes.metrics.score_table.table", failing)
        with pytest.raises(KeyboardInterrupt):
            score.main(call)
    assert files(tmp_path) == known
    assert score.main(call) == 0
