"""Where results come from: the commit of the checkout."""

import subprocess
from pathlib import Path

import pytest

from recipes.storage import provenance


def test_the_commit_is_that_of_the_checkout_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked in somebody's repository, it has none."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", tmp_path, *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    (tmp_path / "unpacked").mkdir()
    for root, length in ((tmp_path, 40), (tmp_path / "unpacked", 0)):
        monkeypatch.setattr(provenance, "ROOT", root)
        assert len(provenance.commit() or "") == length
