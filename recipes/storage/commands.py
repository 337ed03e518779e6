"""Command lines of recipes, for messages that name the next step or the remedy."""

import shlex
from pathlib import Path


def recipe_call(script: str, *, corpus: str, model: str, data: Path, runs: Path) -> str:
    """The call of the recipe `script` for this corpus, model and folders, as a user would type it."""
    words = [script, corpus, model]
    for name, folder in (("data", data), ("runs", runs)):
        if folder != Path(name):
            words += [f"--{name}", str(folder)]
    return shlex.join(words)
