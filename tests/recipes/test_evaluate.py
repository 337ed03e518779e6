"""recipes/evaluate.sh and recipes.decoding: translations in order, whatever the batches, and refusals."""

import argparse
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_compat import checkpoints
from recipes.cli import evaluate
from recipes.cli.arguments import request_of
from recipes.config.search import DEFAULTS, SearchOptions, search_options
from recipes.data.prepared_corpus import open_corpus
from recipes.evaluation import output_files, selection
from recipes.evaluation.alignments import alignment, words
from recipes.evaluation.model_loading import load_checkpoints
from recipes.evaluation.request import Request
from recipes.evaluation.translator import ModelSource, Translation, Translator, batches, load_translator
from recipes.training.run import Run
from tests.support.recipe_runs import ROOT, files, paper_corpus, recipe, refused
from thoth_core.errors import UserError


@pytest.fixture(scope="module")
def translator(data: Path, finished: Path) -> Translator:
    """With random parameters: a few updates say the same about every sentence, these something else about each."""
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    corpus = open_corpus("toy", data)
    state = checkpoints.load(path)
    torch.manual_seed(1)
    for value in state["model"].values():
        if value.dim() > 1:
            value.normal_(0, 0.5)
    return load_translator([ModelSource(state, path)], corpus=corpus, device="cpu")


@pytest.fixture(scope="module")
def sentences(data: Path) -> list[str]:
    return selection.read_lines(data / "toy/text/test.de")


def selected(mini: Path, data: Path, runs: Path, **settings: Any) -> selection.Selection:
    return selection.select(Request("toy", str(mini), data, runs, "test", cpu=True, **settings))


# --- the whole recipe ---------------------------------------------------------------------------------


def test_an_evaluation_from_text_to_score(copied: Path, data: Path, mini: Path) -> None:
    call = ["toy", mini, "--data", data, "--runs", copied, "--cpu"]
    done = recipe("evaluate", *call)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = copied / "toy/mini/evaluation"
    names = {path.name for path in folder.iterdir()}
    assert names == {"hypotheses.txt", "references.txt", "sentences.jsonl", "scores.json", "scores.txt", "training.png",
                     "alignments.jsonl", *(f"alignment-{n}.png" for n in range(1, 5))}  # fmt: skip
    drawn = [json.loads(line) for line in (folder / "alignments.jsonl").read_text().splitlines()]
    assert len(drawn) == 4
    for trace in drawn:
        assert len(trace["weights"]) == len(trace["target"])
        assert [sum(row) for row in trace["weights"]] == pytest.approx([1] * len(trace["target"]), abs=1e-3)
    hypotheses = selection.read_lines(folder / "hypotheses.txt")
    references = selection.read_lines(folder / "references.txt")
    assert (folder / "references.txt").read_bytes() == (data / "toy/text/test.en").read_bytes()
    assert len(hypotheses) == len(references) == 24
    scores = json.loads((folder / "scores.json").read_text())
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        assert scores[name]["score"] == metric.corpus_score(hypotheses, [references]).score
        assert scores[name]["signature"] == str(metric.get_signature())
    assert scores["sentences"] == 24
    assert scores["seconds"] > 0
    assert scores["tokens_per_second"] == pytest.approx(scores["tokens"] / scores["seconds"], rel=0.05)
    record = Run(copied / "toy/mini").record()
    assert record is not None
    assert scores["parameters"] == record.parameters
    assert scores["checkpoint"] == "checkpoint_best.pt"
    assert scores["updates"] == record.best_updates
    assert scores["beam"] == 3  # the model file's
    assert scores["command"].startswith("recipes/evaluate.sh toy ")
    assert scores["versions"]["torch"] == torch.__version__
    assert scores["training_command"] == record.command
    assert scores["training_status"] == "finished"
    assert "not finished" not in done.stdout
    assert done.stdout.splitlines()[-1] == f"BLEU = {scores['bleu']['score']:.2f}"
    assert done.stdout.count("BLEU = ") == 1
    assert scores["bleu"]["signature"] in done.stdout

    # Once more, in other batches: the same translations and scores, and nothing left over.
    again = recipe("evaluate", *call, "--max-tokens", 12, "--pictures", 1)
    assert again.returncode == 0, again.stdout + again.stderr
    assert selection.read_lines(folder / "hypotheses.txt") == hypotheses
    repeated = json.loads((folder / "scores.json").read_text())
    assert [repeated[name] for name in ("bleu", "chrf", "ter")] == [scores[name] for name in ("bleu", "chrf", "ter")]
    assert {path.name for path in folder.iterdir()} == names - {f"alignment-{n}.png" for n in range(2, 5)}
    assert not list((copied / "toy/mini").glob(".evaluation*"))


