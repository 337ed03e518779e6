"""Command lines of other recipes for the same corpus and model, for messages and for repeating a result."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from recipes.storage.naming import requested


def call(script: str, arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> str:
    """The call of `script` with the same models, checkpoint, search and options, and with further `overrides`."""
    words = [word for name, value in requested(arguments) for word in (f"--{name}", value)]
    words += ["--cpu"] if arguments.cpu else []
    for override in (*arguments.override, *overrides):
        words += ["--override", override]
    if ensemble := getattr(arguments, "ensemble", []):
        words += ["--ensemble", *ensemble]
    return " ".join([same_run(script, arguments), *([shlex.join(words)] if words else [])])


def same_run(script: str, arguments: argparse.Namespace) -> str:
    """The call of `script` for the same corpus, model and folders."""
    parts = [script, arguments.corpus, arguments.model]
    for name in ("data", "runs"):
        if getattr(arguments, name) != Path(name):
            parts += [f"--{name}", str(getattr(arguments, name))]
    return shlex.join(parts)
