"""recipes.metrics.decoding_traces: lines that are written are read again; what breaks the schema is refused."""

from pathlib import Path

import pytest

from recipes.metrics.decoding_traces import SentenceAlignment, SentenceExits
from recipes.storage.records import Record
from thoth_core.errors import UserError


@pytest.mark.parametrize(
    "traces",
    [
        [SentenceExits(tokens=["▁ein", "</s>"], exits=[1, 3]), SentenceExits(tokens=[], exits=[])],
        [SentenceAlignment(number=3, source=["日本", "</s>"], target=['"'], weights=[[0.25, 0.75]])],
    ],
)
def test_lines_are_read_again(traces: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f"{trace.line()}\n" for trace in traces), encoding="utf-8")
    assert type(traces[0]).read_lines(path, remedy="") == traces


def test_tokens_are_pieces_in_the_file() -> None:
    """Earlier evaluations stay readable."""
    assert SentenceExits(tokens=["▁ein"], exits=[2]).line() == '{"pieces":["▁ein"],"exits":[2]}'


@pytest.mark.parametrize(
    ("kind", "line", "problem"),
    [
        (SentenceExits, '{"pieces": ["a"]}', "field exits is missing"),
        (SentenceExits, '{"pieces": ["a"], "exits": [0]}', "exits are counted from 1"),
        (SentenceExits, '{"pieces": ["a"], "exits": [1, 1]}', "2 exits for 1 tokens"),
        (SentenceExits, '{"pieces": ["a"], "exits": [1.5]}', "field exits.0"),
        (SentenceExits, "[1]", "object"),
        (SentenceAlignment, '{"number": 0, "source": [], "target": [], "weights": []}', "field number"),
        (SentenceAlignment, '{"number": 1, "source": ["a"], "target": ["b"], "weights": [[NaN]]}', "field weights.0.0"),
        (SentenceAlignment, '{"number": 1, "source": ["a"], "target": ["b"], "weights": []}', "1 rows of 1 numbers"),
        (SentenceAlignment, '{"number": 1, "sou', "not JSON"),
    ],
)
def test_what_breaks_the_schema_is_refused(kind: type[Record], line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        kind.read_lines(path, remedy="evaluate again")
    assert str(error.value).startswith(f"{path}: line 1: ")
    assert problem in str(error.value)
    assert str(error.value).endswith("; evaluate again")
