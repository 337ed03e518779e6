"""Records on disk: what breaks a schema is one line with the file, the field and the remedy."""

from pathlib import Path

import pytest
from pydantic import Field

from recipes.storage.corpus_record import CorpusRecord
from recipes.storage.records import Record
from thoth_core.errors import UserError


class Inner(Record):
    score: float
    signature: str


class Outer(Record):
    name: str
    count: int
    bleu: Inner
    tags: list[str] = Field(default=[])


GOOD = '{"name": "a", "count": 1, "bleu": {"score": 1.5, "signature": "s"}}'


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    record = Outer(name="ü", count=1, bleu=Inner(score=1.5, signature="s"), tags=["x"])
    record.write(path)
    assert Outer.read(path, remedy="") == record
    assert path.read_text(encoding="utf-8").startswith('{\n  "name": "ü",\n')
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "missing"),
        ("", "not JSON"),
        ("no JSON", "not JSON"),
        (GOOD[:30], "not JSON"),
        (GOOD.replace('"a"', '"ä"').encode("latin-1"), "not JSON"),
        ("[]", "input should be an object"),
        (GOOD[:-1] + ', "kount": 1}', "unknown field kount"),
        (GOOD.replace('"count": 1, ', ""), "field count is missing"),
        (GOOD.replace(', "signature": "s"', ""), "field bleu.signature is missing"),
        (GOOD.replace("1.5", "NaN"), "field bleu.score: input should be a finite number"),
        (GOOD.replace("1.5", "1e999"), "field bleu.score: input should be a finite number"),
        (GOOD.replace("1.5", '"1.5"'), "field bleu.score: input should be a valid number"),
        (GOOD.replace("1,", "1.5,"), "field count: input should be a valid integer"),
        (GOOD.replace("1,", "true,"), "field count: input should be a valid integer"),
        (GOOD.replace('"a"', "null"), "field name: input should be a valid string"),
        (GOOD[:-1] + ', "tags": ["x", 1]}', "field tags.1: input should be a valid string"),
    ],
)
def test_what_breaks_the_schema_is_named(tmp_path: Path, content: str | bytes | None, problem: str) -> None:
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        Outer.read(path, remedy="evaluate again")
    message = str(caught.value)
    assert message.startswith(f"{path}: {problem}")
    assert message.endswith("; evaluate again")
    assert "\n" not in message


def test_a_folder_in_the_place_of_a_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: Is a directory; evaluate again$"):
        Outer.read(tmp_path, remedy="evaluate again")


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sentences.jsonl"
    path.write_text(f"{GOOD}\n{GOOD.replace('1,', '[],')}\n")
    with pytest.raises(UserError, match=r"sentences\.jsonl: line 2: field count: .*; evaluate again$"):
        Outer.read_lines(path, remedy="evaluate again")
    path.write_text(f"{GOOD}\n{GOOD}\n")
    assert [record.name for record in Outer.read_lines(path, remedy="")] == ["a", "a"]


def test_a_corpus_record_needs_a_model_of_each_language(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    subwords = '{"kind": "sentencepiece", "model": "bpe", "joint": true, "vocab_size": 9, "models": {"de": "m"}}'
    path.write_text(
        f'{{"name": "a", "source": "de", "target": "en", "subwords": {subwords}, "splits": {{}}, "tests": {{}}, '
        '"leaks": {}, "fingerprint": "", "versions": {}, "files": {}}'
    )
    with pytest.raises(UserError, match=r"subwords\.models must have the languages de and en; build it again"):
        CorpusRecord.read(path, remedy="build it again")
