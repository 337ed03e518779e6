"""Command lines of other recipes for the same corpus and model, for messages and for repeating a result."""

import shlex
from pathlib import Path


def same_run(script: str, *, corpus: str, model: str, data: Path, runs: Path) -> str:
    """The call of `script` for the same corpus, model and folders."""
    words = [script, corpus, model]
    for name, folder in (("data", data), ("runs", runs)):
        if folder != Path(name):
            words += [f"--{name}", str(folder)]
    return shlex.join(words)
