"""recipes.metrics.results: what is written is read again, also files without a schema; the page follows the schema."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.metrics import results, results_page
from recipes.metrics.results import LanguageModelScores, TranslationScores
from recipes.metrics.sentences import Sentence
from tests.support.evaluations import corpus, evaluation, language_model, translated
from thoth_core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sources, references = corpus(6)
    return evaluation(tmp_path / "run/evaluation", sources, references, translated(references, 1, 0.3))


def changed(folder: Path, **fields: Any) -> Path:
    """The path of scores.json with other fields; those that are ... are left out."""
    path = folder / "scores.json"
    document = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))
    return path


def test_the_page_is_that_of_the_schema() -> None:
    """If this fails: python -m recipes.metrics.results_page."""
    assert results_page.PATH.read_text(encoding="utf-8") == results_page.page()


def test_the_page_names_every_field_with_its_meaning() -> None:
    page = results_page.page()
    for block in (results.TranslationScores, results.LanguageModelScores, results.Exits, results.TuningRow):
        for name, field in block.model_fields.items():
            assert f"| `{field.alias or name}` |" in page
            assert field.description, f"{block.__name__}.{name} has no description"


def test_results_are_read_again(folder: Path) -> None:
    path = folder / "scores.json"
    scores = results.read(path)
    assert isinstance(scores, TranslationScores)
    written = json.loads(path.read_text())
    assert (written["schema"], written["kind"]) == (1, "translation")
    contract = "schema bleu chrf ter sentences seconds tokens_per_second parameters command commit"
    assert set(contract.split()) <= set(written)
    assert set(written["bleu"]) == {"score", "signature"}
    assert written["search"]["max-len-b"] == 200
    scores.write(path)
    assert results.read(path) == scores
    language_model(folder)
    assert isinstance(results.read(path), LanguageModelScores)


@pytest.mark.parametrize("is_language_model", [False, True])
def test_files_without_a_schema_are_read(is_language_model: bool, folder: Path) -> None:
    """As recipes/evaluate.sh wrote them before there was one: without what a model does not have."""
    if is_language_model:
        language_model(folder)
    new = results.read(folder / "scores.json")
    absent = dict.fromkeys(("schema", "kind", "tokenised_bleu", "exits", "ensemble", "slot_usage"), ...)
    old = results.read(changed(folder, **absent, tuned=None))
    assert old == new.model_copy(update={} if is_language_model else {"tokenised_bleu": None})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 2}, "has schema 2, this version reads up to 1; update the checkout"),
        ({"schema": "one"}, "field schema: "),
        ({"kind": "speech"}, "field kind: "),
        ({"bleu": ...}, "field bleu is missing; evaluate again (recipes/evaluate.sh)"),
        ({"blue": 1}, "unknown field blue; evaluate again"),
        ({"search": {"beam": 5}}, "field search.lenpen is missing"),
        ({"seconds": float("nan")}, "field seconds: "),
        ({"sentences": True}, "field sentences: "),
    ],
)
def test_what_breaks_the_schema_is_refused(fields: dict[str, Any], message: str, folder: Path) -> None:
    path = changed(folder, **fields)
    with pytest.raises(UserError) as caught:
        results.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_sentences_of_older_files_have_their_documents() -> None:
    line = {"number": 1, "source": "a", "reference": "b", "hypothesis": "c", "talk": "7", "score": -1.0,
            "pieces": ["▁c"], "bleu": 0.0, "chrf": 1.0}  # fmt: skip
    sentence = Sentence.model_validate_json(json.dumps(line))
    assert (sentence.document, sentence.tokens) == ("7", ["▁c"])
    assert json.loads(sentence.line()) == {**{k: v for k, v in line.items() if k != "talk"}, "document": "7"}