def test_a_corpus_prepared_as_in_papers(data: Path, mini: Path, tmp_path: Path) -> None:
    """Plain text in and out as ever; the tokens that papers score are scored too."""
    folders = ["--data", tmp_path / "data"]
    for script, *arguments in (
        ("prepare", paper_corpus(tmp_path, data.parent / "recipe_text"), *folders),
        ("train", "paper", mini, *folders, "--runs", tmp_path / "runs", "--cpu", "--", "--max-epoch", 2),
        ("evaluate", "paper", mini, *folders, "--runs", tmp_path / "runs", "--cpu", "--pictures", 1),
    ):
        done = recipe(script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs/paper/mini/evaluation"
    scores = json.loads((folder / "scores.json").read_text())
    hypotheses = selection.read_lines(folder / "hypotheses.txt")
    references = selection.read_lines(data.parent / "recipe_text/test.en")
    assert any(hypotheses)
    assert references[0].isupper()
    bleu, plain = BLEU(lowercase=True), BLEU(tokenize="none", force=True)
    assert scores["bleu"] == {
        "score": bleu.corpus_score(hypotheses, [references]).score,
        "signature": str(bleu.get_signature()),
    }
    assert "case:lc" in scores["bleu"]["signature"]
    assert "case:lc" in scores["chrf"]["signature"]
    # These words are tokens already: their plain text differs from the tokens in nothing but case.
    tokens = selection.read_lines(tmp_path / "data/paper/tokens/test.en")
    assert scores["tokenised_bleu"]["score"] == plain.corpus_score(hypotheses, [tokens]).score
    assert "tok:none" in scores["tokenised_bleu"]["signature"]
    assert f"BLEU of tokens {scores['tokenised_bleu']['score']:14.2f}   nrefs:1|" in (folder / "scores.txt").read_text()
    assert done.stdout.splitlines()[-1] == f"BLEU = {scores['bleu']['score']:.2f}"
    assert (folder / "alignment-1.png").exists()
    (tmp_path / "data/paper/bpe.codes").write_text("#version: 0.2\n")
    refused(recipe("evaluate", *arguments), "paper/bpe.codes: damaged or changed", "prepare.sh")


def test_another_split_average_and_beam_stand_apart(copied: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    run = Run(copied / "toy/mini")
    record = run.record()
    assert record is not None
    run.write(record.changed(status="interrupted"))
    call = ["toy", mini, "--data", data, "--runs", copied, "--cpu", "--pictures", "0"]
    done = recipe("evaluate", *call, "--split", "valid", "--average", "2", "--beam", "1")
    assert "note: this training is not finished (interrupted)" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (copied / "toy/mini/evaluation").exists()
    folder = copied / "toy/mini/evaluation-valid-average-2-beam-1"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["checkpoint"] == "the average of checkpoint4.pt, checkpoint3.pt"
    assert (scores["beam"], scores["sentences"], scores["split"]) == (1, 20, "valid")
    assert len(selection.read_lines(folder / "hypotheses.txt")) == 20


def test_overrides_may_be_written_as_for_fairseq() -> None:
    overrides = ("exit_threshold=None", "exit_layer=2", "exit_policy=fixed", "exit_temperature=1.1,1", "a=[1, 2]")
    request = Request("toy", "mini", Path("data"), Path("runs"), "test", overrides=overrides)
    assert list(request.override_values.values()) == [None, 2, "fixed", "1.1,1", [1, 2]]


@pytest.mark.parametrize("value", [",".join(["0.25"] * 60), "é" * 200])
def test_a_name_of_long_options_fits_a_file_system_and_is_its_own(value: str) -> None:
    def named(last: str) -> str:
        arguments = ["toy", "mini", "--average", "2", "--override", f"exit_threshold={value}{last}"]
        request = request_of(evaluate.parser().parse_args(arguments))
        return request.output_name("evaluation", "valid")

    one, two = named(",0.5"), named(",0.6")
    assert one == named(",0.5") != two
    for name in (one, two):
        assert name.startswith("evaluation-valid-average-2-exit_threshold=")
        assert 150 < len(name.encode()) <= 200


def test_translations_of_the_training_text_make_a_corpus(copied: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    """As docs/corpora.md distils a teacher."""
    done = recipe("evaluate", "toy", mini, "--data", data, "--runs", copied, "--cpu", "--pictures", "0",
                  "--split", "train", "--output", tmp_path / "distilled")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    hypotheses = selection.read_lines(tmp_path / "distilled/hypotheses.txt")
    shutil.copy(data / "toy/text/train.de", tmp_path / "train.de")
    shutil.copy(tmp_path / "distilled/hypotheses.txt", tmp_path / "train.en")
    done = recipe("prepare", "files", "--name", "taught", "--source", "de", "--target", "en", "--vocab-size", "40",
                  "--train", tmp_path / "train", "--valid", data / "toy/text/valid", "--test", data / "toy/text/test",
                  "--data", tmp_path / "data", "--no-language-check")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    taught, toy = (open_corpus(name, place) for name, place in (("taught", tmp_path / "data"), ("toy", data)))
    pairs = list(zip(selection.read_lines(toy.text("train", "de")), hypotheses, strict=True))
    sides = [selection.read_lines(taught.text("train", language)) for language in ("de", "en")]
    kept = list(zip(*sides, strict=True))
    assert kept
    assert set(kept) <= set(pairs)
    assert selection.read_lines(taught.text("test", "en")) == selection.read_lines(toy.text("test", "en"))


@pytest.mark.parametrize("stage", ["quality.score", "score_table.table"])
def test_a_failing_evaluation_keeps_the_last_one(
    stage: str,
    copied: Path,
    data: Path,
    mini: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Broken off before or while the results are written: the earlier ones stay, and no BLEU is printed."""
    earlier = copied / "toy/mini/evaluation"
    earlier.mkdir()
    (earlier / "scores.json").write_text('{"bleu": "earlier"}')

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"recipes.metrics.{stage}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(["toy", str(mini), "--data", str(data), "--runs", str(copied), "--cpu", "--pictures", "0"])
    assert files(earlier) == {"scores.json": b'{"bleu": "earlier"}'}
    assert not list((copied / "toy/mini").glob(".evaluation*"))
    assert "BLEU = " not in capsys.readouterr().out


def test_the_quickstart_script_explains_itself(tmp_path: Path) -> None:
    done = recipe("quickstart", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Safe to interrupt and to repeat" in done.stdout
    refused(recipe("quickstart", "--fast", cwd=tmp_path), "--fast")
    refused(recipe("quickstart", "--data", cwd=tmp_path), "--data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", [None, "prepare", "train", "evaluate"])
def test_the_quickstart_script_ends_with_the_score_or_an_error(failing: str | None, tmp_path: Path) -> None:
    """With the three recipes replaced by scripts that say how they were called."""
    folder = tmp_path / "a folder/recipes"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "recipes/quickstart.sh", folder)
    for name in ("prepare", "train", "evaluate"):
        last = "echo 'error: no' >&2; exit 1" if name == failing else "echo 'BLEU = 12.34'"
        (folder / f"{name}.sh").write_text(f"#!/usr/bin/env bash\necho {name}: $*\n{last}\n")
        (folder / f"{name}.sh").chmod(0o755)
    done = subprocess.run(
        [folder / "quickstart.sh", "--data", "d e", "--cpu"], capture_output=True, text=True, cwd=tmp_path
    )
    if failing is None:
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "BLEU = 12.34"
        assert "prepare: quickstart --data d e\n" in done.stdout
        assert "train: quickstart pervasive_quickstart --data d e --cpu\n" in done.stdout
        assert "evaluate: quickstart pervasive_quickstart --data d e --cpu\n" in done.stdout
        assert "The three steps took 0:0" in done.stdout
    else:
        assert done.returncode == 1
        assert "error: no" in done.stderr
        assert not done.stdout.strip().endswith("BLEU = 12.34")


# --- refusals ---------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], list[str]]] = {
    "unknown corpus": (["nowhere", "{mini}"], ["nowhere", "recipes/prepare.sh"]),
    "unknown model": (["toy", "nonsense"], ["unknown model 'nonsense'"]),
    "beam of zero": (["toy", "{mini}", "--beam", "0"], ["--beam", "from 1"]),
    "beam as text": (["toy", "{mini}", "--beam", "wide"], ["--beam"]),
    "unknown split": (["toy", "{mini}", "--split", "foo"], ["--split foo", "train, valid, test"]),
    "average of none": (["toy", "{mini}", "--average", "0"], ["--average", "from 1"]),
    "average of too many": (["toy", "{mini}", "--average", "9"], ["--average 9", "only 4"]),
    "average and best": (
        ["toy", "{mini}", "--average", "2", "--checkpoint", "best"],
        ["--average", "--checkpoint"],
    ),
    "unknown checkpoint": (["toy", "{mini}", "--checkpoint", "worst"], ["--checkpoint", "worst"]),
    "no tokens per batch": (["toy", "{mini}", "--max-tokens", "0"], ["--max-tokens", "from 1"]),
    "huge length penalty": (["toy", "{mini}", "--lenpen", "1e9"], ["--lenpen"]),
    "length penalty of nan": (["toy", "{mini}", "--lenpen", "nan"], ["--lenpen"]),
    "negative pictures": (["toy", "{mini}", "--pictures", "-1"], ["--pictures"]),
    "never trained": (["toy", "transformer"], ["toy/transformer", "recipes/train.sh toy transformer"]),
    "output is a file": (["toy", "{mini}", "--output", "{mini}"], ["{mini}", "--output"]),
    "output with unexpected files": (["toy", "{mini}", "--output", "{data}"], ["{data}", "--output"]),
    "output is not writable": (["toy", "{mini}", "--output", "/proc/nowhere"], ["/proc", "--output"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_refused(case: str, data: Path, finished: Path, mini: Path) -> None:
    arguments, words = WRONG[case]
    before = files(finished), files(data)
    call = [argument.format(mini=mini, data=data) for argument in arguments]
    done = recipe("evaluate", *call, "--data", data, "--runs", finished)
    refused(done, *[word.format(mini=mini, data=data) for word in words])
    assert (files(finished), files(data)) == before


BROKEN = {
    "checkpoint is missing": ("checkpoint_best.pt", "missing"),
    "checkpoint is empty": ("checkpoint_best.pt", "empty"),
    "checkpoint is cut short": ("checkpoint_best.pt", "truncated"),
    "all checkpoints are missing": ("checkpoints", "recipes/train.sh toy"),
    "run.json is missing": ("run.json", "recipes/train.sh toy"),
    "run.json is cut short": ("run.json", "--force"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_runs_are_refused(case: str, copied: Path, data: Path, mini: Path) -> None:
    folder = copied / "toy/mini"
    best = folder / "checkpoints/checkpoint_best.pt"
    if case == "all checkpoints are missing":
        shutil.rmtree(folder / "checkpoints")
    elif case.endswith("missing"):
        (best if "checkpoint" in case else folder / "run.json").unlink()
    else:
        path = best if "checkpoint" in case else folder / "run.json"
        path.write_bytes(b"" if "empty" in case else path.read_bytes()[: path.stat().st_size // 2])
    before = files(copied)
    done = recipe("evaluate", "toy", mini, "--data", data, "--runs", copied, "--cpu")
    refused(done, *BROKEN[case])
    assert "recipes/train.sh" in done.stderr or "--force" in done.stderr
    assert files(copied) == before


@pytest.mark.parametrize("side", ["de", "en"])
def test_changed_texts_are_refused(side: str, data: Path, finished: Path, mini: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data/toy/text" / f"test.{side}"
    path.write_text("\n".join(path.read_text().split("\n")[1:]))
    done = recipe("evaluate", "toy", mini, "--data", tmp_path / "data", "--runs", finished, "--cpu")
    refused(done, f"test.{side}", "recipes/prepare.sh files --name toy")


def test_a_checkpoint_of_another_corpus_is_refused(data: Path, finished: Path) -> None:
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    state = checkpoints.load(path)
    state["model"] = {name: value[:-1] if "embed_tokens" in name else value for name, value in state["model"].items()}
    with pytest.raises(UserError, match="does not fit the corpus"):
        load_translator([ModelSource(state, path)], corpus=open_corpus("toy", data), device="cpu")


def test_a_diverged_model_is_refused(data: Path, finished: Path) -> None:
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    state = checkpoints.load(path)
    state["model"]["encoder.layers.0.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(UserError, match=r"checkpoint_best.pt: .*not finite.*--lr"):
        load_translator([ModelSource(state, path)], corpus=open_corpus("toy", data), device="cpu")


def test_misaligned_texts_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "toy", tmp_path / "toy")
    corpus = open_corpus("toy", tmp_path)
    path = tmp_path / "toy/text/test.en"
    path.write_text(path.read_text() + "ONE MORE\n")
    with pytest.raises(UserError, match=r"test\.en: 25 lines for 24"):
        selection.read_split(corpus, "test")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"test\.en: not UTF-8 at byte 0"):
        selection.read_split(corpus, "test")


def test_unreadable_search_options_name_the_model_file() -> None:
    for settings, message in (
        ({"beams": 3}, "unknown option beams"),
        ({"beam": 0}, "beam must be a whole number from 1"),
        ({"beam": 2.5}, "beam must be"),
        ({"lenpen": "long"}, "lenpen must be a number"),
        ({"beam": True}, "beam must be"),
    ):
        with pytest.raises(UserError, match=f"some.yaml: .*{message}|some.yaml: {message}"):
            search_options(settings, "some.yaml")
    assert search_options({"beam": "3", "lenpen": 1}, "x") == DEFAULTS.model_copy(update={"beam": 3, "lenpen": 1.0})


# --- decoding ---------------------------------------------------------------------------------


def options(**settings: Any) -> SearchOptions:
    return DEFAULTS.model_copy(update=settings)


@pytest.mark.parametrize("max_tokens", [1, 17, 100])
def test_translations_do_not_depend_on_batches_nor_order(
    max_tokens: int, translator: Translator, sentences: list[str]
) -> None:
    search = options(beam=3, max_len_a=1.5, max_len_b=5)
    expected, _ = translator.translate(sentences, search)
    assert len({t.text for t in expected}) > len(sentences) // 2
    translated, _ = translator.translate(sentences[::-1], search.model_copy(update={"max_tokens": max_tokens}))
    assert [t.text for t in translated] == [t.text for t in expected][::-1]
    assert [t.tokens for t in translated] == [t.tokens for t in expected][::-1]


def test_translations_are_those_of_fairseqs_generator(translator: Translator, sentences: list[str]) -> None:
    """One sentence at a time through fairseq-interactive's own way of making a batch."""
    translated, statistics = translator.translate(sentences[:8], options(beam=3, max_len_b=30))
    task = translator.task
    invented = [word for word in task.target_dictionary.symbols if word.startswith("madeupword")]
    assert invented
    generator = task.build_generator(
        [translator.model],
        argparse.Namespace(beam=3, max_len_b=30),
        extra_gen_cls_kwargs={"tokens_to_suppress": invented},
    )
    total = 0
    for sentence, translation in zip(sentences, translated, strict=False):
        line = " ".join(translator.source.segment(sentence))
        tokens = task.source_dictionary.encode_line(line, add_if_not_exist=False, append_eos=True).long()
        dataset = task.build_dataset_for_inference([tokens], [tokens.numel()])
        hypothesis = task.inference_step(generator, [translator.model], dataset.collater([dataset[0]]))[0][0]
        assert torch.equal(hypothesis["tokens"], translation.indices)
        assert float(hypothesis["score"]) == pytest.approx(translation.score, abs=1e-5)
        assert "madeupword" not in translation.text
        total += len(hypothesis["tokens"])
    assert statistics.tokens == total


def test_batches_are_of_similar_length_and_within_the_limit() -> None:
    lengths = [3, 9, 9, 1, 4, 4, 4, 20, 2]
    grouped = list(batches(lengths, 12))
    assert sorted(index for batch in grouped for index in batch) == list(range(9))
    for batch in grouped:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 12
    assert [lengths[i] for batch in grouped for i in batch] == sorted(lengths, reverse=True)
    assert list(batches([], 12)) == []


def test_empty_unknown_and_overlong_sentences(translator: Translator, sentences: list[str]) -> None:
    plain, _ = translator.translate([sentences[0]], options(max_len_b=20))
    odd = ["", sentences[0], "   ", "日本 ??", "bake " * 3000]
    translated, statistics = translator.translate(odd, options(max_len_b=20))
    assert [t.text for t in translated][:3] == ["", plain[0].text, ""]
    assert len(translated) == 5
    assert statistics.truncated == 1
    assert all("\n" not in t.text for t in translated)


def test_progress_counts_every_sentence(translator: Translator, sentences: list[str]) -> None:
    class Counter:
        done = 0

        def update(self, count: int) -> None:
            self.done += count

    counter = Counter()
    translator.translate([*sentences, "", ""], options(beam=1), progress=counter)
    assert counter.done == len(sentences) + 2


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one\u2028still one\ntwo\x85\n\nfour\rstill four", encoding="utf-8", newline="\n")
    assert selection.read_lines(tmp_path / "text") == ["one\u2028still one", "two\x85", "", "four\rstill four"]
    (tmp_path / "text").write_text("", encoding="utf-8")
    assert selection.read_lines(tmp_path / "text") == []
    with pytest.raises(UserError, match=r"nothing.*recipes/prepare.sh"):
        selection.read_lines(tmp_path / "nothing")


# --- alignments ---------------------------------------------------------------------------------


def test_pieces_are_joined_to_words() -> None:
    pieces = ["▁Haus", "tür", "▁", "x", ".", "▁ja"]
    assert words(pieces) == [("Haustür", 0, 2), ("x.", 2, 5), ("ja", 5, 6)]
    assert words(["a", "b"]) == [("ab", 0, 2)]
    assert words([]) == []


def test_alignments_are_distributions_over_words(translator: Translator, sentences: list[str]) -> None:
    translations, _ = translator.translate(sentences[:5], options(max_len_b=30))
    for sentence, translation in zip(sentences, translations, strict=False):
        aligned = alignment(translator, sentence, translation)
        assert aligned is not None
        assert aligned.source == [*sentence.split(), "</s>"]
        assert "".join(aligned.target) == translation.text.replace(" ", "")
        assert aligned.weights.shape == (len(aligned.target), len(aligned.source))
        assert (aligned.weights >= 0).all()
        assert aligned.weights.sum(1) == pytest.approx(1, abs=1e-4)


class Aligner(torch.nn.Module):
    """A model whose piece t looks at piece S - 1 - t of the source."""

    def max_positions(self) -> int:
        return 1024

    def forward(
        self, source: torch.Tensor, lengths: torch.Tensor, previous: torch.Tensor
    ) -> tuple[Any, dict[str, Any]]:
        eye = torch.eye(source.size(1)).flip(1)[: previous.size(1)]  # (T, S)
        return None, {"attn": [eye[None]]}


def test_alignments_are_merged_to_words(translator: Translator) -> None:
    sentence = "bake lomi nura"
    pieces = translator.source.segment(sentence)
    eos = torch.tensor([translator.task.target_dictionary.eos()])
    indices = torch.cat([torch.tensor([translator.task.target_dictionary.index(p) for p in pieces]), eos])
    aligned = alignment(translator.with_model(Aligner()), sentence, Translation(sentence, pieces, indices, 0.0))
    assert aligned is not None
    assert aligned.target == ["bake", "lomi", "nura"]
    starts = [start for _, start, _ in words(pieces)]
    # The first piece looks at the end of sentence, the second at the last piece, ...
    assert aligned.weights[0, 3] == pytest.approx(1 / (starts[1] - starts[0]))
    assert aligned.weights.sum(1) == pytest.approx(1)


class Silent(torch.nn.Module):
    """A model without alignments."""

    def max_positions(self) -> int:
        return 1024

    def forward(self, *_: Any) -> tuple[Any, None]:
        return None, None


def test_models_without_alignments_and_empty_translations(translator: Translator, sentences: list[str]) -> None:
    translation, _ = translator.translate(sentences[:1], options())
    assert alignment(translator.with_model(Silent()), sentences[0], translation[0]) is None
    eos = torch.tensor([translator.task.target_dictionary.eos()])
    assert alignment(translator, sentences[0], Translation("", [], eos, 0.0)) is None


# --- several threads ---------------------------------------------------------------------------


def test_eight_threads_translate_with_one_model(translator: Translator, sentences: list[str]) -> None:
    """Each gives the translations, scores and alignments of one thread alone."""
    search = options(beam=3, max_len_a=1.5, max_len_b=5)

    def work(number: int) -> list[tuple[str, list[str], float, list[float]]]:
        mine = sentences[number:] + sentences[:number]
        translations, _ = translator.translate(mine, search.model_copy(update={"max_tokens": 40 + number}))
        alignments = [alignment(translator, *pair) for pair in zip(mine, translations, strict=True)]
        weights = [[] if each is None else each.weights.flatten().tolist() for each in alignments]
        return [(t.text, t.tokens, t.score, w) for t, w in zip(translations, weights, strict=True)]

    expected = [work(number) for number in range(8)]
    assert len({text for text, *_ in expected[0]}) > len(sentences) // 2
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert list(threads.map(work, range(8))) == expected


# --- choosing ---------------------------------------------------------------------------------


def test_the_last_epochs_are_averaged(finished: Path, data: Path, mini: Path) -> None:
    run = Run(finished / "toy/mini")
    names = [path.name for path in selection.select_checkpoints(run, "average", 3, "train")]
    assert names == ["checkpoint4.pt", "checkpoint3.pt", "checkpoint2.pt"]
    assert len(selection.select_checkpoints(run, "average", None, "train")) == 4  # five where there are five
    assert [p.name for p in selection.select_checkpoints(run, "last", None, "train")] == ["checkpoint_last.pt"]
    paths = selection.select_checkpoints(run, "average", 2, "train")
    (loaded,) = load_checkpoints(selected(mini, data, finished, checkpoint="average", average=2))
    assert loaded.updates == checkpoints.load(paths[0])["optimizer_history"][-1]["num_updates"]
    mean = loaded.state["model"]
    one, two = (checkpoints.load(path)["model"] for path in paths)
    for name, value in mean.items():
        assert torch.allclose(value, (one[name] + two[name]) / 2), name


def test_epochs_are_ordered_as_numbers(tmp_path: Path) -> None:
    for name in (
        "checkpoint2.pt",
        "checkpoint10.pt",
        "checkpoint_best.pt",
        "checkpoint_1_500.pt",
        "checkpoint9.pt",
    ):
        (tmp_path / name).touch()
    assert [p.name for p in selection.epoch_checkpoints(tmp_path)] == [
        "checkpoint10.pt",
        "checkpoint9.pt",
        "checkpoint2.pt",
    ]


def test_pictured_sentences_are_readable_spread_and_fixed() -> None:
    texts = [" ".join(["word"] * (n % 30)) for n in range(300)]
    chosen = output_files.sentences_for_pictures(texts, texts, 4)
    assert chosen == output_files.sentences_for_pictures(texts, texts, 4)
    assert len(set(chosen)) == 4
    assert all(5 <= len(texts[i].split()) <= 14 for i in chosen)
    assert chosen[-1] > 150
    assert output_files.sentences_for_pictures(["a b", "c d e"], ["x y", ""], 4) == [0]
    assert output_files.sentences_for_pictures([], [], 4) == []


def test_other_files_beside_an_evaluation_are_not_ours_to_delete(
    copied: Path, data: Path, mini: Path, tmp_path: Path
) -> None:
    for output, more in (
        (tmp_path / "output", ["--output", tmp_path / "output"]),
        (copied / "toy/mini/evaluation", []),
    ):
        output.mkdir()
        (output / "scores.json").write_text("{}")
        (output / "thesis.tex").write_text("years of work")
        done = recipe("evaluate", "toy", mini, "--data", data, "--runs", copied, "--cpu", *more)
        refused(done, "--output", "thesis.tex")
        assert (output / "thesis.tex").read_text() == "years of work"
