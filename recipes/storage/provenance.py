"""Provenance of results: the checkout, its commit, and versions of distributions."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Distributions whose version a score depends on.
DISTRIBUTIONS = ("thoth-seq2seq", "torch", "ve-fairseq", "sentencepiece", "sacremoses", "subword-nmt",
                 "regex", "sacrebleu", "numpy")  # fmt: skip


def commit() -> str | None:
    """The checkout's commit, with `-dirty` when tracked files differ from it; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=ROOT,
            # Unpacked within another repository, this is no part of it.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)},
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Version of Python and of each distribution that is installed."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
