"""Files on disk: what is written atomically respects the umask and leaves nothing beside it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.storage import disk, folders


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_respect_the_umask(umask: int, tmp_path: Path) -> None:
    disk.write_atomically(tmp_path / "a.json", '{"a": "ü"}')
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~umask
    with folders.replaced(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_atomically(tmp_path / "a", "old")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        disk.write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
