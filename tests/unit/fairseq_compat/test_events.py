"""The file of a training's events: its schema, appending, following, and what counts after resuming."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fairseq_compat import events
from fairseq_compat.events import Ended, Error, Figures, Follower, Resumed, Saved


def figures(updates: int) -> Figures:
    return Figures(kind="train", updates=updates)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = [
        Figures(kind="valid", epoch=1, updates=3, seconds=2.5, loss=float("inf"), accuracy_1=41.5),
        Resumed(kind="resumed", checkpoint="checkpoint_last.pt", epoch=1, updates=3),
        Saved(kind="saved", checkpoint="checkpoint2.pt", updates=6),
        Ended(kind="ended", reason="patience", updates=6),
        Error(kind="error", message="line one, “two”"),
    ]
    for event in written:
        events.append(tmp_path / "file", event)
    lines = (tmp_path / "file").read_text().splitlines()
    assert [events.parse(line) for line in lines] == written
    assert json.loads(lines[0])["accuracy_1"] == 41.5


def test_a_part_of_a_line_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"kind": "tra')
    events.append(path, figures(1))
    assert [events.parse(line) for line in path.read_text().splitlines()] == [None, figures(1)]
    for text in ("", "[1]", '{"updates": 3}', "\x00", '{"kind": 3}'):
        assert events.parse(text) is None


@pytest.mark.parametrize(
    "line",
    ['{"kind": "train"}', '{"kind": "ended", "reason": "boredom", "updates": 1}', '{"kind": "other"}',
     '{"kind": "valid", "updates": 1, "accuracy_1": "high"}', '{"kind": "saved", "checkpoint": "x", "updates": "1"}'],
)  # fmt: skip
def test_the_schema_is_strict(line: str) -> None:
    with pytest.raises(ValidationError):
        events.parse(line)


def test_only_new_and_complete_events_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    events.append(path, figures(1))
    follower = Follower(path)
    assert follower.read() == []
    text = events.line(figures(2)) + events.line(figures(3))
    with path.open("a") as file:
        file.write(text[:-5])
    assert follower.read() == [figures(2)]
    with path.open("a") as file:
        file.write(text[-5:])
    assert follower.read() == [figures(3)]
    assert Follower(tmp_path / "none").read() == []


def test_figures_after_the_checkpoint_do_not_count() -> None:
    resumed = Resumed(kind="resumed", checkpoint="x.pt", epoch=1, updates=2)
    saved = Saved(kind="saved", checkpoint="y.pt", updates=3)
    reported = [figures(1), figures(2), figures(3), saved, resumed, figures(3)]
    assert events.remaining(reported) == [figures(1), figures(2), saved, resumed, figures(3)]
    other = events.Initialised(kind="initialised", checkpoint="z.pt")
    assert events.remaining([figures(1), other, figures(1)]) == [other, figures(1)]


def test_nothing_is_reported_without_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(events.VARIABLE, raising=False)
    events.report(figures(1))
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "file"))
    events.report(figures(1))
    assert (tmp_path / "file").read_text() == events.line(figures(1))
