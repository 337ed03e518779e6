"""Readers of text files and data sets: every format gives the same pairs; what is broken is named by file and line."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from recipes.config.corpora import Hub
from recipes.data.hub import read_hub
from recipes.data.pairs import HUGE_LINE
from recipes.data.text_files import is_table, read_lines, read_prefix, read_table
from thoth_core.errors import UserError

GERMAN = ["Ein Hund läuft.", "Zwei\u2028Katzen", 'Sie sagt: "ja"']
ENGLISH = ["A dog runs.", "Two cats", 'She says: "yes"']
COLUMNS = ["de", "en"]


def json_lines(records: list[object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


RECORDS = [{"id": i, "de": de, "en": en} for i, (de, en) in enumerate(zip(GERMAN, ENGLISH, strict=True))]
NESTED = [{"translation": {"de": de, "en": en}} for de, en in zip(GERMAN, ENGLISH, strict=True)]
TSV = "".join(f"{de}\t{en}\n" for de, en in zip(GERMAN, ENGLISH, strict=True))
NAMED_TSV = "en\tnote\tde\n" + "".join(f"{en}\t-\t{de}\n" for de, en in zip(GERMAN, ENGLISH, strict=True))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_lines(tmp_path: Path, line_end: str, mark: str, last: bool, packed: bool) -> None:
    """A line ends at a line feed and nowhere else: U+2028 is a part of a line."""
    content = (mark + line_end.join(GERMAN) + (line_end if last else "")).encode()
    path = tmp_path / ("text.de.gz" if packed else "text.de")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_lines(path) == GERMAN


def test_prefix_may_mix_plain_and_packed(tmp_path: Path) -> None:
    (tmp_path / "train.v2.de").write_text("\n".join(GERMAN), encoding="utf-8")
    (tmp_path / "train.v2.en.gz").write_bytes(gzip.compress("\n".join(ENGLISH).encode()))
    pairs = read_prefix(tmp_path / "train.v2", "de", "en")
    assert (pairs.source, pairs.target) == (GERMAN, ENGLISH)
    assert pairs.origins == (str(tmp_path / "train.v2.de"), str(tmp_path / "train.v2.en.gz"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.tsv", TSV),
        ("text.tsv", NAMED_TSV),
        ("text.tsv.gz", NAMED_TSV),
        ("text.jsonl", json_lines(list(RECORDS))),
        ("text.jsonl.gz", json_lines(list(NESTED))),
    ],
)
def test_tables(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert is_table(path)
    pairs = read_table(path, COLUMNS)
    assert (pairs.source, pairs.target) == (GERMAN, ENGLISH)


def test_a_line_break_in_a_record_is_a_space(tmp_path: Path) -> None:
    """A sentence is a line of every file that is written: pairs after it would be shifted."""
    records = [{"de": "Ein\nHund\r\nläuft", "en": "A dog\n\nruns"}, {"de": "Ja", "en": "Yes"}]
    (tmp_path / "text.jsonl").write_text(json_lines(records))
    pairs = read_table(tmp_path / "text.jsonl", COLUMNS)
    assert (pairs.source, pairs.target) == (["Ein Hund läuft", "Ja"], ["A dog runs", "Yes"])


@pytest.mark.parametrize("records", [RECORDS, NESTED])
def test_parquet(tmp_path: Path, records: list[dict[str, object]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "text.parquet")
    pairs = read_table(tmp_path / "text.parquet", COLUMNS)
    assert (pairs.source, pairs.target) == (GERMAN, ENGLISH)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "nested"])
def test_data_set_on_this_machine(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library `datasets` reads a folder as it reads the hub, without the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "validation", "test"):
        if kind == "jsonl":
            (tmp_path / f"{split}.jsonl").write_text(json_lines(list(RECORDS)), encoding="utf-8")
        else:
            (tmp_path / "data").mkdir(exist_ok=True)
            table = pyarrow.Table.from_pylist(NESTED if kind == "nested" else RECORDS)
            pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    options = Hub(test=["test", "train"])
    splits = read_hub(tmp_path, options, COLUMNS)
    assert {split: len(parts) for split, parts in splits.items()} == {"train": 1, "valid": 1, "test": 2}
    assert all(part.source == GERMAN and part.target == ENGLISH for parts in splits.values() for part in parts)
    assert read_hub(tmp_path, Hub(valid="dev"), COLUMNS, valid=False)["valid"] == []
    with pytest.raises(UserError, match=r"has no split dev but train, validation, test.*hub\.valid"):
        read_hub(tmp_path, Hub(valid="dev"), COLUMNS)
    with pytest.raises(UserError, match=r"has no columns fr and en.*--columns"):
        read_hub(tmp_path, options, ["fr", "en"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "a\tb\nc\td\te\n", r"t\.tsv, line 2: has 3 columns where line 1 has 2"),
        ("t.tsv", "a\tb\tc\n", r"t\.tsv, line 1: has 3 columns; give two .*de and en"),
        (
            "t.jsonl",
            '{"de": "a", "en": "b"}\n{"de"\n',
            r"t\.jsonl, line 2: is not JSON; give one object per line",
        ),
        ("t.jsonl", '{"de": "a", "fr": "b"}\n', r"line 1: has no columns de and en, but de, fr; .*--columns"),
        ("t.jsonl", '{"de": "a", "en": null}\n', r"line 1: column en must be text, but is null"),
        ("t.jsonl", "[1, 2]\n", r"line 1: is not an object with the columns de and en"),
        ("t.jsonl", "[" * 100_000 + "\n", r"line 1: is not JSON"),
        ("t.jsonl", '{"de": "a\\u0000", "en": "b"}\n', r"line 1: column de contains a NUL"),
        ("t.jsonl", '{"de": "\\ud800", "en": "b"}\n', r"line 1: column de contains a NUL or half a surrogate"),
        ("t.parquet", "no parquet", r"t\.parquet: is not a readable parquet file; copy it again"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / name, COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty; give a file with one sentence per line"),
        (
            "gut\nschön\n".encode("latin-1"),
            r"line 2: is not UTF-8 \(byte 0xf6\); convert it.*iconv -f ISO-8859-1",
        ),
        ("gut\n".encode("utf-16"), r"is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
        ("gut\n".encode("utf-16-be"), r"line 1: contains a NUL byte"),
        (b"a\rb\r", r"its lines end in carriage returns alone; convert it: tr"),
        (b"a\nb\0\n", r"line 2: contains a NUL byte; give UTF-8 text"),
        (b"a\n" + b"b" * (HUGE_LINE + 1), r"line 2: has 100,001 characters; give one sentence per line"),
    ],
)
def test_broken_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.de"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_lines(path)
    assert str(path) in str(caught.value)


def test_longest_line_that_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "text.de").write_text("b" * HUGE_LINE)
    assert len(read_lines(tmp_path / "text.de")[0]) == HUGE_LINE
