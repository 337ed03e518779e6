"""Folders replaced as a whole: a folder is the old one or the new one, whenever a process is killed."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from recipes.storage import folders
from tests.support.recipe_runs import files
from thoth_core.errors import UserError


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with folders.replaced(tmp_path / "final") as building:
            (building / text).write_text(text)
    assert files(tmp_path) == {"final/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_place_that_cannot_be_replaced_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the work, and not when it is to be kept."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    for output, what in (
        (Path("."), "the working folder"),
        (tmp_path / "link", "a link"),
        (Path("/"), "a mount point"),
    ):
        with pytest.raises(UserError, match=f"{output}: is {what}.*give another folder with --output"):
            folders.make_ready(output, re.compile(".*"))
    folders.make_ready(tmp_path / "new", re.compile(".*"))


@pytest.mark.parametrize("failing", ["the writing", "the renaming"])
def test_a_failure_keeps_the_old_one(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folders.replaced(tmp_path / "final") as building:
        (building / "old").touch()
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if ".new." in path.name:
            raise OSError("no")
        return rename(path, target)

    def replace() -> None:
        with folders.replaced(tmp_path / "final") as building:
            if failing == "the writing":
                raise OSError("no")
            monkeypatch.setattr(Path, "rename", fails)
            building.joinpath("new").touch()

    with pytest.raises(OSError, match="no"):
        replace()
    assert files(tmp_path) == {"final/old": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("name", ["evaluation", "evaluation-exit_threshold=[0.9,0.8]"])
def test_what_a_killed_process_left_is_put_back_or_removed(name: str, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = socket.gethostname()
    old, new = (tmp_path / f".{name}.{kind}.{here}.{gone.pid}.x" for kind in ("old", "new"))
    running, elsewhere = tmp_path / f".{name}.new.{here}.{os.getpid()}.x", tmp_path / f".{name}.new.b.{gone.pid}.x"
    for folder in (old / "old", new, running, elsewhere):
        folder.mkdir(parents=True)
    (old / "old" / "scores.json").write_text("{}")
    folders.recover(tmp_path / name)
    assert (tmp_path / name / "scores.json").read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {name, running.name, elsewhere.name}
