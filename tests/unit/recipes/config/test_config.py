"""recipes/config: corpus and model files are checked key by key, and the shipped ones are right."""

import re
from pathlib import Path

import pytest

from recipes.config.corpora import Bpe, Clean, Sentencepiece, load_corpus
from recipes.config.models import load_model
from recipes.config.schema import RECIPES
from thoth_core.errors import UserError

CORPUS = "description: toy\nsource: de\ntarget: en\nreader: files\nsubwords: {vocab_size: 100}\n"
MODEL = "description: toy\nuser_dir: attn2d\ntrain: {arch: pervasive, lr: 1e-3, share: true, dropout: null}\n"


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("path", sorted((RECIPES / "corpora").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_corpora(path: Path) -> None:
    assert load_corpus(path.stem) == load_corpus(str(path))
    assert load_corpus(path.stem)[1].description


@pytest.mark.parametrize("path", sorted((RECIPES / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_models(path: Path) -> None:
    model = load_model(path.stem)
    assert (model.name, model.path) == (path.stem, path)
    assert model.settings.description
    assert model.settings.train["arch"]


def test_corpus_defaults(tmp_path: Path) -> None:
    path, corpus = load_corpus(written(tmp_path, CORPUS))
    assert path == tmp_path / "mine.yaml"
    assert corpus.subwords == Sentencepiece(
        vocab_size=100, joint=True, model="bpe", character_coverage=1.0, split_digits=False
    )
    assert corpus.clean.duplicates == "drop"


def test_a_corpus_like_one_of_another_preparation() -> None:
    """It has the other's text, and no settings of segmentation and cleaning, which have other keys."""
    _, plain = load_corpus("iwslt14.de-en")
    _, paper = load_corpus("iwslt14.de-en.paper")
    changed = {key for key in type(plain).model_fields if getattr(plain, key) != getattr(paper, key)}
    assert changed == {"description", "preparation", "subwords", "clean"}
    assert paper.subwords == Bpe(
        lowercase=True, operations=10_000, joint=True, dictionary="joined", vocabulary_threshold=None
    )
    assert (paper.clean.max_length, paper.clean.max_ratio) == (175, 1.5)
    _, reverse = load_corpus("iwslt14.en-de.paper")
    assert (reverse.source, reverse.subwords) == ("en", paper.subwords)


def test_the_former_name_of_a_preparation(tmp_path: Path) -> None:
    """Corpus files of users may have it, and `like` compares the two names as one."""
    former = written(tmp_path, CORPUS.replace("vocab_size: 100", "operations: 70") + "preparation: paper\n")
    assert load_corpus(former)[1].preparation == "moses-bpe"
    (tmp_path / "like.yaml").write_text(f"like: {former}\npreparation: moses-bpe\n")
    assert load_corpus(str(tmp_path / "like.yaml"))[1].subwords == Bpe(operations=70)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CORPUS + "tarqet: en\n", "unknown key 'tarqet' (did you mean 'target'?); valid keys: description,"),
        (CORPUS + "clean: {max_lenght: 3}\n", "'clean.max_lenght' (did you mean 'clean.max_length'?)"),
        (CORPUS + "1: x\n", "unknown key '1'; valid keys"),
        (CORPUS.replace("reader: files\n", ""), "key 'reader' is missing; it must be one of files,"),
        (CORPUS.replace("files", "csv"), "'reader' must be one of files, hub, quickstart, wit3, but is csv"),
        (CORPUS.replace("en", "no"), "but is false (put it in quotes: \"no\" is read as false)"),
        (CORPUS.replace(": de", ": german"), "'source' must be a language code such as de,"),
        (CORPUS.replace(": de", ": de-DE"), "'source' must be a language code"),
        (CORPUS.replace("100", "9"), "'subwords.vocab_size' must be a whole number from 10"),
        (CORPUS.replace("100", "'100'"), "'subwords.vocab_size' must be a whole number from 10"),
        (CORPUS.replace("100", "1e4"), "'subwords.vocab_size' must be a whole number"),
        (CORPUS.replace("100", "true"), "'subwords.vocab_size' must be a whole number"),
        (CORPUS.replace("{vocab_size: 100}", "100"), "'subwords' must be a block with the keys vocab_size, joint,"),
        (CORPUS + "clean: {max_ratio: .nan}\n", "'clean.max_ratio' must be a number or null"),
        (CORPUS + "clean: {duplicates: [drop]}\n", "'clean.duplicates' must be one of drop, keep, but"),
        (CORPUS + "files: {train: ' '}\n", "'files.train' must be a prefix or file, but is ' '"),
        (CORPUS + "source: fr\n", "line 6: is not valid YAML (key 'source' stands twice); correct that line"),
        (CORPUS + "clean: {\n", "line 7: is not valid YAML"),
        (CORPUS + "\tclean: 1\n", "line 6: is not valid YAML"),
        ("just text", "must contain keys and values"),
        ("", "must contain keys and values"),
        ("description: schön".encode("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        (b"description: a\0b", "is not valid YAML"),
    ],
)  # fmt: skip
def test_wrong_corpus_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_corpus(path)
    assert path in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_corpus_like_another(tmp_path: Path) -> None:
    """Its own keys win, block by block, over any number of steps."""
    base = written(tmp_path, CORPUS + "clean: {max_length: 5, unit: characters}\n")
    (tmp_path / "back.yaml").write_text(f"like: {base}\nsource: en\ntarget: de\nclean: {{max_length: 7}}\n")
    (tmp_path / "far.yaml").write_text(f"like: {tmp_path / 'back.yaml'}\nsubwords: {{joint: false}}\n")
    path, corpus = load_corpus(str(tmp_path / "far.yaml"))
    assert path.stem == "far"
    assert (corpus.source, corpus.target, corpus.description) == ("en", "de", "toy")
    assert isinstance(corpus.clean, Clean)
    assert (corpus.clean.max_length, corpus.clean.unit) == (7, "characters")
    assert isinstance(corpus.subwords, Sentencepiece)
    assert (corpus.subwords.vocab_size, corpus.subwords.joint) == (100, False)
    assert load_corpus(base)[1].clean.max_length == 5
    (tmp_path / "beside.yaml").write_text("like: back.yaml\n")  # a path is looked for from the file that names it
    assert load_corpus(str(tmp_path / "beside.yaml"))[1].clean.max_length == 7


@pytest.mark.parametrize("kind", ["corpus", "model"])
@pytest.mark.parametrize("name", ["nowhere", "../models/pervasive", "", "/etc/passwd"])
def test_unknown_names_are_answered_with_the_known_ones(kind: str, name: str) -> None:
    load, known = (load_corpus, "multi30k.de-en") if kind == "corpus" else (load_model, "transformer")
    with pytest.raises(UserError, match=re.escape(f"unknown {kind} '{name}'") + f".*{known}"):
        load(name)
    with pytest.raises(UserError, match=rf"nowhere\.yaml: no such {kind} file.*{known}"):
        load("nowhere.yaml")


def test_model_options_and_overrides(tmp_path: Path) -> None:
    content = MODEL + "generate: {beam: 5}\ncorpora: {toy: {train: {lr: 2, dropout: 0.3}}}\n"
    model = load_model(written(tmp_path, content))
    assert model.settings.user_dir == "attn2d"
    assert model.options("train", "other") == {
        "arch": "pervasive",
        "lr": "1e-3",
        "share": True,
        "dropout": None,
    }
    assert model.options("train", "toy") == {"arch": "pervasive", "lr": 2, "share": True, "dropout": 0.3}
    assert model.options("generate", "toy") == {"beam": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("description: toy\n", "key 'train' is missing; it must be a block of fairseq-train options"),
        ("description: toy\ntrain: {lr: 1}\n", "key 'train.arch' is missing"),
        (MODEL.replace("arch", "--arch"), "'train.--arch' must be an option's name without dashes in front"),
        (
            MODEL.replace("null", "[1, 2]"),
            "'train.dropout' must be text, a number, true, false or null",
        ),
        (MODEL + "generate: 5\n", "'generate' must be a block of options"),
        (MODEL + "corpora: {toy: {lr: 1}}\n", "unknown key 'corpora.toy.lr'; valid keys: train, generate"),
        (MODEL + "corpora: {toy: 1}\n", "'corpora.toy' must be a block with the keys train, generate, but is 1"),
        (
            MODEL + "corpora: {toy: {train: 1}}\n",
            "'corpora.toy.train' must be a block of options without dashes",
        ),
        (MODEL + "trian: {}\n", "unknown key 'trian' (did you mean 'train'?)"),
    ],
)
def test_wrong_model_files(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert path in str(caught.value)
    assert message in str(caught.value)
