"""Provenance of results: the checkout, its commit, and the versions of packages."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Packages on whose version a score depends.
DISTRIBUTIONS = ("thoth-seq2seq", "torch", "ve-fairseq", "sentencepiece", "sacremoses", "subword-nmt",
                 "regex", "sacrebleu", "numpy")  # fmt: skip


def commit() -> str | None:
    """The checkout's commit, with `-dirty` when tracked files differ from it; None outside of git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=ROOT,
            # A copy without .git inside another repository does not belong to that repository.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)},
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def versions() -> dict[str, str]:
    """The version of Python and of each package that is installed."""
    present = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            present[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return present
