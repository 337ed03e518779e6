"""The recipes with models that have memories."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch

from fairseq_compat import checkpoints
from recipes.config.search import DEFAULTS
from recipes.data.prepared_corpus import open_corpus
from recipes.evaluation import model_loading
from recipes.evaluation.forced_decoding import slot_usage
from recipes.evaluation.selection import read_lines
from recipes.evaluation.translator import ModelSource, load_translator
from tests.support import recipe_runs
from tests.support.recipe_runs import ROOT, recipe, refused


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with a model file, memory.yaml, and a run trained with it on the corpus `toy`."""
    folder = tmp_path_factory.mktemp("memory")
    more = "arch: memory_transformer\n  memory-keys: 12\n  memory-topk: 3\n  memory-heads: 2\n  memory-key-dim: 16"
    text = recipe_runs.MODEL.replace("arch: transformer", more).replace(
        "optimizer: adam", "optimizer: product_key_adam"
    )
    model = folder / "memory.yaml"
    model.write_text(f"user_dir: {ROOT / 'memory_layers'}\n{text}", encoding="utf-8")
    done = recipe("train", "toy", model, "--data", data, "--runs", folder / "runs", "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_an_evaluation_reports_the_slots_that_are_read(trained: Path, data: Path) -> None:
    done = recipe("evaluate", "toy", trained / "memory.yaml", "--data", data, "--runs", trained / "runs", "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = trained / "runs/toy/memory/evaluation"
    usage = json.loads((folder / "scores.json").read_text())["slot_usage"]["d1"]
    assert 0 < max(usage["used_by_head"]) <= usage["used"] <= min(1, sum(usage["used_by_head"]) + 1e-4)
    assert re.search(r"memory d1 +\d+\.\d% of the slots", done.stdout)
    assert (folder / "slots-d1.png").read_bytes().startswith(b"\x89PNG")


def test_usage_is_that_of_the_translations_whatever_the_batches(trained: Path, data: Path) -> None:
    path = trained / "runs/toy/memory/checkpoints/checkpoint_best.pt"
    source = ModelSource(checkpoints.load(path), path, ROOT / "memory_layers")
    translator = load_translator([source], corpus=open_corpus("toy", data), device="cpu")
    sentences = [*read_lines(data / "toy/text/test.de"), ""]
    translations, _ = translator.translate(sentences, DEFAULTS.model_copy(update={"beam": 2, "max_len_b": 12}))
    tokens = sum(len(translation.indices) for translation in translations)
    alone = slot_usage(translator, sentences, translations, 1)["d1"].weights
    together = slot_usage(translator, sentences, translations, 10_000)["d1"].weights
    assert alone.sum(1).tolist() == pytest.approx([tokens, tokens])  # padding reads nothing, softmax sums to one
    assert (alone - together).abs().max() < 1e-4
    with translator.model.recorded_usage() as fresh:
        assert all(usage.weights.sum() == 0 for usage in fresh.values())


def test_a_model_without_memories_has_no_usage(finished: Path, data: Path) -> None:
    path = finished / "toy/mini/checkpoints/checkpoint_best.pt"
    corpus = open_corpus("toy", data)
    translator = load_translator([ModelSource(checkpoints.load(path), path)], corpus=corpus, device="cpu")
    translations, _ = translator.translate(["ba"], DEFAULTS.model_copy(update={"beam": 1}))
    assert slot_usage(translator, ["ba"], translations, 100) == {}


LANGUAGE_MODEL = f"""\
description: a language model that trains in a second
user_dir: {ROOT / "memory_layers"}
train:
  task: language_modeling
  sample-break-mode: eos
  tokens-per-sample: 64
  arch: memory_transformer_lm_small
  decoder-layers: 2
  decoder-embed-dim: 32
  decoder-input-dim: 32
  decoder-output-dim: 32
  memory-keys: 12
  memory-topk: 3
  optimizer: product_key_adam
  lr: 0.01
  max-tokens: 400
  max-epoch: 2
"""


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with lm.yaml, and a run trained with it on the target side of the corpus `toy`."""
    folder = tmp_path_factory.mktemp("lm")
    (folder / "lm.yaml").write_text(LANGUAGE_MODEL, encoding="utf-8")
    done = recipe("train", "toy", folder / "lm.yaml", "--data", data, "--runs", folder / "runs", "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Training lm on toy (en):" in done.stdout
    return folder


def test_a_language_model_is_scored_by_its_perplexity(language_model: Path, data: Path) -> None:
    """A second formulation: each sentence alone, its tokens from the sentencepiece model, in float64."""
    call = ["toy", language_model / "lm.yaml", "--data", data, "--runs", language_model / "runs", "--cpu"]
    done = recipe("evaluate", *call)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = language_model / "runs/toy/lm/evaluation"
    scores = json.loads((folder / "scores.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"scores.json", "scores.txt", "training.png", "slots-d2.png"}
    assert done.stdout.splitlines()[-1] == f"perplexity = {scores['perplexity']['word']:.2f}"

    path = language_model / "runs/toy/lm/checkpoints/checkpoint_best.pt"
    corpus = open_corpus("toy", data)
    model, task = model_loading.load_model(
        checkpoints.load(path), path=path, corpus=corpus, user_dir=ROOT / "memory_layers"
    )
    model.eval().double()
    dictionary, nats, tokens, words, characters = task.dictionary, 0.0, 0, 0, 0
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(corpus.subword_models["en"]))
    for line in read_lines(data / "toy/text/test.en"):
        indices = [dictionary.index(piece) for piece in pieces.encode(line, out_type=str)] + [dictionary.eos()]
        logits = model(torch.tensor([[dictionary.eos(), *indices[:-1]]]))[0][0]
        nats -= logits.log_softmax(-1)[range(len(indices)), indices].sum().item()
        tokens += len(indices)
        words += line.count(" ") + 2
        characters += len(line) + 1
    assert scores["tokens"] == tokens
    assert scores["perplexity"]["subword"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert scores["perplexity"]["word"] == pytest.approx(math.exp(nats / words), rel=1e-5)
    assert scores["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-5)


def test_a_corpus_of_an_earlier_version_is_refused(language_model: Path, data: Path, tmp_path: Path) -> None:
    """It has no bin/en, and its description names none."""
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/toy/bin/en")
    description = tmp_path / "data/toy/corpus.json"
    facts = json.loads(description.read_text())
    facts["files"] = {name: sum_ for name, sum_ in facts["files"].items() if not name.startswith("bin/en/")}
    description.write_text(json.dumps(facts))
    call = ["toy", language_model / "lm.yaml", "--data", tmp_path / "data", "--runs", tmp_path / "runs", "--cpu"]
    refused(recipe("train", *call), "bin/en: missing", "recipes/prepare.sh")
    assert not (tmp_path / "runs").exists()


def test_a_sentence_longer_than_the_samples_is_refused(language_model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("data", "runs"):
        shutil.copytree(data if name == "data" else language_model / "runs", tmp_path / name)
    checkpoint = tmp_path / "runs/toy/lm/checkpoints/checkpoint_best.pt"
    state = checkpoints.load(checkpoint)
    state["cfg"]["task"]["tokens_per_sample"] = state["cfg"]["model"]["tokens_per_sample"] = 6
    state["cfg"]["model"]["max_target_positions"] = 6
    torch.save(state, checkpoint)
    call = ["toy", language_model / "lm.yaml", "--data", data, "--runs", tmp_path / "runs", "--cpu"]
    refused(recipe("evaluate", *call), "tokens", "at most 6", "--tokens-per-sample")
